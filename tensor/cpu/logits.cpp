// Cross-entropy and sampling, a row of logits at a time. The softmax runs online: over blocks in the first-level cache,
// sums go on from the largest logit so far, so that a row is read from memory once (twice with its gradient).
// Sampling finds its thresholds by radix selection over the logits' bits, which ties leave exact.
#include <array>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "tensor/cpu/cpu.h"
#include "tensor/cpu/vmath.h"
#include "tensor/logits.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kBlock = 1024, kLanes = 16;

// A block of z = softcap(logits), n of them.
template <class T>
void load(float* z, const T* logits, int64_t n, float softcap) {
  for (int64_t i = 0; i < n; ++i) z[i] = float(logits[i]);
  if (softcap > 0)
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] = softcap * cpu::tanh(z[i] / softcap);
}

// f(.. f(start, x[0]) .., x[n - 1]) in lanes, in an order that depends on n alone
template <class F>
float reduce(const float* x, int64_t n, float start, F f) {
  float lane[kLanes];
  std::fill_n(lane, kLanes, start);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = f(lane[l], x[i + l]);
  for (; i < n; ++i) lane[i % kLanes] = f(lane[i % kLanes], x[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] = f(lane[l], lane[l + half]);
  return lane[0];
}
float sum_of(const float* x, int64_t n) {
  return reduce(x, n, 0, [](float a, float b) { return a + b; });
}
float largest_of(const float* x, int64_t n, float start) {  // NaN is passed over
  return reduce(x, n, start, [](float a, float b) { return b > a ? b : a; });
}

template <class T>
float cross_entropy_row(T* dlogits, const T* logits, int64_t vocab, int64_t target, float weight, float smoothing,
                        float softcap) {
  float z[kBlock], e[kBlock], max = std::numeric_limits<float>::lowest();  // not -infinity, which minus itself is NaN
  double sum = 0, total = 0;                                               // of exp(z - max), of z
  const auto exponentials = [&](int64_t n) {
    const float highest = max;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) e[i] = cpu::exp(z[i] - highest);
  };
  for (int64_t j = 0; j < vocab; j += kBlock) {
    const int64_t n = std::min(kBlock, vocab - j);
    load(z, logits + j, n, softcap);
    const float before = std::exchange(max, largest_of(z, n, max));
    exponentials(n);
    sum = sum * std::exp(double(before) - double(max)) + double(sum_of(e, n));
    if (smoothing > 0) total += double(sum_of(z, n));
  }
  load(z, logits + target, 1, softcap);
  const double log_sum = std::log(sum), to_target = double(max) - double(z[0]);
  double loss = (1 - double(smoothing)) * (log_sum + to_target);
  if (smoothing > 0) loss += double(smoothing) * (log_sum + double(max) - total / double(vocab));
  if (!dlogits) return float(double(weight) * loss);

  const float scale = float(double(weight) / sum), even = weight * smoothing / float(vocab);
  for (int64_t j = 0; j < vocab; j += kBlock) {
    const int64_t n = std::min(kBlock, vocab - j);
    load(z, logits + j, n, softcap);
    exponentials(n);
    for (int64_t i = 0; i < n; ++i) e[i] = e[i] * scale - even;
    if (target >= j && target < j + n) e[target - j] -= weight * (1 - smoothing);
    if (softcap > 0)
      for (int64_t i = 0; i < n; ++i) e[i] *= 1 - (z[i] / softcap) * (z[i] / softcap);
    for (int64_t i = 0; i < n; ++i) dlogits[j + i] = T(e[i]);
  }
  return float(double(weight) * loss);
}

