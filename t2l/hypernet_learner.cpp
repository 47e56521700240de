// Hypernetworks as learners: through a frozen base model, or towards given adapters.
#include <chrono>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "t2l/export_official.h"
#include "t2l/generate.h"
#include "t2l/learner_parts.h"
#include "t2l/reconstruct.h"
#include "transformer/model_lookup.h"

namespace t2l {
namespace {

std::string base_folder(const TrainConfig& c) { return find_model(c.model_dir, "give its directory as model_dir"); }

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

// Where embeddings come from: one-hot rows, a file, or an encoder that is loaded when something is not in its cache.
class Embeddings {
 public:
  using Table = std::shared_ptr<const EmbeddingTable>;
  Embeddings(const TrainConfig& c, Device device)
      : config_(c), spec_(encoder_spec(c)), options_{DType::F32, device, {}}, file_(c.embeddings) {}

  Table of_training(const TaskSet& set) {
    if (config_.use_one_hot_task_emb)
      return std::make_shared<EmbeddingTable>(EmbeddingTable::one_hot(int64_t(set.tasks.size())));
    if (!file_.empty())
      return std::make_shared<EmbeddingTable>(EmbeddingTable::load(file_, names_of(set.tasks), config_.n_descs_per_ds));
    std::vector<std::vector<std::string>> texts;
    for (const Task& t : set.tasks) texts.push_back(texts_of(config_, t, &Task::train));
    return encode(texts);
  }

  void release() { embedder_.reset(); }  // its memory

  // Null where a file does not have them.
  Table of(const std::vector<std::string>& tasks, const std::vector<std::vector<std::string>>& texts) {
    if (file_.empty()) return encode(texts);
    const SafeTensors file = SafeTensors::open(file_);
    for (size_t i = 0; i < tasks.size(); ++i)
      if (!file.contains(tasks[i]) || file.get(tasks[i]).dim(0) != int64_t(texts[i].size())) return nullptr;
    return std::make_shared<EmbeddingTable>(EmbeddingTable::load(file_, tasks, 0));
  }

 private:
  Table encode(const std::vector<std::vector<std::string>>& texts) {
    const std::string dir =
        spec_.model.empty() ? base_folder(config_) : find_model(spec_.model, "give its directory as emb_model");
    if (identity_.empty()) identity_ = encoder_identity(dir, spec_, options_);
    const CachedEncoder encoder{identity_, config_.dry_run ? "" : cache_directory(config_.cache_dir),
                                [&](const std::vector<std::string>& some) {
                                  if (!embedder_) embedder_.emplace(TaskEmbedder::load(dir, options_, spec_));
                                  // A dry run needs its width alone.
                                  if (config_.dry_run) return Tensor::full({int64_t(some.size()), embedder_->dim()}, 1);
                                  return embedder_->embed_raw(some).to(Device::CPU);
                                }};
    return std::make_shared<EmbeddingTable>(EmbeddingTable::encode(texts, encoder));
  }

