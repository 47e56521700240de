#include "t2l/apply_adapter.h"

#include <algorithm>
#include <map>

namespace t2l {
namespace {

using Place = std::pair<int64_t, Projection>;  // a linear layer: of which block, and which

Place place_of(const LoraWeights& w) { return {w.layer, parse_projection(w.module)}; }
float factor(const AdapterTerm& t) { return float(t.adapter->spec.scaling() * double(t.strength)); }

}  // namespace

void check_fits(const AdapterSum& sum, const DecoderConfig& base) {
  for (const AdapterTerm& term : sum)
    for (const LoraWeights& w : term.adapter->weights) {
      const std::string& path = term.adapter->path;
      const BaseModel::Linear l = base.linear(parse_projection(w.module));
      if (w.layer >= base.layers)
        fail("{}: adapts layer {}, but {} has {} layers; give the base model it was trained for", path, w.layer,
             base.path, base.layers);
      if (w.a.dim(1) != l.in || w.b.dim(0) != l.out)
        fail("{}: {} is {} x {}, in {} it is {} x {}; give the base model it was trained for", path, w.module,
             w.b.dim(0), w.a.dim(1), base.path, l.out, l.in);
    }
}

AdapterBatch stack_adapters(const std::vector<AdapterSum>& sums, const DecoderConfig& base,
                            const DecoderOptions& options) {
  // What each linear layer gets from whom: (sum, where in its rank, factor, weights).
  struct Part {
    int64_t sum, at;
    float factor;
    const LoraWeights* weights;
  };
  std::map<Place, std::vector<Part>> parts;
  for (size_t s = 0; s < sums.size(); ++s) {
    check_fits(sums[s], base);
    std::map<Place, int64_t> rank;
    for (const AdapterTerm& term : sums[s])
      for (const LoraWeights& w : term.adapter->weights) {
        const Place place = place_of(w);
        parts[place].push_back({int64_t(s), rank[place], factor(term), &w});
        rank[place] += w.a.dim(0);
      }
  }

  AdapterBatch batch;
  batch.count = int64_t(sums.size());
  batch.layers.resize(size_t(base.layers));
  for (const auto& [place, list] : parts) {
    int64_t rank = 0;
    for (const Part& p : list) rank = std::max(rank, p.at + p.weights->a.dim(0));
    const BaseModel::Linear l = base.linear(place.second);
    const Tensor a = Tensor::zeros({batch.count, rank, l.in}), b = Tensor::zeros({batch.count, l.out, rank});
    for (const Part& p : list) {
      const int64_t r = p.weights->a.dim(0);
      std::copy_n(p.weights->a.data<float>(), r * l.in, a.data<float>() + (p.sum * rank + p.at) * l.in);
      const float* from = p.weights->b.data<float>();
      float* to = b.data<float>() + p.sum * l.out * rank + p.at;
      for (int64_t i = 0; i < l.out; ++i)
        for (int64_t j = 0; j < r; ++j) to[i * rank + j] = p.factor * from[i * r + j];
    }
    batch.layers[size_t(place.first)][size_t(place.second)] = {a.to(options.dtype).to(options.device),
                                                               b.to(options.dtype).to(options.device)};
  }
  return batch;
}

AdapterBatch adapters_of(const std::vector<ModuleAdapters>& generated, const HypernetConfig& net, float scale,
                         DType dtype) {
  const int64_t count = generated.at(0).a.dim(0);
  AdapterBatch batch;
  batch.count = count;
  batch.scale = scale;
  batch.layers.resize(size_t(net.layers));
  // Generated rows are (sample, layer); the model wants (layer, sample), so that a layer's weights lie together.
  std::vector<int32_t> rows;
  for (int64_t layer = 0; layer < net.layers; ++layer)
    for (int64_t sample = 0; sample < count; ++sample) rows.push_back(int32_t(sample * net.layers + layer));
  for (size_t m = 0; m < generated.size(); ++m) {
    const auto by_layer = [&](const Var& x) {  // [count, layers, ..] -> [layers count, ..]
      const int64_t width = x.dim(2) * x.dim(3);
      const Var flat = reshape(x, {x.dim(0) * x.dim(1), width});
      return cast(gather_rows(flat, Tensor::from(rows, x.value.device())), dtype);
    };
    const Var a = by_layer(generated[m].a), b = by_layer(generated[m].b);
    const auto projection = size_t(parse_projection(net.modules[m].name));
    for (int64_t layer = 0; layer < net.layers; ++layer) {
      const auto slice = [&](const Var& all, const Var& like) {
        return reshape(slice_rows(all, layer * count, (layer + 1) * count), {count, like.dim(2), like.dim(3)});
      };
      batch.layers[size_t(layer)][projection] = {slice(a, generated[m].a), slice(b, generated[m].b)};
    }
  }
  return batch;
}

MergedAdapters::MergedAdapters(Decoder& decoder, const AdapterSum& sum) {
  check_fits(sum, decoder.config());
  std::map<std::string, std::vector<std::pair<float, const LoraWeights*>>> terms;  // by the weight's name
  for (const AdapterTerm& term : sum)
    for (const LoraWeights& w : term.adapter->weights)
      terms[module_path(w.module, w.layer) + ".weight"].emplace_back(factor(term), &w);
  for (const Decoder::Parameter& p : decoder.parameters()) {
    const auto it = terms.find(p.name);
    if (it == terms.end()) continue;
    const Tensor& before = p.value->value;
    Tensor merged = before.dtype() == DType::F32 ? before.clone() : before.to(DType::F32);  // summed in f32
    const int64_t out = merged.dim(0), in = merged.dim(1);
    for (const auto& [by, w] : it->second) {
      const int64_t r = w->a.dim(0);
      Tensor b = Tensor::empty(w->b.shape());
      backend(b).scale(b, w->b, by, false);
      backend(merged).matmul(merged, b.to(merged.device()), w->a.to(merged.device()), nullptr,
                             {.m = out, .n = in, .k = r, .lda = r, .ldb = in, .ldc = in, .accumulate = true});
    }
    before_.emplace_back(p.value, before);
    p.value->value = merged.to(before.dtype());
  }
}

MergedAdapters::~MergedAdapters() {
  for (auto& [weight, value] : before_) weight->value = value;
}

}  // namespace t2l
