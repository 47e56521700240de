// A tokenizer.json, a zero byte, and a text. Whatever parses must encode the text, and decode and stream what comes
// out, or throw an Error.
#include "tensor/check.h"
#include "transformer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string_view text = end == std::string_view::npos ? "Some text, 123 <s>" : input.substr(end + 1);
  try {
    const Tokenizer tokenizer = Tokenizer::parse(input.substr(0, end), "fuzz");
    std::vector<int32_t> ids = tokenizer.encode(text);
    for (const int32_t id : ids) T2L_CHECK(tokenizer.token(id), "fuzz: id {} without a token", id);
    ids.push_back(static_cast<int32_t>(size * 2654435761u));
    StreamDecoder decoder(tokenizer, size % 2);
    std::string streamed;
    for (const int32_t id : ids) streamed += decoder.feed(id);
    streamed += decoder.finish();
    tokenizer.decode(ids, size % 2);
    tokenizer.encode_pair(text, text.substr(text.size() / 2), true, {size % 50, size % 2 == 1});
  } catch (const Error&) {}
  return 0;
}
