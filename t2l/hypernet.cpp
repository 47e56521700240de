#include "t2l/hypernet.h"

#include <cmath>

namespace t2l {
namespace {

// bias-HyperInit (Beck et al., "Hypernetworks in meta-reinforcement learning", CoRL 2023), as the official code does
// it: the head's bias starts as PEFT's lora_A, U(+-1 / sqrt(in)) rounded to the base model's bf16, divided by
// `divisor`; from element `count` on, zero.
Init hyper_init(int64_t in, int64_t count, float divisor) {
  return [=](Tensor& bias, RandomKey key) {
    init::linear(in)(bias, key);
    float* b = bias.data<float>();
    for (int64_t i = 0; i < bias.size(); ++i) b[i] = i < count ? float(bf16(b[i])) / divisor : 0.0f;
  };
}

}  // namespace

std::string HypernetConfig::variant() const {
  return shared_head ? (autoregressive ? "S" : "M") : (autoregressive ? "AR" : "L");
}

int64_t HypernetConfig::head_out(const AdaptedModule& m) const {
  const int64_t per_rank = shared_head ? std::max(m.in, m.out) : m.in + m.out;
  return autoregressive ? per_rank : rank * per_rank;
}

void HypernetConfig::check() const {
  if (modules.empty()) fail("hypernetwork: no target modules");
  if (layers < 1 || rank < 1 || latent < 4 || head_in < 1 || task_dim < 1)
    fail(
        "hypernetwork: {} layers, rank {}, latent size {}, head input {}, task embedding {}: each must be positive, "
        "the latent size at least 4",
        layers, rank, latent, head_in, task_dim);
  if (layers > 4096 || rank > 4096 || modules.size() > 7)
    fail("hypernetwork: {} layers, rank {}, {} modules: no base model has so many", layers, rank, modules.size());
  for (const AdaptedModule& m : modules)  // a small file can ask for this much where heads are shared by ranks
    if (m.in < 1 || m.out < 1 || m.in + m.out > (int64_t(1) << 29) / (layers * rank))
      fail("hypernetwork: {} layers of {} x {} at rank {}: adapters of more than 2 GiB", layers, m.out, m.in, rank);
  if (learnable_positions && !autoregressive) fail("hypernetwork: learnable_pos_emb needs autoreg_gen");
  if (autoregressive && !learnable_positions && width() % 2)
    fail("hypernetwork: rotary rank positions need an even width, latent size {} gives {}; set learnable_pos_emb",
         latent, width());
  if (objective == Objective::SFT && (z_score || dense))
    fail("hypernetwork: z-scores and dense targets belong to reconstruction");
}

Hypernet::Hypernet(HypernetConfig config) : config_(std::move(config)) {
  const HypernetConfig& c = config_;
  c.check();
  Parameters& p = parameters_;
  // Fixed tensors come first in official checkpoints, each A and then each B, modules sorted by name.
  std::vector<AdaptedModule> sorted = c.modules;
  std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.name < b.name; });
  const auto declare_adapter = [&](const std::string& name, bool trainable) {
    for (auto& m : sorted) p.declare(name + ".A." + m.name, {c.layers, c.rank, m.in}, init::constant(0), trainable);
    for (auto& m : sorted) p.declare(name + ".B." + m.name, {c.layers, m.out, c.rank}, init::constant(0), trainable);
  };
  if (c.offset) declare_adapter("AB_offset", c.learnable_offset);
  if (c.z_score && !c.dense) {
    declare_adapter("mean_recon_target", false);
    declare_adapter("std_recon_target", false);
  }
  const int64_t width = c.width(), part = c.latent / 4;
  declare_linear(p, "task_encoder.mlp.0", c.task_dim, c.task_width());
  declare_layernorm(p, "task_encoder.mlp.1", c.task_width());
  declare_embedding(p, "layer_depth_encoder.0", c.layers, part);
  declare_layernorm(p, "layer_depth_encoder.1", part);
  declare_embedding(p, "layer_type_encoder.0", int64_t(c.modules.size()), part);
  declare_layernorm(p, "layer_type_encoder.1", part);
  declare_linear(p, "mixer.1", width, 4 * width);
  declare_linear(p, "mixer.4", 4 * width, width);
  for (const std::string name : {"mlp1.mlp", "mlp2.mlp", "mlp3"}) {
    declare_layernorm(p, name + ".0", width);
    declare_linear(p, name + ".1", width, 4 * width);
    declare_linear(p, name + ".4", 4 * width, name == "mlp3" ? c.head_in : width);
  }
  if (c.learnable_positions) {
    declare_embedding(p, "pos_emb.0", c.rank, width);
    declare_layernorm(p, "pos_emb.1", width);
  }
  if (c.shared_head) {
    for (auto& m : c.modules)
      for (const std::string ab : {".A", ".B"}) p.declare("out_emb." + m.name + ab, {width}, init::normal());
    declare_layernorm(p, "out_emb_norm", width);
  }
  const bool sft = c.objective == HypernetConfig::Objective::SFT;
  for (auto& m : c.modules) {
    const int64_t out = c.head_out(m);
    p.declare("heads." + m.name + ".weight", {out, c.head_in}, sft ? init::constant(0) : init::linear(c.head_in));
    if (!c.head_bias) continue;
    const float r = float(c.rank);
    const Init bias = c.shared_head      ? hyper_init(m.in, out, std::sqrt(c.autoregressive ? 2 * r : 2.0f))
                      : c.autoregressive ? hyper_init(m.in, out, std::sqrt(r))
                                         : hyper_init(m.in, c.rank * m.in, 1);
    p.declare("heads." + m.name + ".bias", {out}, sft ? bias : init::linear(c.head_in));
  }
}

