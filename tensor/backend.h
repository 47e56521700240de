// One interface, two implementations: the CPU's in tensor/cpu/, CUDA's in cuda/. Everything else computes through it.
#pragma once
#include "tensor/ops.h"

namespace t2l {

class Backend {
 public:
  virtual ~Backend() = default;

  // Memory as the driver gives it; the caching allocator in allocator.h is what asks for it.
  virtual void* reserve(size_t bytes) = 0;  // throws Error when there is none
  virtual void release(void* p, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;  // within the device, in order with the ops
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;  // waits for what was launched before
  virtual void set_bytes(void* p, int byte, size_t bytes) = 0;
  virtual void synchronize() = 0;

#define OP(name, parameters, arguments) virtual void name parameters = 0;
#include "tensor/ops.inc"
#undef OP
};

Backend& backend(Device device);  // Error if the program has no such device
inline Backend& backend(const Tensor& t) { return backend(t.device()); }

// Does the device compute products of this type faster than in f32, or as fast?
bool is_fast(Device device, DType dtype);

bool has_cuda();              // is there a GPU (or an emulated one) that answers?
void select_cuda(int index);  // which one, before its first use

// Implemented by cuda/, by cuda/emu/, or by a stub where CUDA is not built in; null and a reason if there is none.
Backend* cuda_backend(int index, std::string* why_not);
Backend& cpu_backend();

// ---- watching the operations
// ------------------------------------------------------------------------------------------
inline constexpr const char* kOpNames[] = {
#define OP(name, parameters, arguments) #name,
#include "tensor/ops.inc"
#undef OP
};

// While one lives, every op on every device is counted and timed; with check_nan, its outputs are searched for NaN.
// Not nested, one thread.
class Trace {
 public:
  struct Entry {
    int64_t calls = 0, outputs = 0;  // outputs: tensors written; some ops write only what is wanted
    double seconds = 0;
  };
  struct State;
  explicit Trace(bool check_nan = false);
  ~Trace();
  const Entry& operator()(Device device, std::string_view op) const;
  const std::vector<Matmul>& products(Device device) const;  // of every matmul, in order

 private:
  std::unique_ptr<State> state_;
};

}  // namespace t2l
