#include "autograd/tape.h"

#include <algorithm>

namespace t2l {
namespace {

struct Node {
  std::shared_ptr<Slot> out;
  Tape::Backward run;
};
struct Recording {
  std::vector<Node> nodes;
  bool on = true;
};
Recording& recording() {
  static thread_local Recording r;
  return r;
}

// Runs and pops the nodes above `floor`.
void unwind(size_t floor) {
  auto& nodes = recording().nodes;
  while (nodes.size() > floor) {
    const Node node = std::move(nodes.back());
    nodes.pop_back();
    if (!node.out->written) continue;  // nothing below the loss depends on it
    node.run(node.out->grad);
    node.out->grad = {};
    node.out->written = false;
  }
}

void seed(const Var& output, const Tensor& dy) {
  T2L_CHECK(output.needs_grad(), "backward from an output that depends on no variable");
  GradTarget(output).write(
      [&](Tensor& grad, bool accumulate) { accumulate ? backend(grad).add(grad, grad, dy) : grad.copy_from(dy); });
}

}  // namespace

bool Tape::wanted(std::initializer_list<const Var*> inputs) {
  if (!recording().on) return false;
  return std::any_of(inputs.begin(), inputs.end(), [](const Var* v) { return v && v->needs_grad(); });
}

Var Tape::record(Tensor value, Backward backward) {
  Var out = variable(std::move(value));
  recording().nodes.push_back({out.slot, std::move(backward)});
  return out;
}

size_t Tape::size() { return recording().nodes.size(); }
void Tape::clear() { recording().nodes.clear(); }

void backward(const std::vector<std::pair<Var, Tensor>>& outputs) {
  for (auto& [output, dy] : outputs) seed(output, dy);
  unwind(0);
}

void backward(const Var& loss) {
  T2L_CHECK(loss.value.size() == 1, "backward from a loss of shape {}", loss.shape().str());
  Tensor one = Tensor::from(std::vector<float>{1.0f}).to(loss.value.dtype()).reshape(loss.shape());
  backward({{loss, one.to(loss.value.device())}});
}

NoGrad::NoGrad() : before_(std::exchange(recording().on, false)) {}
NoGrad::~NoGrad() { recording().on = before_; }

Var checkpoint(const std::function<Var(const std::vector<Var>&)>& f, const std::vector<Var>& inputs) {
  const bool wanted =
      recording().on && std::any_of(inputs.begin(), inputs.end(), [](auto& v) { return v.needs_grad(); });
  Var y = [&] {
    NoGrad guard;
    return f(inputs);
  }();
  if (!wanted) return y;
  // The inputs keep their slots in the second run, so gradients arrive where they would have without checkpoint.
  return Tape::record(y.value, [f, inputs](const Tensor& dy) {
    const size_t floor = recording().nodes.size();
    seed(f(inputs), dy);
    unwind(floor);
  });
}

}  // namespace t2l
