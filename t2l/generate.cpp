#include "t2l/generate.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace t2l {
namespace {

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// How many tasks at once: two chunks of adapters, one computed and one written, and the hidden states stay within about
// the checkpoint's size, so that with it all memory is below three times that.
int64_t chunk_size(const TrainedHypernet& trained) {
  const HypernetConfig& c = trained.net.config();
  size_t adapter = 0;
  const int64_t states =
      c.layers * (c.shared_head ? 2 : 1) * (c.autoregressive ? c.rank : 1) * (4 * c.width() + c.head_in);
  for (auto& m : c.modules) adapter += size_t(c.layers * c.rank * (m.in + m.out) + states) * sizeof(float);
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
  std::future<double> written;
  std::jthread writer;
  const sched_param any{};
  const auto wait_for_writer = [&] {
    if (!writer.joinable()) return;
    // Nothing else to do. Only root may raise a priority; for others the thread has the cores that are idle now.
    pthread_setschedparam(writer.native_handle(), SCHED_OTHER, &any);
    times.writing += written.get();
  };
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
    wait_for_writer();
    progress(begin);
    std::packaged_task<double()> write([&trained, &c, &format, &directory, adapters = std::move(adapters), begin, end] {
      const auto start = std::chrono::steady_clock::now();
      for (int64_t i = begin; i < end; ++i) {
        std::vector<LoraWeights> weights;
        for (int64_t layer = 0; layer < c.layers; ++layer)
          for (size_t m = 0; m < adapters.size(); ++m) {
            const auto one = [&](const Var& all) {  // [n, layers, x, y] -> [x, y]
              const int64_t row = (i - begin) * c.layers + layer;
              return all.value.reshape({(end - begin) * c.layers, all.dim(2), all.dim(3)})
                  .slice(row, row + 1)
                  .reshape({all.dim(2), all.dim(3)});
            };
            weights.push_back({c.modules[m].name, layer, one(adapters[m].a), one(adapters[m].b)});
          }
        write_adapter(directory(i), trained.adapter, weights, format);
      }
      return seconds_since(start);
    });
    written = write.get_future();
    writer = std::jthread(std::move(write));
    // Computing goes first: writing takes the cores that it leaves.
    if (end < n) pthread_setschedparam(writer.native_handle(), SCHED_IDLE, &any);
  }
  wait_for_writer();
  progress(n);
  return times;
}

}  // namespace t2l
