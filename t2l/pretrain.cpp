#include "t2l/pretrain.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "t2l/learner_parts.h"
#include "t2l/task_embedding.h"
#include "transformer/model_lookup.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kStream = 0x5a3d'9e22'0000'0000;  // beside those of sampler.cpp

// What a draw takes random numbers for; an example's row has kRow + its number.
enum Purpose : uint64_t { kKind, kLevel, kTask, kDescription, kShots, kRow, kPurposes = 16 };

// Files of a model's folder that are no weights, as transformers names them.
constexpr const char* kModelFiles[] = {"tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "merges.txt",
                                       "tokenizer.model",
                                       "chat_template.jinja",
                                       "chat_template.json",
                                       "generation_config.json"};

class PretrainLearner final : public Learner {
 public:
  PretrainLearner(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress)
      : config_(c),
        model_dir_(find_model(c.model_dir, "give the folder of its config.json and tokenizer as model_dir")),
        encoder_(SampleEncoder::load(model_dir_, c.model_dir, c.sft_mode == "completion", c.inp_max_len)),
        set_(TaskSet::load(c, &encoder_, false, false, progress)),
        epochs_(sampler_options(c), sizes<TaskSize>()),
        sampler_(options(), sizes<PretrainSampler::Size>()),
        model_config_(parse_model_config()),
        samples_(encoder_, set_.tasks, model_config_.gist_token, c.inp_max_len),
        base_(model_config_, {dtype, device, {}, c.recompute}),
        weights_(base_.parameters()) {
    if (!encoder_.is_chat() && (c.p_no_description < 1 || c.p_shots > 0))
      fail(
          "{}: has no chat template, which says where descriptions and examples stand; add one, or set "
          "p_no_description: 1 and p_shots: 0",
          model_dir_);
    for (const char* name : kModelFiles)
      if (const std::string path = model_dir_ + "/" + name; fs::exists(path))
        files_.emplace_back(name, read_text_file(path, size_t(256) << 20));

    const DecoderOptions f32{.device = Device::CPU};
    std::optional<Decoder> start;
    if (c.init_from.empty()) {
      start.emplace(model_config_, f32);
      start->initialise(uint64_t(c.seed));
    } else {
      start.emplace(model_config_,
                    SafeTensors::open(find_model(c.init_from, "give the folder of a model as init_from")), f32);
    }
    for (const Decoder::Parameter& p : start->parameters()) {
      const bool matrix = p.shape.rank() > 1;  // norms and biases are spared from weight decay, as in GPT-3 and Llama
      parameters_.declare(p.name, p.shape, {}, true, matrix);
      parameters_.load(p.name, p.value->value, c.init_from);
    }
    parameters_.commit(device);
  }

  Parameters& parameters() override { return parameters_; }
  const Sampler& sampler() const override { return epochs_; }

  MicroBatch forward(int64_t i) override {
    const SftBatch batch = samples_.batch(sampler_.batch(i));
    for (const Decoder::Parameter& p : weights_) *p.value = cast(parameters_(p.name), base_.options().dtype);
    const RandomKey key = step_key(uint64_t(config_.seed), i);
    const SftLoss loss = sft_loss(base_, batch, {}, nullptr,
                                  {.label_smoothing = float(config_.label_smoothing),
                                   .equally_weight_sample = config_.equally_weight_sample,
                                   .neftune_alpha = float(config_.neftune_noise_alpha)},
                                  &key);
    return {loss.total, {{"tokens", loss.tokens}, {"response_tokens", loss.response_tokens}}};
  }

  // How well it does is for t2l-eval to say, with and without descriptions.
  std::vector<Json> validate(const TaskSet::Progress&) override { return {}; }

  StepCost cost(int64_t i) const override {
    StepCost cost;
    const SftBatch batch = PretrainSamples(samples_).batch(sampler_.batch(i));
    add_base(cost, base_, batch, {}, 0, 0, true);
    add_slabs(cost, parameters_);
    return cost;
  }
  const TaskSet& data() const override { return set_; }

  void save(const std::string& directory) const override {
    NamedTensors tensors;
    for (const std::string& name : parameters_.names())
      tensors.emplace_back(name, parameters_.value(name).to(Device::CPU));
    write_safetensors(directory + "/model.safetensors", tensors);
    write_text_file(directory + "/config.json", model_json_.dump(2) + "\n");
    for (auto& [name, text] : files_) write_text_file(directory + "/" + name, text);
  }

