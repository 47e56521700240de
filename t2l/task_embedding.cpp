#include "t2l/task_embedding.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <cmath>
#include <filesystem>

namespace t2l {

bool is_python_space(int32_t c) {
  if (c < 0) return false;
  // A separator of words by its category or by its bidirectional class. ICU's own u_isspace differs.
  const auto direction = u_charDirection(c);
  return u_charType(c) == U_SPACE_SEPARATOR || direction == U_WHITE_SPACE_NEUTRAL || direction == U_BLOCK_SEPARATOR ||
         direction == U_SEGMENT_SEPARATOR;
}

std::string_view python_strip(std::string_view text) {
  if (text.size() > size_t(INT32_MAX)) fail("a text of {} bytes is too long; shorten it", text.size());
  int32_t begin = 0, end = int32_t(text.size());
  UChar32 c;
  for (int32_t at = begin; at < end; begin = at) {
    U8_NEXT(text.data(), at, end, c);
    if (!is_python_space(c)) break;
  }
  for (int32_t at = end; at > begin; end = at) {
    U8_PREV(text.data(), begin, at, c);
    if (!is_python_space(c)) break;
  }
  return text.substr(size_t(begin), size_t(end - begin));
}

std::string add_full_stop(std::string_view text) {
  std::string out(python_strip(text));
  UChar32 last = -1;
  if (auto at = int32_t(out.size()); at > 0) U8_PREV(out.data(), 0, at, last);
  if (last >= 0 && u_isalpha(last)) out += '.';
  return out;
}

std::string task_prefix(const std::string& name) {
  return name.find("SFR") == std::string::npos ? "" : "Instruct: Retrieve semantically similar text.\nQuery: ";
}

Tensor normalise_embedding(const Tensor& x) {
  const NoGrad no_grad;
  return l2_normalize(x, std::sqrt(float(x.cols())), 1e-12f).value;
}

TaskEmbedder TaskEmbedder::load(const std::string& dir, const EncoderOptions& options, const EncoderSpec& spec) {
  const std::string config_path = dir + "/config.json";
  const Json config = std::filesystem::exists(config_path) ? read_json(config_path) : Json::object();
  std::optional<Pooling> pooling = options.pooling;
  if (!pooling && !spec.pooling.empty()) pooling = parse_pooling(spec.pooling);
  const Object o(config, config_path);
  if (!BaseModel::is_supported(o.get_string_or("model_type", ""))) {
    TextEncoder encoder = TextEncoder::load(dir, {options.dtype, options.device, pooling});
    if (spec.layer != -1)
      fail("{}: encoder.layer {} is for base models; a text encoder gives its last", dir, spec.layer);
    Tokenizer tokenizer = Tokenizer::load(encoder.config().folder);
    const Pooling of_model = encoder.config().pooling;
    return {std::move(encoder), std::move(tokenizer), of_model, spec};
  }
  Decoder decoder = Decoder::load(dir, {options.dtype, options.device});
  if (const int64_t n = decoder.config().layers; spec.layer < -n - 1 || spec.layer > n)
    fail("{}: has no hidden state {}; it has {} layers", dir, spec.layer, n);
  return {std::move(decoder), Tokenizer::load(dir), pooling.value_or(Pooling::LastToken), spec};
}

int64_t TaskEmbedder::dim() const {
  return std::visit([](const auto& m) { return m.config().hidden; }, model_);
}

std::vector<int32_t> TaskEmbedder::encode(const std::string& text) const {
  // The official code cuts a base model's texts at their beginning.
  const auto* encoder = std::get_if<TextEncoder>(&model_);
  const int64_t limit = encoder ? std::min(encoder->config().max_tokens, kMaxTokens) : kMaxTokens;
  return tokenizer_.encode(text, true, {.max_length = size_t(limit), .left = !encoder});
}

TokenIds TaskEmbedder::tokenise(const std::vector<std::string>& texts) const {
  TokenIds ids;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text = add_full_stop(texts[i]);
    if (text.empty()) fail("description {} is empty; say what the task is", i);
    ids.push_back(encode(spec_.prefix + text + spec_.suffix));
  }
  return ids;
}

Tensor TaskEmbedder::embed_ids(const TokenIds& ids) const {
  if (const auto* encoder = std::get_if<TextEncoder>(&model_)) return encoder->embed(ids);
  const auto& decoder = std::get<Decoder>(model_);
  const int64_t layer = spec_.layer < 0 ? decoder.config().layers + 1 + spec_.layer : spec_.layer;
  return embed_in_chunks(ids, dim(), decoder.options().device, [&](const TokenIds& some) {
    std::vector<int32_t> offsets = {0};
    for (const auto& text : some) offsets.push_back(offsets.back() + int32_t(text.size()));
    return pool(decoder.hidden({.ids = some}, nullptr, nullptr, layer), offsets, pooling_);
  });
}

Tensor TaskEmbedder::embed_raw(const std::vector<std::string>& texts) const { return embed_ids(tokenise(texts)); }

Tensor TaskEmbedder::embed_verbatim(const std::vector<std::string>& texts) const {
  TokenIds ids;
  for (const std::string& text : texts) ids.push_back(encode(text));
  return embed_ids(ids);
}

}  // namespace t2l