// One run of the trunk and the heads over the rows (module, [A or B,] description, layer [, rank]), the last one
// fastest, so that each head reads contiguous rows.
class Hypernet::Pass {
 public:
  Pass(const Hypernet& net, const Training* training, Device device)
      : c_(net.config_), p_(net.parameters_), training_(training), device_(device) {}

  std::vector<ModuleAdapters> run(const Var& encoded) {
    n_ = encoded.dim(0);
    const int64_t modules = int64_t(c_.modules.size()), per_module = n_ * c_.layers, rows = modules * per_module;
    const Var depth = layernorm(p_, "layer_depth_encoder.1", p_("layer_depth_encoder.0.weight"));
    const Var type = layernorm(p_, "layer_type_encoder.1", p_("layer_type_encoder.0.weight"));
    Var x = gather_columns({{encoded, ids(rows, [&](int64_t i) { return i / c_.layers % n_; })},
                            {depth, ids(rows, [&](int64_t i) { return i % c_.layers; })},
                            {type, ids(rows, [&](int64_t i) { return i / per_module; })}});
    x = drop(linear(p_, "mixer.1", drop(x), Activation::SiLU));
    x = drop(linear(p_, "mixer.4", x, Activation::SiLU));
    x = residual(x, "mlp1.mlp");

    int64_t halves = 1;  // how many sets of rows a module has: one, or one for A and one for B
    if (c_.shared_head) {
      halves = 2;
      std::vector<Var> embeddings;
      for (auto& m : c_.modules)
        for (const std::string ab : {".A", ".B"})
          embeddings.push_back(reshape(p_("out_emb." + m.name + ab), {1, c_.width()}));
      const Var out_emb = layernorm(p_, "out_emb_norm", concat_rows(embeddings));  // [2 modules, width]
      const int64_t both = 2 * rows;
      x = gather_rows(x, ids(both, [&](int64_t i) { return i / (2 * per_module) * per_module + i % per_module; }));
      x = add_rows(x, out_emb, ids(both, [&](int64_t i) { return i / per_module; }));
    }
    if (c_.shared_head || !c_.autoregressive) x = residual(x, "mlp2.mlp");
    if (c_.autoregressive) x = with_positions(x);

    Var h = layernorm(p_, "mlp3.0", x);
    h = drop(linear(p_, "mlp3.1", h, Activation::SiLU));
    h = linear(p_, "mlp3.4", h, Activation::SiLU);

    std::vector<ModuleAdapters> adapters;
    const int64_t per_half = h.dim(0) / (modules * halves);
    for (int64_t m = 0; m < modules; ++m) {
      const auto rows_of = [&](int64_t half) {
        const int64_t begin = (m * halves + (halves == 2 ? half : 0)) * per_half;
        return slice_rows(h, begin, begin + per_half);
      };
      const AdaptedModule& module = c_.modules[size_t(m)];
      adapters.push_back({reshape(head(module, rows_of(0), false), {n_, c_.layers, c_.rank, module.in}),
                          transpose(reshape(head(module, rows_of(1), true), {n_, c_.layers, c_.rank, module.out}))});
    }
    return adapters;
  }