 private:
  template <class Size>
  std::vector<Size> sizes() const {
    std::vector<Size> all;
    for (const Task& t : set_.tasks) {
      const auto rows = int64_t(t.train.size()), descriptions = int64_t(t.descriptions.size());
      if constexpr (std::is_same_v<Size, TaskSize>)
        all.push_back({t.name, rows, descriptions});
      else
        all.push_back({rows, descriptions, t.level});
    }
    return all;
  }

  PretrainSampler::Options options() const {
    const int64_t updates = iterations_of(config_, epochs_) / config_.grad_accum_steps;
    const int64_t end = int64_t(config_.curriculum * double(updates));
    return {config_.batch_size, config_.p_no_description, config_.p_shots, end * config_.grad_accum_steps,
            uint64_t(config_.seed)};
  }

  DecoderConfig parse_model_config() {
    const std::string path = config_path(model_dir_);
    model_json_ = parse_ordered_json(read_text_file(path), path);
    const bool has_gist = model_json_.is_object() && model_json_.contains("gist_token_id");
    if (config_.gist_mask && !has_gist && config_.given.contains("gist_mask"))
      fail("{}: has no gist_token_id, the token behind a description, which gist_mask needs; add it", path);
    if (!config_.gist_mask && has_gist) model_json_.erase("gist_token_id");
    DecoderConfig c = DecoderConfig::parse(Json(model_json_), path);
    model_json_.erase("dtype");
    model_json_["torch_dtype"] = "float32";
    return c;
  }

  TrainConfig config_;
  std::string model_dir_;
  SampleEncoder encoder_;
  TaskSet set_;
  Sampler epochs_;
  PretrainSampler sampler_;
  OrderedJson model_json_;
  std::vector<std::pair<std::string, std::string>> files_;
  DecoderConfig model_config_;
  PretrainSamples samples_;
  Decoder base_;
  std::vector<Decoder::Parameter> weights_;  // of base_
  Parameters parameters_;
};

}  // namespace

PretrainSampler::PretrainSampler(const Options& options, std::vector<Size> tasks)
    : options_(options), tasks_(std::move(tasks)) {
  for (size_t i = 0; i < tasks_.size(); ++i)
    if (tasks_[i].level == 1) simple_.push_back(int32_t(i));
  if (options_.curriculum_end > 0 && simple_.empty())
    fail("curriculum: no task has `level: 1` in its metadata.yaml; add it to the simple ones, or set curriculum: 0");
}

std::vector<PretrainDraw> PretrainSampler::batch(int64_t iteration) const {
  const RandomKey key{options_.seed, kStream + uint64_t(iteration)};
  const double level1 = options_.curriculum_end <= 0          ? 0
                        : iteration < options_.curriculum_end ? kLevel1Early
                                                              : kLevel1Late;
  std::vector<PretrainDraw> draws;
  for (int64_t s = 0; s < options_.batch_size; ++s) {
    const auto below = [&](uint64_t purpose, int64_t n) {
      return int64_t(draw_below(key, uint64_t(s) * kPurposes + purpose, uint64_t(n)));
    };
    const auto unit = [&](uint64_t purpose) { return double(below(purpose, int64_t(1) << 53)) * 0x1p-53; };
    PretrainDraw d;
    if (level1 > 0 && unit(kLevel) < level1)
      d.task = simple_[size_t(below(kTask, int64_t(simple_.size())))];
    else
      d.task = int32_t(below(kTask, int64_t(tasks_.size())));
    const Size& task = tasks_[size_t(d.task)];
    const double kind = unit(kKind);
    const bool shots = kind >= options_.p_no_description && kind < options_.p_no_description + options_.p_shots;
    if (kind >= options_.p_no_description + options_.p_shots && task.descriptions > 0)
      d.description = int32_t(below(kDescription, task.descriptions));
    const int64_t rows = 1 + (shots ? std::min(1 + below(kShots, kMostShots), task.rows - 1) : 0);
    for (int64_t k = 0; k < rows; ++k) {
      // The r-th of the rows that are left: those taken before it, in rising order, each push it one up.
      auto row = int32_t(below(kRow + uint64_t(k), task.rows - k));
      std::vector<int32_t> taken = d.rows;
      std::sort(taken.begin(), taken.end());
      for (const int32_t t : taken) row += t <= row;
      d.rows.push_back(row);
    }
    draws.push_back(std::move(d));
  }
  return draws;
}

