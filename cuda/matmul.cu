// C = act(op(A) op(B) + bias): cuBLASLt where matrices are large and aligned, our own kernel (gemm.cu) elsewhere.
//
// cuBLASLt adds a bias itself, but its GELU is not our exact one and an activation of a bf16 result would round twice:
// there the product is left in f32 and finish_kernel does the rest. cuBLASLt thinks in columns, so it is given
// C^T = op(B)^T op(A)^T, for which our rows are its columns.
#include <algorithm>
#include <array>
#include <map>

#include "cuda/activation.cuh"
#include "cuda/cuda.h"
#include "cuda/gemm.h"
#include "cuda/grid.cuh"
#ifdef __CUDACC__
#include <cublasLt.h>
#include <dlfcn.h>
#else
#include <cstdlib>

#include "tensor/cpu/gemm.h"
#endif

namespace t2l::cuda {
namespace {

// c[g, i, j] = act(x[g, i, j] + bias[g, j]).  A warp takes 128 neighbouring columns; the warps of a block take rows in
// turn.  x: rows of ldx, groups stride_x apart; it may be c itself
template <class C, class B>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(C* c, int64_t ldc, int64_t stride_c, const float* x, int64_t ldx, int64_t stride_x, const B* bias,
                  int64_t stride_bias, int64_t rows, int64_t m, int64_t n, Activation kind) {
  constexpr int N = 4, kWarps = kThreads / 32;
  const int64_t j = (int64_t(blockIdx.y) * 32 + threadIdx.x % 32) * N, left = n - j;
  if (left <= 0) return;
  for (int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; r < rows; r += int64_t(gridDim.x) * kWarps) {
    const int64_t g = r / m, i = r % m;
    const auto in = Vec<float, N>::load(x + g * stride_x + i * ldx + j, left);
    Vec<B, N> add{};
    if (bias) add = Vec<B, N>::load(bias + g * stride_bias + j, left);
    Vec<C, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = C(activate(in[k] + float(add[k]), kind));
    out.store(c + g * stride_c + i * ldc + j, left);
  }
}

void finish(Stream stream, Tensor& c, const Tensor& x, int64_t ldx, int64_t stride_x, const Tensor* bias,
            const Matmul& s) {
  const dim3 grid(grid_for(s.groups * s.m, kThreads / 32), blocks_for(s.n, 128));
  with_type(c.dtype(), [&]<class C>(C*) {
    with_type(bias ? bias->dtype() : DType::F32, [&]<class B>(B*) {
      launch(finish_kernel<C, B>, grid, kThreads, 0, stream, c.data<C>(), s.ldc, s.stride_c, x.data<float>(), ldx,
             stride_x, bias ? bias->data<B>() : nullptr, s.stride_bias, s.groups * s.m, s.m, s.n, s.activation);
    });
  });
}

// Is it for our own kernel at once? cuBLASLt's start costs more than a small product, and its kernels for unaligned
// rows are its slow ones.
bool is_small_or_odd(const Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
  constexpr double kSmall = 1 << 18;
  if (s.k == 0 || double(s.groups) * double(s.m) * double(s.n) * double(s.k) < kSmall) return true;
  for (const Tensor* t : {&c, &a, &b, bias})
    if (t && reinterpret_cast<uintptr_t>(t->raw()) % 16) return true;
  const auto step = int64_t(16 / size_of(a.dtype()));
  for (const int64_t distance : {s.lda, s.ldb, s.ldc})
    if (distance % step) return true;
  if (s.groups > 1)
    for (const int64_t distance : {s.stride_a, s.stride_b, s.stride_c, bias ? s.stride_bias : 0})
      if (distance % step) return true;
  return false;
}

#ifdef __CUDACC__

// cuBLASLt is half a gigabyte, so it is loaded when the first large product comes, not when a program starts.
class LtLibrary {
 public:
  static const LtLibrary& get() {
    static const LtLibrary library;
    return library;
  }
  explicit operator bool() const { return handle_; }
  void check(cublasStatus_t e, const char* what) const {
    if (e != CUBLAS_STATUS_SUCCESS) fail("cuBLASLt: {}: {}", what, cublasLtGetStatusString(e));
  }

