#include "transformer/base_model.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "tensor/json.h"

namespace t2l {

BaseModel BaseModel::read(const std::string& path) {
  struct stat st {};
  const bool directory = stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
  BaseModel m;
  m.path = directory ? path + "/config.json" : path;
  const Json json = read_json(m.path);
  const Object config(json, m.path);
  constexpr std::array kKnown{"mistral", "llama", "gemma2", "qwen2", "qwen3"};
  m.model_type = config.get_string("model_type");
  if (std::find(kKnown.begin(), kKnown.end(), m.model_type) == kKnown.end())
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

std::optional<BaseModel::Linear> BaseModel::linear(const std::string& module) const {
  const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  if (module == "q_proj") return Linear{hidden, q};
  if (module == "k_proj" || module == "v_proj") return Linear{hidden, kv};
  if (module == "o_proj") return Linear{q, hidden};
  if (module == "gate_proj" || module == "up_proj") return Linear{hidden, intermediate};
  if (module == "down_proj") return Linear{intermediate, hidden};
  return {};
}

std::string module_path(const std::string& module, int64_t layer) {
  const char* block = nullptr;
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
    if (module == name) block = "self_attn";
  for (const char* name : {"gate_proj", "up_proj", "down_proj"})
    if (module == name) block = "mlp";
  if (!block)
    fail(
        "target module '{}' is not supported; supported are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
        "down_proj",
        printable(module));
  return fmt::format("model.layers.{}.{}.{}", layer, block, module);
}

}  // namespace t2l
