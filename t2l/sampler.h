// Which samples make a batch. Every choice is a function of the seed and the iteration alone (counter-based random
// numbers), so a run resumes at any iteration without a state to keep.
//
//   hierarchical   an epoch visits the tasks in random order, n_tasks_per_batch at a time, and drops those that are
//   left
//                  over; of each, n_points_per_task random rows (data.py: HierachicalBatchSampler)
//   plain          an epoch visits all rows in random order, batch_size at a time; its last batch may be smaller
//   reconstruct    an epoch visits the tasks; of each, n_embs_per_sampled_task of its descriptions, all different
//
// A sample's description is drawn anew each time. Without shuffling, epochs go through tasks and rows in their order,
// and row i has description i modulo their number (as in the official validation).
#pragma once
#include <string_view>

#include "t2l/train_config.h"
#include "tensor/random.h"

namespace t2l {

// In [0, below): what element `counter` of the key's random numbers makes of it. below: at least 1
uint64_t draw_below(RandomKey key, uint64_t counter, uint64_t below);

struct Sample {
  int32_t task = 0;
  int32_t row = -1;          // of the task's rows; -1: reconstruction has none
  int32_t description = -1;  // of the task's descriptions; the row, where samples have their own; -1: unused
  bool operator==(const Sample&) const = default;
};
using Batch = std::vector<Sample>;

struct SamplerOptions {
  enum class Kind : uint8_t { Hierarchical, Plain, Reconstruct };
  enum class Descriptions : uint8_t { None, OfTask, OfSample };

  Kind kind = Kind::Plain;
  Descriptions descriptions = Descriptions::OfTask;
  int64_t tasks_per_batch = 8, points_per_task = 1;  // hierarchical, and the former for reconstruct (at most all)
  int64_t batch_size = 8;                            // plain
  int64_t descriptions_per_task = 0;                 // reconstruct; 0: all
  bool shuffle = true;
  uint64_t seed = 0;
};

// As config says, to train; and to validate: all rows in their order, val_batch_size at a time.
SamplerOptions sampler_options(const TrainConfig& config);
SamplerOptions validation_options(const TrainConfig& config);

struct TaskSize {
  std::string name;
  int64_t rows = 0, descriptions = 0;
};

class Sampler {
 public:
  // Error for a task without rows or descriptions that are needed, and for fewer tasks than a batch takes.
  Sampler(SamplerOptions options, std::vector<TaskSize> tasks);

  // The batches of a JSONL file, one a line, before those of the options: [[task, row, description], ...] or, for
  // reconstruct, [[task, description], ...]. A description may be null where it is not used. Error, with file and line,
  // for what is no such line and for tasks, rows and descriptions that do not exist.
  void replay(const std::string& path);
  void replay(std::string_view text, const std::string& path);
  int64_t recorded() const { return int64_t(recorded_.size()); }  // batches of the file

  int64_t batches_per_epoch() const;
  // Error beyond the end of a recording. From one thread at a time: the order of an epoch is kept.
  Batch batch(int64_t iteration) const;

 private:
  Batch hierarchical(int64_t epoch, int64_t iteration, int64_t first) const;
  Batch plain(int64_t epoch, int64_t iteration, int64_t first) const;
  Batch reconstruct(int64_t epoch, int64_t iteration, int64_t first) const;
  void enter(int64_t epoch) const;
  int32_t description_of(int64_t task, int64_t row, int64_t iteration, int64_t slot) const;
  uint64_t draw(uint64_t purpose, int64_t iteration, int64_t slot, uint64_t below) const;

  SamplerOptions options_;
  std::vector<TaskSize> tasks_;
  std::vector<int64_t> row_ends_;  // rows of all tasks up to and including each
  std::vector<Batch> recorded_;
  std::string recording_;
  mutable int64_t epoch_ = -1;          // whose order is held
  mutable std::vector<int64_t> order_;  // of the tasks or, plain, of all rows
};

}  // namespace t2l
