// Cross-entropy and sampling: a block per row of logits. The softmax runs online, so that a row is read once, and once
// more for its gradient. Sampling finds its thresholds by radix selection, four bits a pass over the row, every thread
// with its own sum for each of the 16 digits: no atomics, so sums have one order.
#include <cfloat>

#include "cuda/cuda.h"
#include "cuda/grid.cuh"
#include "cuda/reduce.cuh"
#include "tensor/logits.h"

namespace t2l::cuda {
namespace {

constexpr int kRowThreads = 512, kRowWarps = kRowThreads / 32;
constexpr int kDigits = 16;  // that a pass of the selection tells apart
static_assert(kDigits == kRowWarps);

// f(i, left, vector) for this thread's vectors of a row
template <class T, class F>
__device__ void for_row(const T* x, int64_t n, F f) {
  constexpr int N = kWidth<T>;
  for (int64_t i = int64_t(threadIdx.x) * N; i < n; i += kRowThreads * N) f(i, n - i, Vec<T>::load(x + i, n - i));
}

__device__ float capped(float x, float softcap) { return softcap > 0 ? softcap * tanhf(x / softcap) : x; }

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_kernel(float* loss, T* dlogits, const T* logits, const int32_t* targets, const float* weights,
                         int64_t vocab, float smoothing, float softcap) {
  constexpr int N = kWidth<T>;
  const int64_t row = blockIdx.x, target = targets[row];
  const float weight = weights[row];
  logits += row * vocab, dlogits += dlogits ? row * vocab : 0;
  const bool valid = target >= 0 && target < vocab;
  const float z_target = weight != 0 && valid ? capped(float(logits[target]), softcap) : NAN;
  float max = -FLT_MAX, sum = 0, total = 0;  // not -infinity, which minus itself is NaN
  if (weight != 0)
    for_row(logits, vocab, [&](int64_t, int64_t left, const Vec<T>& v) {
      float z[N], highest = max;
      T2L_UNROLL
      for (int k = 0; k < N; ++k) {
        z[k] = k < left ? capped(float(v[k]), softcap) : -INFINITY;
        highest = fmaxf(highest, z[k]);
      }
      sum *= expf(max - highest);
      max = highest;
      T2L_UNROLL
      for (int k = 0; k < N; ++k) {
        sum += expf(z[k] - max);
        if (k < left) total += z[k];
      }
    });
  const float highest = block_max(max);  // all have read z_target now: dlogits may be logits
  sum = block_sum(sum * expf(max - highest));
  total = block_sum(total);
  if (threadIdx.x == 0) {
    const float log_sum = logf(sum);
    float of_row = (1 - smoothing) * (log_sum + (highest - z_target));
    if (smoothing > 0) of_row += smoothing * (log_sum + (highest - total / float(vocab)));
    loss[row] = weight != 0 ? weight * of_row : 0;
  }
  if (dlogits) {
    const float scale = weight / sum, even = weight * smoothing / float(vocab);
    for_row(logits, vocab, [&](int64_t i, int64_t left, const Vec<T>& v) {
      Vec<T> out;
      T2L_UNROLL
      for (int k = 0; k < N; ++k) {
        const float z = capped(float(v[k]), softcap);
        float d = expf(z - highest) * scale - even;
        if (i + k == target) d -= weight * (1 - smoothing);
        if (softcap > 0) d *= 1 - (z / softcap) * (z / softcap);
        out[k] = T(weight != 0 ? d : 0.0f);
      }
      out.store(dlogits + i, left);
    });
  }
}

// What a block holds of the row it samples from.
template <class T>
struct Sampler {
  const T* logits;
  int64_t vocab;
  float largest, temperature;
  // shared memory: a thread's weight of each digit, and the block's
  float (&mine)[kDigits][kRowThreads], (&totals)[kDigits];

  static __device__ float value(T x) { return float(x) == float(x) ? float(x) : -INFINITY; }
  // proportional to the probability
  __device__ float share(float x) const { return x == largest ? 1.0f : expf((x - largest) / temperature); }

  // The sum of the shares of the logits of `least` bits and more.
  __device__ float sum(uint32_t least) const {
    float sum = 0;
    for_row(logits, vocab, [&](int64_t, int64_t left, const Vec<T>& v) {
      T2L_UNROLL
      for (int k = 0; k < kWidth<T>; ++k) {
        const float x = value(v[k]);
        if (k < left && ordered_bits(x) >= least) sum += share(x);
      }
    });
    return block_sum(sum);
  }

  // The largest threshold, at least `least`, whose logits of that many bits and more have a weight that reaches the
  // target; that of all if they do not. Digit by digit: in each, the weight of its values from the highest on.
  template <class F>
  __device__ uint32_t select(uint32_t least, float target, F weight) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t found = 0;
    float above = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
      T2L_UNROLL
      for (int d = 0; d < kDigits; ++d) mine[d][threadIdx.x] = 0;
      for_row(logits, vocab, [&](int64_t, int64_t left, const Vec<T>& v) {
        T2L_UNROLL
        for (int k = 0; k < kWidth<T>; ++k) {
          const float x = value(v[k]);
          const uint32_t bits = ordered_bits(x);
          if (k < left && bits >= least && (bits ^ found) >> shift >> 4 == 0)
            mine[bits >> shift & (kDigits - 1)][threadIdx.x] += weight(x);
        }
      });
      __syncthreads();
      float total = 0;
      for (int i = lane; i < kRowThreads; i += 32) total += mine[warp][i];
      total = warp_sum(total);
      if (lane == 0) totals[warp] = total;
      __syncthreads();
      int digit = -1;
      for (int d = kDigits - 1; d >= 0; --d) {
        if (totals[d] == 0) continue;
        if (digit >= 0) above += totals[digit];
        digit = d;
        if (above + totals[d] >= target) break;
      }
      found |= uint32_t(max(digit, 0)) << shift;
    }
    return found > least ? found : least;
  }

