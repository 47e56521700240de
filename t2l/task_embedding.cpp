#include "t2l/task_embedding.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <cmath>

namespace t2l {
namespace {

// str.isspace(): a separator of words by its category or by its bidirectional class. ICU's own u_isspace differs.
bool is_python_space(UChar32 c) {
  if (c < 0) return false;
  const auto direction = u_charDirection(c);
  return u_charType(c) == U_SPACE_SEPARATOR || direction == U_WHITE_SPACE_NEUTRAL || direction == U_BLOCK_SEPARATOR ||
         direction == U_SEGMENT_SEPARATOR;
}

}  // namespace

std::string add_full_stop(std::string_view text) {
  if (text.size() > size_t(INT32_MAX)) fail("a description of {} bytes is too long; shorten it", text.size());
  int32_t begin = 0, end = int32_t(text.size());
  UChar32 c = -1;
  for (int32_t at = begin; at < end; begin = at) {
    U8_NEXT(text.data(), at, end, c);
    if (!is_python_space(c)) break;
  }
  for (int32_t at = end; at > begin; end = at) {
    U8_PREV(text.data(), begin, at, c);
    if (!is_python_space(c)) break;
  }
  std::string out(text.substr(size_t(begin), size_t(end - begin)));
  if (!out.empty() && c >= 0 && u_isalpha(c)) out += '.';
  return out;
}

std::string task_prefix(const std::string& name) {
  return name.find("SFR") == std::string::npos ? "" : "Instruct: Retrieve semantically similar text.\nQuery: ";
}

Tensor normalise_embedding(const Tensor& x) {
  const NoGrad no_grad;
  return l2_normalize(x, std::sqrt(float(x.cols())), 1e-12f).value;
}

TaskEmbedder TaskEmbedder::load(const std::string& dir, const EncoderOptions& options, const std::string& prefix) {
  TextEncoder encoder = TextEncoder::load(dir, options);
  Tokenizer tokenizer = Tokenizer::load(encoder.config().folder);
  return {std::move(encoder), std::move(tokenizer), prefix};
}

TokenIds TaskEmbedder::tokenise(const std::vector<std::string>& texts) const {
  const size_t limit = size_t(std::min(encoder_.config().max_tokens, kMaxTokens));
  TokenIds ids;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text = add_full_stop(texts[i]);
    if (text.empty()) fail("description {} is empty; say what the task is", i);
    ids.push_back(tokenizer_.encode(prefix_ + text, true, {.max_length = limit}));
  }
  return ids;
}

Tensor TaskEmbedder::embed_raw(const std::vector<std::string>& texts) const { return encoder_.embed(tokenise(texts)); }

}  // namespace t2l
