// What t2l-train trains, each as one micro-batch at a time for the loop in trainer.h: a hypernetwork through a frozen
// base model or towards given adapters, one LoRA adapter of the base model, or the base model itself (pretrain.h).
#pragma once
#include "t2l/dataset.h"
#include "t2l/estimate.h"
#include "t2l/sampler.h"
#include "t2l/similarity.h"
#include "t2l/trainer.h"

namespace t2l {

class Learner {
 public:
  virtual ~Learner() = default;
  virtual Parameters& parameters() = 0;
  virtual const Sampler& sampler() const = 0;
  // The loss of the micro-batch that iteration `i` sees, recorded on the tape, and what metrics say of it.
  virtual MicroBatch forward(int64_t i) = 0;
  // What metrics.jsonl shall say of each validation split, with "split" and "loss". progress() counts
  // batches.
  virtual std::vector<Json> validate(const TaskSet::Progress& progress) = 0;
  // Parameters of the slab that belong to one of several models side by side; 0: there is one.
  virtual int64_t group() const { return 0; }
  // Writes what was learnt into a directory, as t2l-gen, t2l-run or PEFT read it.
  virtual void save(const std::string& directory) const = 0;
  // The same for the official Python; returns what that will do otherwise, a line each. Of hypernetworks only.
  virtual std::vector<std::string> save_official(const std::string& directory) const;
  // How alike the tasks' adapters are by now; empty where there is but one.
  virtual TaskSimilarity similarity() const { return {}; }
  // What a micro-batch costs; and the data.
  virtual StepCost cost(int64_t i) const = 0;
  virtual const TaskSet& data() const = 0;
};

// Of the config's verb. Reads all data; Error in one line for whatever is wrong.
std::unique_ptr<Learner> make_learner(const TrainConfig& config, DType dtype, Device device,
                                      const TaskSet::Progress& progress = {});

// How many micro-batches the config asks for; an epoch of pretraining is as many samples as there are rows.
int64_t iterations_of(const TrainConfig& config, const Sampler& sampler);
// Iterations, accumulation, schedule and optimizer as the config says.
TrainPlan plan_of(const TrainConfig& config, const Learner& learner);

}  // namespace t2l