  const TrainConfig& config_;
  EncoderSpec spec_;
  EncoderOptions options_;
  std::string file_, identity_;
  std::optional<TaskEmbedder> embedder_;
};

// Gives the hypernetwork the adapter that it adds to all it generates.
void load_offset(Hypernet& net, const Adapter& adapter) {
  const ReconTargets one = stack_targets({adapter}, net.config());
  for (size_t i = 0; i < one.modules.size(); ++i) {
    const std::string& module = net.config().modules[i].name;
    const auto first = [](const Tensor& x) { return x.reshape({x.dim(1), x.dim(2), x.dim(3)}); };
    net.parameters().load("AB_offset.A." + module, first(one.modules[i].a), adapter.path);
    net.parameters().load("AB_offset.B." + module, first(one.modules[i].b), adapter.path);
  }
}

TrainedHypernet make_hypernet(const TrainConfig& c, const TaskSet& set, int64_t dim) {
  const std::string base_dir = base_folder(c);
  const auto settle = [&](TrainedHypernet t) {
    t.encoder = encoder_spec(c);
    t.encoder.dim = dim;
    t.adapter.base_model = c.model_dir;
    t.adapter.dropout = c.lora_dropout;
    t.one_hot = c.use_one_hot_task_emb;
    t.tasks = t.one_hot ? names_of(set.tasks) : std::vector<std::string>{};
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
  const bool reconstruct = c.verb == Verb::Reconstruct;
  HypernetConfig h;
  h.shared_head = c.shared_AB_head;
  h.autoregressive = c.autoreg_gen;
  h.learnable_positions = c.learnable_pos_emb;
  h.objective = reconstruct ? HypernetConfig::Objective::Reconstruction : HypernetConfig::Objective::SFT;
  h.dense = reconstruct && !c.factorized;
  h.z_score = reconstruct && c.factorized && c.pred_z_score;
  // A bias begins as an adapter; where one is added already, or the mean of the targets, there is none.
  h.offset = !c.mt_lora_path.empty();
  h.learnable_offset = c.learnable_AB_offset;
  h.head_bias = !h.z_score && !h.offset;
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
  t.adapter = {c.model_dir, c.lora_r, c.lora_alpha, c.use_rslora, c.lora_dropout, c.target_modules};
  if (h.offset) {
    const Adapter offset = load_adapter(c.mt_lora_path);
    if (offset.spec.scaling() != t.adapter.scaling())
      fail("{}: has a scale of {}, this run {}; set lora_r, lora_alpha and use_rslora as that adapter has them",
           offset.path, offset.spec.scaling(), t.adapter.scaling());
    load_offset(t.net, offset);
  }
  t.net.parameters().initialise(uint64_t(c.seed));
  return settle(std::move(t));
}

class HypernetLearner : public Learner {
 public:
  Parameters& parameters() override { return trained_.net.parameters(); }
  const Sampler& sampler() const override { return sampler_; }
  void save(const std::string& directory) const override { save_hypernet(trained_, directory); }
  std::vector<std::string> save_official(const std::string& directory) const override {
    return export_official(trained_, config_, names_of(set_.tasks), directory);
  }
  TaskSimilarity similarity() const override {
    constexpr int64_t kMost = 64;  // as many as a picture can show
    Batch batch;
    std::vector<std::string> names;
    for (const int64_t i : evenly_spaced(int64_t(set_.tasks.size()), kMost)) {
      batch.push_back({int32_t(i), 0, 0});
      names.push_back(set_.tasks[size_t(i)].name);
    }
    if (names.size() < 2) return {};
    return adapter_similarity(trained_.net, table_->gather(batch).to(device_), names);
  }
  const TaskSet& data() const override { return set_; }

 protected:
  HypernetLearner(const TrainConfig& c, TaskSet set, Device device)
      : config_(c),
        device_(device),
        set_(std::move(set)),
        embeddings_(config_, device),
        table_(embeddings_.of_training(set_)),
        sampler_(make_sampler(c, set_, table_.get())),
        trained_(make_hypernet(c, set_, table_->dim())),
        splits_(validation_splits(config_, set_, table_,
                                  [&](const auto& tasks, const auto& texts) { return embeddings_.of(tasks, texts); })) {
    embeddings_.release();
  }

  Hypernet::Training training(int64_t i) const { return {uint64_t(config_.seed), uint64_t(i)}; }

  TrainConfig config_;
  Device device_;
  TaskSet set_;
  Embeddings embeddings_;
  Embeddings::Table table_;
  Sampler sampler_;
  TrainedHypernet trained_;
  std::vector<ValidationSplit> splits_;
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
    const auto generated = trained_.net.generate(table_->gather(batch).to(device_), &random);
    const SftLoss loss =
        sft_loss(base_, training_batch(set_, batch), adapters(generated), &generated, sft_options(config_), &key);
    return {loss.total, metrics_of(loss)};
  }

  StepCost cost(int64_t i) const override {
    const Batch batch = sampler_.batch(i);
    StepCost cost;
    add_hypernet(cost, trained_.net, int64_t(batch.size()), base_.options().dtype);
    add_base(cost, base_, training_batch(set_, batch), trained_.adapter.modules, trained_.adapter.rank,
             config_.lora_dropout);
    add_slabs(cost, trained_.net.parameters());
    return cost;
  }

  std::vector<Json> validate(const TaskSet::Progress& progress) override {
    return judge(
        splits_, base_, sft_options(config_),
        [&](const Tensor& e) { return adapters(trained_.net.generate(e.to(device_))); }, progress);
  }

 private:
  AdapterBatch adapters(const std::vector<ModuleAdapters>& generated) const {
    return adapters_of(generated, trained_.net.config(), float(trained_.adapter.scaling()), base_.options().dtype);
  }

  Decoder base_;
};

class ReconstructLearner final : public HypernetLearner {
 public:
  ReconstructLearner(const TrainConfig& c, Device device)
      : HypernetLearner(c, TaskSet::load(c, nullptr), device), targets_(targets_of(names_of(set_.tasks))) {
    if (trained_.net.config().z_score && c.init_from.empty()) set_z_scores(trained_.net, targets_);
    targets_ = targets_.to(device);
    for (const ValidationSplit& split : splits_) {
      std::vector<std::string> tasks;
      for (const Task* t : split.tasks) tasks.push_back(t->name);
      judged_.push_back(targets_of(tasks).to(device));
    }
    parameters().commit(device);
  }

