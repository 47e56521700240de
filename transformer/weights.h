// The weights of a model's file, by name, each checked against the shape that its config asks for.
#pragma once
#include "tensor/safetensors.h"

namespace t2l {

class ModelWeights {
 public:
  // In this dtype and on this device: what is so already stays where it lies, in the mapped file. The names asked for
  // may stand in the file behind one of the prefixes; `probe` is a name that tells which.
  ModelWeights(const SafeTensors& file, DType dtype, Device device, const std::vector<std::string>& prefixes = {},
               const std::string& probe = "");

  bool contains(const std::string& name) const { return file_.contains(prefix_ + name); }
  // Error, naming the tensor, its file and the shape expected, if it is not there, of another shape, or no floats.
  Tensor operator()(const std::string& name, const Shape& shape) const;

 private:
  const SafeTensors& file_;
  DType dtype_;
  Device device_;
  std::string prefix_;
};

}  // namespace t2l
