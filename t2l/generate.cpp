#include "t2l/generate.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "transformer/model_lookup.h"

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

// The weights of row `i` of the adapters for n tasks.
std::vector<LoraWeights> weights_of(const HypernetConfig& c, const std::vector<ModuleAdapters>& adapters, int64_t i) {
  std::vector<LoraWeights> weights;
  for (int64_t layer = 0; layer < c.layers; ++layer)
    for (size_t m = 0; m < adapters.size(); ++m) {
      const auto one = [&](const Var& all) {  // [n, layers, x, y] -> [x, y]
        const int64_t row = i * c.layers + layer;
        return all.value.reshape({all.dim(0) * c.layers, all.dim(2), all.dim(3)})
            .slice(row, row + 1)
            .reshape({all.dim(2), all.dim(3)});
      };
      weights.push_back({c.modules[m].name, layer, one(adapters[m].a), one(adapters[m].b)});
    }
  return weights;
}

std::vector<ModuleAdapters> generate_on_host(const TrainedHypernet& trained, const Tensor& task) {
  std::vector<ModuleAdapters> adapters = trained.net.generate(task);
  for (auto& [a, b] : adapters) {
    a.value = a.value.to(Device::CPU);
    b.value = b.value.to(Device::CPU);
  }
  return adapters;
}

// No encoder named: the base model itself, by the name that the adapter's config gives it.
std::string encoder_path(const TrainedHypernet& trained, const std::string& encoder, const std::string& base) {
  const std::string& own = trained.encoder.model;
  const std::string& name = !encoder.empty() ? encoder
                            : !own.empty()   ? own
                            : !base.empty()  ? base
                                             : trained.adapter.base_model;
  return find_model(name, "give its directory with --encoder");
}

}  // namespace

HypernetEncoder::HypernetEncoder(const TrainedHypernet& trained, const std::string& encoder, const std::string& base,
                                 const EncoderOptions& options)
    : normalise_(trained.encoder.normalise),
      path_(encoder_path(trained, encoder, base)),
      embedder_(TaskEmbedder::load(path_, options, trained.encoder)) {
  if (const int64_t wanted = trained.net.config().task_dim; embedder_.dim() != wanted)
    fail("{}: gives embeddings of {}, the hypernetwork takes {}; give the encoder it was trained with by --encoder",
         path_, embedder_.dim(), wanted);
}

Tensor HypernetEncoder::embed(const std::vector<std::string>& descriptions) const {
  return normalise_ ? embedder_.embed(descriptions) : embedder_.embed_raw(descriptions);
}

Tensor one_hot_tasks(const TrainedHypernet& trained, const std::vector<std::string>& names) {
  Tensor e = Tensor::zeros({int64_t(names.size()), int64_t(trained.tasks.size())});
  for (size_t i = 0; i < names.size(); ++i) {
    const auto it = std::find(trained.tasks.begin(), trained.tasks.end(), names[i]);
    if (it == trained.tasks.end())
      fail("'{}' is none of the {} tasks this one-hot hypernetwork was trained on (the first is {}); name one of those",
           printable(names[i]), trained.tasks.size(), printable(trained.tasks[0]));
    e.data<float>()[int64_t(i) * e.dim(1) + (it - trained.tasks.begin())] = 1;
  }
  return e;
}

Tensor embed_tasks(const TrainedHypernet& trained, const std::vector<std::string>& tasks, const std::string& encoder,
                   const std::string& base, const EncoderOptions& options) {
  const Tensor e =
      trained.one_hot ? one_hot_tasks(trained, tasks) : HypernetEncoder(trained, encoder, base, options).embed(tasks);
  return e.to(options.device);
}

std::vector<LoraWeights> generate_adapter(const TrainedHypernet& trained, const Tensor& task) {
  const NoGrad no_grad;
  return weights_of(trained.net.config(), generate_on_host(trained, task), 0);
}

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
    std::vector<ModuleAdapters> adapters = generate_on_host(trained, task.slice(begin, end));
    times.hypernet += seconds_since(t);
    times.flops += trained.net.flops(end - begin);
    ++times.chunks;
    wait_for_writer();
    progress(begin);
    std::packaged_task<double()> write([&trained, &c, &format, &directory, adapters = std::move(adapters), begin, end] {
      const auto start = std::chrono::steady_clock::now();
      for (int64_t i = begin; i < end; ++i)
        write_adapter(directory(i), trained.adapter, weights_of(c, adapters, i - begin), format);
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
