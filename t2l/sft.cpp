#include "t2l/sft.h"

namespace t2l {
namespace {

// Streams of one step: the adapters' dropout has the first, one for each linear layer; the noise one for each sample.
constexpr uint64_t kNoise = uint64_t(1) << 32, kStep = uint64_t(1) << 34;

}  // namespace

RandomKey step_key(uint64_t seed, int64_t step) { return {seed, uint64_t(step + 1) * kStep}; }

SftLoss sft_loss(const Decoder& base, const SftBatch& batch, AdapterBatch adapters,
                 const std::vector<ModuleAdapters>* generated, const SftOptions& options, const RandomKey* key) {
  const Device on = base.options().device;
  TokenBatch tokens{.ids = batch.ids};
  if (key) {
    adapters.dropout = options.lora_dropout;
    adapters.key = *key;
    tokens.noise = options.neftune_alpha;
    tokens.noise_key = {key->seed, key->stream + kNoise};
  }

  // Rows that predict a response token, and what each weighs.
  SftLoss loss;
  std::vector<int32_t> rows, targets;
  std::vector<float> weights;
  int32_t begin = 0;
  for (size_t s = 0; s < batch.ids.size(); ++s) {
    const std::vector<int32_t>& labels = batch.labels.at(s);
    T2L_CHECK(labels.size() == batch.ids[s].size(), "{} labels for {} ids", labels.size(), batch.ids[s].size());
    const size_t before = rows.size();
    for (size_t t = 0; t + 1 < labels.size(); ++t)
      if (labels[t + 1] != -100) {
        rows.push_back(begin + int32_t(t));
        targets.push_back(labels[t + 1]);
      }
    const auto n = rows.size() - before;
    if (n == 0 && options.equally_weight_sample)
      fail("sample {} of the batch has no response token; is inp_max_len too short for it?", s);
    weights.resize(rows.size(), 1 / (float(n) * float(batch.ids.size())));
    begin += int32_t(labels.size());
  }
  if (rows.empty()) fail("the batch has no response token; is inp_max_len too short?");
  if (!options.equally_weight_sample) weights.assign(rows.size(), 1 / float(rows.size()));
  loss.tokens = begin;
  loss.response_tokens = int64_t(rows.size());

  tokens.rows = std::move(rows);
  const Var hidden = base.hidden(tokens, adapters.layers.empty() ? nullptr : &adapters);
  const Var sft = base.loss(hidden, Tensor::from(targets, on), Tensor::from(weights, on), options.label_smoothing);
  loss.sft = sft.value;
  loss.total = sft;
  if (!generated || options.l2_generated == 0) return loss;
  Var l2;
  for (const ModuleAdapters& m : *generated)
    for (const Var* x : {&m.a, &m.b}) {
      const Var mean = scale(sum_squares(*x), options.l2_generated / float(x->value.size()));
      l2 = l2 ? add(l2, mean) : mean;
    }
  loss.l2 = l2.value;
  loss.total = add(sft, l2);
  return loss;
}

}  // namespace t2l
