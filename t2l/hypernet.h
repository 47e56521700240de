// The Text-to-LoRA hypernetwork (Charakorn et al., "Text-to-LoRA", ICML 2025, and its official code).
//
//   phi(task, layer, module) = [LN(W e + b), LN(depth[layer]), LN(type[module])]     e: the task's embedding
//   x = residual(mixer(phi), mlp1),   y = residual(x + .., mlp2),   h = mlp3(y),   A, B = head[module](h)
//
// What is added between mlp1 and mlp2, and what a head gives for one h, is the variant:
//   L: nothing; A and B, all ranks.             M: an embedding of "A" or "B"; A or B, all ranks, from one shared head.
//   S: that, and the rank's position; one rank of A or B.        AR: the rank's position; one rank of A and of B.
#pragma once
#include "nn/layers.h"

namespace t2l {

// A linear layer of the base model that is adapted in each of its layers: y = W x + scale B A x.
struct AdaptedModule {
  std::string name;  // q_proj
  int64_t in = 0, out = 0;
};

struct HypernetConfig {
  bool shared_head = false;          // official shared_AB_head: M and S
  bool autoregressive = false;       // official autoreg_gen: S and AR
  bool learnable_positions = false;  // official learnable_pos_emb; else rotary
  bool head_bias = true;

  // How predictions become weights.
  enum class Objective { SFT, Reconstruction } objective = Objective::SFT;
  bool offset = false;            // a fixed adapter AB_offset (official mt_lora_path) is added
  bool learnable_offset = false;  // and is learnt
  bool z_score = false;           // reconstruction: predictions are (weight - mean) / std over the training adapters
  bool dense = false;             // reconstruction of delta W = B A (official factorized: false), scaled by
  double delta_w_scaling = 10000;

  int64_t layers = 0, rank = 8, latent = 128, head_in = 512, task_dim = 0;
  std::vector<AdaptedModule> modules;  // the order is the index of the type embedding
  float dropout = 0.05f;               // in training

  std::string variant() const;  // L, M, S or AR
  int64_t task_width() const { return latent / 2; }
  int64_t width() const { return latent / 2 + 2 * (latent / 4); }  // of the trunk
  int64_t head_out(const AdaptedModule& m) const;
  void check() const;  // Error if the combination cannot be built
};

// One module's adapters for n descriptions.
struct ModuleAdapters {
  Var a;  // [n, layers, rank, in]
  Var b;  // [n, layers, out, rank]
};

class Hypernet {
 public:
  explicit Hypernet(HypernetConfig config);  // declares the parameters, with the official names and initial laws

  const HypernetConfig& config() const { return config_; }
  void set_dropout(float p) { config_.dropout = p; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  // task: [n, task_dim] -> [n, latent / 2]
  Var encode(const Var& task) const;

  // Random numbers of a training step; null is evaluation mode.
  struct Training {
    uint64_t seed = 0, step = 0;
  };
  // What the heads predict, in the space the objective is defined in: z-scores where config().z_score.
  // task: f32 [n, task_dim], embeddings normalised to sqrt(task_dim), or one-hot. In the order of config().modules.
  std::vector<ModuleAdapters> predict(const Var& task, const Training* training = nullptr) const;
  // The adapters' weights: predictions with offset, mean and deviation, or scaling.
  std::vector<ModuleAdapters> generate(const Var& task, const Training* training = nullptr) const;
  // Floating point operations of the products in generate(), for n descriptions.
  double flops(int64_t n, bool training = false) const;

 private:
  class Pass;
  HypernetConfig config_;
  Parameters parameters_;
};

}  // namespace t2l
