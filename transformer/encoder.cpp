#include "transformer/encoder.h"

#include <cmath>
#include <numeric>

#include "nn/spans.h"
#include "transformer/weights.h"

namespace t2l {
namespace {

constexpr int64_t kChunkTokens = 2048;  // enough for the matrix products to run at full speed

// The names of layer norms in files that began in TensorFlow.
std::string legacy_name(const std::string& name) {
  return name.substr(0, name.rfind('.') + 1) + (name.ends_with("weight") ? "gamma" : "beta");
}

}  // namespace

// Texts one after another, and what depends on their lengths alone.
struct TextEncoder::Packed {
  int64_t tokens = 0;
  Tensor ids, positions;         // i [tokens]; positions count from 0 in each text
  std::vector<int32_t> offsets;  // [texts + 1]: rows where texts begin
  AttentionSpans spans;
  struct {
    Tensor cos, sin;   // f [positions, head_dim / 2]
    Tensor positions;  // i [tokens]: rows of cos and sin
  } q_rope, k_rope;
};

TextEncoder TextEncoder::load(const std::string& dir, const EncoderOptions& options) {
  const EncoderConfig config = EncoderConfig::load(dir);
  return {config, SafeTensors::open(config.folder), options};
}

TextEncoder::TextEncoder(const EncoderConfig& c, const SafeTensors& file, const EncoderOptions& options)
    : config_(c), options_(options) {
  if (options.pooling) config_.pooling = *options.pooling;
  const ModelWeights get(file, options_.dtype, options_.device, {"bert.", "new."}, "embeddings.word_embeddings.weight");
  const int64_t d = c.hidden, m = c.intermediate;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return Linear{get(name + ".weight", {out, in}), get(name + ".bias", {out})};
  };
  const auto norm_part = [&](const std::string& name) {
    const std::string legacy = legacy_name(name);
    return get(!get.contains(name) && get.contains(legacy) ? legacy : name, {d});
  };
  const auto norm = [&](const std::string& name) {
    return Norm{norm_part(name + ".weight"), norm_part(name + ".bias")};
  };

  words_ = get("embeddings.word_embeddings.weight", {c.vocab, d});
  if (!c.rotary()) positions_ = get("embeddings.position_embeddings.weight", {c.positions, d});
  if (c.types) type_ = get("embeddings.token_type_embeddings.weight", {c.types, d}).slice(0, 1).reshape({d});
  norm_ = norm("embeddings.LayerNorm");
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string at = fmt::format("encoder.layer.{}.", i), attention = at + "attention.";
    Layer l;
    if (c.family == EncoderConfig::Family::Bert) {
      l.q = linear(attention + "self.query", d, d);
      l.k = linear(attention + "self.key", d, d);
      l.v = linear(attention + "self.value", d, d);
      l.o = linear(attention + "output.dense", d, d);
      l.attention_norm = norm(attention + "output.LayerNorm");
      l.up = linear(at + "intermediate.dense", m, d);
      l.down = linear(at + "output.dense", d, m);
      l.norm = norm(at + "output.LayerNorm");
    } else {
      if (c.packed_qkv) {
        const Linear qkv = linear(attention + "qkv_proj", 3 * d, d);
        const auto third = [&](int64_t j) {
          return Linear{qkv.w.value.slice(j * d, (j + 1) * d), qkv.b.value.slice(j * d, (j + 1) * d)};
        };
        l.q = third(0), l.k = third(1), l.v = third(2);
      } else {
        l.q = linear(attention + "q_proj", d, d);
        l.k = linear(attention + "k_proj", d, d);
        l.v = linear(attention + "v_proj", d, d);
      }
      l.o = linear(attention + "o_proj", d, d);
      l.attention_norm = norm(at + "attn_ln");
      const Tensor up_gate = get(at + "mlp.up_gate_proj.weight", {2 * m, d});
      l.up.w = up_gate.slice(0, m);
      l.gate.w = up_gate.slice(m, 2 * m);
      l.down = linear(at + "mlp.down_proj", d, m);
      l.norm = norm(at + "mlp_ln");
    }
    layers_.push_back(l);
  }
}

std::vector<Var*> TextEncoder::parameters() {
  std::vector<Var*> all = {&words_, &positions_, &type_, &norm_.w, &norm_.b};
  for (Layer& l : layers_) {
    for (Linear* x : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) all.insert(all.end(), {&x->w, &x->b});
    for (Norm* x : {&l.attention_norm, &l.norm}) all.insert(all.end(), {&x->w, &x->b});
  }
  std::erase_if(all, [](const Var* v) { return !*v; });
  return all;
}

