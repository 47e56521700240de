// What the two directions of attention share: products of tiles on the register kernels of the matrix product, and
// vectors of 8 for what lies between them. A tile is at most kTile queries or keys; its products are stored in panels
// of nr columns, which is how the next product wants its right factor, so that the probabilities are never repacked.
#pragma once
#include <bit>
#include <utility>
#include <vector>

#include "tensor/cpu/cpu.h"
#include "tensor/cpu/gemm_pack.h"

namespace t2l::cpu {

constexpr int64_t kTile = 128;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- vectors of 8

using F8 = __m256;
inline F8 load8(const float* p) { return _mm256_loadu_ps(p); }
inline F8 load8(const bf16* p) { return WidenedUnits::along(reinterpret_cast<const uint16_t*>(p)); }
inline F8 all8(float x) { return _mm256_set1_ps(x); }

// The bits of x rounded to bf16, in the upper half of each lane.
inline __m256i round8(F8 x) {
  const __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
  return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
inline void store8(float* p, F8 x) { _mm256_storeu_ps(p, x); }
inline void store8(bf16* p, F8 x) {
  const __m256i u = _mm256_srli_epi32(round8(x), 16);
  const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
}
// The unit of two bf16, the even one first.
inline F8 pair8(F8 even, F8 odd) {
  const __m256i high = _mm256_and_si256(round8(odd), _mm256_set1_epi32(int(0xffff0000)));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(round8(even), 16), high));
}
template <class T>
void store_some(T* p, F8 x, int64_t count) {
  if (count >= 8) return store8(p, x);
  T all[8];
  store8(all, x);
  std::copy_n(all, count, p);
}

// e^x for x up to some 88, as exp in vmath.h, but results below 2^-126 are 0.
inline F8 exp8(F8 x) {
  x = _mm256_max_ps(all8(-88.02f), x);                                // in this order NaN stays
  const F8 round = all8(0x1.8p23f + 127), ln2 = all8(0x1.62e43p-1f);  // leaves n + 127 in the low bits
  const F8 shifted = _mm256_fmadd_ps(x, all8(0x1.715476p0f), round), n = _mm256_sub_ps(shifted, round);
  const F8 r = _mm256_fmadd_ps(n, all8(0x1.05c61p-29f), _mm256_fnmadd_ps(n, ln2, x));
  F8 p = _mm256_fmadd_ps(all8(0.0013814599951729178f), r, all8(0.008368716575205326f));
  p = _mm256_fmadd_ps(p, r, all8(0.04166838899254799f));
  p = _mm256_fmadd_ps(p, r, all8(0.1666652113199234f));
  p = _mm256_fmadd_ps(p, r, all8(0.4999999403953552f));
  p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r), all8(1));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}

// tanh in vmath.h, with the exponential above.
inline F8 tanh8(F8 x) {
  const F8 sign = all8(-0.f), a = _mm256_andnot_ps(sign, x), s = _mm256_mul_ps(x, x);
  F8 p = _mm256_fmadd_ps(all8(-0.00513866264373064f), s, all8(0.02009197138249874f));
  p = _mm256_fmadd_ps(p, s, all8(-0.05355885997414589f));
  p = _mm256_fmadd_ps(p, s, all8(0.1332911103963852f));
  p = _mm256_fmadd_ps(p, s, all8(-0.3333319127559662f));
  const F8 small = _mm256_fmadd_ps(_mm256_mul_ps(p, s), a, a);
  const F8 e = exp8(_mm256_mul_ps(a, all8(-2)));  // in [0, 1]
  const F8 large = _mm256_div_ps(_mm256_sub_ps(all8(1), e), _mm256_add_ps(all8(1), e));
  return _mm256_or_ps(_mm256_and_ps(sign, x),
                      _mm256_blendv_ps(large, small, _mm256_cmp_ps(a, all8(0.625f), _CMP_LT_OQ)));
}

// ---- products

// A packed factor: a left one in panels of `height` rows, a right one of nr columns; `panel` floats from one to the
// next.
struct Factor {
  float* p;
  int64_t panel, height;

  Factor from_panel(int64_t i) const { return {p + i * panel, panel, height}; }
};

class Tiles {
 public:
  // AMX is left out: its tiles want left factors of another layout.
  explicit Tiles(DType inputs)
      : kernel_(gemm_kernel(std::min(isa(), Isa::AVX512BF16), inputs)),
        f32_(gemm_kernel(std::min(isa(), Isa::AVX512), DType::F32)) {}

  int64_t mr() const { return kernel_.mr; }
  int64_t nr() const { return kernel_.nr; }
  int64_t pitch() const { return kernel_.pitch_a; }
  bool pairs() const { return kernel_.per_unit == 2; }  // a factor holds two bf16 where others hold one f32
  int64_t units(int64_t depth) const { return ceil_div(depth, kernel_.per_unit); }
  // Nearly equal, and even, so that pairs begin with a panel.
  int64_t height(int64_t rows) const {
    return std::min<int64_t>(mr(), round_up(ceil_div(rows, ceil_div(std::max<int64_t>(rows, 1), mr())), 2));
  }

