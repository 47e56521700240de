// Reverse-mode automatic differentiation on an eager tape.
//
// Operations run as they are called; each one that leads to a wanted gradient appends a node with its backward
// function. Execution order is a topological order, so backward() walks from the end and pops: what a node saved dies
// on the way. What an operation saves is exactly what its backward lambda captures.
#pragma once
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tensor/backend.h"

namespace t2l {

// Where the gradient of a variable collects. The first writer overwrites, later ones add.
struct Slot {
  Tensor grad;           // shape and dtype of the value; bound in advance for parameters in a slab
  bool written = false;  // does grad hold anything yet?

  void clear() { written = false; }
};

// A tensor, and its gradient's slot if one is wanted.
struct Var {
  Tensor value;
  std::shared_ptr<Slot> slot;

  Var() = default;
  Var(Tensor v, std::shared_ptr<Slot> s = nullptr) : value(std::move(v)), slot(std::move(s)) {}
  explicit operator bool() const { return bool(value); }
  bool needs_grad() const { return slot != nullptr; }
  const Tensor& grad() const { return slot->grad; }
  int64_t dim(int i) const { return value.dim(i); }
  const Shape& shape() const { return value.shape(); }
};

inline Var variable(Tensor value) { return {std::move(value), std::make_shared<Slot>()}; }

// What backward needs to know of an input without holding its memory: where its gradient goes, and of what kind.
struct GradTarget {
  std::shared_ptr<Slot> slot;
  Shape shape;
  DType dtype = DType::F32;
  Device device = Device::CPU;

  GradTarget(const Var& v) : slot(v.slot), shape(v.shape()), dtype(v.value.dtype()), device(v.value.device()) {}
  explicit operator bool() const { return slot != nullptr; }

  // Calls f(dx, accumulate) if the gradient is wanted.
  template <class F>
  void write(F&& f) const {
    if (!slot) return;
    if (!slot->grad) slot->grad = Tensor::empty(shape, dtype, device);
    f(slot->grad, std::exchange(slot->written, true));
  }
};

// The tape of this thread.
class Tape {
 public:
  using Backward = std::function<void(const Tensor& dy)>;

  // Is a gradient wanted of an operation with these inputs?
  static bool wanted(std::initializer_list<const Var*> inputs);
  // Appends a node and returns its output; call only if wanted.
  static Var record(Tensor value, Backward backward);
  static size_t size();
  static void clear();
};

// d loss / d everything recorded since; empties the tape. loss has one element; dy defaults to 1.
void backward(const Var& loss);
void backward(const std::vector<std::pair<Var, Tensor>>& outputs);  // several outputs, each with its gradient

// While one lives, nothing is recorded.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;

 private:
  bool before_;
};

// f(inputs) without keeping what f saves: backward runs f again (Chen et al., "Training deep nets with sublinear memory
// cost", 2016). f must draw its random numbers by key, as all ops do, so that both runs are equal.
Var checkpoint(const std::function<Var(const std::vector<Var>&)>& f, const std::vector<Var>& inputs);

}  // namespace t2l
