#include "tests/harness.h"

#include <omp.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>

#include "tensor/allocator.h"
#ifdef T2L_EMULATED
#include "cuda/emu/emu.h"
#endif

namespace t2l::test {
namespace {

std::vector<OpTest>& registry() {
  static std::vector<OpTest> tests;
  return tests;
}
std::map<Device, std::set<std::string>> covered;

#ifdef T2L_EMULATED
// Which schedules the emulated device is run under: all, or those named in T2L_SCHEDULES
// (ascending,descending,shuffled).
std::vector<emu::Order> orders_under_test() {
  const char* chosen = std::getenv("T2L_SCHEDULES");
  std::vector<emu::Order> orders;
  for (const auto& [name, order] :
       {std::pair{"ascending", emu::Order::Ascending}, std::pair{"descending", emu::Order::Descending},
        std::pair{"shuffled", emu::Order::Shuffled}})
    if (!chosen || std::string(chosen).find(name) != std::string::npos) orders.push_back(order);
  if (orders.empty()) fail("T2L_SCHEDULES={}: no schedule of that name", chosen);
  return orders;
}
#endif

double rounded(double x, DType t) { return t == DType::BF16 ? double(float(bf16(float(x)))) : double(float(x)); }

Tensor to_tensor(const Array& a, DType t, Device device) {
  std::vector<float> f(a.v.begin(), a.v.end());
  if (t == DType::I32) {
    const std::vector<int32_t> i(a.v.begin(), a.v.end());
    return Tensor::from(std::span(i), a.shape).to(device);
  }
  if (t == DType::F32) return Tensor::from(std::span<const float>(f), a.shape).to(device);
  const std::vector<bf16> b(f.begin(), f.end());
  return Tensor::from(std::span(b), a.shape).to(device);
}

double dot(const Arrays& a, const Arrays& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[i].v.size(); ++j) sum += a[i].v[j] * b[i].v[j];
  return sum;
}

// One run on one device: outputs and gradients.
struct Result {
  std::vector<Tensor> outputs;  // on the host
  std::vector<Tensor> grads;    // one for each input; empty where not wanted

  bool operator==(const Result& o) const {
    const auto same = [](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Tensor& x, const Tensor& y) {
        return bool(x) == bool(y) && (!x || (x.bytes() == y.bytes() && !std::memcmp(x.raw(), y.raw(), x.bytes())));
      });
    };
    return same(outputs, o.outputs) && same(grads, o.grads);
  }
};

class Runner {
 public:
  Runner(const OpTest& test, const Size& size, DType dtype, const Inputs& inputs, Device device)
      : test_(test), size_(size), dtype_(dtype), inputs_(inputs), device_(device) {}

  DType dtype_of_input(size_t i) const {
    const auto& in = inputs_.list[i];
    return in.integer ? DType::I32 : in.always_f32 ? DType::F32 : dtype_;
  }
  bool wants_grad(size_t i) const { return test_.differentiable && inputs_.list[i].grad && !inputs_.list[i].integer; }

  // dy: the gradients of the outputs, or null: forward only. only: that input alone wants a gradient.
  // initial: what the gradients hold before, or null.
  Result run(const Arrays* dy, int only = -1, const Arrays* initial = nullptr) const {
    std::vector<Var> in;
    for (size_t i = 0; i < inputs_.list.size(); ++i) {
      const Tensor value = to_tensor(inputs_.list[i].array, dtype_of_input(i), device_);
      const bool grad = dy && wants_grad(i) && (only < 0 || only == int(i));
      in.push_back(grad ? variable(value) : Var(value));
      if (grad && initial) {
        in.back().slot->grad = to_tensor((*initial)[i], value.dtype(), device_);
        in.back().slot->written = true;
      }
    }
    Result r;
    {
      const Trace trace(true);
      std::vector<Var> out = test_.run(in, size_);
      for (auto& o : out) r.outputs.push_back(o.value.to(Device::CPU));
      if (dy) {
        std::vector<std::pair<Var, Tensor>> seeds;
        for (size_t o = 0; o < out.size(); ++o)
          if (out[o].needs_grad()) seeds.emplace_back(out[o], to_tensor((*dy)[o], out[o].value.dtype(), device_));
        out.clear();
        backward(seeds);
      }
      for (const char* op : kOpNames)
        if (trace(device_, op).calls) covered[device_].insert(op);
    }
    for (auto& v : in) r.grads.push_back(v.slot && v.slot->written ? v.slot->grad.to(Device::CPU) : Tensor{});
    if (const std::string damage = check_guards(device_); !damage.empty()) throw Error(damage);
    return r;
  }

