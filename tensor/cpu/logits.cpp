// Cross-entropy and sampling, a row of logits at a time. The softmax runs online: over blocks in the first-level cache,
// sums go on from the largest logit so far, so that a row is read from memory once (twice with its gradient).
// Sampling finds its thresholds by radix selection over the logits' bits, which ties leave exact.
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "tensor/cpu/cpu.h"
#include "tensor/cpu/vmath.h"
#include "tensor/logits.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kBlock = 1024, kLanes = 16;

// The block of z = softcap(logits) from j on, n of them.
template <class T>
void load(float* z, const T* logits, int64_t n, float softcap) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) z[i] = float(logits[i]);
  if (softcap > 0)
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] = softcap * cpu::tanh(z[i] / softcap);
}

// f(0) + .. + f(n - 1), in lanes; the order depends on n alone
template <class F>
float lane_sum(int64_t n, F f) {
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += f(i + l);
  for (; i < n; ++i) lane[i % kLanes] += f(i);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

float largest(const float* z, int64_t n, float start) {
  float lane[kLanes];
  std::fill_n(lane, kLanes, start);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = z[i + l] > lane[l] ? z[i + l] : lane[l];
  for (; i < n; ++i) lane[0] = z[i] > lane[0] ? z[i] : lane[0];
  return *std::max_element(lane, lane + kLanes);
}

template <class T>
float cross_entropy_row(T* dlogits, const T* logits, int64_t vocab, int64_t target, float weight, float smoothing,
                        float softcap) {
  float z[kBlock], max = std::numeric_limits<float>::lowest();  // not -infinity, which minus itself is NaN
  double sum = 0, total = 0;                                    // of exp(z - max), of z
  for (int64_t j = 0; j < vocab; j += kBlock) {
    const int64_t n = std::min(kBlock, vocab - j);
    load(z, logits + j, n, softcap);
    const float before = std::exchange(max, largest(z, n, max));
    sum = sum * std::exp(double(before) - max) + lane_sum(n, [&](int64_t i) { return cpu::exp(z[i] - max); });
    if (smoothing > 0) total += lane_sum(n, [&](int64_t i) { return z[i]; });
  }
  load(z, logits + target, 1, softcap);
  const double log_sum = std::log(sum), to_target = max - double(z[0]);
  double loss = (1 - double(smoothing)) * (log_sum + to_target);
  if (smoothing > 0) loss += double(smoothing) * (log_sum + max - total / double(vocab));
  if (!dlogits) return float(weight * loss);

  const float scale = float(weight / sum), even = weight * smoothing / float(vocab);
  for (int64_t j = 0; j < vocab; j += kBlock) {
    const int64_t n = std::min(kBlock, vocab - j);
    float d[kBlock];
    load(z, logits + j, n, softcap);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) d[i] = cpu::exp(z[i] - max) * scale - even;
    if (target >= j && target < j + n) d[target - j] -= weight * (1 - smoothing);
    if (softcap > 0)
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) d[i] *= 1 - (z[i] / softcap) * (z[i] / softcap);
    for (int64_t i = 0; i < n; ++i) dlogits[j + i] = T(d[i]);
  }
  return float(weight * loss);
}

// One row's draw.
class Sampler {
 public:
  template <class T>
  int32_t operator()(const T* logits, int64_t vocab, float uniform, float temperature, int64_t top_k, float top_p) {
    x_.resize(size_t(vocab));
    for (size_t i = 0; i < x_.size(); ++i) x_[i] = std::isnan(float(logits[i])) ? -kInfinity : float(logits[i]);
    const float max = largest(x_.data(), vocab, -kInfinity);
    const auto first_of_largest = std::find(x_.begin(), x_.end(), max);
    if (temperature == 0 || max == -kInfinity) return int32_t(first_of_largest - x_.begin());

    p_.resize(x_.size()), bits_.resize(x_.size());
    const float* const x = x_.data();
    float* const p = p_.data();
#pragma omp simd
    for (int64_t i = 0; i < vocab; ++i)  // infinity minus itself is NaN
      p[i] = vmath::select(x[i] == max, 1, cpu::exp((x[i] - max) / temperature));
    for (size_t i = 0; i < x_.size(); ++i) bits_[i] = ordered_bits(x_[i]);

    uint32_t least = kLeastFinite;  // bits of the least logit that is kept
    if (top_k > 0 && top_k < vocab) least = select(least, double(top_k), [](size_t) { return 1.0; });
    if (top_p < 1) least = select(least, double(top_p) * mass(least), [&](size_t i) { return double(p_[i]); });
    const double point = double(uniform) * mass(least);
    double sum = 0;
    int32_t last = int32_t(first_of_largest - x_.begin());
    for (size_t i = 0; i < x_.size(); ++i) {
      if (bits_[i] < least || p_[i] == 0) continue;
      sum += double(p_[i]), last = int32_t(i);
      if (sum > point) break;
    }
    return last;
  }

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  double mass(uint32_t least) const {
    double sum = 0;
    for (size_t i = 0; i < p_.size(); ++i) sum += bits_[i] >= least ? double(p_[i]) : 0;
    return sum;
  }

  // The largest threshold, at least `least`, whose logits of that many bits and more have a weight that reaches the
  // target; that of all if they do not. Digit by digit: in each, the weight of its values from the highest on.
  template <class F>
  uint32_t select(uint32_t least, double target, F weight) const {
    uint32_t found = 0;
    double above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      std::array<double, 256> digits{};
      for (size_t i = 0; i < bits_.size(); ++i)
        if (bits_[i] >= least && (uint64_t(bits_[i] ^ found) >> shift >> 8) == 0)
          digits[bits_[i] >> shift & 255] += weight(i);
      int digit = -1;
      for (int d = 255; d >= 0; --d) {
        if (digits[size_t(d)] == 0) continue;
        if (digit >= 0) above += digits[size_t(digit)];
        digit = d;
        if (above + digits[size_t(d)] >= target) break;
      }
      found |= uint32_t(std::max(digit, 0)) << shift;
    }
    return std::max(found, least);
  }

  std::vector<float> x_, p_;  // the row: logits, and exp of their distance from the largest
  std::vector<uint32_t> bits_;
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
