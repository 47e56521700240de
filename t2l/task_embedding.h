// A task description as the hypernetwork wants it (Text-to-LoRA, utils.py and preprocessing.py of the official code):
//   text -> stripped, with a full stop -> prefix + text -> tokens -> encoder -> pooled vector e -> e / |e| sqrt(dim)
#pragma once
#include "transformer/encoder.h"
#include "transformer/tokenizer.h"

namespace t2l {

// str.strip() and, if the last character is a letter in Unicode's sense (str.isalpha()), a full stop.
std::string add_full_stop(std::string_view text);

// What the official code puts before descriptions for the encoder of this name: an instruction for SFR, else nothing.
std::string task_prefix(const std::string& encoder_name);

// x sqrt(dim) / max(|x|, 1e-12), row by row.  x: f32 [n, dim], as an encoder pools it
Tensor normalise_embedding(const Tensor& x);

class TaskEmbedder {
 public:
  static constexpr int64_t kMaxTokens = 8192;  // of the official code; the model's own limit counts if it is lower

  // From the folder of an encoder with its tokenizer.json.
  static TaskEmbedder load(const std::string& dir, const EncoderOptions& options = {}, const std::string& prefix = "");

  // f32 [texts, dim], on the encoder's device. Error for a description without a visible character.
  Tensor embed(const std::vector<std::string>& texts) const { return normalise_embedding(embed_raw(texts)); }
  Tensor embed_raw(const std::vector<std::string>& texts) const;  // not normalised

  TokenIds tokenise(const std::vector<std::string>& texts) const;
  int64_t dim() const { return encoder_.config().hidden; }
  const TextEncoder& encoder() const { return encoder_; }

 private:
  TaskEmbedder(TextEncoder encoder, Tokenizer tokenizer, std::string prefix)
      : encoder_(std::move(encoder)), tokenizer_(std::move(tokenizer)), prefix_(std::move(prefix)) {}

  TextEncoder encoder_;
  Tokenizer tokenizer_;
  std::string prefix_;
};

}  // namespace t2l
