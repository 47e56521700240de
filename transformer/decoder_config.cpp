#include "transformer/decoder_config.h"

#include <cmath>
#include <filesystem>
#include <numbers>

namespace t2l {
namespace {

namespace fs = std::filesystem;

double positive(const Object& o, const char* key, double x, double most) {
  if (!(x > 0 && x <= most)) fail("{}: '{}' must be above 0 and at most {}, not {}", o.where(), key, most, x);
  return x;
}

// rope_theta beside rope_scaling {rope_type or type, factor, ..}, or all of it in rope_parameters (transformers 5).
RopeConfig parse_rope(const Object& o) {
  RopeConfig r;
  const bool newer = o.has("rope_parameters");
  if (const double part = o.get_float_or("partial_rotary_factor", 1); part != 1)
    fail("{}: partial_rotary_factor {} is not supported; all of each head is rotated", o.where(), part);
  r.theta = positive(o, "rope_theta", o.get_float_or("rope_theta", 10000), 1e15);
  if (!newer && !o.has("rope_scaling")) return r;
  const Object s = o.get_object(newer ? "rope_parameters" : "rope_scaling");
  if (newer) r.theta = positive(s, "rope_theta", s.get_float_or("rope_theta", r.theta), 1e15);
  const std::string type = s.get_string_or("rope_type", s.get_string_or("type", newer ? "default" : ""));
  if (type == "default") return r;
  if (type != "linear" && type != "llama3")
    fail("{}: rope type '{}' is not supported; default, linear and llama3 are", s.where(), printable(type));
  r.factor = positive(s, "factor", s.get_float("factor"), 1e6);
  r.kind = type == "linear" ? RopeConfig::Kind::Linear : RopeConfig::Kind::Llama3;
  if (r.kind == RopeConfig::Kind::Linear) return r;
  r.low_frequency_factor = positive(s, "low_freq_factor", s.get_float("low_freq_factor"), 1e6);
  r.high_frequency_factor = positive(s, "high_freq_factor", s.get_float("high_freq_factor"), 1e6);
  r.original_positions =
      positive(s, "original_max_position_embeddings", s.get_float("original_max_position_embeddings"), 1e9);
  if (r.high_frequency_factor <= r.low_frequency_factor)
    fail("{}: high_freq_factor {} must be above low_freq_factor {}", s.where(), r.high_frequency_factor,
         r.low_frequency_factor);
  return r;
}

// Which layers look back over a window only. layer_types says it for each; else it is the family's own rule.
std::vector<int32_t> parse_windows(const Object& o, const DecoderConfig& c) {
  const auto window = int32_t(o.get_int_or("sliding_window", 0, 0, INT32_MAX));
  std::vector<int32_t> windows(size_t(c.layers), 0);
  if (o.has("layer_types")) {
    const std::vector<std::string> types = o.get_strings("layer_types");
    if (int64_t(types.size()) != c.layers)
      fail("{}: layer_types has {} entries for {} layers", o.where(), types.size(), c.layers);
    for (size_t i = 0; i < types.size(); ++i)
      if (types[i] == "sliding_attention") {
        if (!window) fail("{}: layer_types has sliding_attention, but there is no sliding_window", o.where());
        windows[i] = window;
      } else if (types[i] != "full_attention") {
        fail("{}: layer type '{}' is not supported; full_attention and sliding_attention are", o.where(),
             printable(types[i]));
      }
    return windows;
  }
  const bool qwen = c.model_type == "qwen2" || c.model_type == "qwen3";
  const int64_t from = qwen ? o.get_int_or("max_window_layers", 0, 0, 4096) : 0;
  if (c.model_type == "llama" || (qwen && !o.get_bool_or("use_sliding_window", false))) return windows;
  for (int64_t i = from; i < c.layers; i += c.gemma ? 2 : 1) windows[size_t(i)] = window;
  return windows;
}

}  // namespace

DType checkpoint_dtype(const Object& o) {
  const std::string name = o.get_string_or("dtype", o.get_string_or("torch_dtype", "float32"));
  return name == "bfloat16" ? DType::BF16 : DType::F32;
}

std::vector<float> RopeConfig::frequencies(int64_t head_dim) const {
  std::vector<float> f(size_t(head_dim / 2));
  for (size_t j = 0; j < f.size(); ++j) {
    const auto plain = float(std::pow(theta, -2. * double(j) / double(head_dim)));
    f[j] = plain;
    if (kind == Kind::Linear) f[j] = float(plain / factor);
    if (kind != Kind::Llama3) continue;
    const double wavelength = 2 * std::numbers::pi / plain, low = original_positions / low_frequency_factor,
                 high = original_positions / high_frequency_factor;
    if (wavelength > low) f[j] = float(plain / factor);
    if (wavelength > low || wavelength < high) continue;
    const double smooth =
        (original_positions / wavelength - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
    f[j] = float((1 - smooth) * plain / factor + smooth * plain);
  }
  return f;
}

DecoderConfig DecoderConfig::parse(const Json& json, const std::string& where) {
  const Object o(json, where);
  DecoderConfig c;
  static_cast<BaseModel&>(c) = BaseModel::parse(json, where);
  if (o.has("quantization_config"))
    fail("{}: the weights are quantized, which is not supported; use the model's f32, f16 or bf16 weights", where);
  c.vocab = o.get_int("vocab_size", 1, 1 << 26);
  c.positions = o.get_int_or("max_position_embeddings", 2048, 1, 1 << 30);
  c.eps = float(o.get_float_or("rms_norm_eps", 1e-6));
  if (!(c.eps > 0 && c.eps < 1)) fail("{}: 'rms_norm_eps' must lie between 0 and 1, not {}", where, c.eps);
  if (c.head_dim % 2 || c.head_dim > 256)
    fail("{}: heads of {} are not supported; their size must be even and at most 256", where, c.head_dim);
  c.activation = parse_activation(o.get_string_or("hidden_activation", o.get_string_or("hidden_act", "silu")), where);
  c.rope = parse_rope(o);
  c.gemma = c.model_type == "gemma2";
  c.tied = o.get_bool_or("tie_word_embeddings", c.gemma);
  c.qkv_bias = o.get_bool_or("attention_bias", c.model_type == "qwen2");
  c.o_bias = c.model_type != "qwen2" && o.get_bool_or("attention_bias", false);
  c.mlp_bias = o.get_bool_or("mlp_bias", false);
  c.qk_norm = c.model_type == "qwen3";
  c.attention_scale = 1 / std::sqrt(float(c.head_dim));
  if (c.gemma) {
    c.attention_scale =
        float(1 / std::sqrt(positive(o, "query_pre_attn_scalar", o.get_float_or("query_pre_attn_scalar", 256), 1e9)));
    const auto cap = [&](const char* key) { return o.has(key) ? float(positive(o, key, o.get_float(key), 1e9)) : 0; };
    c.attention_softcap = cap("attn_logit_softcapping");
    c.logit_softcap = cap("final_logit_softcapping");
  }
  c.windows = parse_windows(o, c);
  c.gist_token = int32_t(o.get_int_or("gist_token_id", -1, 0, c.vocab - 1));
  c.dtype = checkpoint_dtype(o);
  c.initializer_range = float(positive(o, "initializer_range", o.get_float_or("initializer_range", 0.02), 1e3));
  return c;
}

DecoderConfig DecoderConfig::load(const std::string& dir) {
  return parse(read_json(config_path(dir)), config_path(dir));
}

int64_t DecoderConfig::parameters() const {
  int64_t block = (gemma ? 4 : 2) * hidden + (qk_norm ? 2 * head_dim : 0);
  for (size_t i = 0; i < kProjections; ++i) {
    const Linear l = linear(Projection(i));
    const bool bias = i < 3 ? qkv_bias : i == 3 ? o_bias : mlp_bias;
    block += l.in * l.out + (bias ? l.out : 0);
  }
  return layers * block + hidden + vocab * hidden * (tied ? 1 : 2);
}

void GenerationConfig::take_end_tokens(const Json& config, const std::string& where) {
  const Json* found = Object(config, where).find("eos_token_id");
  if (!found || !eos.empty()) return;
  for (const Json& id : found->is_array() ? *found : Json::array({*found})) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      fail("{}: eos_token_id must be a token id or a list of them", where);
    eos.push_back(id.get<int32_t>());
  }
}

void GenerationConfig::take_generation(const Json& config, const std::string& where) {
  const Object o(config, where);
  take_end_tokens(config, where);
  if (o.get_bool_or("do_sample", false)) {  // otherwise the rest is idle
    temperature = float(positive(o, "temperature", o.get_float_or("temperature", 1), 1e6));
    top_p = float(positive(o, "top_p", o.get_float_or("top_p", 1), 1));
    top_k = o.get_int_or("top_k", 50, 0, INT32_MAX);  // transformers' own default
  }
  for (const auto& [key, idle] :
       {std::pair("repetition_penalty", 1.), std::pair("encoder_repetition_penalty", 1.), std::pair("typical_p", 1.),
        std::pair("min_p", 0.), std::pair("no_repeat_ngram_size", 0.)})
    if (const double x = o.get_float_or(key, idle); x != idle)
      warnings.push_back(fmt::format("{}: {} {} is not built yet and has no effect", where, key, x));
}

GenerationConfig GenerationConfig::load(const std::string& dir) {
  GenerationConfig g;
  if (const std::string file = dir + "/generation_config.json"; fs::exists(file))
    g.take_generation(read_json(file), file);
  if (const std::string file = dir + "/config.json"; fs::exists(file)) g.take_end_tokens(read_json(file), file);
  return g;
}

}  // namespace t2l