 private:
  static void* open() {
    const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    for (const std::string& path : {name, T2L_CUDA_LIBRARIES "/" + name})
      if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    fmt::print(stderr,
               "warning: {} was not found, so large products take our own kernel; install it or set LD_LIBRARY_PATH\n",
               name);
    return nullptr;
  }
  template <class F>
  F find(const char* name) const {
    void* const f = handle_ ? dlsym(handle_, name) : nullptr;
    if (handle_ && !f) fail("cuBLASLt has no {}; install the version this program was built with", name);
    return reinterpret_cast<F>(f);
  }
  void* const handle_ = open();

 public:
#define T2L_LT(function) decltype(&::function) function = find<decltype(&::function)>(#function)
  T2L_LT(cublasLtCreate);
  T2L_LT(cublasLtMatmul);
  T2L_LT(cublasLtMatmulAlgoGetHeuristic);
  T2L_LT(cublasLtMatmulDescInit_internal);
  T2L_LT(cublasLtMatmulDescSetAttribute);
  T2L_LT(cublasLtMatrixLayoutInit_internal);
  T2L_LT(cublasLtMatrixLayoutSetAttribute);
  T2L_LT(cublasLtMatmulPreferenceInit_internal);
  T2L_LT(cublasLtMatmulPreferenceSetAttribute);
  T2L_LT(cublasLtGetStatusString);
#undef T2L_LT
};

class Lt {
 public:
  static constexpr size_t kWorkspace = size_t(32) << 20;  // as NVIDIA recommends for Hopper

  // False if cuBLASLt has no way to do it.
  bool operator()(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
    const Key key{s.m,
                  s.n,
                  s.k,
                  s.transpose_a,
                  s.transpose_b,
                  s.lda,
                  s.ldb,
                  s.ldc,
                  s.groups,
                  s.stride_a,
                  s.stride_b,
                  s.stride_c,
                  bias ? s.stride_bias : -1,
                  s.accumulate,
                  int64_t(a.dtype()),
                  int64_t(c.dtype())};
    if (plans_.size() >= kMaxPlans && !plans_.count(key)) plans_.clear();
    const auto [it, is_new] = plans_.try_emplace(key);
    Plan& p = it->second;
    if (is_new) make(p, c.dtype(), a.dtype(), bias, s);
    if (!p.found) return false;
    if (bias) set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias->raw()));
    const float alpha = 1, beta = s.accumulate ? 1 : 0;
    lt_.check(lt_.cublasLtMatmul(handle_, &p.product, &alpha, b.raw(), &p.b, a.raw(), &p.a, &beta, c.raw(), &p.c,
                                 c.raw(), &p.c, &p.algorithm, workspace_.raw(), kWorkspace, stream),
              "product");
    return true;
  }

  static Lt& instance() {
    static Lt& lt = *new Lt;  // never destroyed, as the backend
    return lt;
  }

 private:
  using Key = std::array<int64_t, 16>;
  static constexpr size_t kMaxPlans = 8192;  // packed batches have ever new numbers of rows
  struct Plan {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    bool found = false;
  };

  Lt() { lt_.check(lt_.cublasLtCreate(&handle_), "start"); }

  template <class T>
  void set(Plan& p, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    lt_.check(lt_.cublasLtMatmulDescSetAttribute(&p.product, attribute, &value, sizeof(value)), "describe a product");
  }

