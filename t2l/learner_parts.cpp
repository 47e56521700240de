#include "t2l/learner_parts.h"

#include <algorithm>
#include <chrono>

#include "transformer/model_lookup.h"

namespace t2l {

std::vector<std::string> names_of(const std::vector<Task>& tasks) {
  std::vector<std::string> names;
  for (const Task& t : tasks) names.push_back(t.name);
  return names;
}

SftOptions sft_options(const TrainConfig& c) {
  return {.label_smoothing = float(c.label_smoothing),
          .equally_weight_sample = c.equally_weight_sample,
          .l2_generated = float(c.l2_reg_generated_w),
          .lora_dropout = float(c.lora_dropout),
          .neftune_alpha = float(c.neftune_noise_alpha)};
}

SftBatch sft_batch(const std::vector<const Example*>& examples) {
  SftBatch out;
  for (const Example* e : examples) {
    out.ids.push_back(e->ids);
    out.labels.push_back(e->labels());
  }
  return out;
}

SftBatch training_batch(const TaskSet& set, const Batch& batch) {
  std::vector<const Example*> examples;
  for (const Sample& s : batch) examples.push_back(&set.tasks[size_t(s.task)].train[size_t(s.row)]);
  return sft_batch(examples);
}

Json metrics_of(const SftLoss& loss) {
  return {{"sft_loss", loss.sft.to_vector<float>()[0]},
          {"generated_w_l2_loss", loss.l2 ? loss.l2.to_vector<float>()[0] : 0.f},
          {"tokens", loss.tokens},
          {"response_tokens", loss.response_tokens}};
}

Decoder load_base(const TrainConfig& c, DType dtype, Device device) {
  return Decoder::load(find_model(c.model_dir, "give its directory as model_dir"), {dtype, device, {}, c.recompute});
}

TaskSet load_samples(const TrainConfig& c, const TaskSet::Progress& progress) {
  const std::string dir = find_model(c.model_dir, "give its directory as model_dir");
  const SampleEncoder encoder = SampleEncoder::load(dir, c.model_dir, c.sft_mode == "completion", c.inp_max_len);
  // A prompt that is its own description is a conversation where the base model itself reads it.
  return TaskSet::load(c, &encoder, c.emb_model.empty() && encoder.is_chat(), false, progress);
}

void add_base(StepCost& cost, const Decoder& base, const SftBatch& batch, const std::vector<std::string>& modules,
              int64_t rank, double dropout, bool whole) {
  BaseStep step{base.config(), base.options().dtype, base.options().recompute, {}, {}, {}, rank, float(dropout), whole};
  for (const std::string& m : modules) step.adapted.push_back(parse_projection(m));
  for (size_t s = 0; s < batch.ids.size(); ++s) {
    step.lengths.push_back(int64_t(batch.ids[s].size()));
    step.responses.push_back(
        std::count_if(batch.labels[s].begin() + 1, batch.labels[s].end(), [](int32_t l) { return l >= 0; }));
  }
  add_base_step(cost, step);
}

Sampler make_sampler(const TrainConfig& c, const TaskSet& set, const EmbeddingTable* table) {
  std::vector<TaskSize> sizes;
  for (size_t i = 0; i < set.tasks.size(); ++i)
    sizes.push_back({set.tasks[i].name, int64_t(set.tasks[i].train.size()), table ? table->size(int64_t(i)) : 0});
  SamplerOptions options = sampler_options(c);
  if (c.per_task) {  // each batch has samples of all tasks
    options.kind = SamplerOptions::Kind::Hierarchical;
    options.tasks_per_batch = int64_t(sizes.size());
    options.points_per_task = c.batch_size;
  }
  Sampler sampler(options, sizes);
  if (!c.data_order.empty()) sampler.replay(c.data_order);
  return sampler;
}

std::vector<Json> judge(const std::vector<ValidationSplit>& splits, const Decoder& base, const SftOptions& options,
                        const std::function<AdapterBatch(const Tensor& embeddings)>& adapters,
                        const TaskSet::Progress& progress) {
  const NoGrad judged;
  std::vector<Json> rows;
  int64_t done = 0;
  for (const ValidationSplit& split : splits) {
    const auto start = std::chrono::steady_clock::now();
    double loss = 0, weight = 0;
    int64_t correct = 0, tokens = 0, samples = 0;
    for (int64_t i = 0; i < split.sampler.batches_per_epoch(); ++i) {
      if (progress) progress(done++, batches_of(splits));
      const Batch batch = split.sampler.batch(i);
      std::vector<const Example*> examples;
      for (const Sample& s : batch) examples.push_back(&split.example(s));
      const Tensor embeddings = split.table ? split.embeddings(batch) : Tensor();
      const SftScore score = sft_score(base, sft_batch(examples), adapters(embeddings), options);
      const double share = options.equally_weight_sample ? double(score.samples) : double(score.response_tokens);
      loss += score.loss * share;
      weight += share;
      correct += score.correct, tokens += score.response_tokens, samples += score.samples;
    }
    rows.push_back({{"split", split.name},
                    {"loss", loss / weight},
                    {"per_token_acc", double(correct) / double(tokens)},
                    {"samples", samples},
                    {"response_tokens", tokens},
                    {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()}});
  }
  return rows;
}

}  // namespace t2l
