// Supervised fine-tuning through a frozen base model (Text-to-LoRA, sft_trainer.py of the official code):
//   loss = sum over samples, and their response tokens t, of weight CE(logits[t], id[t + 1])
//          + l2 sum over modules of (mean(A^2) + mean(B^2))
// weight is 1 / (samples response tokens of the sample), or 1 / all response tokens; where several adapters train side
// by side, loss is the mean of theirs. Samples are packed; the head sees only rows that predict a response token, in
// chunks.
#pragma once
#include "t2l/hypernet.h"
#include "transformer/decoder.h"

namespace t2l {

struct SftOptions {
  float label_smoothing = 0.1f;
  bool equally_weight_sample = true;
  float l2_generated = 1e-3f;
  float lora_dropout = 0.05f;
  float neftune_alpha = 5;  // 0: none
};

// A micro-batch: what goes in, and the ids that shall come out, -100 where none is asked for.
struct SftBatch {
  TokenIds ids, labels;
};

struct SftLoss {
  Var total;       // f32 [1]
  Tensor sft, l2;  // f32 [1] each; l2 not given where nothing was generated
  int64_t tokens = 0, response_tokens = 0;
};

// What the random numbers of a training step are drawn by.
RandomKey step_key(uint64_t seed, int64_t step);

// adapters: with gradients; without layers: none, the base model learns itself. which: of each sample, where adapters
// train side by side, as TokenBatch::adapters has it. generated: what they were made of, for the L2 term; may be null.
// Dropout and noise are drawn by `key`, of step_key(); null: evaluation, without any.
// Error if no label of the batch asks for anything, or of a sample where samples weigh alike.
SftLoss sft_loss(const Decoder& base, const SftBatch& batch, AdapterBatch adapters,
                 const std::vector<ModuleAdapters>* generated, const SftOptions& options, const RandomKey* key,
                 const std::vector<int32_t>& which = {});

// The same without smoothing, noise and gradients, to judge by.
struct SftScore {
  double loss = 0;      // mean over samples, or over response tokens, as the options weigh them
  int64_t correct = 0;  // response tokens that are the most likely ones, given those before them
  int64_t samples = 0, response_tokens = 0;
};
SftScore sft_score(const Decoder& base, const SftBatch& batch, const AdapterBatch& adapters, const SftOptions& options);

}  // namespace t2l
