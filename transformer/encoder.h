// Text encoders: token ids -> hidden states -> one vector per text. One block serves BERT (Devlin et al., 2018) and
// gte's NewModel (Zhang et al., "mGTE", 2024); both are bidirectional and put the norm after the residual:
//   x = norm(embeddings);   per layer:  x = norm(x + attention(x)),  x = norm(x + mlp(x))
//   bert: absolute positions in the embeddings, mlp(x) = down(act(up(x)))
//   new:  rotary positions on q and k,          mlp(x) = down(act(gate(x)) up(x))
#pragma once
#include <functional>

#include "autograd/ops.h"
#include "tensor/safetensors.h"
#include "transformer/encoder_config.h"
#include "transformer/packed.h"

namespace t2l {

struct EncoderOptions {
  DType dtype = DType::F32;  // of weights and activations; f32 weights on the CPU stay in the mapped file
  Device device = Device::CPU;
  std::optional<Pooling> pooling = {};  // instead of the model's own
};

// One vector per text, f32 [texts, hidden], of packed hidden states [tokens, hidden].
Var pool(const Var& hidden, const std::vector<int32_t>& offsets, Pooling pooling);
// f32 [texts, dim] of any number of texts without gradients: pooled() sees at most some thousand tokens at once.
Tensor embed_in_chunks(const TokenIds& texts, int64_t dim, Device device,
                       const std::function<Var(const TokenIds&)>& pooled);

class TextEncoder {
 public:
  // From a model's folder. Error, naming the tensor, its file and the shape expected, for weights that do not fit.
  static TextEncoder load(const std::string& dir, const EncoderOptions& options = {});
  TextEncoder(const EncoderConfig& config, const SafeTensors& weights, const EncoderOptions& options);

  // The last hidden states, texts packed one after another: [tokens, hidden]. Error for a text without tokens, longer
  // than the position table, or with an id the vocabulary does not have.
  Var hidden(const TokenIds& texts) const;
  // Pooled hidden states, f32 [texts, hidden], not normalised.
  Var pooled(const TokenIds& texts) const;
  // The same in chunks, without gradients.
  Tensor embed(const TokenIds& texts) const;

  const EncoderConfig& config() const { return config_; }
  // All weights, frozen unless the caller gives them slots.
  std::vector<Var*> parameters();

 private:
  struct Linear {
    Var w, b;  // [out, in] [out]
  };
  struct Norm {
    Var w, b;  // [hidden]
  };
  struct Layer {
    Linear q, k, v, o;  // [hidden, hidden]
    Norm attention_norm;
    Linear gate, up, down;  // [intermediate, hidden], gate in `new` only; [hidden, intermediate]
    Norm norm;
  };
  struct Packed;

  Packed pack(const TokenIds& texts) const;
  Var embeddings(const Packed& batch) const;
  Var hidden(const Packed& batch) const;
  Var block(const Layer& layer, const Var& x, const Packed& batch) const;
  Var norm(const Norm& n, const Var& x) const { return layernorm(x, n.w, n.b, config_.eps); }

  EncoderConfig config_;
  EncoderOptions options_;
  Var words_;      // [vocab, hidden]
  Var positions_;  // [positions, hidden], bert
  Var type_;       // [hidden]: row 0 of the token type table, which is all that single texts use
  Norm norm_;
  std::vector<Layer> layers_;
};

}  // namespace t2l
