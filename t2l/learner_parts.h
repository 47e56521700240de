// What the learners share.
#pragma once
#include "t2l/learners.h"
#include "t2l/sft.h"
#include "t2l/validation.h"

namespace t2l {

std::vector<std::string> names_of(const std::vector<Task>& tasks);
SftOptions sft_options(const TrainConfig& config);
SftBatch sft_batch(const std::vector<const Example*>& examples);
SftBatch training_batch(const TaskSet& set, const Batch& batch);
Json metrics_of(const SftLoss& loss);

// The base model that a run learns through, in which only activations have gradients.
Decoder load_base(const TrainConfig& config, DType dtype, Device device);
// The tasks, with their samples in the base model's tokens.
TaskSet load_samples(const TrainConfig& config, const TaskSet::Progress& progress);

// Of the training tasks. table: null where there are no descriptions.
Sampler make_sampler(const TrainConfig& config, const TaskSet& set, const EmbeddingTable* table);

// What a batch costs in the base model, its adapters being of these modules and this rank; whole: all of it is trained.
void add_base(StepCost& cost, const Decoder& base, const SftBatch& batch, const std::vector<std::string>& modules,
              int64_t rank, double dropout, bool whole = false);

// A row for each split: the loss, and the share of response tokens that are the most likely ones. adapters() gives
// those of a batch; its embeddings f32 [samples, dim] on the CPU are not given where the split has none.
std::vector<Json> judge(const std::vector<ValidationSplit>& splits, const Decoder& base, const SftOptions& options,
                        const std::function<AdapterBatch(const Tensor& embeddings)>& adapters,
                        const TaskSet::Progress& progress);

std::unique_ptr<Learner> make_hypernet_learner(const TrainConfig& config, DType dtype, Device device,
                                               const TaskSet::Progress& progress);
std::unique_ptr<Learner> make_adapter_learner(const TrainConfig& config, DType dtype, Device device,
                                              const TaskSet::Progress& progress);

}  // namespace t2l
