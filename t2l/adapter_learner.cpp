// Adapters as learners: one for all samples, or one for each task, side by side in one batch.
#include <algorithm>
#include <filesystem>

#include "t2l/apply_adapter.h"
#include "t2l/learner_parts.h"

namespace t2l {
namespace {

class AdapterLearner : public Learner {
 public:
  Parameters& parameters() override { return parameters_; }
  const Sampler& sampler() const override { return sampler_; }

  MicroBatch forward(int64_t i) override {
    const Batch batch = this->batch(i);
    std::vector<int32_t> which;
    for (const Sample& s : batch)
      if (count_ > 1) which.push_back(s.task);
    const RandomKey key = step_key(uint64_t(config_.seed), i);
    const SftLoss loss =
        sft_loss(base_, training_batch(set_, batch), adapters(), nullptr, sft_options(config_), &key, which);
    return {loss.total, metrics_of(loss), count_};
  }

  StepCost cost(int64_t i) const override {
    StepCost cost;
    add_base(cost, base_, training_batch(set_, batch(i)), spec_.modules, spec_.rank, config_.lora_dropout);
    add_slabs(cost, parameters_);
    return cost;
  }
  const TaskSet& data() const override { return set_; }

  std::vector<Json> validate(const TaskSet::Progress& progress) override {
    const NoGrad judged;
    const AdapterBatch adapters = this->adapters();
    return judge(
        splits_, base_, sft_options(config_), [&](const Tensor&) { return adapters; }, progress);
  }

 protected:
  AdapterLearner(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress, bool per_task)
      : config_(c),
        set_(load_samples(c, progress)),
        sampler_(make_sampler(c, set_, nullptr)),
        splits_(validation_splits(config_, set_, nullptr, {})),
        base_(load_base(c, dtype, device)),
        count_(per_task ? int64_t(set_.tasks.size()) : 1) {
    spec_ = {c.model_dir, c.lora_r, c.lora_alpha, c.use_rslora, c.lora_dropout, c.target_modules};
  }

  // The weights of all adapters. -> [count, rank, in] or [count, out, rank]
  virtual Var stacked(const std::string& module, int64_t layer, char ab) const = 0;

  std::string name_of(const std::string& module, int64_t layer, char ab) const {
    return fmt::format("base_model.model.{}.lora_{}.weight", module_path(module, layer), ab);
  }
  template <class F>  // f(module, layer, shape of it)
  void for_each(F&& f) const {
    for (int64_t layer = 0; layer < base_.config().layers; ++layer)
      for (const std::string& module : spec_.modules) f(module, layer, base_.config().linear(parse_projection(module)));
  }

  TrainConfig config_;
  TaskSet set_;
  Sampler sampler_;
  std::vector<ValidationSplit> splits_;
  Decoder base_;
  int64_t count_;
  AdapterSpec spec_;
  Parameters parameters_;

 private:
  // Samples of one adapter stand together.
  Batch batch(int64_t i) const {
    Batch batch = sampler_.batch(i);
    if (count_ > 1) std::stable_sort(batch.begin(), batch.end(), [](auto& a, auto& b) { return a.task < b.task; });
    return batch;
  }

  AdapterBatch adapters() const {
    AdapterBatch batch;
    batch.count = count_;
    batch.scale = float(spec_.scaling());
    batch.layers.resize(size_t(base_.config().layers));
    for_each([&](const std::string& module, int64_t layer, const BaseModel::Linear&) {
      const auto part = [&](char ab) { return cast(stacked(module, layer, ab), base_.options().dtype); };
      batch.layers[size_t(layer)][size_t(parse_projection(module))] = {part('A'), part('B')};
    });
    return batch;
  }
};

// One adapter, its parameters under PEFT's names.
class OneAdapter final : public AdapterLearner {
 public:
  OneAdapter(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress)
      : AdapterLearner(c, dtype, device, progress, false) {
    std::optional<Adapter> start;
    if (!c.init_from.empty()) {
      start = load_adapter(c.init_from);
      check_fits({{&*start}}, base_.config());
      spec_ = start->spec;
      spec_.base_model = c.model_dir;
      spec_.dropout = c.lora_dropout;
    }
    // As PEFT starts: A from torch.nn.Linear's law, B zero.
    for_each([&](const std::string& module, int64_t layer, const BaseModel::Linear& l) {
      parameters_.declare(name_of(module, layer, 'A'), {spec_.rank, l.in}, init::linear(l.in));
      parameters_.declare(name_of(module, layer, 'B'), {l.out, spec_.rank}, init::constant(0));
    });
    if (start)
      for (const LoraWeights& w : start->weights) {
        parameters_.load(name_of(w.module, w.layer, 'A'), w.a, start->path);
        parameters_.load(name_of(w.module, w.layer, 'B'), w.b, start->path);
      }
    parameters_.initialise(uint64_t(c.seed));
    parameters_.commit(device);
  }

