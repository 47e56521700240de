#include "t2l/learners.h"

#include <cmath>
#include <filesystem>

#include "t2l/apply_adapter.h"
#include "t2l/generate.h"
#include "t2l/pretrain.h"
#include "transformer/model_lookup.h"

namespace t2l {
namespace {

// table: the descriptions there are, where a hypernetwork reads them.
Sampler make_sampler(const TrainConfig& c, const TaskSet& set, const EmbeddingTable* table) {
  std::vector<TaskSize> sizes;
  for (size_t i = 0; i < set.tasks.size(); ++i)
    sizes.push_back({set.tasks[i].name, int64_t(set.tasks[i].train.size()), table ? table->size(int64_t(i)) : 0});
  Sampler sampler(sampler_options(c), sizes);
  if (!c.data_order.empty()) sampler.replay(c.data_order);
  return sampler;
}

std::vector<std::string> names_of(const TaskSet& set) {
  std::vector<std::string> names;
  for (const Task& t : set.tasks) names.push_back(t.name);
  return names;
}

SftOptions sft_options(const TrainConfig& c) {
  return {.label_smoothing = float(c.label_smoothing),
          .equally_weight_sample = c.equally_weight_sample,
          .l2_generated = float(c.l2_reg_generated_w),
          .lora_dropout = float(c.lora_dropout),
          .neftune_alpha = float(c.neftune_noise_alpha)};
}

SftBatch sft_batch(const TaskSet& set, const Batch& batch) {
  SftBatch out;
  for (const Sample& s : batch) {
    const Example& e = set.tasks[size_t(s.task)].train[size_t(s.row)];
    out.ids.push_back(e.ids);
    out.labels.push_back(e.labels());
  }
  return out;
}

Json metrics_of(const SftLoss& loss) {
  return {{"sft_loss", loss.sft.to_vector<float>()[0]},
          {"generated_w_l2_loss", loss.l2 ? loss.l2.to_vector<float>()[0] : 0.f},
          {"tokens", loss.tokens},
          {"response_tokens", loss.response_tokens}};
}

// What learns through a base model needs it, and the tasks' samples in its tokens.
Decoder load_base(const TrainConfig& c, DType dtype, Device device) {
  return Decoder::load(find_model(c.model_dir, "give its directory as model_dir"), {dtype, device, {}, c.recompute});
}
TaskSet load_samples(const TrainConfig& c, const TaskSet::Progress& progress) {
  const std::string dir = find_model(c.model_dir, "give its directory as model_dir");
  const SampleEncoder encoder = SampleEncoder::load(dir, c.model_dir, c.sft_mode == "completion", c.inp_max_len);
  return TaskSet::load(c, &encoder, false, false, progress);
}

// ---- hypernetworks
// ---------------------------------------------------------------------------------------------------

EncoderSpec encoder_spec(const TrainConfig& c) {
  EncoderSpec e;
  e.model = c.emb_model;
  e.layer = c.emb_layer;
  e.pooling = c.emb_pooling;
  e.prefix = c.emb_prefix.empty() ? task_prefix(c.emb_model) : c.emb_prefix;
  e.suffix = c.emb_suffix;
  e.normalise = !c.use_one_hot_task_emb;
  return e;
}

EmbeddingTable make_table(const TrainConfig& c, const TaskSet& set, Device device) {
  const bool file = c.emb_model.ends_with(".safetensors");
  if (c.use_one_hot_task_emb) return EmbeddingTable::one_hot(int64_t(set.tasks.size()));
  if (!c.embeddings.empty() || file)
    return EmbeddingTable::load(!c.embeddings.empty() ? c.embeddings : c.emb_model, names_of(set), c.n_descs_per_ds);
  const EncoderSpec spec = encoder_spec(c);
  const EncoderOptions options{DType::F32, device, {}};
  const std::string dir = find_model(spec.model.empty() ? c.model_dir : spec.model, "give its directory as emb_model");
  std::optional<TaskEmbedder> embedder;
  std::vector<std::vector<std::string>> texts;
  for (const Task& t : set.tasks) texts.push_back(t.descriptions);
  return EmbeddingTable::encode(texts, {encoder_identity(dir, spec, options), cache_directory(c.cache_dir),
                                        [&](const std::vector<std::string>& some) {
                                          if (!embedder) embedder.emplace(TaskEmbedder::load(dir, options, spec));
                                          return embedder->embed_raw(some).to(Device::CPU);
                                        }});
}

TrainedHypernet make_hypernet(const TrainConfig& c, const TaskSet& set, int64_t dim) {
  const std::string base_dir = find_model(c.model_dir, "give its directory as model_dir");
  const auto settle = [&](TrainedHypernet t) {
    t.encoder = encoder_spec(c);
    t.encoder.dim = dim;
    t.adapter.base_model = c.model_dir;
    t.adapter.dropout = c.lora_dropout;
    t.one_hot = c.use_one_hot_task_emb;
    t.tasks = t.one_hot ? names_of(set) : std::vector<std::string>{};
    return t;
  };
  if (!c.init_from.empty()) {
    TrainedHypernet t = load_hypernet(c.init_from, {.module_order = {}, .base = base_dir});
    if (t.net.config().task_dim != dim)
      fail("{}: takes embeddings of {}, these tasks have {}; start from a hypernetwork of the same encoder",
           c.init_from, t.net.config().task_dim, dim);
    t.net.set_dropout(float(c.dropout));
    t.verified.get();
    return settle(std::move(t));
  }
  const BaseModel base = BaseModel::read(base_dir);
  HypernetConfig h;
  h.shared_head = c.shared_AB_head;
  h.autoregressive = c.autoreg_gen;
  h.learnable_positions = c.learnable_pos_emb;
  h.objective =
      c.verb == Verb::Reconstruct ? HypernetConfig::Objective::Reconstruction : HypernetConfig::Objective::SFT;
  h.dense = c.verb == Verb::Reconstruct && !c.factorized;
  h.z_score = c.verb == Verb::Reconstruct && c.factorized && c.pred_z_score;
  h.head_bias = !h.z_score;
  h.delta_w_scaling = c.delta_w_scaling;
  h.layers = base.layers;
  h.rank = c.lora_r;
  h.latent = c.hypernet_latent_size;
  h.head_in = c.head_in_size;
  h.task_dim = dim;
  h.dropout = float(c.dropout);
  for (const std::string& m : c.target_modules) {
    const BaseModel::Linear l = base.linear(parse_projection(m));
    h.modules.push_back({m, l.in, l.out});
  }
  TrainedHypernet t{Hypernet(h), {}, {}, false, {}, "", "ours", "target_modules", 0, {}, {}};
  t.net.parameters().initialise(uint64_t(c.seed));
  t.adapter = {c.model_dir, c.lora_r, c.lora_alpha, c.use_rslora, c.lora_dropout, c.target_modules};
  return settle(std::move(t));
}

class HypernetLearner : public Learner {
 public:
  Parameters& parameters() override { return trained_.net.parameters(); }
  const Sampler& sampler() const override { return sampler_; }
  void save(const std::string& directory) const override { save_hypernet(trained_, directory); }