// One row's draw.
class Sampler {
 public:
  template <class T>
  int32_t operator()(const T* logits, int64_t vocab, float uniform, float temperature, int64_t top_k, float top_p) {
    x_.resize(size_t(vocab)), p_.resize(x_.size()), bits_.resize(x_.size());
    float *const x = x_.data(), *const p = p_.data();
    for (int64_t i = 0; i < vocab; ++i)
      x[i] = vmath::select(float(logits[i]) > -kInfinity, float(logits[i]), -kInfinity);
    const float max = largest_of(x, vocab, -kInfinity);
    if (temperature == 0 || max == -kInfinity) return int32_t(std::find(x_.begin(), x_.end(), max) - x_.begin());

#pragma omp simd
    for (int64_t i = 0; i < vocab; ++i)  // infinity minus itself is NaN
      p[i] = vmath::select(x[i] == max, 1, cpu::exp((x[i] - max) / temperature));
    for (int64_t i = 0; i < vocab; ++i) bits_[size_t(i)] = ordered_bits(x[i]);

    uint32_t least = kLeastFinite;  // bits of the least logit that is kept
    if (top_k > 0 && top_k < vocab) least = select(least, double(top_k), [](int32_t) { return 1.0; });
    if (top_p < 1) least = select(least, double(top_p) * mass(least), [p](int32_t i) { return double(p[i]); });
    const double point = double(uniform) * mass(least);
    int32_t last = 0;
    double sum = 0;
    for (int32_t i = 0; i < int32_t(vocab) && sum <= point; ++i)
      if (bits_[size_t(i)] >= least && p[i] > 0) sum += double(p[i]), last = i;
    return last;
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  double mass(uint32_t least) const {
    double sum = 0;
    float kept[kBlock];
    for (size_t j = 0; j < p_.size(); j += kBlock) {
      const size_t n = std::min(size_t(kBlock), p_.size() - j);
      for (size_t i = 0; i < n; ++i) kept[i] = vmath::select(bits_[j + i] >= least, p_[j + i], 0);
      sum += double(sum_of(kept, int64_t(n)));
    }
    return sum;
  }

  // Of the candidates those that are wanted; without branches, which would be foretold badly.
  template <class F>
  void keep(F wanted) {
    size_t kept = 0;
    for (const int32_t i : candidates_) {
      candidates_[kept] = i;
      kept += wanted(i);
    }
    candidates_.resize(kept);
  }

  // The largest threshold, at least `least`, whose logits of that many bits and more have a weight that reaches the
  // target; that of all if they do not. Digit by digit: in each, the weight of its values from the highest on.
  template <class F>
  uint32_t select(uint32_t least, double target, F weight) {
    candidates_.resize(bits_.size());
    std::iota(candidates_.begin(), candidates_.end(), 0);
    keep([&](int32_t i) { return bits_[size_t(i)] >= least; });
    uint32_t found = 0;
    double above = 0;
    constexpr int kBits = 11;
    for (const int shift : {21, 10, 0}) {
      const auto digit_of = [&](int32_t i) { return bits_[size_t(i)] >> shift & ((1u << kBits) - 1); };
      std::array<double, 1 << kBits> digits{};
      for (const int32_t i : candidates_) digits[digit_of(i)] += weight(i);
      uint32_t digit = 0;
      bool any = false;
      for (size_t d = digits.size(); d-- > 0;) {
        if (digits[d] == 0) continue;
        if (any) above += digits[digit];
        digit = uint32_t(d), any = true;
        if (above + digits[d] >= target) break;
      }
      found |= digit << shift;
      keep([&](int32_t i) { return digit_of(i) == digit; });
    }
    return std::max(found, least);
  }

  std::vector<float> x_, p_;  // the row: logits, and exp of their distance from the largest
  std::vector<uint32_t> bits_;
  std::vector<int32_t> candidates_;
};

}  // namespace

void Cpu::cross_entropy(Tensor& loss, Tensor* dlogits, const Tensor& logits, const Tensor& targets,
                        const Tensor& weights, float smoothing, float softcap) {
  check_cross_entropy(loss, dlogits, logits, targets, weights, smoothing, softcap);
  const int64_t rows = logits.rows(), vocab = logits.cols();
  const int32_t* target = targets.data<int32_t>();
  const float* weight = weights.data<float>();
  for (int64_t r = 0; r < rows; ++r)
    T2L_CHECK(weight[r] == 0 || (target[r] >= 0 && target[r] < vocab), "cross_entropy: target {} of {}", target[r],
              vocab);
  with_type(logits.dtype(), [&]<class T>(T*) {
    parallel(rows, kGrain / std::max<int64_t>(vocab, 1) / 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* const d = dlogits ? dlogits->data<T>() + r * vocab : nullptr;
        if (weight[r] == 0) {
          loss.data<float>()[r] = 0;
          if (d) std::fill_n(d, vocab, T(0.f));
          continue;
        }
        loss.data<float>()[r] =
            cross_entropy_row(d, logits.data<T>() + r * vocab, vocab, target[r], weight[r], smoothing, softcap);
      }
    });
  });
}

void Cpu::sample(Tensor& ids, const Tensor& logits, const Tensor& uniform, float temperature, int64_t top_k,
                 float top_p) {
  check_sample(ids, logits, uniform, temperature);
  const int64_t rows = logits.rows(), vocab = logits.cols();
  with_type(logits.dtype(), [&]<class T>(T*) {
    parallel(rows, 1, [&](int64_t begin, int64_t end) {
      Sampler draw;
      for (int64_t r = begin; r < end; ++r)
        ids.data<int32_t>()[r] =
            draw(logits.data<T>() + r * vocab, vocab, uniform.data<float>()[r], temperature, top_k, top_p);
    });
  });
}

}  // namespace t2l::cpu
