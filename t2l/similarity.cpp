#include "t2l/similarity.h"

#include <algorithm>
#include <cmath>

namespace t2l {
namespace {

// x x^T of all rows.  x: f32 [rows, cols] -> [rows, rows]
Tensor gram(const Tensor& x) {
  const int64_t n = x.dim(0), k = x.dim(1);
  Tensor y = Tensor::empty({n, n});
  backend(y).matmul(y, x, x, nullptr, {.m = n, .n = n, .k = k, .transpose_b = true, .lda = k, .ldb = k, .ldc = n});
  return y;
}

}  // namespace

std::vector<int64_t> evenly_spaced(int64_t n, int64_t most) {
  std::vector<int64_t> picked;
  const int64_t count = std::min(n, most);
  for (int64_t i = 0; i < count; ++i) picked.push_back(count == 1 ? 0 : i * (n - 1) / (count - 1));
  return picked;
}

TaskSimilarity adapter_similarity(const Hypernet& net, const Tensor& tasks, std::vector<std::string> names) {
  constexpr int64_t kChunk = 8, kLayers = 4;
  const NoGrad no_grad;
  const HypernetConfig& c = net.config();
  const int64_t n = tasks.dim(0), r = c.rank;
  const std::vector<int64_t> layers = evenly_spaced(c.layers, kLayers);
  // For each module and layer, A and B^T of all tasks: [n r, in] and [n r, out].
  std::vector<std::pair<Tensor, Tensor>> factors;
  for (const AdaptedModule& m : c.modules)
    for (size_t i = 0; i < layers.size(); ++i)
      factors.emplace_back(Tensor::empty({n * r, m.in}), Tensor::empty({n * r, m.out}));
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n);
    const std::vector<ModuleAdapters> adapters = net.generate(tasks.slice(begin, end));
    for (size_t m = 0; m < adapters.size(); ++m) {
      const Var transposed = transpose(adapters[m].b);
      for (int64_t t = begin; t < end; ++t)
        for (size_t i = 0; i < layers.size(); ++i) {
          auto& [a, b] = factors[m * layers.size() + i];
          const int64_t row = (t - begin) * c.layers + layers[i];
          const auto copy = [&](const Tensor& to, const Var& all) {  // all: [tasks, layers, r, size]
            const Tensor flat = all.value.reshape({all.dim(0) * all.dim(1) * r, all.dim(3)});
            to.slice(t * r, (t + 1) * r).copy_from(flat.slice(row * r, (row + 1) * r).to(Device::CPU));
          };
          copy(a, adapters[m].a);
          copy(b, transposed);
        }
    }
  }

  TaskSimilarity s{std::move(names), std::vector<double>(size_t(n * n))};
  for (const auto& [a, b] : factors) {
    const Tensor of_a = gram(a), of_b = gram(b);
    const float *x = of_a.data<float>(), *y = of_b.data<float>();
    for (int64_t i = 0; i < n * r; ++i)
      for (int64_t j = 0; j < n * r; ++j)
        s.cosine[size_t(i / r * n + j / r)] += double(x[i * n * r + j]) * double(y[i * n * r + j]);
  }
  std::vector<double> size;
  for (int64_t i = 0; i < n; ++i) size.push_back(std::sqrt(std::max(s.cosine[size_t(i * n + i)], 0.0)));
  for (int64_t i = 0; i < n * n; ++i) {
    const double product = size[size_t(i / n)] * size[size_t(i % n)];
    s.cosine[size_t(i)] = product > 0 ? std::clamp(s.cosine[size_t(i)] / product, -1.0, 1.0) : 0;
  }
  return s;
}

TaskSimilarity clustered(const TaskSimilarity& s) {
  const size_t n = s.names.size();
  const auto of = [&](size_t i, size_t j) { return s.cosine[i * n + j]; };
  std::vector<std::vector<size_t>> clusters;
  for (size_t i = 0; i < n; ++i) clusters.push_back({i});
  const auto linkage = [&](const std::vector<size_t>& a, const std::vector<size_t>& b) {
    double sum = 0;
    for (const size_t i : a)
      for (const size_t j : b) sum += of(i, j);
    return sum / double(a.size() * b.size());
  };
  while (clusters.size() > 1) {
    size_t first = 0, second = 1;
    double best = -INFINITY;
    for (size_t a = 0; a < clusters.size(); ++a)
      for (size_t b = a + 1; b < clusters.size(); ++b)
        if (const double l = linkage(clusters[a], clusters[b]); l > best) best = l, first = a, second = b;
    std::vector<size_t>&a = clusters[first], &b = clusters[second];
    // Turned so that the ends that meet are the most alike.
    const bool turn_a = std::max(of(a.front(), b.front()), of(a.front(), b.back())) >
                        std::max(of(a.back(), b.front()), of(a.back(), b.back()));
    if (turn_a) std::reverse(a.begin(), a.end());
    if (of(a.back(), b.back()) > of(a.back(), b.front())) std::reverse(b.begin(), b.end());
    a.insert(a.end(), b.begin(), b.end());
    clusters.erase(clusters.begin() + int64_t(second));
  }
  TaskSimilarity out{{}, std::vector<double>(n * n)};
  for (size_t i = 0; i < n; ++i) {
    out.names.push_back(s.names[clusters[0][i]]);
    for (size_t j = 0; j < n; ++j) out.cosine[i * n + j] = of(clusters[0][i], clusters[0][j]);
  }
  return out;
}

}  // namespace t2l