 protected:
  HypernetLearner(const TrainConfig& c, TaskSet set, Device device)
      : config_(c),
        device_(device),
        set_(std::move(set)),
        table_(make_table(c, set_, device)),
        sampler_(make_sampler(c, set_, &table_)),
        trained_(make_hypernet(c, set_, table_.dim())) {}

  Tensor embeddings(const Batch& batch) const { return table_.gather(batch).to(device_); }
  Hypernet::Training training(int64_t i) const { return {uint64_t(config_.seed), uint64_t(i)}; }

  TrainConfig config_;
  Device device_;
  TaskSet set_;
  EmbeddingTable table_;
  Sampler sampler_;
  TrainedHypernet trained_;
};

class SftLearner final : public HypernetLearner {
 public:
  SftLearner(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress)
      : HypernetLearner(c, load_samples(c, progress), device), base_(load_base(c, dtype, device)) {
    parameters().commit(device);
  }

  MicroBatch forward(int64_t i) override {
    const Batch batch = sampler_.batch(i);
    const RandomKey key = step_key(uint64_t(config_.seed), i);
    const Hypernet::Training random = training(i);
    const std::vector<ModuleAdapters> generated = trained_.net.generate(embeddings(batch), &random);
    const AdapterBatch adapters =
        adapters_of(generated, trained_.net.config(), float(trained_.adapter.scaling()), base_.options().dtype);
    const SftLoss loss = sft_loss(base_, sft_batch(set_, batch), adapters, &generated, sft_options(config_), &key);
    return {loss.total, metrics_of(loss)};
  }

