#include "t2l/generate.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

namespace t2l {
namespace {

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// How many tasks at once: two chunks of adapters, one computed and one written, stay within about the checkpoint's
// size, so that with it all memory is below three times that.
int64_t chunk_size(const TrainedHypernet& trained) {
  const HypernetConfig& c = trained.net.config();
  size_t adapter = 0;
  for (auto& m : c.modules) adapter += size_t(c.layers * c.rank * (m.in + m.out)) * sizeof(float);
  return std::clamp<int64_t>(int64_t(0.45 * double(trained.file_bytes) / double(adapter)), 1, 64);
}

}  // namespace

GenerateTimes generate_adapters(const TrainedHypernet& trained, const Tensor& task, const AdapterFormat& format,
                                const std::function<std::string(int64_t)>& directory,
                                const std::function<void(int64_t)>& progress) {
  const NoGrad no_grad;
  const HypernetConfig& c = trained.net.config();
  const int64_t n = task.dim(0), chunk = chunk_size(trained);
  GenerateTimes times;
  std::future<double> writing;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk);
    const auto t = std::chrono::steady_clock::now();
    std::vector<ModuleAdapters> adapters = trained.net.generate(task.slice(begin, end));
    backend(task).synchronize();
    times.hypernet += seconds_since(t);
    times.flops += trained.net.flops(end - begin);
    ++times.chunks;
    for (auto& [a, b] : adapters) {
      a.value = a.value.to(Device::CPU);
      b.value = b.value.to(Device::CPU);
    }
    if (writing.valid()) times.writing += writing.get();
    progress(begin);
    writing =
        std::async(std::launch::async, [&trained, &c, &format, &directory, adapters = std::move(adapters), begin, end] {
          // Computing goes first: this thread runs where the others leave a core, or wait for it.
      const sched_param lowest{};
      sched_setscheduler(0, SCHED_IDLE, &lowest);
      const auto start = std::chrono::steady_clock::now();
          for (int64_t i = begin; i < end; ++i) {
            std::vector<LoraWeights> weights;
            for (int64_t layer = 0; layer < c.layers; ++layer)
              for (size_t m = 0; m < adapters.size(); ++m) {
                const AdaptedModule& module = c.modules[m];
                const int64_t row = (i - begin) * c.layers + layer, rows = (end - begin) * c.layers;
                weights.push_back({module.name, layer,
                                   adapters[m]
                                       .a.value.reshape({rows, c.rank, module.in})
                                       .slice(row, row + 1)
                                       .reshape({c.rank, module.in}),
                                   adapters[m]
                                       .b.value.reshape({rows, module.out, c.rank})
                                       .slice(row, row + 1)
                                       .reshape({module.out, c.rank})});
              }
            write_adapter(directory(i), trained.adapter, weights, format);
          }
          return seconds_since(start);
        });
  }
  if (writing.valid()) times.writing += writing.get();
  progress(n);
  return times;
}

}  // namespace t2l
