// C = act(op(A) op(B) + bias): bf16 on tensor cores, f32 on the ordinary ones (no TF32), sums in f32.
//
// A block owns a tile of C. Slices of A and B, kDepth of k at a time, travel to shared memory by cp.async, kStages - 1
// slices ahead of the products; what lies outside of a matrix arrives as zeros. Slices stay as they are stored; a
// transpose is a way of reading them. Every element of C is summed over k in one order, whatever m, n and the groups.
#include "cuda/gemm.h"

#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/ptx.cuh"
#include "cuda/vec.cuh"

namespace t2l::cuda {
namespace {

constexpr int kStages = 4;

template <class T>
struct Problem {
  void* c;
  const T *a, *b, *bias;
  int64_t tiles_m, tiles_n;
  bool c_is_bf16;
  Matmul spec;
};

// A slice of an operand: kOuter rows of op(A) or columns of op(B), kDepth deep, in shared memory as it is stored: a row
// per outer index if kAlongK, else a row per k. Rows are 16 bytes longer than need be: reading neighbouring rows at
// once then meets no bank twice.
template <class T, int kOuter_, int kDepth_, bool kAlongK_>
struct Slice {
  static constexpr int kOuter = kOuter_, kDepth = kDepth_, kChunk = 16 / sizeof(T);
  static constexpr bool kAlongK = kAlongK_;
  static constexpr int kRows = kAlongK ? kOuter : kDepth, kCols = kAlongK ? kDepth : kOuter;
  static constexpr int kPitch = kCols + kChunk, kSize = kRows * kPitch;

  // Element (outer, k) of the operand is global[outer * ld + k], or global[k * ld + outer]; outers, ks: how many.
  template <bool kAligned, int kThreads>
  __device__ static void load(T* slice, const T* global, int64_t ld, int64_t outer, int64_t outers, int64_t k,
                              int64_t ks) {
    const T* from = kAlongK ? global + outer * ld + k : global + k * ld + outer;
    const int64_t rows = kAlongK ? outers - outer : ks - k, cols = kAlongK ? ks - k : outers - outer;
    if constexpr (kAligned) {
      constexpr int kPerRow = kCols / kChunk;
      static_assert(kRows * kPerRow % kThreads == 0);
      T2L_UNROLL
      for (int i = 0; i < kRows * kPerRow / kThreads; ++i) {
        const int at = i * kThreads + int(threadIdx.x), r = at / kPerRow, c = at % kPerRow * kChunk;
        const int given = r < rows ? int(max(int64_t(0), min(cols - c, int64_t(kChunk)))) : 0;
        cp_async<16>(slice + r * kPitch + c, given ? from + r * ld + c : from, given * int(sizeof(T)));
      }
    } else {
      for (int i = int(threadIdx.x); i < kRows * kCols; i += kThreads) {
        const int r = i / kCols, c = i % kCols;
        slice[r * kPitch + c] = r < rows && c < cols ? from[r * ld + c] : T(0.0f);
      }
    }
  }
};

// Each warp multiplies kWarpM x kWarpN of the tile, in 16x8x16 steps of the tensor cores.
template <class A, class B, int kWarpM, int kWarpN>
struct TensorCores {
  static constexpr int kThreads = A::kOuter / kWarpM * (B::kOuter / kWarpN) * 32;
  FragC acc[kWarpM / 16][kWarpN / 8];
  int row, col;  // of this warp in the tile

  __device__ TensorCores() : acc{} {
    const int warp = int(threadIdx.x) / 32;
    row = warp % (A::kOuter / kWarpM) * kWarpM;
    col = warp / (A::kOuter / kWarpM) * kWarpN;
  }

  // This lane's address for four 8x8 matrices: of the outer index outer and outer + 8, of k and k + 8.
  template <class S>
  __device__ static void load(uint32_t (&r)[4], const bf16* slice, int outer, int k) {
    if constexpr (S::kAlongK)
      ldmatrix_x4(r, slice + outer * S::kPitch + k);
    else
      ldmatrix_x4_trans(r, slice + k * S::kPitch + outer);
  }

  __device__ void multiply(const bf16* a, const bf16* b) {
    const int lane = int(threadIdx.x) % 32, in = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    T2L_UNROLL
    for (int k = 0; k < A::kDepth; k += 16) {
      FragA fa[kWarpM / 16];
      FragB fb[kWarpN / 8];
      T2L_UNROLL
      for (int i = 0; i < kWarpM / 16; ++i) {
        // Matrices of A: (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8). A lane's row is an m or, transposed, a k.
        const int m = row + i * 16 + low + (A::kAlongK ? in : 0);
        load<A>(fa[i].r, a, m, k + high + (A::kAlongK ? 0 : in));
      }
      T2L_UNROLL
      for (int j = 0; j < kWarpN / 8; j += 2) {
        // Of B: (n, k), (n, k + 8), (n + 8, k), (n + 8, k + 8).
        uint32_t r[4];
        const int n = col + j * 8 + high + (B::kAlongK ? in : 0);
        load<B>(r, b, n, k + low + (B::kAlongK ? 0 : in));
        fb[j] = {{r[0], r[1]}};
        fb[j + 1] = {{r[2], r[3]}};
      }
      T2L_UNROLL
      for (int i = 0; i < kWarpM / 16; ++i) {
        T2L_UNROLL
        for (int j = 0; j < kWarpN / 8; ++j) mma_16x8x16(acc[i][j], fa[i], fb[j]);
      }
    }
  }

