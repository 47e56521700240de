// Adapters for many tasks: the hypernetwork runs on chunks of tasks, and the adapters of one chunk are written while
// the next one is computed.
#pragma once
#include <functional>

#include "t2l/checkpoint.h"

namespace t2l {

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