  // All frozen: nothing recorded, nothing kept but the outputs.
  void check_frozen() const {
    std::vector<Var> in;
    for (size_t i = 0; i < inputs_.list.size(); ++i)
      in.emplace_back(to_tensor(inputs_.list[i].array, dtype_of_input(i), device_));
    const size_t nodes = Tape::size(), live = memory_stats(device_).live;
    const std::vector<Var> out = test_.run(in, size_);
    size_t bytes = 0;
    for (auto& o : out) bytes += o.value.bytes();
    if (Tape::size() != nodes) fail("frozen inputs, yet {} nodes were recorded", Tape::size() - nodes);
    if (memory_stats(device_).live > live + bytes)
      fail("frozen inputs, yet {} bytes are kept beside the outputs", memory_stats(device_).live - live - bytes);
  }

 private:
  const OpTest& test_;
  const Size& size_;
  DType dtype_;
  const Inputs& inputs_;
  Device device_;
};

void expect(const std::string& what, const std::vector<double>& got, const std::vector<double>& want,
            double tolerance) {
  const double error = relative_l2(got, want);
  if (!(error <= tolerance)) fail("{}: relative L2 {:.2e}, at most {:.1e}", what, error, tolerance);
}

// The reference's gradient with respect to input i: all elements, by central differences in double.
std::vector<double> full_gradient(const OpTest& test, const Size& size, Arrays in, size_t i, const Arrays& dy) {
  std::vector<double> g(in[i].v.size());
  for (size_t e = 0; e < g.size(); ++e) {
    const double x = in[i].v[e], h = 1e-4 * std::max(0.1, std::abs(x));
    in[i].v[e] = x + h;
    const double up = dot(test.reference(in, size), dy);
    in[i].v[e] = x - h;
    const double down = dot(test.reference(in, size), dy);
    in[i].v[e] = x;
    g[e] = (up - down) / (2 * h);
  }
  return g;
}

// Along a random direction u: the derivative of the reference, and of <gradient, u>.
void check_direction(const OpTest& test, const Size& size, const Arrays& in, size_t i, const Arrays& dy,
                     const std::vector<double>& gradient, double tolerance, std::mt19937& rng) {
  std::normal_distribution<double> normal;
  Arrays up = in, down = in;
  double got = 0, norm_g = 0, norm_u = 0;
  const double h = 1e-4;
  for (size_t e = 0; e < gradient.size(); ++e) {
    const double u = normal(rng);
    up[i].v[e] += h * u;
    down[i].v[e] -= h * u;
    got += gradient[e] * u;
    norm_g += gradient[e] * gradient[e];
    norm_u += u * u;
  }
  const double want = (dot(test.reference(up, size), dy) - dot(test.reference(down, size), dy)) / (2 * h);
  // <error, u> of a random u is about |error| in size; 5 sigma.
  const double limit =
      5 * tolerance * std::sqrt(norm_g) + 1e-7 * std::sqrt(norm_g * norm_u) / std::sqrt(double(gradient.size()));
  if (!(std::abs(got - want) <= limit))
    fail("gradient of input {} along a random direction: {:.9g}, the reference has {:.9g}", i, got, want);
}

