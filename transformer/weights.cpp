#include "transformer/weights.h"

#include <algorithm>

namespace t2l {

ModelWeights::ModelWeights(const SafeTensors& file, DType dtype, Device device,
                           const std::vector<std::string>& prefixes, const std::string& probe)
    : file_(file), dtype_(dtype), device_(device) {
  for (const std::string& prefix : prefixes)
    if (file.contains(prefix + probe)) prefix_ = prefix;
}

Tensor ModelWeights::operator()(const std::string& given, const Shape& shape) const {
  const std::string name = prefix_ + given;
  if (!file_.contains(name))
    fail("{}: has no tensor '{}' {}, which config.json asks for; are both of the same model?", file_.path(), name,
         shape.str());
  const SafeTensors::Info& info = file_.info(name);
  if (!std::equal(info.shape.begin(), info.shape.end(), shape.begin(), shape.end()))
    fail("{}: tensor '{}' is [{}], but config.json asks for {}; are both of the same model?", info.file, name,
         fmt::join(info.shape, ", "), shape.str());
  const Tensor x = file_.get(name);
  if (x.dtype() == DType::I32) fail("{}: tensor '{}' holds integers, not weights", info.file, name);
  return x.to(dtype_).to(device_);
}

}  // namespace t2l
