// Pretraining of a small base model on tasks: each sample is a row of a task, drawn uniformly, and its answer is learnt
//
//   with a description    the task's, as system message: the model learns to follow it
//   without               what a task-specific adapter will meet
//   with examples         1 to 3 other rows as earlier turns: the model learns in context (few-shot)
//
// A curriculum keeps to the tasks of level 1 at first: compositions are learnt within steps once their parts are known.
// Every draw is a function of the seed and the iteration alone, as in sampler.h.
#pragma once
#include "t2l/learners.h"
#include "t2l/sft.h"

namespace t2l {

struct PretrainDraw {
  int32_t task = 0;
  int32_t description = -1;   // of the task's; -1: none
  std::vector<int32_t> rows;  // of the task's, all different: the examples, and last the one to answer
  bool operator==(const PretrainDraw&) const = default;
};

class PretrainSampler {
 public:
  static constexpr int64_t kMostShots = 3;
  static constexpr double kLevel1Early = 0.9, kLevel1Late = 0.2;  // of the draws, during the curriculum and after it

  struct Options {
    int64_t batch_size = 64;
    double p_no_description = 0, p_shots = 0;  // of the draws; all others have a description, if their task has any
    int64_t curriculum_end = 0;                // the first iteration after it; 0: none, levels play no part
    uint64_t seed = 0;
  };
  struct Size {
    int64_t rows = 0, descriptions = 0, level = 0;
  };
  // Error for a curriculum without a task of level 1. Every task has a row.
  PretrainSampler(const Options& options, std::vector<Size> tasks);
  std::vector<PretrainDraw> batch(int64_t iteration) const;

 private:
  Options options_;
  std::vector<Size> tasks_;
  std::vector<int32_t> simple_;  // tasks of level 1
};

// The sample of a draw, as the chat template has it. To be answered are the last question and, where there are
// examples, all questions but the first: an example's answer ends where the conversation up to it, as a sample of its
// own, goes on otherwise.
struct PretrainSample {
  std::vector<int32_t> ids, labels;  // [tokens]; -100 where nothing is asked for
};
PretrainSample pretrain_sample(const SampleEncoder& encoder, const Task& task, const PretrainDraw& draw);

// The same for batches of draws, most of them without rendering anything: a row without description is encoded already,
// and what a description puts before it is remembered. That needs a gist token to follow the description: being a
// special token, it keeps the tokens on either side of it apart.
class PretrainSamples {
 public:
  // tasks: with conversations, encoded by `encoder` to at most max_length tokens. gist_token: -1 if there is none
  PretrainSamples(const SampleEncoder& encoder, const std::vector<Task>& tasks, int32_t gist_token, int64_t max_length);
  SftBatch batch(const std::vector<PretrainDraw>& draws);

 private:
  struct Head {
    std::vector<int32_t> ids;  // empty: not known yet
    size_t instead = 0;        // of how many ids of the sample without description
  };
  bool compose(PretrainSample& sample, const PretrainDraw& draw) const;
  void remember(const PretrainSample& sample, const PretrainDraw& draw);

  const SampleEncoder& encoder_;
  const std::vector<Task>& tasks_;
  int32_t gist_token_;
  size_t max_length_;
  std::vector<std::vector<Head>> heads_;  // by task and description
};

// config.model_dir: config.json and the tokenizer's files; its weights are not read. save() writes a complete folder of
// a model, which transformers reads too.
std::unique_ptr<Learner> make_pretrain_learner(const TrainConfig& config, DType dtype, Device device,
                                               const TaskSet::Progress& progress);

}  // namespace t2l
