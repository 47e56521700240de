#include "t2l/estimate.h"

#include <algorithm>
#include <utility>

namespace t2l {
namespace {

// heads.q_proj.weight -> heads;  base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight -> q_proj
std::string part_of(std::string name) {
  static constexpr std::pair<const char*, const char*> kOfHypernet[] = {{"task_encoder.", "task_encoder"},
                                                                        {"layer_depth_encoder.", "embeddings"},
                                                                        {"layer_type_encoder.", "embeddings"},
                                                                        {"pos_emb.", "embeddings"},
                                                                        {"out_emb.", "embeddings"},
                                                                        {"out_emb_norm.", "embeddings"},
                                                                        {"mixer.", "trunk"},
                                                                        {"mlp", "trunk"},
                                                                        {"heads.", "heads"},
                                                                        {"AB_offset.", "offset"}};
  for (const auto& [prefix, part] : kOfHypernet)
    if (name.starts_with(prefix)) return part;
  for (const char* ending : {".weight", ".bias", ".lora_A", ".lora_B"})
    if (name.ends_with(ending)) name.resize(name.size() - std::string_view(ending).size());
  return name.substr(name.rfind('.') + 1);
}

}  // namespace

std::vector<std::pair<std::string, int64_t>> parameters_by_part(const Parameters& parameters) {
  std::vector<std::pair<std::string, int64_t>> parts;
  for (const std::string& name : parameters.names()) {
    if (parameters.count(name) == 0) continue;  // fixed
    const std::string part = part_of(name);
    const auto at = std::find_if(parts.begin(), parts.end(), [&](auto& p) { return p.first == part; });
    (at == parts.end() ? parts.emplace_back(part, 0) : *at).second += parameters.shape(name).elements();
  }
  return parts;
}

double StepCost::total_flops() const {
  double sum = 0;
  for (const Flops& f : flops) sum += f.forward + f.backward;
  return sum;
}

double StepCost::total_bytes() const {
  double sum = 0;
  for (const auto& part : bytes) sum += part.second;
  return sum;
}

void add_base_step(StepCost& cost, const BaseStep& s) {
  const DecoderConfig& c = s.base;
  double tokens = 0, answered = 0;
  for (const int64_t n : s.lengths) tokens += double(n);
  for (const int64_t n : s.responses) answered += double(n);
  const double layers = double(c.layers), again = s.recompute ? 1 : 0, size = double(size_of(s.dtype));
  const double width = double(c.heads * c.head_dim), kv = double(c.kv_heads * c.head_dim);
  const double hidden = double(c.hidden), inner = double(c.intermediate), r = double(s.rank);
  const auto adapted = [&](Projection p) { return std::count(s.adapted.begin(), s.adapted.end(), p) > 0; };
  // Where in a block a linear layer stands; the first block has no gradient before the first adapter.
  const auto depth = [](Projection p) {
    return p <= Projection::V ? 0 : p == Projection::O ? 1 : p == Projection::Down ? 3 : 2;
  };
  int lowest = 4;
  for (const Projection p : s.adapted) lowest = std::min(lowest, depth(p));

  StepCost::Flops linear{"linear layers"}, lora{"adapters"}, attention{"attention"}, head{"head"};
  for (size_t i = 0; i < kProjections; ++i) {
    const auto p = Projection(i);
    const auto [in, out] = c.linear(p);
    for (int64_t layer = 0; layer < c.layers; ++layer) {
      const bool all = layer + 1 < c.layers || p == Projection::K || p == Projection::V;
      const double rows = all ? tokens : answered, product = 2 * rows * double(in) * double(out);
      const double live = layer > 0 || depth(p) > lowest ? 1 : 0;  // is a gradient of its input wanted
      linear.forward += product;
      linear.backward += ((s.whole ? 2 : live) + again) * product;
      if (!adapted(p)) continue;
      const double a = 2 * rows * r * double(in), b = 2 * rows * r * double(out);
      lora.forward += a + b;
      lora.backward += a + 2 * b + live * a + again * (a + b);
    }
  }
  for (int64_t layer = 0; layer < c.layers; ++layer)
    for (size_t i = 0; i < s.lengths.size(); ++i) {
      const int64_t n = s.lengths[i], window = c.windows[size_t(layer)];
      const auto seen_by_first = [&](int64_t queries) {  // pairs of the first queries and their keys
        const double w = double(window > 0 ? std::min<int64_t>(window, queries) : queries);
        return w * (w + 1) / 2 + (double(queries) - w) * w;
      };
      const double pairs =
          layer + 1 < c.layers ? seen_by_first(n) : seen_by_first(n - 1) - seen_by_first(n - 1 - s.responses[i]);
      attention.forward += 4 * width * pairs;
      attention.backward += (10 + 4 * again) * width * pairs;  // five products, one of them the scores again
    }
  const double logits = double(c.vocab) * answered;
  head.forward = (s.whole ? 6 : 4) * hidden * logits;
  cost.flops.insert(cost.flops.end(), {linear, lora, attention, head});

  // What a block keeps of a token: the inputs of both norms; q, k, v, o; gate and up; the adapters' inputs, which are
  // copies where they have dropout; and their inner results.
  double kept = 2 * hidden + 2 * width + 2 * kv + 2 * inner;
  if (c.qk_norm) kept += width + kv;
  if (c.gemma) kept += 2 * hidden;
  if (s.whole) kept += 2 * hidden + inner;  // the linear layers' inputs
  bool attention_input = false, mlp_input = false;
  for (const Projection p : s.adapted) {
    const double in = double(c.linear(p).in);
    bool& shared = p <= Projection::V ? attention_input : mlp_input;
    kept += r;
    if (s.dropout > 0 || p == Projection::Down)
      kept += in;
    else if (p != Projection::O && !std::exchange(shared, true))
      kept += in;
  }
  const double blocks = s.recompute ? layers * hidden + kept : layers * kept;
  const double working = 3 * inner + 4 * hidden;  // gradients within one block
  const double chunk = std::min(logits, std::max(double(16 << 20), double(c.vocab)));
  cost.bytes.emplace_back("base model", double(c.parameters()) * size);
  cost.bytes.emplace_back("kept for backward", tokens * blocks * size + tokens * layers * 4 * (double(c.heads) + 2));
  cost.bytes.emplace_back("gradients of a block", tokens * working * size);
  cost.bytes.emplace_back("logits", chunk * (s.dtype == DType::F32 ? 4 : 4 + size) + 3 * answered * hidden * size);
  cost.samples = int64_t(s.lengths.size());
  cost.tokens = int64_t(tokens);
  cost.response_tokens = int64_t(answered);
}

void add_hypernet(StepCost& cost, const Hypernet& net, int64_t n, DType dtype) {
  const HypernetConfig& c = net.config();
  const double forward = net.flops(n, true);
  // Every product has two gradients, but the embeddings need none.
  cost.flops.push_back({"hypernetwork", forward, 2 * forward - 2.0 * double(n * c.task_dim * c.task_width())});

  double generated = 0;  // elements
  for (const AdaptedModule& m : c.modules) generated += double(n * c.layers * c.rank * (m.in + m.out));
  // The weights as the heads give them, and by layer for the base model in its type; the gradients of both.
  const double by_layer =
      c.objective == HypernetConfig::Objective::SFT ? 4 + (dtype == DType::F32 ? 0 : double(size_of(dtype))) : 0;
  cost.bytes.emplace_back("generated adapters", 2 * generated * (4 + by_layer));
  // Of a row, each MLP keeps its input, norm, and three of its four widths: before and after SiLU, and dropped.
  const double w = double(c.width()), rows = double(n * c.layers) * double(c.modules.size());
  const double halves = c.shared_head ? 2 : 1, ranks = c.autoregressive ? double(c.rank) : 1;
  const double block = (2 + 3 * 4 + 3) * w, last = (2 + 3 * 4) * w + 2 * double(c.head_in);
  double kept = rows * 2 * block + rows * halves * ranks * (block + last);
  if (c.shared_head && c.autoregressive) kept += rows * halves * block;
  double fixed = 0;
  for (const std::string& name : net.parameters().names())
    if (net.parameters().count(name) == 0) fixed += double(net.parameters().shape(name).elements());
  cost.bytes.emplace_back("hypernetwork", 4 * (kept + fixed));
}

void add_reconstruction(StepCost& cost, const HypernetConfig& c, int64_t n, int64_t tasks) {
  double product = 0, target = 0;
  for (const AdaptedModule& m : c.modules) {
    product += 2.0 * double(n * c.layers * c.rank) * double(m.in) * double(m.out);
    target += double(tasks * c.layers * c.rank * (m.in + m.out));
  }
  // Of the prediction and of the target, then towards A and towards B.
  if (c.dense) cost.flops.push_back({"dense loss", 2 * product, 2 * product});
  cost.bytes.emplace_back("target adapters", 4 * target);
  cost.samples = n;
}

void add_slabs(StepCost& cost, const Parameters& parameters) {
  cost.bytes.emplace_back("parameters, gradients, moments", 16 * double(parameters.count()));
}

}  // namespace t2l
