// Programs built without CUDA.
#include "tensor/backend.h"

namespace t2l {

Backend* cuda_backend(int, std::string* why_not) {
  *why_not = "this build has no GPU support (configure with -DT2L_CUDA=ON, which needs nvcc)";
  return nullptr;
}

}  // namespace t2l
