// What an adapter needs to know of its base model: the shapes and names of the linear layers, from config.json alone.
#pragma once
#include <array>
#include <optional>
#include <string>

#include "tensor/json.h"
#include "tensor/ops.h"

namespace t2l {

// The linear layers of a decoder's block, in the order of its forward pass.
enum class Projection : uint8_t { Q, K, V, O, Gate, Up, Down };
inline constexpr size_t kProjections = 7;
inline constexpr std::array<const char*, kProjections> kProjectionNames{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                                        "gate_proj", "up_proj", "down_proj"};

// An activation by the name that a config.json, `where`, has for it. Error for any that is not built here.
Activation parse_activation(const std::string& name, const std::string& where);

// config.json of a model's directory, or the file itself.
std::string config_path(const std::string& directory_or_file);

std::optional<Projection> find_projection(const std::string& name);
Projection parse_projection(const std::string& name);  // Error for a name that is none of the seven

struct BaseModel {
  std::string path;        // of the config, for messages
  std::string model_type;  // mistral, llama, gemma2, qwen2, qwen3
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;

  // A directory with config.json, or that file. Error for an unknown architecture or a config that contradicts itself.
  static BaseModel read(const std::string& path);
  static BaseModel parse(const Json& config, const std::string& where);
  static bool is_supported(const std::string& model_type);

  struct Linear {
    int64_t in = 0, out = 0;
  };
  Linear linear(Projection p) const;
  std::optional<Linear> linear(const std::string& module) const;  // nothing for a name that is none of the seven
};

// model.layers.3.self_attn.q_proj, as all supported families name it. The second form: Error for another name.
std::string module_path(Projection p, int64_t layer);
std::string module_path(const std::string& module, int64_t layer);

}  // namespace t2l