 private:
  template <class F>
  Tensor ids(int64_t count, F&& f) const {
    std::vector<int32_t> v(size_t(count), 0);
    for (int64_t i = 0; i < count; ++i) v[size_t(i)] = int32_t(f(i));
    return Tensor::from(v, device_);
  }

  Var drop(const Var& x) {
    if (!training_) return x;
    return dropout(x, c_.dropout, {training_->seed, training_->step << 8 | uint64_t(dropouts_++)});
  }

  // x + mlp(x), official MLPResidualBlock
  Var residual(const Var& x, const std::string& name) {
    Var y = layernorm(p_, name + ".0", x);
    y = drop(linear(p_, name + ".1", y, Activation::SiLU));
    y = drop(linear(p_, name + ".4", y, Activation::SiLU));
    return add(x, y);
  }

  // Each row becomes `rank` rows that know their rank.  [rows, width] -> [rows * rank, width]
  Var with_positions(const Var& x) {
    const int64_t r = c_.rank, rows = x.dim(0) * r;
    const Var repeated = gather_rows(x, ids(rows, [&](int64_t i) { return i / r; }));
    const Tensor rank_of = ids(rows, [&](int64_t i) { return i % r; });
    if (!c_.learnable_positions) return residual(rotate(repeated, rank_of), "mlp2.mlp");
    const Var positions = layernorm(p_, "pos_emb.1", p_("pos_emb.0.weight"));  // [rank, width]
    if (!c_.shared_head) return residual(add_rows(repeated, positions, rank_of), "mlp2.mlp");
    // S puts the positions through mlp2 by themselves; in training each module and half has its own dropout masks.
    const int64_t sets = training_ ? 2 * int64_t(c_.modules.size()) : 1, per_set = rows / sets;
    const Var mixed = residual(gather_rows(positions, ids(sets * r, [&](int64_t i) { return i % r; })), "mlp2.mlp");
    return add_rows(repeated, mixed, ids(rows, [&](int64_t i) { return i / per_set * r + i % r; }));
  }

  // Rotary embedding of the rank over the whole width, theta 10000 (official LlamaRotaryEmbedding).
  Var rotate(const Var& x, const Tensor& positions) const {
    const int64_t half = c_.width() / 2;
    Tensor cos = Tensor::empty({c_.rank, half}), sin = Tensor::empty({c_.rank, half});
    for (int64_t k = 0; k < c_.rank; ++k)
      for (int64_t j = 0; j < half; ++j) {
        const float angle = float(k) * (1.0f / std::pow(10000.0f, float(2 * j) / float(2 * half)));
        cos.data<float>()[k * half + j] = std::cos(angle);
        sin.data<float>()[k * half + j] = std::sin(angle);
      }
    const Var y = rope(reshape(x, {x.dim(0), 1, x.dim(1)}), cos.to(device_), sin.to(device_), positions);
    return reshape(y, x.shape());
  }

