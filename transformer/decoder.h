// Decoder language models: token ids -> hidden states -> logits of the next token. One pre-norm block with flags serves
// Llama, Mistral, Gemma-2, Qwen2, Qwen3 and their relatives (Touvron et al., "LLaMA", 2023, and successors):
//   x = embed(ids);   per layer:  x = x + o(attention(rope(q(h)), rope(k(h)), v(h))),  h = norm(x)
//                                 x = x + down(act(gate(h)) up(h)),                    h = norm(x);   norm(x) -> head
//   gemma: norms multiply by 1 + w and also follow attention and MLP; qwen3: q and k are normed before they are rotated
// Each of the seven linear layers may carry a LoRA adapter of its own for each sample (Hu et al., "LoRA", 2021).
#pragma once
#include <functional>

#include "autograd/ops.h"
#include "transformer/kv_cache.h"
#include "transformer/packed.h"
#include "transformer/weights.h"

namespace t2l {

// Adapters for the samples of a batch: y = W x + scale B A x.
struct AdapterBatch {
  struct Pair {
    Var a;  // [count, rank, in]
    Var b;  // [count, out, rank]
  };
  int64_t count = 0;
  float scale = 1;
  std::vector<std::array<Pair, kProjections>> layers;  // not given: this linear layer has no adapter

  // Training: dropout of the adapters' input, drawn for each linear layer by a key of its own.
  float dropout = 0;
  RandomKey key = {};
};

// Tokens that go through the model together, samples packed one after another.
struct TokenBatch {
  TokenIds ids;
  // Which adapter each sample has, not decreasing. Empty: sample i has adapter i, or all have the only one.
  std::vector<int32_t> adapters = {};
  // With a cache: which of its sequences each sample continues. Empty: sample i continues sequence i.
  std::vector<int32_t> sequences = {};
  // Which rows of the hidden states are wanted, rising; empty: all. The last layer does no work for the others beyond
  // their keys and values.
  std::vector<int32_t> rows = {};
  // Training: uniform noise on the embeddings of a sample of n tokens, within noise / sqrt(n hidden) (Jain et al.,
  // "NEFTune", 2023).
  float noise = 0;
  RandomKey noise_key = {};
};

struct DecoderOptions {
  DType dtype = DType::F32;  // of weights and activations; weights of that type on the CPU stay in the mapped file
  Device device = Device::CPU;
  std::function<void(int64_t done, int64_t all)> progress = {};  // of loading, in tensors
  bool recompute = false;  // under a tape: only the input of each block is kept, the rest is computed again in backward
};

class Decoder {
 public:
  // From a model's folder. Error, naming the tensor, its file and the shape expected, for weights that do not fit.
  static Decoder load(const std::string& dir, const DecoderOptions& options = {});
  Decoder(const DecoderConfig& config, const SafeTensors& weights, const DecoderOptions& options);
  // Without values, for initialise() or assignment through parameters(): every Var is empty.
  Decoder(const DecoderConfig& config, const DecoderOptions& options);

  // Hidden states [tokens, hidden], or of the rows wanted alone, after the final norm. layer, from 0 to the number of
  // layers, asks for those before it instead, as transformers' hidden_states[layer]: 0 are the embeddings; the last is
  // after the final norm. With a cache the tokens continue what is there, and are added to it; not under a tape. Error
  // for a sample without tokens or an id that the vocabulary does not have.
  Var hidden(const TokenBatch& batch, const AdapterBatch* adapters = nullptr, KvCache* cache = nullptr,
             int64_t layer = -1) const;
  // f32 [rows, vocab] of some rows of the last hidden states; no gradient.
  Tensor logits(const Tensor& hidden) const;
  // The most likely next token behind each of some rows of the last hidden states.
  std::vector<int32_t> most_likely(const Tensor& hidden) const;
  // sum over rows of weights[i] CE(logits[i], targets[i]) with label smoothing; see cross_entropy() in autograd/ops.h.
  // x: [rows, hidden], rows of the last hidden states -> f32 [1]
  Var loss(const Var& x, const Tensor& targets, const Tensor& weights, float smoothing, Tensor* losses = nullptr) const;

  const DecoderConfig& config() const { return config_; }
  const DecoderOptions& options() const { return options_; }

  // Every weight under its name in the file, frozen unless the caller gives it a slot; a tied head is not repeated.
  struct Parameter {
    std::string name;
    Shape shape;
    Var* value;
  };
  std::vector<Parameter> parameters();
  // Draws every weight as transformers initialises an untrained model: matrices from N(0, initializer_range), norms as
  // the identity, biases 0. A weight's numbers depend on the seed and its name.
  void initialise(uint64_t seed);

 private:
  struct Linear {
    Var w, b;  // [out, in], [out] or not given
  };
  struct Layer {
    std::array<Linear, kProjections> linear;
    Var q_norm, k_norm;            // [head_dim], qwen3
    Var attention_norm, mlp_norm;  // [hidden]
    Var attention_post, mlp_post;  // [hidden], gemma
  };
  struct Rows;
  struct Pass;

  Pass pack(const TokenBatch& batch, const AdapterBatch* adapters, KvCache* cache) const;
  Var embed(const TokenBatch& batch, const Pass& pass) const;
  Var block(int64_t layer, const Var& x, const Pass& pass) const;
  Var project(int64_t layer, Projection p, const Var& x, const Pass& pass, const Rows& rows) const;
  Var attend(int64_t layer, const Var& q, const Var& k, const Var& v, const Pass& pass) const;
  Var norm(const Var& w, const Var& x) const { return rmsnorm(x, w, config_.eps, config_.gemma ? 1.f : 0.f); }
  const Var& head() const { return config_.tied ? embedding_ : head_; }

  DecoderConfig config_;
  DecoderOptions options_;
  std::vector<float> frequencies_;  // [head_dim / 2]
  Var embedding_;                   // [vocab, hidden]
  Var norm_;                        // [hidden]
  Var head_;                        // [vocab, hidden], not given where tied
  std::vector<Layer> layers_;
};

}  // namespace t2l
