#include "t2l/estimate.h"

#include <algorithm>

namespace t2l {
namespace {

// heads.q_proj.weight -> heads;  base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight -> q_proj
std::string part_of(std::string name) {
  static constexpr std::pair<const char*, const char*> kOfHypernet[] = {{"task_encoder.", "task_encoder"},
                                                                        {"layer_depth_encoder.", "embeddings"},
                                                                        {"layer_type_encoder.", "embeddings"},
                                                                        {"pos_emb.", "embeddings"},
                                                                        {"out_emb.", "embeddings"},
                                                                        {"out_emb_norm.", "embeddings"},
                                                                        {"mixer.", "trunk"},
                                                                        {"mlp", "trunk"},
                                                                        {"heads.", "heads"},
                                                                        {"AB_offset.", "offset"}};
  for (const auto& [prefix, part] : kOfHypernet)
    if (name.starts_with(prefix)) return part;
  for (const char* ending : {".weight", ".bias", ".lora_A", ".lora_B"})
    if (name.ends_with(ending)) name.resize(name.size() - std::string_view(ending).size());
  return name.substr(name.rfind('.') + 1);
}

}  // namespace

std::vector<std::pair<std::string, int64_t>> parameters_by_part(const Parameters& parameters) {
  std::vector<std::pair<std::string, int64_t>> parts;
  for (const std::string& name : parameters.names()) {
    if (parameters.count(name) == 0) continue;  // fixed
    const std::string part = part_of(name);
    const auto at = std::find_if(parts.begin(), parts.end(), [&](auto& p) { return p.first == part; });
    (at == parts.end() ? parts.emplace_back(part, 0) : *at).second += parameters.shape(name).elements();
  }
  return parts;
}

}  // namespace t2l
