#include "t2l/sft.h"

#include <map>

namespace t2l {
namespace {

// Streams of one step: the adapters' dropout has the first, one for each linear layer; the noise one for each sample.
constexpr uint64_t kNoise = uint64_t(1) << 32, kStep = uint64_t(1) << 34;

// Rows of the packed batch that predict a response token, and what each weighs in the loss.
struct ResponseRows {
  std::vector<int32_t> rows, targets;
  std::vector<float> weights;
  int32_t tokens = 0;  // of the batch

  // which: the model of each sample; empty: all have the same one.
  ResponseRows(const SftBatch& batch, const SftOptions& options, const std::vector<int32_t>& which = {}) {
    struct Share {
      int64_t samples = 0, rows = 0;
    };
    std::map<int32_t, Share> models;
    std::vector<int64_t> counts;  // of the samples' rows
    const auto model_of = [&](size_t s) -> Share& { return models[which.empty() ? 0 : which.at(s)]; };
    for (size_t s = 0; s < batch.ids.size(); ++s) {
      const std::vector<int32_t>& labels = batch.labels.at(s);
      T2L_CHECK(labels.size() == batch.ids[s].size(), "{} labels for {} ids", labels.size(), batch.ids[s].size());
      const size_t before = rows.size();
      for (size_t t = 0; t + 1 < labels.size(); ++t)
        if (labels[t + 1] != -100) {
          rows.push_back(tokens + int32_t(t));
          targets.push_back(labels[t + 1]);
        }
      counts.push_back(int64_t(rows.size() - before));
      if (counts[s] == 0 && options.equally_weight_sample)
        fail("sample {} of the batch has no response token; is inp_max_len too short for it?", s);
      tokens += int32_t(labels.size());
      model_of(s).samples += 1;
      model_of(s).rows += counts[s];
    }
    if (rows.empty()) fail("the batch has no response token; is inp_max_len too short?");
    for (size_t s = 0; s < counts.size(); ++s) {
      const Share& all = model_of(s);
      const float row = options.equally_weight_sample ? float(counts[s]) * float(all.samples) : float(all.rows);
      weights.insert(weights.end(), size_t(counts[s]), 1 / (row * float(models.size())));
    }
  }
};

}  // namespace

RandomKey step_key(uint64_t seed, int64_t step) { return {seed, uint64_t(step + 1) * kStep}; }

SftLoss sft_loss(const Decoder& base, const SftBatch& batch, AdapterBatch adapters,
                 const std::vector<ModuleAdapters>* generated, const SftOptions& options, const RandomKey* key,
                 const std::vector<int32_t>& which) {
  const Device on = base.options().device;
  TokenBatch tokens{.ids = batch.ids, .adapters = which};
  if (key) {
    adapters.dropout = options.lora_dropout;
    adapters.key = *key;
    tokens.noise = options.neftune_alpha;
    tokens.noise_key = {key->seed, key->stream + kNoise};
  }

  const ResponseRows response(batch, options, which);
  SftLoss loss;
  loss.tokens = response.tokens;
  loss.response_tokens = int64_t(response.rows.size());

  tokens.rows = response.rows;
  const Var hidden = base.hidden(tokens, adapters.layers.empty() ? nullptr : &adapters);
  const Var sft = base.loss(hidden, Tensor::from(response.targets, on), Tensor::from(response.weights, on),
                            options.label_smoothing);
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

SftScore sft_score(const Decoder& base, const SftBatch& batch, const AdapterBatch& adapters,
                   const SftOptions& options) {
  const NoGrad judged;
  const Device on = base.options().device;
  const ResponseRows response(batch, options);
  const Var hidden = base.hidden({.ids = batch.ids, .rows = response.rows}, &adapters);
  const std::vector<int32_t> likely = base.most_likely(hidden.value);
  SftScore score;
  score.samples = int64_t(batch.ids.size());
  score.response_tokens = int64_t(response.rows.size());
  score.loss = base.loss(hidden, Tensor::from(response.targets, on), Tensor::from(response.weights, on), 0)
                   .value.to_vector<float>()[0];
  for (size_t i = 0; i < likely.size(); ++i) score.correct += likely[i] == response.targets[i];
  return score;
}

}  // namespace t2l
