// What a decoder's folder says about it: config.json of the Llama family and its relatives (mistral, llama, gemma2,
// qwen2, qwen3), in the spelling of transformers 4 and of 5, and generation_config.json.
#pragma once
#include "tensor/json.h"
#include "tensor/ops.h"
#include "transformer/base_model.h"

namespace t2l {

// Rotary positions. Frequency j is theta^(-2j / head_dim), then changed by the kind of scaling.
struct RopeConfig {
  enum class Kind : uint8_t { Default, Linear, Llama3 };
  Kind kind = Kind::Default;
  double theta = 10000, factor = 1;
  double low_frequency_factor = 1, high_frequency_factor = 4, original_positions = 8192;  // llama3

  // Radians per position [head_dim / 2], rounded to f32 as transformers rounds them (modeling_rope_utils.py).
  std::vector<float> frequencies(int64_t head_dim) const;
};

// One block with flags serves all families; BaseModel has the sizes.
struct DecoderConfig : BaseModel {
  int64_t vocab = 0, positions = 0;  // positions: the length it was trained for, no limit
  float eps = 1e-6f;                 // of the norms
  Activation activation = Activation::SiLU;
  RopeConfig rope;
  bool tied = false;  // the head is the embedding table

  // ---- flags of the block
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;       // q and k are normed head by head before they are rotated (qwen3)
  bool gemma = false;         // norms multiply by 1 + w, also follow attention and MLP; embeddings are scaled
  float attention_scale = 1;  // multiplies q k
  float attention_softcap = 0, logit_softcap = 0;  // 0: none
  std::vector<int32_t> windows;  // [layers]: how many tokens a query sees, itself included; 0: all before it
  // Tokens behind the first gist token of a sample, if that stands at a position p > 1, see nothing before p: what they
  // know of it, the gist token tells them (Mu et al., "Learning to compress prompts with gist tokens", 2023). Our own
  // key, gist_token_id; -1: there is none.
  int32_t gist_token = -1;

  DType dtype = DType::F32;         // checkpoint_dtype()
  float initializer_range = 0.02f;  // deviation of matrices before training

  // A model's folder, or its config.json. Error, naming file and key, for what is missing, impossible, or means
  // something that is not built here.
  static DecoderConfig load(const std::string& dir);
  static DecoderConfig parse(const Json& config, const std::string& where);

  int64_t parameters() const;
};

// The dtype that a config.json says its weights have; f16 counts as f32.
DType checkpoint_dtype(const Object& config);

// How a model's authors want it sampled.
struct GenerationConfig {
  std::vector<int32_t> eos;  // generation ends with any of these
  float temperature = 0;     // 0: greedy
  int64_t top_k = 0;         // 0: no limit
  float top_p = 1;
  std::vector<std::string> warnings;  // settings that are not built here

  // generation_config.json, and config.json for what it does not say; both may be absent.
  static GenerationConfig load(const std::string& dir);
  void take_generation(const Json& generation_config, const std::string& where);
  void take_end_tokens(const Json& config, const std::string& where);  // unless there are some
};

}  // namespace t2l