  MicroBatch forward(int64_t i) override {
    const Batch batch = sampler_.batch(i);
    const Hypernet::Training random = training(i);
    const ReconLoss loss = loss_of(batch, table_->gather(batch), targets_, &random);
    return {loss.loss, {{"unnorm_err", loss.error.to_vector<float>()[0]}, {"tokens", 0}}};
  }

  StepCost cost(int64_t i) const override {
    StepCost cost;
    const auto n = int64_t(sampler_.batch(i).size());
    add_hypernet(cost, trained_.net, n, DType::F32);
    add_reconstruction(cost, trained_.net.config(), n, int64_t(set_.tasks.size()));
    add_slabs(cost, trained_.net.parameters());
    return cost;
  }

  std::vector<Json> validate(const TaskSet::Progress& progress) override {
    const NoGrad judged;
    std::vector<Json> rows;
    int64_t done = 0;
    for (size_t i = 0; i < splits_.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      double loss = 0, error = 0, n = 0;
      for (int64_t b = 0; b < splits_[i].sampler.batches_per_epoch(); ++b) {
        if (progress) progress(done++, batches_of(splits_));
        const Batch batch = splits_[i].sampler.batch(b);
        const ReconLoss one = loss_of(batch, splits_[i].embeddings(batch), judged_[i], nullptr);
        loss += double(one.loss.value.to_vector<float>()[0]) * double(batch.size());
        error += double(one.error.to_vector<float>()[0]) * double(batch.size());
        n += double(batch.size());
      }
      rows.push_back({{"split", splits_[i].name},
                      {"loss", loss / n},
                      {"unnorm_err", error / n},
                      {"samples", int64_t(n)},
                      {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()}});
    }
    return rows;
  }

 private:
  ReconTargets targets_of(const std::vector<std::string>& tasks) const {
    return load_targets(config_.oracle_dir, tasks, trained_.net.config());
  }
  ReconLoss loss_of(const Batch& batch, const Tensor& embeddings, const ReconTargets& targets,
                    const Hypernet::Training* random) const {
    std::vector<int32_t> tasks;
    for (const Sample& s : batch) tasks.push_back(s.task);
    return reconstruct_loss(trained_.net, embeddings.to(device_), tasks, targets, random);
  }

  ReconTargets targets_;
  std::vector<ReconTargets> judged_;  // of each split's tasks
};

}  // namespace

std::unique_ptr<Learner> make_hypernet_learner(const TrainConfig& c, DType dtype, Device device,
                                               const TaskSet::Progress& progress) {
  if (c.verb == Verb::Reconstruct) return std::make_unique<ReconstructLearner>(c, device);
  return std::make_unique<SftLearner>(c, dtype, device, progress);
}

}  // namespace t2l
