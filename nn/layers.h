// Layers are functions of their input and of parameters found by the names that PyTorch gives them: <name>.weight and
// <name>.bias.
#pragma once
#include "autograd/ops.h"
#include "nn/parameters.h"

namespace t2l {

// ---- declared with torch's initial values
void declare_linear(Parameters& p, const std::string& name, int64_t in, int64_t out, bool bias = true);
void declare_layernorm(Parameters& p, const std::string& name, int64_t size);
void declare_embedding(Parameters& p, const std::string& name, int64_t rows, int64_t size);

// ---- applied.  x: [.., in] -> [.., out]
Var linear(const Parameters& p, const std::string& name, const Var& x, Activation activation = Activation::None);
Var layernorm(const Parameters& p, const std::string& name, const Var& x, float eps = 1e-5f);

}  // namespace t2l
