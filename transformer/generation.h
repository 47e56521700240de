// Generation: many prompts at once, each with an adapter of its own. A wave of sequences is prefilled in chunks and
// then decoded together, a token each a step; a sequence leaves the wave with its last token.
#pragma once
#include <functional>

#include "transformer/decoder.h"

namespace t2l {

struct GenerationOptions {
  int64_t max_new_tokens = 256;
  std::vector<int32_t> eos;  // a sequence ends with any of these, which is part of it
  float temperature = 0;     // 0: the most likely token
  int64_t top_k = 0;         // 0: no limit
  float top_p = 1;           // in (0, 1]
  // The random number of a sequence's token depends on the seed, its index and its step alone.
  uint64_t seed = 0;
  // Sequences at once and cached tokens at once; more wait for the next wave. A single sequence may exceed the latter.
  int64_t max_sequences = 64, max_cached_tokens = 1 << 17;
};

struct GenerationTimes {
  double prefill = 0, decode = 0;  // seconds
  int64_t prompt_tokens = 0, new_tokens = 0, steps = 0;
};

// The new tokens of each prompt. adapters, if given, has `count` adapters; adapter_of[i] is prompt i's (empty: prompt i
// has adapter i, or all have the only one). on_token(i, id, last) is called as tokens come, in each sequence's order;
// it may throw to stop. Error for a prompt without tokens or with ids that the model does not have.
TokenIds generate(const Decoder& decoder, const TokenIds& prompts, const GenerationOptions& options,
                  const AdapterBatch* adapters = nullptr, const std::vector<int32_t>& adapter_of = {},
                  const std::function<void(size_t, int32_t, bool)>& on_token = {}, GenerationTimes* times = nullptr);

}  // namespace t2l