  __device__ void put(float* tile, int pitch) const {
    const int lane = int(threadIdx.x) % 32;
    T2L_UNROLL
    for (int i = 0; i < kWarpM / 16; ++i) {
      T2L_UNROLL
      for (int j = 0; j < kWarpN / 8; ++j) {
        T2L_UNROLL
        for (int e = 0; e < 4; e += 2) {
          const int r = row + i * 16 + lane / 4 + e * 4, c = col + j * 8 + lane % 4 * 2;
          Vec<float, 2>{{acc[i][j].r[e], acc[i][j].r[e + 1]}}.store(tile + r * pitch + c);
        }
      }
    }
  }
};

// Each of 16 x 16 threads multiplies kM x kN of the tile in registers, four k at a time.
template <class A, class B>
struct Registers {
  static constexpr int kThreads = 256, kM = A::kOuter / 16, kN = B::kOuter / 16;
  float acc[kM][kN];
  int row, col;  // of this thread among the 16 x 16

  __device__ Registers() : acc{}, row(int(threadIdx.x) / 16), col(int(threadIdx.x) % 16) {}

  // The i-th outer index of a thread: such that 128-bit loads of neighbouring threads meet no bank twice.
  template <class S>
  __device__ static int outer(int thread, int i) {
    return S::kAlongK ? thread + 16 * i : thread * 4 + i % 4 + i / 4 * 64;
  }

  template <class S, int N>
  __device__ static void load(float (&x)[N][4], const float* slice, int thread, int k) {
    T2L_UNROLL
    for (int i = 0; i < N; i += S::kAlongK ? 1 : 4) {
      T2L_UNROLL
      for (int e = 0; e < (S::kAlongK ? 1 : 4); ++e) {
        const int o = outer<S>(thread, i);
        const auto v = Vec<float>::load(slice + (S::kAlongK ? o * S::kPitch + k : (k + e) * S::kPitch + o));
        T2L_UNROLL
        for (int q = 0; q < 4; ++q) (S::kAlongK ? x[i][q] : x[i + q][e]) = v[q];
      }
    }
  }

  __device__ void multiply(const float* a, const float* b) {
    T2L_UNROLL
    for (int k = 0; k < A::kDepth; k += 4) {
      float x[kM][4], y[kN][4];
      load<A>(x, a, row, k);
      load<B>(y, b, col, k);
      T2L_UNROLL
      for (int q = 0; q < 4; ++q) {
        T2L_UNROLL
        for (int i = 0; i < kM; ++i) {
          T2L_UNROLL
          for (int j = 0; j < kN; ++j) acc[i][j] += x[i][q] * y[j][q];
        }
      }
    }
  }

  __device__ void put(float* tile, int pitch) const {
    T2L_UNROLL
    for (int i = 0; i < kM; ++i) {
      T2L_UNROLL
      for (int j = 0; j < kN; ++j) tile[outer<A>(row, i) * pitch + outer<B>(col, j)] = acc[i][j];
    }
  }
};

// Four neighbours of a row of C, of which left are there.
template <class C, class T>
__device__ void finish(const Problem<T>& p, Vec<float> v, int64_t g, int64_t i, int64_t j, int64_t left) {
  C* c = static_cast<C*>(p.c) + g * p.spec.stride_c + i * p.spec.ldc + j;
  if (p.bias) {
    const auto add = Vec<T, 4>::load(p.bias + g * p.spec.stride_bias + j, left);
    T2L_UNROLL
    for (int e = 0; e < 4; ++e) v[e] += float(add[e]);
  }
  if (p.spec.accumulate) {
    const auto add = Vec<C, 4>::load(c, left);
    T2L_UNROLL
    for (int e = 0; e < 4; ++e) v[e] += float(add[e]);
  }
  Vec<C, 4> out;
  T2L_UNROLL
  for (int e = 0; e < 4; ++e) out[e] = C(activate(v[e], p.spec.activation));
  out.store(c, left);
}

template <class T, class A, class B, class Product, bool kAligned>
struct Gemm {
  static constexpr int kThreads = Product::kThreads, kPitch = B::kOuter + 4;  // of the tile of C
  static constexpr size_t kBytes =
      std::max<size_t>(kStages * (A::kSize + B::kSize) * sizeof(T), size_t(A::kOuter) * kPitch * sizeof(float));

