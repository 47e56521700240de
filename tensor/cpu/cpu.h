// The CPU backend: the operations of ops.inc, a file per family, on OpenMP threads.
#pragma once
#include <omp.h>

#include <algorithm>

#include "tensor/backend.h"

namespace t2l::cpu {

class Cpu final : public Backend {
 public:
  void* reserve(size_t bytes) override;
  void release(void* p, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void set_bytes(void* p, int byte, size_t bytes) override;
  void synchronize() override {}
#define OP(name, parameters, arguments) void name parameters override;
#include "tensor/ops.inc"
#undef OP
};

// f(begin, end) on the threads, over pieces of 0 .. n of at least `grain`. Which piece computes an element never
// changes its value.
template <class F>
void parallel(int64_t n, int64_t grain, F&& f) {
  const int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, omp_get_max_threads());
  if (pieces == 1) return f(int64_t(0), n);
#pragma omp parallel num_threads(int(pieces))
  {
    const int64_t i = omp_get_thread_num();
    f(n * i / pieces, n * (i + 1) / pieces);
  }
}
constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// Calls f with a null pointer of the element type.
template <class F>
void with_type(DType t, F&& f) {
  T2L_CHECK(t != DType::I32, "an op on i32 elements");
  t == DType::F32 ? f(static_cast<float*>(nullptr)) : f(static_cast<bf16*>(nullptr));
}

// y = value, or y += value
template <class T>
inline void put(T& y, float value, bool accumulate) {
  y = T(accumulate ? float(y) + value : value);
}

}  // namespace t2l::cpu
