#include "transformer/base_model.h"

#include <algorithm>
#include <array>
#include <filesystem>

namespace t2l {
namespace {
constexpr std::array kKnown{"mistral", "llama", "gemma2", "qwen2", "qwen3"};
}

bool BaseModel::is_supported(const std::string& model_type) {
  return std::find(kKnown.begin(), kKnown.end(), model_type) != kKnown.end();
}

Activation parse_activation(const std::string& name, const std::string& where) {
  if (name == "silu" || name == "swish") return Activation::SiLU;
  if (name == "gelu") return Activation::GELU;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::GELUTanh;
  fail("{}: hidden_act '{}' is not supported; silu, swish, gelu, gelu_new and gelu_pytorch_tanh are", where,
       printable(name));
}

std::string config_path(const std::string& path) {
  return std::filesystem::is_directory(path) ? path + "/config.json" : path;
}

BaseModel BaseModel::read(const std::string& path) { return parse(read_json(config_path(path)), config_path(path)); }

BaseModel BaseModel::parse(const Json& json, const std::string& where) {
  BaseModel m;
  m.path = where;
  const Object config(json, where);
  m.model_type = config.get_string("model_type");
  if (!is_supported(m.model_type))
    fail("{}: model_type '{}' is not supported; supported are {}", m.path, printable(m.model_type),
         fmt::join(kKnown, ", "));
  constexpr int64_t kMost = 1 << 24;
  m.hidden = config.get_int("hidden_size", 1, kMost);
  m.layers = config.get_int("num_hidden_layers", 1, 4096);
  m.heads = config.get_int("num_attention_heads", 1, 65536);
  m.kv_heads = config.get_int_or("num_key_value_heads", m.heads, 1, 65536);
  m.intermediate = config.get_int("intermediate_size", 1, kMost);
  if (!config.has("head_dim") && m.hidden % m.heads)
    fail("{}: hidden_size {} is no multiple of num_attention_heads {} and there is no head_dim", m.path, m.hidden,
         m.heads);
  m.head_dim = config.get_int_or("head_dim", m.hidden / m.heads, 1, 65536);
  if (m.heads % m.kv_heads)
    fail("{}: num_attention_heads {} is no multiple of num_key_value_heads {}", m.path, m.heads, m.kv_heads);
  return m;
}

BaseModel::Linear BaseModel::linear(Projection p) const {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  switch (p) {
    case Projection::Q: return {hidden, q};
    case Projection::K:
    case Projection::V: return {hidden, kv};
    case Projection::O: return {q, hidden};
    case Projection::Gate:
    case Projection::Up: return {hidden, intermediate};
    case Projection::Down: return {intermediate, hidden};
  }
  T2L_CHECK(false, "projection {}", int(p));
}

std::optional<BaseModel::Linear> BaseModel::linear(const std::string& module) const {
  const std::optional<Projection> p = find_projection(module);
  return p ? std::optional(linear(*p)) : std::nullopt;
}

std::optional<Projection> find_projection(const std::string& name) {
  for (size_t i = 0; i < kProjections; ++i)
    if (name == kProjectionNames[i]) return Projection(i);
  return {};
}

Projection parse_projection(const std::string& name) {
  if (const auto p = find_projection(name)) return *p;
  fail("target module '{}' is not supported; supported are {}", printable(name), fmt::join(kProjectionNames, ", "));
}

std::string module_path(Projection p, int64_t layer) {
  return fmt::format("model.layers.{}.{}.{}", layer, p <= Projection::O ? "self_attn" : "mlp",
                     kProjectionNames[size_t(p)]);
}

std::string module_path(const std::string& module, int64_t layer) {
  return module_path(parse_projection(module), layer);
}

}  // namespace t2l