 private:
  Decoder base_;
};

class ReconstructLearner final : public HypernetLearner {
 public:
  ReconstructLearner(const TrainConfig& c, Device device)
      : HypernetLearner(c, TaskSet::load(c, nullptr), device),
        targets_(load_targets(c.oracle_dir, names_of(set_), trained_.net.config())) {
    if (trained_.net.config().z_score && c.init_from.empty()) set_z_scores(trained_.net, targets_);
    targets_ = targets_.to(device);
    parameters().commit(device);
  }

  MicroBatch forward(int64_t i) override {
    const Batch batch = sampler_.batch(i);
    std::vector<int32_t> tasks;
    for (const Sample& s : batch) tasks.push_back(s.task);
    const Hypernet::Training random = training(i);
    const ReconLoss loss = reconstruct_loss(trained_.net, embeddings(batch), tasks, targets_, &random);
    return {loss.loss, {{"unnorm_err", loss.error.to_vector<float>()[0]}, {"tokens", 0}}};
  }

 private:
  ReconTargets targets_;
};

// ---- one adapter
// -----------------------------------------------------------------------------------------------------

class LoraLearner final : public Learner {
 public:
  LoraLearner(const TrainConfig& c, DType dtype, Device device, const TaskSet::Progress& progress)
      : config_(c),
        set_(load_samples(c, progress)),
        sampler_(make_sampler(c, set_, nullptr)),
        base_(load_base(c, dtype, device)) {
    const DecoderConfig& base = base_.config();
    spec_ = {c.model_dir, c.lora_r, c.lora_alpha, c.use_rslora, c.lora_dropout, c.target_modules};
    std::optional<Adapter> start;
    if (!c.init_from.empty()) {
      start = load_adapter(c.init_from);
      check_fits({{&*start}}, base);
      spec_ = start->spec;
      spec_.base_model = c.model_dir;
      spec_.dropout = c.lora_dropout;
    }
    // As PEFT starts: A from torch.nn.Linear's law, B zero.
    for (int64_t layer = 0; layer < base.layers; ++layer)
      for (const std::string& module : spec_.modules) {
        const BaseModel::Linear l = base.linear(parse_projection(module));
        parameters_.declare(name_of(module, layer, 'A'), {spec_.rank, l.in}, init::linear(l.in));
        parameters_.declare(name_of(module, layer, 'B'), {l.out, spec_.rank}, init::constant(0));
      }
    if (start)
      for (const LoraWeights& w : start->weights) {
        parameters_.load(name_of(w.module, w.layer, 'A'), w.a, start->path);
        parameters_.load(name_of(w.module, w.layer, 'B'), w.b, start->path);
      }
    parameters_.initialise(uint64_t(c.seed));
    parameters_.commit(device);
  }

  Parameters& parameters() override { return parameters_; }
  const Sampler& sampler() const override { return sampler_; }

  MicroBatch forward(int64_t i) override {
    AdapterBatch batch;
    batch.count = 1;
    batch.scale = float(spec_.scaling());
    batch.layers.resize(size_t(base_.config().layers));
    for (size_t layer = 0; layer < batch.layers.size(); ++layer)
      for (const std::string& module : spec_.modules) {
        const auto part = [&](char ab) {
          const Var w = cast(parameters_(name_of(module, int64_t(layer), ab)), base_.options().dtype);
          return reshape(w, {1, w.dim(0), w.dim(1)});
        };
        batch.layers[layer][size_t(parse_projection(module))] = {part('A'), part('B')};
      }
    const RandomKey key = step_key(uint64_t(config_.seed), i);
    const SftLoss loss =
        sft_loss(base_, sft_batch(set_, sampler_.batch(i)), batch, nullptr, sft_options(config_), &key);
    return {loss.total, metrics_of(loss)};
  }