void check_case(const OpTest& test, const Size& size, DType dtype) {
  Inputs inputs(unsigned(1 + size.size() + size_t(size.empty() ? 0 : size[0])));
  test.inputs(inputs, size);
  Arrays exact;
  int64_t wanted = 0;
  for (auto& in : inputs.list) {
    if (!in.integer)
      for (double& x : in.array.v) x = rounded(x, in.always_f32 ? DType::F32 : dtype);
    exact.push_back(in.array);
    if (in.grad && !in.integer) wanted += in.array.shape.elements();
  }
  const Arrays want = test.reference(exact, size);
  const double tol = dtype == DType::F32 ? test.f32 : test.bf16;
  const double grad_given = dtype == DType::F32 ? test.grad_f32 : test.grad_bf16,
               grad_tol = grad_given > 0 ? grad_given : tol;

  std::normal_distribution<double> normal;
  Arrays dy, initial;
  for (auto& o : want) {
    dy.emplace_back(o.shape);
    for (double& x : dy.back().v) x = rounded(normal(inputs.rng()), dtype);
  }
  for (auto& in : exact) {
    initial.emplace_back(in.shape);
    for (double& x : initial.back().v) x = rounded(normal(inputs.rng()), dtype);
  }
  const bool full = wanted <= 700;
  std::vector<std::vector<double>> want_grads(exact.size());
  std::vector<Result> on_device;
  for (const Device device : devices()) {
    const Runner runner(test, size, dtype, inputs, device);
    const auto where = [&](const std::string& what) { return std::string(name_of(device)) + ": " + what; };
#ifdef T2L_EMULATED
    std::vector<emu::Order> orders{emu::Order::Ascending};
    if (device == Device::CUDA) orders = orders_under_test();
    emu::set_schedule(orders[0], 1);
#endif
    const Result first = runner.run(test.differentiable ? &dy : nullptr);
    if (first.outputs.size() != want.size())
      fail("{} outputs, the reference has {}", first.outputs.size(), want.size());
    for (size_t o = 0; o < want.size(); ++o) {
      if (!(first.outputs[o].shape() == want[o].shape))
        fail("output {} is {}, the reference has {}", o, first.outputs[o].shape().str(), want[o].shape.str());
      expect(where(fmt::format("output {}", o)), to_double(first.outputs[o]), want[o].v, tol);
    }
    if (!(runner.run(test.differentiable ? &dy : nullptr) == first)) fail("{}", where("a second run gives other bits"));
#ifdef T2L_EMULATED
    for (size_t k = 1; k < orders.size(); ++k) {
      emu::set_schedule(orders[k], unsigned(7 * k));
      if (!(runner.run(test.differentiable ? &dy : nullptr) == first))
        fail("{}", where("the result depends on the schedule of the threads: a race"));
    }
    emu::set_schedule(emu::Order::Ascending, 1);
#endif
    if (!test.differentiable) continue;
    for (size_t i = 0; i < exact.size(); ++i) {
      if (!runner.wants_grad(i)) continue;
      const auto grad_of = [&](const std::string& what) {
        return where(fmt::format("gradient of input {}{}", i, what));
      };
      if (!first.grads[i]) fail("{}", grad_of(" is missing"));
      const std::vector<double> got = to_double(first.grads[i]);
      if (full) {
        if (want_grads[i].empty()) want_grads[i] = full_gradient(test, size, exact, i, dy);
        expect(grad_of(""), got, want_grads[i], grad_tol);
      } else {
        for (int k = 0; k < 3; ++k) check_direction(test, size, exact, i, dy, got, grad_tol, inputs.rng());
        if (want_grads[i].empty())
          want_grads[i] = got;  // the CPU's, to which the others are compared element by element
        else
          expect(grad_of(" against the CPU's"), got, want_grads[i], 2 * grad_tol);
      }
      const Result alone = runner.run(&dy, int(i));
      for (size_t j = 0; j < exact.size(); ++j)
        if (j != i && alone.grads[j]) fail("{}", grad_of(": others got one too"));
      if (!alone.grads[i] || std::memcmp(alone.grads[i].raw(), first.grads[i].raw(), alone.grads[i].bytes()))
        fail("{}", grad_of(" alone differs from the one together with the others"));
      std::vector<double> sum = got;
      for (size_t e = 0; e < sum.size(); ++e) sum[e] += initial[i].v[e];
      expect(grad_of(", accumulated"), to_double(runner.run(&dy, int(i), &initial).grads[i]), sum,
             std::max(grad_tol, dtype == DType::F32 ? 2e-7 : 4e-3));
    }
    runner.check_frozen();
  }
}

std::string describe(const OpTest& test, const Size& size, DType dtype) {
  return fmt::format("{} [{}] {}", test.name, fmt::join(size, " "), name_of(dtype));
}

}  // namespace

Inputs& Inputs::normal(Shape shape, double mean, double std) {
  std::normal_distribution<double> d(mean, std);
  Array a(shape);
  for (double& x : a.v) x = d(rng_);
  list.push_back({std::move(a)});
  return *this;
}
Inputs& Inputs::frozen() {
  list.back().grad = false;
  return *this;
}
Inputs& Inputs::f32() {
  list.back().always_f32 = true;
  return *this;
}
Inputs& Inputs::ids(Shape shape, int64_t low, int64_t high) {
  std::uniform_int_distribution<int64_t> d(low, high - 1);
  std::vector<int32_t> v(size_t(shape.elements()));
  for (auto& x : v) x = int32_t(d(rng_));
  integers(std::move(v));
  list.back().array.shape = shape;
  return *this;
}
Inputs& Inputs::integers(std::vector<int32_t> v) {
  Array a({int64_t(v.size())});
  std::copy(v.begin(), v.end(), a.v.begin());
  list.push_back({std::move(a), false, false, true});
  return *this;
}
Inputs& Inputs::values(Shape shape, std::vector<double> v) {
  Array a(shape);
  a.v = std::move(v);
  list.push_back({std::move(a)});
  return *this;
}

