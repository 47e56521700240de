#include "transformer/encoder.h"

#include <cmath>
#include <numeric>

#include "nn/spans.h"

namespace t2l {
namespace {

constexpr int64_t kChunkTokens = 2048;  // enough for the matrix products to run at full speed

// Reads weights by the names they have without a prefix, in the encoder's dtype and on its device.
class Weights {
 public:
  Weights(const SafeTensors& file, const EncoderOptions& options) : file_(file), options_(options) {
    for (const char* prefix : {"bert.", "new."})
      if (file.contains(prefix + std::string("embeddings.word_embeddings.weight"))) prefix_ = prefix;
  }

  Tensor operator()(std::string name, const Shape& shape) const {
    name = prefix_ + name;
    if (!file_.contains(name)) {  // the names of TensorFlow's layer norms
      const std::string legacy = name.ends_with("LayerNorm.weight") ? name.substr(0, name.size() - 6) + "gamma"
                                 : name.ends_with("LayerNorm.bias") ? name.substr(0, name.size() - 4) + "beta"
                                                                    : name;
      if (!file_.contains(legacy))
        fail("{}: has no tensor '{}' {}, which config.json asks for; are both of the same model?", file_.path(), name,
             shape.str());
      name = legacy;
    }
    const SafeTensors::Info& info = file_.info(name);
    if (!std::equal(info.shape.begin(), info.shape.end(), shape.begin(), shape.end()))
      fail("{}: tensor '{}' is [{}], but config.json asks for {}; are both of the same model?", info.file, name,
           fmt::join(info.shape, ", "), shape.str());
    const Tensor x = file_.get(name);
    if (x.dtype() == DType::I32) fail("{}: tensor '{}' holds integers, not weights", info.file, name);
    return x.to(options_.dtype).to(options_.device);
  }

 private:
  const SafeTensors& file_;
  const EncoderOptions& options_;
  std::string prefix_;
};

}  // namespace

// Texts one after another, and what depends on their lengths alone.
struct TextEncoder::Packed {
  int64_t tokens = 0;
  Tensor ids, positions;        // i [tokens]; positions count from 0 in each text
  Tensor offsets, first, last;  // i [texts + 1], [texts], [texts]: rows where texts begin, their first and last ones
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
  const Weights get(file, options_);
  const int64_t d = c.hidden, m = c.intermediate;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return Linear{get(name + ".weight", {out, in}), get(name + ".bias", {out})};
  };
  const auto norm = [&](const std::string& name) { return Norm{get(name + ".weight", {d}), get(name + ".bias", {d})}; };

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
  std::vector<int32_t> ids, positions, offsets = {0};
  size_t longest = 0;
  for (size_t s = 0; s < texts.size(); ++s) {
    const size_t n = texts[s].size();
    if (n == 0) fail("{}: text {} has no tokens", config_.where, s);
    if (!config_.rotary() && n > size_t(config_.positions))
      fail("{}: text {} has {} tokens, but the model takes at most {}; shorten it", config_.where, s, n,
           config_.positions);
    if (ids.size() + n > size_t(INT32_MAX)) fail("{}: more than 2^31 tokens in one batch; split it", config_.where);
    for (const int32_t id : texts[s])
      if (id < 0 || id >= config_.vocab)
        fail("{}: token id {} of text {} is not below vocab_size {}; is the tokenizer the model's own?", config_.where,
             id, s, config_.vocab);
    ids.insert(ids.end(), texts[s].begin(), texts[s].end());
    for (size_t i = 0; i < n; ++i) positions.push_back(int32_t(i));
    offsets.push_back(int32_t(ids.size()));
    longest = std::max(longest, n);
  }

  const Device on = options_.device;
  const std::vector<int32_t> first(offsets.begin(), offsets.end() - 1);
  std::vector<int32_t> last(offsets.begin() + 1, offsets.end());
  for (int32_t& row : last) --row;
  Packed p;
  p.tokens = int64_t(ids.size());
  p.ids = Tensor::from(ids, on);
  p.positions = Tensor::from(positions, on);
  p.offsets = Tensor::from(offsets, on);
  p.first = Tensor::from(first, on);
  p.last = Tensor::from(last, on);
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

Var TextEncoder::pooled(const TokenIds& texts) const {
  const Packed p = pack(texts);
  const Var x = hidden(p);
  switch (config_.pooling) {
    case Pooling::Mean: return segment_mean(cast(x, DType::F32), p.offsets);
    case Pooling::Cls: return cast(gather_rows(x, p.first), DType::F32);
    case Pooling::LastToken: return cast(gather_rows(x, p.last), DType::F32);
  }
  T2L_CHECK(false, "pooling {}", int(config_.pooling));
}

Tensor TextEncoder::embed(const TokenIds& texts) const {
  const NoGrad no_grad;
  const Tensor all = Tensor::empty({int64_t(texts.size()), config_.hidden}, DType::F32, options_.device);
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