  // id: the first index, among the logits of `least` bits and more, at which the running share of all exceeds
  // `uniform`. Warps hold neighbouring parts of the row.
  __device__ void find(int32_t* id, uint32_t least, float uniform) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t part = (vocab + kRowThreads - 1) / kRowThreads * 32, begin = min(vocab, warp * part),
                  end = min(vocab, begin + part);
    const auto kept = [&](int64_t i) {
      const float x = i < end ? value(logits[i]) : -INFINITY;
      return ordered_bits(x) >= least ? share(x) : 0.0f;
    };
    float sum = 0;
    for (int64_t i = begin + lane; i < end; i += 32) sum += kept(i);
    sum = warp_sum(sum);
    float* const parts = mine[0];  // totals may still be read
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < kRowWarps; ++w) total += parts[w];
    const float point = uniform * total;
    int chosen = 0;
    float below = 0, upto = 0;
    for (int w = 0; w < kRowWarps; ++w) {
      if (parts[w] == 0) continue;
      chosen = w, below = upto, upto += parts[w];
      if (upto > point) break;
    }
    if (warp == chosen) {
      int64_t found = 0;  // the last one kept, should rounding leave the sum below the point
      unsigned beyond = 0;
      for (int64_t i = begin; i < end && !beyond; i += 32) {
        const float p = kept(i + lane);
        float running = p;
        T2L_UNROLL
        for (int distance = 1; distance < 32; distance *= 2) {
          const float before = __shfl_up_sync(0xffffffffu, running, unsigned(distance));
          if (lane >= distance) running += before;
        }
        const unsigned some = __ballot_sync(0xffffffffu, p > 0);
        beyond = __ballot_sync(0xffffffffu, p > 0 && below + running > point);
        if (some) found = i + (beyond ? __ffs(int(beyond)) - 1 : 31 - __clz(int(some)));
        below += __shfl_sync(0xffffffffu, running, 31);
      }
      if (lane == 0) *id = int32_t(found);
    }
  }
};

// At least one block on a multiprocessor: without saying so, nvcc 13 saves registers until it spills one.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    sample_kernel(int32_t* ids, const T* logits, const float* uniform, int64_t vocab, float temperature, int64_t top_k,
                  float top_p) {
  __shared__ float mine[kDigits][kRowThreads], totals[kDigits];
  Sampler<T> row{logits + blockIdx.x * vocab, vocab, -INFINITY, temperature, mine, totals};
  for_row(row.logits, vocab, [&](int64_t, int64_t left, const Vec<T>& v) {
    T2L_UNROLL
    for (int k = 0; k < kWidth<T>; ++k)
      if (k < left) row.largest = fmaxf(row.largest, row.value(v[k]));
  });
  row.largest = block_max(row.largest);
  int32_t* const id = ids + blockIdx.x;
  if (temperature == 0 || row.largest == -INFINITY) {
    float first = -INFINITY;  // minus the index
    for_row(row.logits, vocab, [&](int64_t i, int64_t left, const Vec<T>& v) {
      T2L_UNROLL
      for (int k = 0; k < kWidth<T>; ++k)
        if (k < left && row.value(v[k]) == row.largest) first = fmaxf(first, -float(i + k));
    });
    first = block_max(first);
    if (threadIdx.x == 0) *id = int32_t(-first);
  } else {
    uint32_t least = kLeastFinite;
    if (top_k > 0 && top_k < vocab) least = row.select(least, float(top_k), [](float) { return 1.0f; });
    if (top_p < 1) least = row.select(least, top_p * row.sum(least), [&](float x) { return row.share(x); });
    row.find(id, least, uniform[blockIdx.x]);
  }
}

}  // namespace

void Cuda::cross_entropy(Tensor& loss, Tensor* dlogits, const Tensor& logits, const Tensor& targets,
                         const Tensor& weights, float smoothing, float softcap) {
  check_cross_entropy(loss, dlogits, logits, targets, weights, smoothing, softcap);
  with_type(logits.dtype(), [&]<class T>(T*) {
    launch(cross_entropy_kernel<T>, blocks_for(logits.rows(), 1), kRowThreads, 0, stream_, loss.data<float>(),
           dlogits ? static_cast<T*>(dlogits->raw()) : nullptr, static_cast<T*>(logits.raw()), targets.data<int32_t>(),
           weights.data<float>(), logits.cols(), smoothing, softcap);
  });
}

void Cuda::sample(Tensor& ids, const Tensor& logits, const Tensor& uniform, float temperature, int64_t top_k,
                  float top_p) {
  check_sample(ids, logits, uniform, temperature);
  with_type(logits.dtype(), [&]<class T>(T*) {
    launch(sample_kernel<T>, blocks_for(logits.rows(), 1), kRowThreads, 0, stream_, ids.data<int32_t>(),
           static_cast<T*>(logits.raw()), uniform.data<float>(), logits.cols(), temperature, top_k, top_p);
  });
}

}  // namespace t2l::cuda
