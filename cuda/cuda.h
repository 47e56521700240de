// The CUDA backend: the operations of ops.inc as kernels, a file per family, all on one stream.
#pragma once
#include "cuda/gpu.cuh"
#include "tensor/backend.h"

namespace t2l::cuda {

class Cuda final : public Backend {
 public:
  explicit Cuda(int index);
  void* reserve(size_t bytes) override;
  void release(void* p, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void upload(void* to, const void* from, size_t bytes) override;
  void download(void* to, const void* from, size_t bytes) override;
  void set_bytes(void* p, int byte, size_t bytes) override;
  void synchronize() override;
#define OP(name, parameters, arguments) void name parameters override;
#include "tensor/ops.inc"
#undef OP

 private:
  Stream stream_{};
};

// Calls f with a null pointer of the element type as kernels know it.
template <class F>
void with_type(DType t, F&& f) {
  T2L_CHECK(t != DType::I32, "an op on i32 elements");
  if (t == DType::F32)
    f(static_cast<float*>(nullptr));
  else
    f(static_cast<bf16*>(nullptr));
}

}  // namespace t2l::cuda
