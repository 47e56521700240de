// From tasks to adapters. For many, the hypernetwork runs on chunks of tasks, and the adapters of one chunk are written
// while the next one is computed.
#pragma once
#include <functional>

#include "t2l/checkpoint.h"

namespace t2l {

// What turns descriptions into the embeddings that a hypernetwork was trained with. `encoder` names another one than
// the checkpoint does; a hypernetwork that names none takes its base model: `base`, or as its adapters' config names
// it.
class HypernetEncoder {
 public:
  HypernetEncoder(const TrainedHypernet& trained, const std::string& encoder, const std::string& base,
                  const EncoderOptions& options);
  Tensor embed(const std::vector<std::string>& descriptions) const;  // f32 [n, task_dim], as predict() takes it
  const std::string& path() const { return path_; }

 private:
  bool normalise_;
  std::string path_;
  TaskEmbedder embedder_;
};

// f32 [n, tasks]: a row of the identity for each task that a one-hot hypernetwork was trained on. Error for other
// names.
Tensor one_hot_tasks(const TrainedHypernet& trained, const std::vector<std::string>& names);

// Tasks as predict() takes them, on the hypernetwork's device: f32 [n, task_dim] of descriptions, by the encoder as
// HypernetEncoder has it, or of a one-hot hypernetwork's task names.
Tensor embed_tasks(const TrainedHypernet& trained, const std::vector<std::string>& tasks, const std::string& encoder,
                   const std::string& base, const EncoderOptions& options);

// The adapter for one task, on the CPU; task: f32 [1, task_dim].
std::vector<LoraWeights> generate_adapter(const TrainedHypernet& trained, const Tensor& task);

struct GenerateTimes {
  double hypernet = 0;  // seconds in the hypernetwork
  double writing = 0;   // seconds in writing files, most of them beside the former
  int64_t chunks = 0;
  double flops = 0;  // of the hypernetwork's products
};

// task: f32 [n, task_dim] on the hypernetwork's device, as predict() takes it. directory(i) exists when it is called
// for task i, on the writing thread. progress(done) is called on this thread.
GenerateTimes generate_adapters(const TrainedHypernet& trained, const Tensor& task, const AdapterFormat& format,
                                const std::function<std::string(int64_t)>& directory,
                                const std::function<void(int64_t)>& progress);

}  // namespace t2l
