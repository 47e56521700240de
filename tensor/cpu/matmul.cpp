#include "tensor/cpu/cpu.h"
#include "tensor/cpu/gemm.h"

namespace t2l::cpu {

void Cpu::matmul(Tensor& c, const Tensor& a, const Tensor& b, const Tensor* bias, const Matmul& spec) {
  check_matmul(c, a, b, bias, spec);
  gemm({c.raw(), a.raw(), b.raw(), bias ? bias->raw() : nullptr, a.dtype(), c.dtype(), spec});
}

}  // namespace t2l::cpu
