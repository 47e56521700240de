#include "t2l/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numbers>

namespace t2l {
namespace {

namespace fs = std::filesystem;

// Where a run stands. A checkpoint has this as state.json, beside parameters.safetensors and optimizer.safetensors.
struct Position {
  int64_t iteration = 0, updates = 0;  // done
  uint64_t metrics_bytes = 0;          // of metrics.jsonl up to here
  // Validation: the update after which it was last made, the lowest loss, when that was, and how many since were
  // higher.
  int64_t validated = -1, best_updates = -1, worse = 0;
  double best_loss = 0;

  static Position read(const Object& state) {
    return {state.get_int("iteration", 0),
            state.get_int("updates", 0),
            uint64_t(state.get_int("metrics_bytes", 0)),
            state.get_int_or("validated", -1),
            state.get_int_or("best_updates", -1),
            state.get_int_or("worse", 0),
            state.get_float_or("best_loss", 0)};
  }
  Json json() const {
    return {{"iteration", iteration}, {"updates", updates},           {"metrics_bytes", metrics_bytes},
            {"validated", validated}, {"best_updates", best_updates}, {"worse", worse},
            {"best_loss", best_loss}};
  }
};

std::string step_name(int64_t updates) { return fmt::format("step_{}", updates); }

// The numbers of the checkpoints that are complete, rising.
std::vector<int64_t> checkpoints(const std::string& folder) {
  std::vector<int64_t> found;
  if (!fs::is_directory(folder)) return found;
  for (auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    int64_t n = -1;
    if (!name.starts_with("step_")) continue;
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), n);
    if (error == std::errc() && end == name.data() + name.size() && n >= 0) found.push_back(n);
  }
  std::sort(found.begin(), found.end());
  return found;
}

NamedTensors by_name(const Parameters& p, const Tensor& slab) {
  NamedTensors tensors;
  for (const std::string& name : p.names())
    if (const auto place = p.place(name)) {
      const auto [begin, end] = *place;
      tensors.emplace_back(name, slab.slice(begin, end).reshape(p.shape(name)));
    }
  return tensors;
}

void copy_in(const Parameters& p, const Tensor& slab, const SafeTensors& file, const std::string& prefix = "") {
  for (const auto& [name, tensor] : by_name(p, slab)) {
    const Tensor value = file.get(prefix + name);
    if (value.dtype() != DType::F32 || value.shape() != tensor.shape())
      fail("{}: tensor '{}' is not the {} that the run has", file.path(), prefix + name, tensor.shape().str());
    tensor.copy_from(value.to(tensor.device()));
  }
}

class Metrics {
 public:
  Metrics(const std::string& path, uint64_t keep) : path_(path) {
    file_ = std::fopen(path.c_str(), keep ? "r+" : "w");
    if (!file_) fail("{}: cannot be written; check the directory's permissions", path);
    if (keep && (::ftruncate(::fileno(file_), off_t(keep)) || std::fseek(file_, 0, SEEK_END)))
      fail("{}: cannot be cut back to the checkpoint", path);
    bytes_ = keep;
  }
  ~Metrics() { std::fclose(file_); }
  Metrics(const Metrics&) = delete;

  void write(const Json& row) {
    const std::string line = row.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_))
      fail("{}: cannot be written; is the disk full?", path_);
    bytes_ += line.size();
  }
  uint64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace

double Schedule::operator()(int64_t update) const {
  if (update < warmup) return peak * double(update) / double(std::max<int64_t>(warmup, 1));
  const double left = double(std::max<int64_t>(total - update, 0)) / double(std::max<int64_t>(total - warmup, 1));
  const double part = decay == Decay::Linear ? left : (1 + std::cos(std::numbers::pi * (1 - left))) / 2;
  return peak * (floor + (1 - floor) * part);
}

