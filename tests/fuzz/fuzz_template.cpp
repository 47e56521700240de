// A chat template, a zero byte, and a conversation as JSON (there is one where none is given). Whatever parses must
// render to valid UTF-8, twice the same unless it asks for the time, or throw an Error of one line.
#include "transformer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  const std::string_view conversation =
      end == size
          ? R"([{"role": "user", "content": "h\u00e9 <b> 1"}, {"role": "assistant", "content": null, "n": [1, {"k": 2.5}]}])"
          : input.substr(end + 1);
  try {
    const OrderedJson messages = parse_ordered_json(conversation, "fuzz");
    const ChatTemplate chat = ChatTemplate::parse(std::string(input.substr(0, end)), "fuzz", {{"bos_token", "<s>"}});
    const std::string text = chat.render(messages, size % 2, {{"tools", messages}});
    T2L_CHECK(valid_utf8(text), "fuzz: not UTF-8");
    T2L_CHECK(
        input.find("strftime_now") != input.npos || chat.render(messages, size % 2, {{"tools", messages}}) == text,
        "fuzz: two renders differ");
  } catch (const Error& e) {
    T2L_CHECK(std::string_view(e.what()).find('\n') == std::string_view::npos, "fuzz: an error of several lines");
  }
  return 0;
}
