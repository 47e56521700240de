// What an adapter needs to know of its base model: the shapes and names of the linear layers, from config.json alone.
#pragma once
#include <optional>
#include <string>

#include "tensor/check.h"

namespace t2l {

struct BaseModel {
  std::string path;        // of the config, for messages
  std::string model_type;  // mistral, llama, gemma2, qwen2, qwen3
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;

  // A directory with config.json, or that file. Error for an unknown architecture or a config that contradicts itself.
  static BaseModel read(const std::string& path);

  struct Linear {
    int64_t in = 0, out = 0;
  };
  // q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj; nothing for any other name.
  std::optional<Linear> linear(const std::string& module) const;
};

// model.layers.3.self_attn.q_proj, as all supported families name it. Error for a name that is none of the seven.
std::string module_path(const std::string& module, int64_t layer);

}  // namespace t2l
