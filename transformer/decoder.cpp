#include "transformer/decoder.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>

#include "nn/parameters.h"
#include "nn/spans.h"

namespace t2l {

// What the tokens of a pass, or some of them, have of their own.
struct Decoder::Rows {
  Tensor which;            // i [rows] of the tokens; not given: all
  Tensor rotations;        // i [rows] of cos and sin
  Tensor adapter_offsets;  // i [adapters + 1]
};

// A batch of packed tokens, and what depends on it alone.
struct Decoder::Pass {
  int64_t tokens = 0;
  Tensor ids;                               // i [tokens]
  Tensor cos, sin;                          // f [positions, head_dim / 2]
  std::map<int32_t, AttentionSpans> spans;  // by window
  AttentionSpans last_spans;                // of the last layer, whose queries are `wanted`
  Rows all, wanted;
  KvCache* cache = nullptr;
  Tensor cache_rows;  // i [tokens]: where keys and values go
  const AdapterBatch* adapters = nullptr;
};

Decoder::Decoder(const DecoderConfig& c, const DecoderOptions& options)
    : config_(c), options_(options), frequencies_(c.rope.frequencies(c.head_dim)), layers_(size_t(c.layers)) {}

Decoder Decoder::load(const std::string& dir, const DecoderOptions& options) {
  return {DecoderConfig::load(dir), SafeTensors::open(dir), options};
}

Decoder::Decoder(const DecoderConfig& config, const SafeTensors& file, const DecoderOptions& options)
    : Decoder(config, options) {
  const ModelWeights get(file, options.dtype, options.device);
  const std::vector<Parameter> all = parameters();
  for (size_t i = 0; i < all.size(); ++i) {
    *all[i].value = get(all[i].name, all[i].shape);
    if (options.progress) options.progress(int64_t(i) + 1, int64_t(all.size()));
  }
}

std::vector<Decoder::Parameter> Decoder::parameters() {
  const DecoderConfig& c = config_;
  std::vector<Parameter> all = {{"model.embed_tokens.weight", {c.vocab, c.hidden}, &embedding_}};
  for (int64_t i = 0; i < c.layers; ++i) {
    Layer& l = layers_[size_t(i)];
    const std::string at = fmt::format("model.layers.{}.", i);
    const auto norm = [&](const char* name, int64_t size, Var& w) {
      all.push_back({at + name + ".weight", {size}, &w});
    };
    for (size_t j = 0; j < kProjections; ++j) {
      const auto p = Projection(j);
      const auto [in, out] = c.linear(p);
      all.push_back({module_path(p, i) + ".weight", {out, in}, &l.linear[j].w});
      if (p <= Projection::V ? c.qkv_bias : p == Projection::O ? c.o_bias : c.mlp_bias)
        all.push_back({module_path(p, i) + ".bias", {out}, &l.linear[j].b});
    }
    if (c.qk_norm) {
      norm("self_attn.q_norm", c.head_dim, l.q_norm);
      norm("self_attn.k_norm", c.head_dim, l.k_norm);
    }
    norm("input_layernorm", c.hidden, l.attention_norm);
    // Llama's name for the norm before the MLP is Gemma's for one that follows attention.
    norm("post_attention_layernorm", c.hidden, c.gemma ? l.attention_post : l.mlp_norm);
    if (c.gemma) {
      norm("pre_feedforward_layernorm", c.hidden, l.mlp_norm);
      norm("post_feedforward_layernorm", c.hidden, l.mlp_post);
    }
  }
  all.push_back({"model.norm.weight", {c.hidden}, &norm_});
  if (!c.tied) all.push_back({"lm_head.weight", {c.vocab, c.hidden}, &head_});
  return all;
}

void Decoder::initialise(uint64_t seed) {
  for (const Parameter& p : parameters()) {
    Tensor w = Tensor::empty(p.shape, DType::F32, options_.device);
    if (p.shape.rank() > 1)
      backend(w).random_normal(w, 0, config_.initializer_range, {seed, stream_of(p.name)});
    else
      w = Tensor::full(p.shape, p.name.ends_with("norm.weight") && !config_.gemma ? 1 : 0, options_.device);
    *p.value = w.to(options_.dtype);
  }
}

Decoder::Pass Decoder::pack(const TokenBatch& batch, const AdapterBatch* adapters, KvCache* cache) const {
  const Device on = options_.device;
  const auto samples = int64_t(batch.ids.size());
  PackedIds packed = pack_ids(batch.ids, config_.vocab, config_.path);
  Pass p;
  p.tokens = int64_t(packed.ids.size());
  p.ids = Tensor::from(packed.ids, on);

  std::vector<int32_t> k_begin(packed.offsets.begin(), packed.offsets.end() - 1), past(size_t(samples), 0), rows, gist;
  T2L_CHECK(batch.sequences.empty() || (cache && int64_t(batch.sequences.size()) == samples), "{} sequences for {}",
            batch.sequences.size(), samples);
  for (int64_t s = 0; cache && s < samples; ++s) {
    const int64_t sequence = batch.sequences.empty() ? s : batch.sequences[size_t(s)];
    const auto n = int64_t(batch.ids[size_t(s)].size());
    k_begin[size_t(s)] = int32_t(cache->begin(sequence));
    past[size_t(s)] = int32_t(cache->length(sequence));
    cache->extend(sequence, n);
    for (int64_t i = 0; i < n; ++i) {
      int32_t& position = packed.positions[rows.size()];
      position += past[size_t(s)];
      rows.push_back(k_begin[size_t(s)] + position);
    }
  }
  for (int64_t s = 0; config_.gist_token >= 0 && s < samples; ++s) {
    const std::vector<int32_t>& ids = batch.ids[size_t(s)];
    int32_t fresh = -1;
    int32_t& first = cache ? cache->gist(batch.sequences.empty() ? s : batch.sequences[size_t(s)]) : fresh;
    if (const auto at = std::find(ids.begin(), ids.end(), config_.gist_token); first < 0 && at != ids.end())
      first = past[size_t(s)] + int32_t(at - ids.begin());
    gist.push_back(first > 1 ? first : 0);
  }
  p.cache = cache;
  if (cache) p.cache_rows = Tensor::from(rows, on);
  const auto spans_of = [&](int32_t window, std::span<const int32_t> queries) {
    AttentionSpans spans =
        cached_spans(packed.offsets, k_begin, past, config_.attention_scale, window, on, gist, queries);
    spans.softcap = config_.attention_softcap;
    return spans;
  };
  for (const int32_t window : config_.windows)
    if (!p.spans.contains(window)) p.spans[window] = spans_of(window, {});

  // A row of cos and sin for each position, or for each token if those are fewer.
  const auto [least, most] = std::minmax_element(packed.positions.begin(), packed.positions.end());
  const int32_t low = p.tokens ? *least : 0, high = p.tokens ? *most : -1;
  const bool by_position = high - low < p.tokens;
  std::vector<int32_t> row_of(packed.positions), position_of(packed.positions);
  if (by_position) {
    position_of.resize(size_t(high - low + 1));
    std::iota(position_of.begin(), position_of.end(), low);
    for (int32_t& row : row_of) row -= low;
  } else {
    std::iota(row_of.begin(), row_of.end(), 0);
  }
  std::vector<float> cos, sin;
  for (const int32_t position : position_of)
    for (const float f : frequencies_) {
      const float angle = float(position) * f;  // in f32, as transformers computes it
      cos.push_back(float(std::cos(double(angle))));
      sin.push_back(float(std::sin(double(angle))));
    }
  const Shape shape{int64_t(position_of.size()), int64_t(frequencies_.size())};
  p.cos = Tensor::from<float>(cos, shape, on);
  p.sin = Tensor::from<float>(sin, shape, on);
  p.all.rotations = Tensor::from(row_of, on);

  p.adapters = adapters;
  if (adapters) {
    std::vector<int32_t> offsets(size_t(adapters->count) + 1, 0);
    T2L_CHECK(batch.adapters.empty() ? adapters->count == 1 || adapters->count == samples
                                     : int64_t(batch.adapters.size()) == samples,
              "{} adapters for {} samples", adapters->count, samples);
    for (int64_t s = 0, before = 0; s < samples; ++s) {
      const int64_t i = !batch.adapters.empty() ? batch.adapters[size_t(s)] : adapters->count == 1 ? 0 : s;
      T2L_CHECK(i >= before && i < adapters->count, "adapter {} of {} after {}", i, adapters->count, before);
      offsets[size_t(i) + 1] += int32_t(batch.ids[size_t(s)].size());
      before = i;
    }
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    p.all.adapter_offsets = Tensor::from(offsets, on);
    for (int32_t& end : offsets)
      end = int32_t(std::lower_bound(batch.rows.begin(), batch.rows.end(), end) - batch.rows.begin());
    if (!batch.rows.empty()) p.wanted.adapter_offsets = Tensor::from(offsets, on);
  }
  if (batch.rows.empty()) {
    p.last_spans = p.spans.at(config_.windows.back());
    p.wanted = p.all;
    return p;
  }
  T2L_CHECK(batch.rows.front() >= 0 && batch.rows.back() < p.tokens &&
                std::is_sorted(batch.rows.begin(), batch.rows.end(), std::less_equal<>()),
            "rows {} .. {} of {} tokens", batch.rows.front(), batch.rows.back(), p.tokens);
  std::vector<int32_t> rotations;
  for (const int32_t row : batch.rows) rotations.push_back(row_of[size_t(row)]);
  p.wanted.which = Tensor::from(batch.rows, on);
  p.wanted.rotations = Tensor::from(rotations, on);
  p.last_spans = spans_of(config_.windows.back(), batch.rows);
  return p;
}

Var Decoder::project(int64_t layer, Projection p, const Var& x, const Pass& pass, const Rows& rows) const {
  const Linear& l = layers_[size_t(layer)].linear[size_t(p)];
  const Var y = linear(x, l.w, l.b);
  if (!pass.adapters) return y;
  const AdapterBatch& all = *pass.adapters;
  const AdapterBatch::Pair& pair = all.layers.at(size_t(layer))[size_t(p)];
  if (!pair.a) return y;
  const RandomKey key{all.key.seed, all.key.stream + uint64_t(layer) * kProjections + uint64_t(p)};
  return lora(y, dropout(x, all.dropout, key), pair.a, pair.b, rows.adapter_offsets, all.scale);
}

Var Decoder::attend(int64_t layer, const Var& q, const Var& k, const Var& v, const Pass& pass) const {
  const bool last = layer + 1 == config_.layers;
  const AttentionSpans& spans = last ? pass.last_spans : pass.spans.at(config_.windows[size_t(layer)]);
  if (!pass.cache) return attention(q, k, v, spans);
  T2L_CHECK(!Tape::wanted({&q, &k, &v}), "a cache under a tape");
  Tensor &keys = pass.cache->keys(layer), &values = pass.cache->values(layer);
  const Shape flat{keys.dim(0), keys.dim(1) * keys.dim(2)}, rows{pass.tokens, flat[1]};
  for (auto& [to, from] : {std::pair(&keys, &k), std::pair(&values, &v)}) {
    Tensor all = to->reshape(flat);
    backend(all).put_rows(all, from->value.reshape(rows), pass.cache_rows);
  }
  return attention(q, keys, values, spans);
}

Var Decoder::block(int64_t layer, const Var& x, const Pass& pass) const {
  const DecoderConfig& c = config_;
  const Layer& l = layers_[size_t(layer)];
  // Behind the last layer's keys and values only the rows wanted go on.
  const Rows& rows = layer + 1 == c.layers ? pass.wanted : pass.all;
  const auto wanted = [&](const Var& y) { return rows.which ? gather_rows(y, rows.which) : y; };
  const auto heads = [&](Projection p, const Var& h, int64_t n, const Rows& of) {
    return reshape(project(layer, p, h, pass, of), {h.dim(0), n, c.head_dim});
  };
  const auto rotate = [&](const Var& y, const Rows& of) { return rope(y, pass.cos, pass.sin, of.rotations); };

  Var h = norm(l.attention_norm, x);
  Var q = heads(Projection::Q, wanted(h), c.heads, rows), k = heads(Projection::K, h, c.kv_heads, pass.all);
  const Var v = heads(Projection::V, h, c.kv_heads, pass.all);
  if (c.qk_norm) q = norm(l.q_norm, q), k = norm(l.k_norm, k);
  const Var seen = attend(layer, rotate(q, rows), rotate(k, pass.all), v, pass);
  Var out = project(layer, Projection::O, reshape(seen, {q.dim(0), c.heads * c.head_dim}), pass, rows);
  if (c.gemma) out = norm(l.attention_post, out);
  const Var y = add(wanted(x), out);

  h = norm(l.mlp_norm, y);
  const Var gate = project(layer, Projection::Gate, h, pass, rows), up = project(layer, Projection::Up, h, pass, rows);
  out = project(layer, Projection::Down, gated(gate, up, c.activation), pass, rows);
  if (c.gemma) out = norm(l.mlp_post, out);
  return add(y, out);
}

Var Decoder::embed(const TokenBatch& batch, const Pass& pass) const {
  Var x = gather_rows(embedding_, pass.ids);
  // Gemma rounds the factor to the activations' type.
  if (config_.gemma) {
    const float factor = std::sqrt(float(config_.hidden));
    x = scale(x, options_.dtype == DType::BF16 ? float(bf16(factor)) : factor);
  }
  if (batch.noise <= 0) return x;
  const Tensor noise = Tensor::empty(x.shape(), DType::F32, options_.device);
  int64_t row = 0;
  for (size_t s = 0; s < batch.ids.size(); ++s) {
    const auto n = int64_t(batch.ids[s].size());
    const float most = batch.noise / std::sqrt(float(n * config_.hidden));
    Tensor own = noise.slice(row, row + n);
    backend(own).random_uniform(own, -most, most, {batch.noise_key.seed, batch.noise_key.stream + s});
    row += n;
  }
  return add(x, noise.to(options_.dtype));
}

Var Decoder::hidden(const TokenBatch& batch, const AdapterBatch* adapters, KvCache* cache, int64_t layer) const {
  T2L_CHECK(layer >= -1 && layer <= config_.layers, "hidden state {} of {} layers", layer, config_.layers);
  const int64_t blocks = layer < 0 ? config_.layers : layer;
  // Backward may run blocks again when the caller's adapters are gone, so the pass keeps them.
  const auto kept = adapters ? std::make_shared<const AdapterBatch>(*adapters) : nullptr;
  const auto pass = std::make_shared<const Pass>(pack(batch, kept.get(), cache));
  Var x = embed(batch, *pass);
  for (int64_t i = 0; i < blocks; ++i) {
    if (!options_.recompute) {
      x = block(i, x, *pass);
      continue;
    }
    std::vector<Var> inputs = {x};  // all that may want a gradient
    for (size_t p = 0; kept && p < kProjections; ++p)
      for (const Var* v : {&kept->layers[size_t(i)][p].a, &kept->layers[size_t(i)][p].b})
        if (*v) inputs.push_back(*v);
    x = checkpoint([this, i, pass, kept](const std::vector<Var>& in) { return block(i, in[0], *pass); }, inputs);
  }
  if (blocks == config_.layers) return norm(norm_, x);
  return pass->wanted.which ? gather_rows(x, pass->wanted.which) : x;
}

Tensor Decoder::logits(const Tensor& x) const {
  const NoGrad no_grad;
  const Tensor& w = head().value;
  Tensor y = Tensor::empty({x.rows(), config_.vocab}, DType::F32, x.device());
  backend(y).matmul(y, x, w, nullptr,
                    {.m = x.rows(),
                     .n = config_.vocab,
                     .k = config_.hidden,
                     .transpose_b = true,
                     .lda = config_.hidden,
                     .ldb = config_.hidden,
                     .ldc = config_.vocab});
  return config_.logit_softcap > 0 ? softcap(y, config_.logit_softcap).value : y;
}

std::vector<int32_t> Decoder::most_likely(const Tensor& x) const {
  constexpr int64_t kLogits = 1 << 24;  // at once: 64 MB
  const int64_t chunk = std::max<int64_t>(1, kLogits / config_.vocab);
  std::vector<int32_t> all;
  for (int64_t begin = 0; begin < x.rows(); begin += chunk) {
    const Tensor some = logits(x.slice(begin, std::min(x.rows(), begin + chunk)));
    Tensor ids = Tensor::empty({some.rows()}, DType::I32, x.device());
    backend(ids).sample(ids, some, Tensor::zeros({some.rows()}, DType::F32, x.device()), 0, 0, 1);
    const std::vector<int32_t> found = ids.to_vector<int32_t>();
    all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

Var Decoder::loss(const Var& x, const Tensor& targets, const Tensor& weights, float smoothing, Tensor* losses) const {
  return cross_entropy(x, head(), targets, weights, smoothing, config_.logit_softcap, losses);
}

}  // namespace t2l
