// One OpTest describes one operation; the harness derives everything that must hold of it, for every size, in f32 and
// bf16, on every device (and, on the emulated one, under every schedule of its threads):
//   - outputs equal the reference, computed in double precision from the same rounded inputs (relative L2);
//   - gradients equal the reference's: central differences of it in double, all of them where the inputs are small,
//     else along random directions;
//   - no byte outside an output is written, nothing uninitialised is read (guard bytes and NaN fill), no NaN appears;
//   - a second run gives the same bits, and so does every schedule;
//   - gradients add to what is there;
//   - an input alone gets the same gradient as together with the others; all frozen, nothing is recorded or kept.
// `op_tests --perf [name]` prints GB/s or TFLOP/s of the perf sizes and the share of the measured ceiling.
#pragma once
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "autograd/ops.h"

namespace t2l::test {

using Size = std::vector<int64_t>;

// The oracle's tensor.
struct Array {
  Shape shape;
  std::vector<double> v;

  Array() = default;
  explicit Array(Shape s) : shape(s), v(size_t(s.elements())) {}
  int64_t dim(int i) const { return shape[i]; }
  int64_t rows() const { return shape.elements() / shape[-1]; }
  double& operator[](int64_t i) { return v[size_t(i)]; }
  double operator[](int64_t i) const { return v[size_t(i)]; }
  double& operator()(int64_t i, int64_t j) { return v[size_t(i * shape[-1] + j)]; }  // row i, column j
  double operator()(int64_t i, int64_t j) const { return v[size_t(i * shape[-1] + j)]; }
};
using Arrays = std::vector<Array>;

// The inputs of one run, in the order in which they are added.
class Inputs {
 public:
  explicit Inputs(unsigned seed) : rng_(seed) {}

  Inputs& normal(Shape shape, double mean = 0, double std = 1);  // of the run's dtype; gradient wanted
  Inputs& frozen();                                              // the last one added wants no gradient
  Inputs& f32();                                                 // the last one added is f32 in every run
  Inputs& ids(Shape shape, int64_t low, int64_t high);           // i32 in low .. high - 1
  Inputs& integers(std::vector<int32_t> values);                 // i32, as given
  Inputs& values(Shape shape, std::vector<double> values);       // of the run's dtype; gradient wanted
  std::mt19937& rng() { return rng_; }

  struct Input {
    Array array;
    bool grad = true, always_f32 = false, integer = false;
  };
  std::vector<Input> list;

 private:
  std::mt19937 rng_;
};

struct Work {
  double bytes = 0, flops = 0;
};

struct OpTest {
  std::string name;
  std::vector<Size> sizes;  // random data, odd sizes, more than one block
  std::vector<Size> perf = {};
  std::function<void(Inputs&, const Size&)> inputs;
  std::function<std::vector<Var>(const std::vector<Var>&, const Size&)> run;  // on in[0]'s device
  std::function<Arrays(const Arrays&, const Size&)> reference;
  // Relative L2 in f32 and bf16; the reason stands in the comment beside them.
  double f32 = 1e-6, bf16 = 4e-3;
  double grad_f32 = 0, grad_bf16 = 0;  // 0: as the outputs
  bool differentiable = true;
  bool in_bf16 = true;
  std::function<Work(const Size&, size_t element_bytes)> work = {};  // of the forward run
};

struct Register {
  Register(OpTest test);
};
const std::vector<OpTest>& all_tests();

void check(const OpTest& test);  // every property above; throws with the first that fails
int perf(const std::string& filter, Device device);
// Names of ops of ops.inc that no test has run on the device so far.
std::vector<std::string> not_covered(Device device);

std::vector<Device> devices();
double relative_l2(const std::vector<double>& got, const std::vector<double>& want);
std::vector<double> to_double(const Tensor& t);

}  // namespace t2l::test

#define T2L_OP_TEST(variable) static const ::t2l::test::Register register_##variable(variable)