  void layout(cublasLtMatrixLayoutOpaque_t& l, DType type, int64_t rows, int64_t cols, int64_t ld, const Matmul& s,
              int64_t stride) {
    lt_.check(lt_.cublasLtMatrixLayoutInit_internal(&l, sizeof l, type == DType::F32 ? CUDA_R_32F : CUDA_R_16BF,
                                                    uint64_t(cols), uint64_t(rows), ld),
              "describe a matrix");
    if (s.groups == 1) return;
    const auto groups = int32_t(s.groups);
    lt_.check(lt_.cublasLtMatrixLayoutSetAttribute(&l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &groups, sizeof(groups)),
              "describe groups");
    lt_.check(
        lt_.cublasLtMatrixLayoutSetAttribute(&l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)),
        "describe groups");
  }

  void make(Plan& p, DType out, DType in, const Tensor* bias, const Matmul& s) {
    if (s.groups > INT32_MAX) return;
    // True f32: CUBLAS_COMPUTE_32F never takes TF32.
    lt_.check(lt_.cublasLtMatmulDescInit_internal(&p.product, sizeof p.product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              "describe a product");
    set(p, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p, CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (bias) {
      set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias->dtype() == DType::F32 ? CUDA_R_32F : CUDA_R_16BF);
      if (s.groups > 1) set(p, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, s.stride_bias);
    }
    layout(p.a, in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k, s.lda, s, s.stride_a);
    layout(p.b, in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n, s.ldb, s, s.stride_b);
    layout(p.c, out, s.m, s.n, s.ldc, s, s.stride_c);
    cublasLtMatmulPreferenceOpaque_t preference;
    lt_.check(lt_.cublasLtMatmulPreferenceInit_internal(&preference, sizeof preference), "preferences");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      lt_.check(lt_.cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)), "preferences");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    // Parts of a sum over k are added in f32 and in a fixed order.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto alignment :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      prefer(alignment, uint32_t(16));
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    const cublasStatus_t e =
        lt_.cublasLtMatmulAlgoGetHeuristic(handle_, &p.product, &p.b, &p.a, &p.c, &p.c, &preference, 1, &best, &count);
    p.found = e == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
    p.algorithm = best.algo;
  }

  const LtLibrary& lt_ = LtLibrary::get();
  cublasLtHandle_t handle_{};
  Tensor workspace_ = Tensor::empty({int64_t(kWorkspace / 4)}, DType::F32, Device::CUDA);
  std::map<Key, Plan> plans_;
};

bool library(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
  return LtLibrary::get() && Lt::instance()(stream, c, a, b, bias, s);
}

#else

// Our own kernel stands in for cuBLASLt, so that what surrounds it is run too.
bool library(Stream stream, Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& s) {
  own_gemm(stream, c, a, b, bias, s);
  return true;
}

#endif

}  // namespace

void Cuda::matmul(Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& spec) {
  check_matmul(c, a, b, bias, spec);
  if (spec.m == 0 || spec.n == 0 || spec.groups == 0) return;
#ifdef T2L_EMULATED
  // Whole-engine tests would crawl on an emulated product.
  static const char* chosen = std::getenv("T2L_EMU_MATMUL");
  if (chosen && std::string(chosen) == "host")
    return cpu::gemm({c.raw(), a.raw(), b.raw(), bias ? bias->raw() : nullptr, a.dtype(), c.dtype(), spec});
#endif
  if (is_small_or_odd(c, a, b, bias, spec)) return own_gemm(stream_, c, a, b, bias, spec);
  if (spec.activation == Activation::None && (!bias || c.dtype() == bias->dtype())) {
    if (!library(stream_, c, a, b, bias, spec)) own_gemm(stream_, c, a, b, bias, spec);
    return;
  }
  Matmul product = spec;
  product.activation = Activation::None;
  Tensor x = c;
  if (c.dtype() != DType::F32) {
    x = Tensor::empty({spec.groups, spec.m, spec.n}, DType::F32, Device::CUDA);
    product.ldc = spec.n;
    product.stride_c = spec.m * spec.n;
  }
  if (!library(stream_, x, a, b, nullptr, product)) return own_gemm(stream_, c, a, b, bias, spec);
  finish(stream_, c, x, product.ldc, product.stride_c, bias, spec);
}

}  // namespace t2l::cuda
