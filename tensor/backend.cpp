#include "tensor/backend.h"

#include <chrono>
#include <cmath>
#include <map>

#include "tensor/cpu/gemm.h"

namespace t2l {
namespace {

int cuda_index = 0;

struct Cuda {
  Backend* backend = nullptr;
  std::string why_not;
};
const Cuda& cuda() {
  static const Cuda c = [] {
    Cuda found;
    found.backend = cuda_backend(cuda_index, &found.why_not);
    return found;
  }();
  return c;
}

Backend& device_backend(Device device) {
  if (device == Device::CPU) return cpu_backend();
  if (!cuda().backend) fail("device cuda: {}; use --device cpu", cuda().why_not);
  return *cuda().backend;
}

// ---- what Trace does to each argument: outputs are the mutable tensors
template <class A>
void check_nan_argument(const char*, const A&) {}
void check_nan_argument(const char* op, Tensor& t) {
  if (t.dtype() == DType::I32) return;
  // Its other rows may never have been written; those it writes were the output of another operation.
  if (op == std::string_view("put_rows")) return;
  const auto values = t.to(Device::CPU);
  for (int64_t i = 0; i < t.size(); ++i) {
    const float x = t.dtype() == DType::F32 ? values.data<float>()[i] : float(values.data<bf16>()[i]);
    if (std::isnan(x)) fail("{}: element {} of an output {} is NaN", op, i, t.shape().str());
  }
}
void check_nan_argument(const char* op, Tensor* t) {
  if (t) check_nan_argument(op, *t);
}

class Traced final : public Backend {
 public:
  Traced(Device device, bool check_nan) : inner_(device_backend(device)), check_nan_(check_nan) {}

  void* reserve(size_t bytes) override { return inner_.reserve(bytes); }
  void release(void* p, size_t bytes) override { inner_.release(p, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { inner_.copy(to, from, bytes); }
  void upload(void* to, const void* from, size_t bytes) override { inner_.upload(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { inner_.download(to, from, bytes); }
  void set_bytes(void* p, int byte, size_t bytes) override { inner_.set_bytes(p, byte, bytes); }
  void synchronize() override { inner_.synchronize(); }

#define OP(name, parameters, arguments)                                                           \
  void name parameters override {                                                                 \
    const auto begin = std::chrono::steady_clock::now();                                          \
    inner_.name arguments;                                                                        \
    inner_.synchronize();                                                                         \
    Trace::Entry& e = entries[#name];                                                             \
    ++e.calls;                                                                                    \
    e.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); \
    [&](auto&&... each) { (note(e, each), ...); } arguments;                                      \
    if (check_nan_) [&](auto&&... each) { (check_nan_argument(#name, each), ...); } arguments;    \
  }
#include "tensor/ops.inc"
#undef OP

  std::map<std::string, Trace::Entry, std::less<>> entries;
  std::vector<Matmul> products;

 private:
  template <class A>
  void note(Trace::Entry&, const A&) {}
  void note(Trace::Entry& e, Tensor&) { ++e.outputs; }
  void note(Trace::Entry& e, Tensor* t) { e.outputs += t != nullptr; }
  void note(Trace::Entry&, const Matmul& spec) { products.push_back(spec); }

  Backend& inner_;
  bool check_nan_;
};

}  // namespace

struct Trace::State {
  Traced cpu;
  std::unique_ptr<Traced> cuda;
};

namespace {
Trace::State* current = nullptr;
}

Trace::Trace(bool check_nan) : state_(new State{{Device::CPU, check_nan}, nullptr}) {
  T2L_CHECK(!current, "a Trace inside a Trace");
  if (has_cuda()) state_->cuda = std::make_unique<Traced>(Device::CUDA, check_nan);
  current = state_.get();
}
Trace::~Trace() { current = nullptr; }

const Trace::Entry& Trace::operator()(Device device, std::string_view op) const {
  static const Entry none;
  const auto& entries = device == Device::CPU ? state_->cpu.entries : state_->cuda->entries;
  const auto it = entries.find(op);
  return it == entries.end() ? none : it->second;
}

const std::vector<Matmul>& Trace::products(Device device) const {
  return device == Device::CPU ? state_->cpu.products : state_->cuda->products;
}

Backend& backend(Device device) {
  if (current) return device == Device::CPU ? static_cast<Backend&>(current->cpu) : *current->cuda;
  return device_backend(device);
}

bool is_fast(Device device, DType dtype) {
  return dtype == DType::F32 || device == Device::CUDA || cpu::isa() >= cpu::Isa::AVX512BF16;
}

bool has_cuda() { return cuda().backend; }
void select_cuda(int index) { cuda_index = index; }

}  // namespace t2l