TrainResult train(Parameters& parameters, const TrainPlan& plan, const TrainHooks& hooks, const std::string& out,
                  const Json& config, bool resume) {
  const std::string folder = out + "/checkpoints";
  fs::create_directories(folder);
  AdamW settings = plan.adamw;
  settings.step = 1;
  Optimizer optimizer(parameters, settings, plan.clip_group);
  Position at;
  if (const std::vector<int64_t> steps = checkpoints(folder); resume && !steps.empty()) {
    const std::string from = folder + "/" + step_name(steps.back());
    const Json json = read_json(from + "/state.json");
    const Object state(json, from + "/state.json");
    if (const std::string key = hooks.changed ? hooks.changed(json.value("config", Json())) : ""; !key.empty())
      fail("--resume: '{}' is not what the run of {} began with; give it its former value, or another --out", key, out);
    at = Position::read(state);
    copy_in(parameters, parameters.values(), SafeTensors::open(from + "/parameters.safetensors"));
    const SafeTensors moments = SafeTensors::open(from + "/optimizer.safetensors");
    const Tensor m = Tensor::zeros(parameters.values().shape(), DType::F32, parameters.values().device()),
                 v = m.clone();
    copy_in(parameters, m, moments, "m.");
    copy_in(parameters, v, moments, "v.");
    optimizer.restore(m, v, at.updates);
  }
  Metrics metrics(out + "/metrics.jsonl", at.metrics_bytes);
  int64_t saved = resume ? at.updates : -1;

  const auto save = [&] {
    {
      OutputDirectory checkpoint(folder + "/" + step_name(at.updates), true);
      write_safetensors(checkpoint.file("parameters.safetensors"), by_name(parameters, parameters.values()));
      NamedTensors moments;
      for (const auto& [prefix, slab] :
           {std::pair("m.", &optimizer.first_moment()), std::pair("v.", &optimizer.second_moment())})
        for (auto& [name, tensor] : by_name(parameters, *slab)) moments.emplace_back(prefix + name, tensor);
      write_safetensors(checkpoint.file("optimizer.safetensors"), moments);
      Json state = at.json();
      state["config"] = config;
      write_text_file(checkpoint.file("state.json"), state.dump(1) + "\n");
      checkpoint.commit();
    }
    saved = at.updates;
    std::vector<int64_t> steps = checkpoints(folder);
    for (size_t i = 0; plan.keep_last > 0 && i + size_t(plan.keep_last) < steps.size(); ++i)
      if (!plan.keep_best || steps[i] != at.best_updates) fs::remove_all(folder + "/" + step_name(steps[i]));
    if (hooks.saved) hooks.saved();
  };
  // What may stop the run; what was learnt until then is kept.
  const auto or_save = [&](auto&& action) {
    try {
      action();
    } catch (...) {
      if (saved != at.updates) save();
      throw;
    }
  };
  const auto validate = [&](bool last) {
    if (!hooks.validate || plan.validate_every <= 0 || at.validated == at.updates ||
        (!last && at.updates % plan.validate_every != 0))
      return;
    std::vector<Json> rows;
    or_save([&] { rows = hooks.validate(); });
    for (Json& row : rows) {
      row["step"] = at.iteration;
      metrics.write(row);
    }
    at.metrics_bytes = metrics.bytes();
    at.validated = at.updates;
    if (rows.empty()) return;
    const double loss = rows[0].at("loss").get<double>();
    if (!std::isfinite(loss)) fail("the validation loss after {} updates is {}; lower lr", at.updates, loss);
    if (at.best_updates < 0 || loss < at.best_loss) {
      at.best_updates = at.updates, at.best_loss = loss, at.worse = 0;
      if (plan.keep_best) save();
    } else if (loss > at.best_loss) {
      ++at.worse;
    }
  };
  const auto out_of_patience = [&] { return plan.patience > 0 && at.worse >= plan.patience; };

  validate(false);
  for (int64_t i = at.iteration; i < plan.iterations && !out_of_patience(); ++i) {
    const auto start = std::chrono::steady_clock::now();
    MicroBatch micro = hooks.forward(i);
    const bool update = (i + 1) % plan.accumulate == 0;
    if (update || !plan.official_accumulation)
      backward(
          {{micro.loss, Tensor::full({1}, float(micro.models) / float(plan.accumulate), micro.loss.value.device())}});
    else
      Tape::clear();
    const double lr = plan.schedule(at.updates);
    Json row = micro.metrics;
    row["step"] = i + 1;
    row["loss"] = micro.loss.value.to_vector<float>()[0];
    row["lr"] = lr;
    row["updated"] = update;
    row["grad_norm"] = nullptr;
    if (!std::isfinite(row["loss"].get<double>()))
      fail("the loss of step {} is {}; lower lr, or look at the data of that step", i + 1, row["loss"].get<double>());
    if (update) {
      if (at.updates == 0 && !plan.dump_grads.empty())
        write_safetensors(plan.dump_grads, by_name(parameters, parameters.grads()));
      row["grad_norm"] = optimizer.step(lr);
      ++at.updates;
    }
    row["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    metrics.write(row);
    at.iteration = i + 1;
    at.metrics_bytes = metrics.bytes();
    if (hooks.progress) hooks.progress(i, row);
    if (!update) continue;  // between updates there are gradients that no checkpoint holds
    validate(i + plan.accumulate >= plan.iterations);
    if (saved != at.updates && plan.save_every > 0 && at.updates % plan.save_every == 0) save();
    if (hooks.check_interrupt) or_save(hooks.check_interrupt);
  }
  const bool told = at.updates != saved;  // of this state, by save()
  if (told) save();
  const bool best = plan.keep_best && at.best_updates >= 0 && at.best_updates != at.updates;
  if (best)
    copy_in(parameters, parameters.values(),
            SafeTensors::open(fmt::format("{}/{}/parameters.safetensors", folder, step_name(at.best_updates))));
  if (hooks.saved && (best || !told)) hooks.saved();
  return {at.updates, out_of_patience(), at.best_updates, at.best_loss};
}

}  // namespace t2l