  void save(const std::string& directory) const override {
    std::vector<LoraWeights> weights;
    for (int64_t layer = 0; layer < base_.config().layers; ++layer)
      for (const std::string& module : spec_.modules)
        weights.push_back({module, layer, parameters_.value(name_of(module, layer, 'A')).to(Device::CPU),
                           parameters_.value(name_of(module, layer, 'B')).to(Device::CPU)});
    write_adapter(directory, spec_, weights, {});
  }

 private:
  static std::string name_of(const std::string& module, int64_t layer, char ab) {
    return fmt::format("base_model.model.{}.lora_{}.weight", module_path(module, layer), ab);
  }

  TrainConfig config_;
  TaskSet set_;
  Sampler sampler_;
  Decoder base_;
  AdapterSpec spec_;
  Parameters parameters_;
};

// Settings that another result would follow from than the one asked for.
void check_built(const TrainConfig& c) {
  const std::pair<bool, const char*> missing[] = {
      {!c.mt_lora_path.empty(), "mt_lora_path"},
      {c.learnable_AB_offset, "learnable_AB_offset"},
      {c.use_inp_as_desc, "use_inp_as_desc"},
      {c.use_per_sample_desc, "use_per_sample_desc"},
      {uses_hypernet(c.verb) && !c.use_per_task_emb && !c.use_one_hot_task_emb, "use_per_task_emb: false"},
      {!c.export_official.empty(), "export_official"},
      {c.dry_run, "dry_run"},
  };
  for (const auto& [set, key] : missing)
    if (set) throw UsageError(fmt::format("{}: is not built yet; leave it out", key));
}

}  // namespace

std::unique_ptr<Learner> make_learner(const TrainConfig& c, DType dtype, Device device,
                                      const TaskSet::Progress& progress) {
  check_built(c);
  switch (c.verb) {
    case Verb::Sft: return std::make_unique<SftLearner>(c, dtype, device, progress);
    case Verb::Reconstruct: return std::make_unique<ReconstructLearner>(c, device);
    case Verb::Lora:
    case Verb::Multitask: return std::make_unique<LoraLearner>(c, dtype, device, progress);
    case Verb::Pretrain: return make_pretrain_learner(c, dtype, device, progress);
    default:
      throw UsageError(fmt::format("{}: is not built yet; there are pretrain, lora, multitask, reconstruct and sft",
                                   name_of(c.verb)));
  }
}

int64_t updates_of(const TrainConfig& c, const Sampler& sampler) {
  const int64_t iterations = sampler.recorded() ? sampler.recorded() : c.epochs * sampler.batches_per_epoch();
  return c.steps && !sampler.recorded() ? c.steps : iterations / c.grad_accum_steps;
}

TrainPlan plan_of(const TrainConfig& c, const Learner& learner) {
  TrainPlan p;
  p.accumulate = c.grad_accum_steps;
  const Sampler& sampler = learner.sampler();
  p.iterations = sampler.recorded() ? sampler.recorded()
                 : c.steps          ? c.steps * c.grad_accum_steps
                                    : c.epochs * sampler.batches_per_epoch();
  p.official_accumulation = c.compat == "official";
  p.schedule.decay = c.schedule == "cosine" ? Schedule::Decay::Cosine : Schedule::Decay::Linear;
  p.schedule.peak = c.lr;
  p.schedule.floor = c.min_lr_frac;
  p.schedule.warmup = int64_t(c.warmup_frac * double(p.iterations) / double(p.accumulate));
  p.schedule.total = updates_of(c, sampler);
  p.adamw = {.lr = c.lr, .beta2 = c.adam_beta2, .weight_decay = c.weight_decay, .max_norm = c.max_grad_norm};
  p.save_every = c.save_freq == TrainConfig::kNever ? 0 : c.save_freq;
  p.keep_last = c.keep_last;
  p.dump_grads = c.dump_grads;
  return p;
}

}  // namespace t2l