Register::Register(OpTest test) { registry().push_back(std::move(test)); }
const std::vector<OpTest>& all_tests() { return registry(); }

std::vector<Device> devices() {
  static const bool cuda = has_cuda();
  return cuda ? std::vector{Device::CPU, Device::CUDA} : std::vector{Device::CPU};
}

double relative_l2(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) {  // equal infinities count as equal
      if (std::isfinite(want[i])) norm += want[i] * want[i];
      continue;
    }
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return error == 0 ? 0 : std::sqrt(error / std::max(norm, 1e-300));
}

std::vector<double> to_double(const Tensor& t) {
  if (t.dtype() == DType::I32) {
    const auto v = t.to_vector<int32_t>();
    return {v.begin(), v.end()};
  }
  if (t.dtype() == DType::F32) {
    const auto v = t.to_vector<float>();
    return {v.begin(), v.end()};
  }
  const auto v = t.to_vector<bf16>();
  std::vector<double> d;
  for (bf16 x : v) d.push_back(float(x));
  return d;
}

void check(const OpTest& test) {
  set_memory_debug(true);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    if (dtype == DType::BF16 && !test.in_bf16) continue;
    for (const Size& size : test.sizes) try {
        check_case(test, size, dtype);
      } catch (const std::exception& e) {
        Tape::clear();
        set_memory_debug(false);
        throw std::runtime_error(describe(test, size, dtype) + ": " + e.what());
      }
  }
  set_memory_debug(false);
}

std::vector<std::string> not_covered(Device device) {
  std::vector<std::string> missing;
  for (const char* op : kOpNames)
    if (!covered[device].count(op)) missing.push_back(op);
  return missing;
}

// ---- speed
// --------------------------------------------------------------------------------------------------------------
namespace {

template <class F>
double best_seconds(Device device, F&& f) {
  double best = INFINITY, total = 0;
  for (int i = 0; i < 100 && (total < 0.5 || i < 5); ++i) {
    const auto t = std::chrono::steady_clock::now();
    f();
    backend(device).synchronize();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
    best = std::min(best, s);
    total += s;
  }
  return best;
}

}  // namespace

int perf(const std::string& filter, Device device) {
  Tensor a = Tensor::zeros({64 << 20}, DType::F32, device), b = Tensor::zeros({64 << 20}, DType::F32, device);
  const double copy = 2.0 * double(a.bytes()) / best_seconds(device, [&] { backend(device).scale(b, a, 1, false); });
  fmt::print("{}: copies {:.1f} GB/s (read + written), the ceiling of the last column\n", name_of(device), copy / 1e9);
  fmt::print("{:<44} {:>10} {:>9} {:>9} {:>8}\n", "op", "time", "GB/s", "GFLOP/s", "of copy");
  for (const OpTest& test : all_tests()) {
    if (!filter.empty() && test.name.find(filter) == std::string::npos) continue;
    for (const DType dtype : {DType::F32, DType::BF16})
      for (const Size& size : test.perf) {
        if (dtype == DType::BF16 && !test.in_bf16) continue;
        Inputs inputs(1);
        test.inputs(inputs, size);
        std::vector<Var> in;
        for (auto& i : inputs.list)
          in.emplace_back(to_tensor(i.array, i.integer ? DType::I32 : i.always_f32 ? DType::F32 : dtype, device));
        const double s = best_seconds(device, [&] { test.run(in, size); });
        const Work w = test.work ? test.work(size, size_of(dtype)) : Work{};
        fmt::print("{:<44} {:>7.3f} ms {:>9.1f} {:>9.1f} {:>7.0f}%\n", describe(test, size, dtype), s * 1e3,
                   w.bytes / s / 1e9, w.flops / s / 1e9, 100 * w.bytes / s / copy);
      }
  }
  return 0;
}

}  // namespace t2l::test