TextEncoder::Packed TextEncoder::pack(const TokenIds& texts) const {
  size_t longest = 0;
  for (size_t s = 0; s < texts.size(); ++s) {
    longest = std::max(longest, texts[s].size());
    if (!config_.rotary() && texts[s].size() > size_t(config_.positions))
      fail("{}: text {} has {} tokens, but the model takes at most {}; shorten it", config_.where, s, texts[s].size(),
           config_.positions);
  }
  const PackedIds packed = pack_ids(texts, config_.vocab, config_.where);
  const std::vector<int32_t>&ids = packed.ids, &positions = packed.positions, &offsets = packed.offsets;

  const Device on = options_.device;
  Packed p;
  p.tokens = int64_t(ids.size());
  p.ids = Tensor::from(ids, on);
  p.positions = Tensor::from(positions, on);
  p.offsets = offsets;
  p.spans = full_spans(offsets, 1 / std::sqrt(float(config_.head_dim())), on);
  if (!config_.rotary()) return p;

  const std::vector<double> frequency = config_.rope_frequencies();
  const auto tables = [&](size_t rows, const auto& position, const auto& factor) {
    std::vector<float> cos, sin;
    for (size_t row = 0; row < rows; ++row)
      for (const double f : frequency) {
        cos.push_back(float(std::cos(position(row) * f) * factor(row)));
        sin.push_back(float(std::sin(position(row) * f) * factor(row)));
      }
    const Shape shape{int64_t(rows), int64_t(frequency.size())};
    return std::pair(Tensor::from<float>(cos, shape, on), Tensor::from<float>(sin, shape, on));
  };
  std::tie(p.k_rope.cos, p.k_rope.sin) = tables(
      longest, [](size_t row) { return double(row); }, [](size_t) { return 1.; });
  p.k_rope.positions = p.positions;
  p.q_rope = p.k_rope;
  if (config_.logn_scale) {  // a rotation times a number: q has tables of its own, a row for each token
    std::vector<double> factor;
    for (const auto& text : texts) {
      const double f = std::log(double(text.size())) / std::log(double(config_.positions));
      factor.insert(factor.end(), text.size(), config_.logn_clip ? std::max(f, 1.) : f);
    }
    std::vector<int32_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    std::tie(p.q_rope.cos, p.q_rope.sin) = tables(
        ids.size(), [&](size_t row) { return double(positions[row]); }, [&](size_t row) { return factor[row]; });
    p.q_rope.positions = Tensor::from(rows, on);
  }
  return p;
}

Var TextEncoder::embeddings(const Packed& p) const {
  Var x = gather_rows(words_, p.ids);
  if (positions_) x = add_rows(x, positions_, p.positions);
  if (type_) x = affine(x, {}, type_);
  return norm(norm_, x);
}

Var TextEncoder::block(const Layer& l, const Var& x, const Packed& p) const {
  const EncoderConfig& c = config_;
  const auto heads = [&](const Linear& w) { return reshape(linear(x, w.w, w.b), {p.tokens, c.heads, c.head_dim()}); };
  Var q = heads(l.q), k = heads(l.k);
  const Var v = heads(l.v);
  if (c.rotary()) {
    q = rope(q, p.q_rope.cos, p.q_rope.sin, p.q_rope.positions);
    k = rope(k, p.k_rope.cos, p.k_rope.sin, p.k_rope.positions);
  }
  const Var seen = reshape(attention(q, k, v, p.spans), {p.tokens, c.hidden});
  const Var y = norm(l.attention_norm, add(x, linear(seen, l.o.w, l.o.b)));
  const Var inner =
      l.gate.w ? gated(linear(y, l.gate.w), linear(y, l.up.w), c.activation) : linear(y, l.up.w, l.up.b, c.activation);
  return norm(l.norm, add(y, linear(inner, l.down.w, l.down.b)));
}

Var TextEncoder::hidden(const Packed& p) const {
  Var x = embeddings(p);
  for (const Layer& l : layers_) x = block(l, x, p);
  return x;
}

Var TextEncoder::hidden(const TokenIds& texts) const { return hidden(pack(texts)); }

Var pool(const Var& hidden, const std::vector<int32_t>& offsets, Pooling pooling) {
  const Device on = hidden.value.device();
  if (pooling == Pooling::Mean) return segment_mean(cast(hidden, DType::F32), Tensor::from(offsets, on));
  std::vector<int32_t> rows;  // the first or the last of each text
  for (size_t i = 0; i + 1 < offsets.size(); ++i)
    rows.push_back(pooling == Pooling::Cls ? offsets[i] : offsets[i + 1] - 1);
  return cast(gather_rows(hidden, Tensor::from(rows, on)), DType::F32);
}

Var TextEncoder::pooled(const TokenIds& texts) const {
  const Packed p = pack(texts);
  return pool(hidden(p), p.offsets, config_.pooling);
}

Tensor TextEncoder::embed(const TokenIds& texts) const {
  return embed_in_chunks(texts, config_.hidden, options_.device, [this](const TokenIds& some) { return pooled(some); });
}

Tensor embed_in_chunks(const TokenIds& texts, int64_t dim, Device device,
                       const std::function<Var(const TokenIds&)>& pooled) {
  const NoGrad no_grad;
  const Tensor all = Tensor::empty({int64_t(texts.size()), dim}, DType::F32, device);
  for (size_t begin = 0, end = 0; begin < texts.size(); begin = end) {
    int64_t tokens = 0;
    for (; end < texts.size(); ++end) {
      tokens += int64_t(texts[end].size());
      if (end > begin && tokens > kChunkTokens) break;
    }
    all.slice(int64_t(begin), int64_t(end))
        .copy_from(pooled({texts.begin() + int64_t(begin), texts.begin() + int64_t(end)}).value);
  }
  return all;
}

}  // namespace t2l