  // A's or B's elements, [descriptions, layers, rank, in or out] in memory
  Var head(const AdaptedModule& m, const Var& h, bool b) const {
    const int64_t size = b ? m.out : m.in, ranks = c_.autoregressive ? 1 : c_.rank;
    WeightRows rows;
    if (c_.shared_head)
      rows = {0, ranks, std::max(m.in, m.out), size};  // of the longer of A and B only the needed columns
    else
      rows = {b ? ranks * m.in : 0, 1, 0, ranks * size};
    const std::string name = "heads." + m.name;
    return linear_rows(h, p_(name + ".weight"), c_.head_bias ? p_(name + ".bias") : Var{}, rows);
  }

  const HypernetConfig& c_;
  const Parameters& p_;
  const Training* training_;
  Device device_;
  int64_t n_ = 0;
  int dropouts_ = 0;
};

Var Hypernet::encode(const Var& task) const {
  return layernorm(parameters_, "task_encoder.mlp.1", linear(parameters_, "task_encoder.mlp.0", task));
}

std::vector<ModuleAdapters> Hypernet::predict(const Var& task, const Training* training) const {
  T2L_CHECK(task.value.rank() == 2 && task.dim(1) == config_.task_dim, "task embeddings {} for a hypernetwork of {}",
            task.shape().str(), config_.task_dim);
  return Pass(*this, training, task.value.device()).run(encode(task));
}

std::vector<ModuleAdapters> Hypernet::generate(const Var& task, const Training* training) const {
  std::vector<ModuleAdapters> adapters = predict(task, training);
  const HypernetConfig& c = config_;
  const bool z_score = c.z_score && !c.dense;
  const auto convert = [&](Var& weights, const std::string& name) {
    if (c.dense) {
      weights = scale(weights, float(1 / std::sqrt(c.delta_w_scaling)));
      return;
    }
    const Shape shape = weights.shape();
    const int64_t n = shape[0], per_task = weights.value.size() / std::max<int64_t>(n, 1);
    const auto vector = [&](const std::string& kind) { return reshape(parameters_(kind + name), {per_task}); };
    Var rows = reshape(weights, {n, per_task});
    if (z_score) {
      // official: x (std + 1e-10) + mean
      const Var deviation = affine(reshape(vector("std_recon_target"), {1, per_task}), {},
                                   Tensor::full({per_task}, 1e-10f, weights.value.device()));
      rows = affine(rows, reshape(deviation, {per_task}), vector("mean_recon_target"));
    }
    if (c.offset) rows = affine(rows, {}, vector("AB_offset"));
    weights = reshape(rows, shape);
  };
  for (size_t i = 0; i < adapters.size(); ++i) {
    convert(adapters[i].a, ".A." + c.modules[i].name);
    convert(adapters[i].b, ".B." + c.modules[i].name);
  }
  return adapters;
}

double Hypernet::flops(int64_t n, bool training) const {
  const HypernetConfig& c = config_;
  const double rows = double(n * c.layers), w = double(c.width());
  const double block = 2 * 2 * 4 * w * w, mlp3 = 2 * 4 * w * (w + double(c.head_in));
  double total = 2.0 * double(n * c.task_dim * c.task_width());
  if (c.shared_head && c.learnable_positions)  // mlp2 of the positions alone
    total += double(c.rank) * block * (training ? 2 * double(c.modules.size()) : 1);
  for (auto& m : c.modules) {
    const double halves = c.shared_head ? 2 : 1, ranks = c.autoregressive ? double(c.rank) : 1;
    total += rows * 2 * block;                                               // mixer, mlp1
    if (c.shared_head || !c.autoregressive) total += rows * halves * block;  // mlp2
    if (c.autoregressive && !(c.shared_head && c.learnable_positions)) total += rows * halves * ranks * block;
    total += rows * halves * ranks * mlp3;
    total += rows * 2 * double(c.head_in) * double(c.rank * (m.in + m.out));
  }
  return total;
}

}  // namespace t2l