  // Room in floats; depth is that of f32 factors, the larger.
  int64_t left_panel(int64_t depth) const { return round_up(depth, 8) * pitch(); }
  int64_t right_panel(int64_t depth) const { return round_up(depth, 8) * nr(); }
  int64_t left_size(int64_t rows, int64_t depth) const { return ceil_div(rows, height(rows)) * left_panel(depth); }
  int64_t right_size(int64_t cols, int64_t depth) const { return ceil_div(cols, nr()) * right_panel(depth); }

  // The factor [rows, depth] at from, or its transpose with depth_is_row, and then, of the `there` columns that can be
  // read from there on, a full vector is read.
  template <class T>
  Factor pack_left(float* to, const T* from, int64_t ld, bool depth_is_row, int64_t rows, int64_t depth,
                   int64_t there = 0) const {
    const auto pack = std::is_same_v<T, float> ? f32_.pack_a : kernel_.pack_a;
    const int64_t n = std::is_same_v<T, float> ? depth : units(depth);
    const Factor f{to, left_panel(depth), height(rows)};
    for (int64_t i = 0; i < rows; i += f.height, to += f.panel)
      pack(to, from + i * (depth_is_row ? 1 : ld), ld, depth_is_row,
           int(depth_is_row ? std::min(pitch(), std::max(there, rows) - i) : std::min(f.height, rows - i)), depth, n);
    return f;
  }
  // The factor [depth, cols], or, unless depth_is_row, its transpose.
  template <class T>
  Factor pack_right(float* to, const T* from, int64_t ld, bool depth_is_row, int64_t cols, int64_t depth) const {
    const Factor f{to, right_panel(depth), nr()};
    for (int64_t j = 0; j < cols; j += nr(), to += f.panel)
      kernel_.pack_b(to, from + j * (depth_is_row ? 1 : ld), ld, depth_is_row, int(std::min(nr(), cols - j)), depth,
                     units(depth));
    return f;
  }

  // The rows begin .. end of the product, begin a multiple of the left factor's height: c (+)= a b. Element (i, j) is
  // at c[(j / nr) c_panel + i ldc + j % nr]. Fetches what lies ahead, if given, and moves it on.
  void multiply(float* c, int64_t c_panel, int64_t ldc, const Factor& a, int64_t begin, int64_t end, const Factor& b,
                int64_t cols, int64_t depth, bool add, Ahead* ahead = nullptr) const {
    const char* const here = reinterpret_cast<const char*>(b.p);
    const Ahead nothing{here, here, 0, 0};  // all is in the cache already
    for (int64_t j = 0; j * nr() < cols; ++j)
      for (int64_t i = begin; i < end; i += a.height) {
        kernel_.run(c + j * c_panel + i * ldc, ldc, a.p + i / a.height * a.panel, 0, b.p + j * b.panel, units(depth),
                    int(std::min(a.height, end - i)), add, ahead ? *ahead : nothing);
        if (!ahead) continue;
        const int64_t bytes = (units(depth) >> ahead->log2_lines) * ahead->stride;
        ahead->p += bytes, ahead->q += bytes;
      }
  }

 private:
  const GemmKernel &kernel_, &f32_;  // of one instruction set and so of one mr, nr
};

// to[l ld + i] = from[i from_ld + l] factor[l] for i < rows, l < lanes; 0 where the factor is 0
template <class T>
void write_transposed(T* to, int64_t ld, const float* from, int64_t from_ld, int64_t rows, int64_t lanes,
                      const float* factor) {
  for (int64_t l = 0; l < lanes; l += 8)
    for (int64_t i = 0; i < rows; i += 8) {
      F8 r[8];
      for (int64_t j = 0; j < 8; ++j) r[j] = load8(from + std::min(i + j, rows - 1) * from_ld + l);
      transpose(r);
      for (int64_t j = 0; j < std::min<int64_t>(8, lanes - l); ++j) {
        const float f = factor[l + j];
        store_some(to + (l + j) * ld + i, f == 0 ? all8(0) : _mm256_mul_ps(r[j], all8(f)), rows - i);
      }
    }
}

// ---- work

// Takes `floats` floats, rounded up to a cache line, off the scratch memory.
inline float* take(float*& scratch, int64_t floats) { return std::exchange(scratch, scratch + round_up(floats, 16)); }

struct AttentionSizes {
  int64_t heads, kv_heads, group, dim, ld, kv_ld, samples;
  AttentionSizes(const Tensor& q, const Tensor& k, const AttentionSpans& spans)
      : heads(q.dim(1)),
        kv_heads(k.dim(1)),
        group(heads / kv_heads),
        dim(q.dim(2)),
        ld(heads * dim),
        kv_ld(kv_heads * dim),
        samples(spans.k_begin.size()) {}
};

// f(task, scratch of `floats` floats), in parallel, the tasks of most work first
template <class Task, class F>
void for_tasks(std::vector<Task>& tasks, int64_t floats, F&& f) {
  if (tasks.empty()) return;
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.work > b.work; });
  const int64_t n = int64_t(tasks.size()), threads = std::min<int64_t>(n, omp_get_max_threads());
  const int64_t chunk = std::max<int64_t>(1, n / (64 * threads));
  floats = round_up(floats, 16);
  const Tensor scratch = Tensor::empty({threads, floats});
#pragma omp parallel for schedule(dynamic, chunk) num_threads(int(threads))
  for (int64_t i = 0; i < n; ++i) f(tasks[size_t(i)], scratch.data<float>() + omp_get_thread_num() * floats);
}

}  // namespace t2l::cpu