  void save(const std::string& directory) const override {
    std::vector<LoraWeights> weights;
    for_each([&](const std::string& module, int64_t layer, const BaseModel::Linear&) {
      weights.push_back({module, layer, parameters_.value(name_of(module, layer, 'A')).to(Device::CPU),
                         parameters_.value(name_of(module, layer, 'B')).to(Device::CPU)});
    });
    write_adapter(directory, spec_, weights, {});
  }

 private:
  Var stacked(const std::string& module, int64_t layer, char ab) const override {
    const Var w = parameters_(name_of(module, layer, ab));
    return reshape(w, {1, w.dim(0), w.dim(1)});
  }
};

// An adapter for each task, trained as if each were alone: all start from the same A, and each is clipped by itself. A
// task's adapter is a row of one parameter, so that it is one piece of the slab.
class AdapterPerTask final : public AdapterLearner {
 public:
  AdapterPerTask(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress)
      : AdapterLearner(c, dtype, device, progress, true) {
    Parameters one;
    for_each([&](const std::string& module, int64_t layer, const BaseModel::Linear& l) {
      one.declare(name_of(module, layer, 'A'), {spec_.rank, l.in}, init::linear(l.in));
      columns_[name_of(module, layer, 'A')] = {width_, {count_, spec_.rank, l.in}};
      columns_[name_of(module, layer, 'B')] = {width_ + spec_.rank * l.in, {count_, l.out, spec_.rank}};
      width_ += spec_.rank * (l.in + l.out);
    });
    one.initialise(uint64_t(c.seed));
    const Tensor all = Tensor::zeros({count_, width_});
    for (const std::string& name : one.names())
      for (int64_t task = 0; task < count_; ++task)
        all.reshape({count_ * width_})
            .slice(task * width_ + columns_.at(name).begin, task * width_ + columns_.at(name).begin + one.count(name))
            .copy_from(one.value(name).reshape({one.count(name)}));
    parameters_.declare(kName, {count_, width_}, init::constant(0));
    parameters_.load(kName, all, "");
    parameters_.commit(device);
  }

  int64_t group() const override { return width_; }

  void save(const std::string& directory) const override {
    const Tensor all = parameters_.value(kName).to(Device::CPU).reshape({count_ * width_});
    for (int64_t task = 0; task < count_; ++task) {
      std::vector<LoraWeights> weights;
      for_each([&](const std::string& module, int64_t layer, const BaseModel::Linear&) {
        const auto part = [&](char ab) {
          const Columns& c = columns_.at(name_of(module, layer, ab));
          const int64_t begin = task * width_ + c.begin, n = c.shape[1] * c.shape[2];
          return all.slice(begin, begin + n).reshape({c.shape[1], c.shape[2]});
        };
        weights.push_back({module, layer, part('A'), part('B')});
      });
      const std::string folder = directory + "/" + set_.tasks[size_t(task)].name;
      std::filesystem::create_directories(folder);
      write_adapter(folder, spec_, weights, {});
    }
  }

 private:
  static constexpr const char* kName = "adapters";  // [tasks, width]
  struct Columns {
    int64_t begin = 0;
    Shape shape;
  };

  Var stacked(const std::string& module, int64_t layer, char ab) const override {
    const Columns& c = columns_.at(name_of(module, layer, ab));
    return reshape(slice_columns(parameters_(kName), c.begin, c.begin + c.shape[1] * c.shape[2]), c.shape);
  }

  int64_t width_ = 0;
  std::map<std::string, Columns> columns_;
};

}  // namespace

std::unique_ptr<Learner> make_adapter_learner(const TrainConfig& c, DType dtype, Device device,
                                              const TaskSet::Progress& progress) {
  if (c.per_task) return std::make_unique<AdapterPerTask>(c, dtype, device, progress);
  return std::make_unique<OneAdapter>(c, dtype, device, progress);
}

}  // namespace t2l