  __device__ static void run(const Problem<T>& p) {
    const Matmul& s = p.spec;
    const int64_t g = blockIdx.x / (p.tiles_m * p.tiles_n);
    const int64_t row = blockIdx.x % p.tiles_m * A::kOuter, col = blockIdx.x / p.tiles_m % p.tiles_n * B::kOuter;
    const T *a = p.a + g * s.stride_a, *b = p.b + g * s.stride_b;
    T* slices = dynamic_shared<T>();  // [kStages] of A, then of B
    const auto stage = [&](int64_t step) {
      const int64_t k = step * A::kDepth;
      T* to = slices + step % kStages * (A::kSize + B::kSize);
      if (k < s.k) {
        A::template load<kAligned, kThreads>(to, a, s.lda, row, s.m, k, s.k);
        B::template load<kAligned, kThreads>(to + A::kSize, b, s.ldb, col, s.n, k, s.k);
      }
      cp_async_commit();
    };

    for (int i = 0; i < kStages - 1; ++i) stage(i);
    Product product;
    for (int64_t step = 0; step * A::kDepth < s.k; ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the slice is there for all, and that of the step before no longer needed
      stage(step + kStages - 1);
      const T* slice = slices + step % kStages * (A::kSize + B::kSize);
      product.multiply(slice, slice + A::kSize);
    }

    // By way of shared memory, so that C is written along its rows.
    __syncthreads();
    float* tile = dynamic_shared<float>();  // [A::kOuter, kPitch]
    product.put(tile, kPitch);
    __syncthreads();
    constexpr int kPerRow = B::kOuter / 4;
    for (int i = int(threadIdx.x); i < A::kOuter * kPerRow; i += kThreads) {
      const int r = i / kPerRow, c = i % kPerRow * 4;
      if (row + r >= s.m || col + c >= s.n) continue;
      const auto v = Vec<float>::load(tile + r * kPitch + c);
      if (p.c_is_bf16)
        finish<bf16>(p, v, g, row + r, col + c, s.n - col - c);
      else
        finish<float>(p, v, g, row + r, col + c, s.n - col - c);
    }
  }
};

template <class G, class T>
__global__ void __launch_bounds__(G::kThreads) gemm_kernel(const Problem<T> p) {
  G::run(p);
}

template <class T, int kTile, bool kTransposeA, bool kTransposeB, bool kAligned>
void run(Stream stream, Problem<T> p) {
  constexpr bool kTensorCores = sizeof(T) == 2;
  constexpr int kDepth = kTensorCores ? 32 : 16;
  using A = Slice<T, kTile, kDepth, !kTransposeA>;
  using B = Slice<T, kTile, kDepth, kTransposeB>;
  using Product = std::conditional_t<kTensorCores, TensorCores<A, B, kTile / 2, 32>, Registers<A, B>>;
  using G = Gemm<T, A, B, Product, kAligned>;
  p.tiles_m = blocks_for(p.spec.m, kTile);
  p.tiles_n = blocks_for(p.spec.n, kTile);
  const double blocks = double(p.tiles_m) * double(p.tiles_n) * double(p.spec.groups);
  if (blocks > 0x7fffffff) fail("CUDA: a matrix product of {} tiles is too large for one kernel", blocks);
  launch(gemm_kernel<G, T>, unsigned(blocks), G::kThreads, G::kBytes, stream, p);
}

template <class T, int kTile, bool kAligned>
void run(Stream stream, const Problem<T>& p) {
  if (p.spec.transpose_a)
    p.spec.transpose_b ? run<T, kTile, true, true, kAligned>(stream, p)
                       : run<T, kTile, true, false, kAligned>(stream, p);
  else
    p.spec.transpose_b ? run<T, kTile, false, true, kAligned>(stream, p)
                       : run<T, kTile, false, false, kAligned>(stream, p);
}

// Does every row of every group begin at a multiple of 16 bytes?
template <class T>
bool aligned(const T* p, int64_t ld, int64_t groups, int64_t stride) {
  constexpr int64_t kChunk = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % kChunk == 0 && (groups == 1 || stride % kChunk == 0);
}

#ifdef T2L_EMULATED
constexpr double kEnoughTiles = 2;
#else
constexpr double kEnoughTiles = 96;  // fewer large tiles would leave multiprocessors of an A100 or H100 idle
#endif

template <class T>
void run(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
  const auto* bias_data = bias ? reinterpret_cast<const T*>(bias->raw()) : nullptr;
  const Problem<T> p{c.raw(),
                     reinterpret_cast<const T*>(a.raw()),
                     reinterpret_cast<const T*>(b.raw()),
                     bias_data,
                     0,
                     0,
                     c.dtype() == DType::BF16,
                     s};
  const bool large = s.m > 64 && s.n > 64 && double(s.m) / 128 * (double(s.n) / 128) * double(s.groups) >= kEnoughTiles;
  if (!aligned(p.a, s.lda, s.groups, s.stride_a) || !aligned(p.b, s.ldb, s.groups, s.stride_b))
    run<T, 64, false>(stream, p);
  else
    large ? run<T, 128, true>(stream, p) : run<T, 64, true>(stream, p);
}

}  // namespace

void own_gemm(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& spec) {
  if (spec.m == 0 || spec.n == 0 || spec.groups == 0) return;
  if (a.dtype() == DType::BF16)
    run<bf16>(stream, c, a, b, bias, spec);
  else
    run<float>(stream, c, a, b, bias, spec);
}

}  // namespace t2l::cuda