PretrainSample pretrain_sample(const SampleEncoder& encoder, const Task& task, const PretrainDraw& draw) {
  const auto up_to = [&](size_t n) {  // the conversation that ends with turn n
    Conversation c = task.conversations[size_t(draw.rows[n])];
    if (draw.description >= 0) c.system = add_full_stop(task.descriptions[size_t(draw.description)]);
    for (size_t i = 0; i < n; ++i) {
      const Conversation& turn = task.conversations[size_t(draw.rows[i])];
      c.earlier.push_back({turn.user, turn.assistant});
    }
    return encoder.encode(c);
  };
  const size_t last = draw.rows.size() - 1;
  const Example whole = up_to(last);
  PretrainSample sample{whole.ids, whole.labels()};
  for (size_t n = 1; n < last; ++n) {
    const Example part = up_to(n);
    const auto end = std::mismatch(part.ids.begin(), part.ids.end(), whole.ids.begin(), whole.ids.end()).first;
    for (auto at = size_t(part.prompt); at < size_t(end - part.ids.begin()); ++at) sample.labels[at] = whole.ids[at];
  }
  return sample;
}

PretrainSamples::PretrainSamples(const SampleEncoder& encoder, const std::vector<Task>& tasks, int32_t gist_token,
                                 int64_t max_length)
    : encoder_(encoder), tasks_(tasks), gist_token_(gist_token), max_length_(size_t(max_length)) {
  for (const Task& t : tasks) heads_.emplace_back(t.descriptions.size());
}

SftBatch PretrainSamples::batch(const std::vector<PretrainDraw>& draws) {
  std::vector<PretrainSample> samples(draws.size());
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t s = 0; s < draws.size(); ++s)
    if (!compose(samples[s], draws[s])) samples[s] = pretrain_sample(encoder_, tasks_[size_t(draws[s].task)], draws[s]);
  SftBatch batch;
  for (size_t s = 0; s < draws.size(); ++s) {
    remember(samples[s], draws[s]);
    batch.ids.push_back(std::move(samples[s].ids));
    batch.labels.push_back(std::move(samples[s].labels));
  }
  return batch;
}

bool PretrainSamples::compose(PretrainSample& sample, const PretrainDraw& draw) const {
  if (draw.rows.size() > 1) return false;
  const Example& alone = tasks_[size_t(draw.task)].train[size_t(draw.rows[0])];
  sample = {alone.ids, alone.labels()};
  if (draw.description < 0) return true;
  const Head& head = heads_[size_t(draw.task)][size_t(draw.description)];
  if (head.ids.empty() || alone.ids.size() - head.instead + head.ids.size() > max_length_) return false;
  for (auto* list : {&sample.ids, &sample.labels}) {
    list->erase(list->begin(), list->begin() + ptrdiff_t(head.instead));
    list->insert(list->begin(), head.ids.begin(), head.ids.end());
  }
  std::fill_n(sample.labels.begin(), head.ids.size(), -100);
  return true;
}

void PretrainSamples::remember(const PretrainSample& sample, const PretrainDraw& draw) {
  if (draw.rows.size() > 1 || draw.description < 0 || sample.ids.size() >= max_length_) return;
  Head& head = heads_[size_t(draw.task)][size_t(draw.description)];
  const Example& alone = tasks_[size_t(draw.task)].train[size_t(draw.rows[0])];
  if (!head.ids.empty() || alone.prompt == 0) return;
  const auto [own, other] = std::mismatch(sample.ids.rbegin(), sample.ids.rend(), alone.ids.rbegin(), alone.ids.rend());
  if (own == sample.ids.rbegin() || *(own - 1) != gist_token_) return;
  head.ids.assign(sample.ids.begin(), own.base());
  head.instead = size_t(alone.ids.rend() - other);
}

std::unique_ptr<Learner> make_pretrain_learner(const TrainConfig& c, DType dtype, Device device,
                                               const TaskSet::Progress& progress) {
  return std::make_unique<PretrainLearner>(c, dtype, device, progress);
}

}  // namespace t2l
