#include "nn/layers.h"

namespace t2l {

void declare_linear(Parameters& p, const std::string& name, int64_t in, int64_t out, bool bias) {
  p.declare(name + ".weight", {out, in}, init::linear(in));
  if (bias) p.declare(name + ".bias", {out}, init::linear(in));
}

void declare_layernorm(Parameters& p, const std::string& name, int64_t size) {
  p.declare(name + ".weight", {size}, init::constant(1));
  p.declare(name + ".bias", {size}, init::constant(0));
}

void declare_embedding(Parameters& p, const std::string& name, int64_t rows, int64_t size) {
  p.declare(name + ".weight", {rows, size}, init::normal());
}

Var linear(const Parameters& p, const std::string& name, const Var& x, Activation activation) {
  const std::string bias = name + ".bias";
  return linear(x, p(name + ".weight"), p.contains(bias) ? p(bias) : Var{}, activation);
}

Var layernorm(const Parameters& p, const std::string& name, const Var& x, float eps) {
  return layernorm(x, p(name + ".weight"), p(name + ".bias"), eps);
}

}  // namespace t2l
