// A task description as the hypernetwork wants it (Text-to-LoRA, utils.py and preprocessing.py of the official code):
//   text -> stripped, with a full stop -> prefix + text -> tokens -> encoder -> pooled vector e -> e / |e| sqrt(dim)
#pragma once
#include <variant>

#include "transformer/decoder.h"
#include "transformer/encoder.h"
#include "transformer/tokenizer.h"

namespace t2l {

// Python's str.isspace(), of one code point, and str.strip().
bool is_python_space(int32_t c);
std::string_view python_strip(std::string_view text);

// str.strip() and, if the last character is a letter in Unicode's sense (str.isalpha()), a full stop.
std::string add_full_stop(std::string_view text);

// What the official code puts before descriptions for the encoder of this name: an instruction for SFR, else nothing.
std::string task_prefix(const std::string& encoder_name);

// x sqrt(dim) / max(|x|, 1e-12), row by row.  x: f32 [n, dim], as an encoder pools it
Tensor normalise_embedding(const Tensor& x);

// How a description becomes the embedding that the hypernetwork was trained with.
struct EncoderSpec {
  std::string model = {};    // name or path; empty: the base model itself, or none where the tasks are one-hot
  int64_t layer = -1;        // of a base model: which of its layers + 1 hidden states, negative from the end
  std::string pooling = {};  // cls, mean, last_token; empty: as the model's own files say
  std::string prefix = {}, suffix = {};  // around a description
  bool normalise = true;                 // to length sqrt(dim)
  int64_t dim = 0;
};

class TaskEmbedder {
 public:
  static constexpr int64_t kMaxTokens = 8192;  // of the official code; the model's own limit counts if it is lower

  // From the folder of an encoder, or of a base model, with its tokenizer.json. Of the spec, model, normalise and dim
  // are not used here; options.pooling goes before spec.pooling, and a base model's own is last_token.
  static TaskEmbedder load(const std::string& dir, const EncoderOptions& options = {}, const EncoderSpec& spec = {});

  // f32 [texts, dim], on the encoder's device. Error for a description without a visible character.
  Tensor embed(const std::vector<std::string>& texts) const { return normalise_embedding(embed_raw(texts)); }
  Tensor embed_raw(const std::vector<std::string>& texts) const;  // not normalised
  // The same for texts that are taken as they are, without full stop, prefix and suffix.
  Tensor embed_verbatim(const std::vector<std::string>& texts) const;

  TokenIds tokenise(const std::vector<std::string>& texts) const;
  int64_t dim() const;

 private:
  using Model = std::variant<TextEncoder, Decoder>;
  TaskEmbedder(Model model, Tokenizer tokenizer, Pooling pooling, EncoderSpec spec)
      : model_(std::move(model)), tokenizer_(std::move(tokenizer)), pooling_(pooling), spec_(std::move(spec)) {}

  std::vector<int32_t> encode(const std::string& text) const;
  Tensor embed_ids(const TokenIds& ids) const;

  Model model_;
  Tokenizer tokenizer_;
  Pooling pooling_;
  EncoderSpec spec_;
};

}  // namespace t2l
