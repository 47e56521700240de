#include "tensor/tensor.h"

#include <cmath>

#include "tensor/allocator.h"
#include "tensor/backend.h"

namespace t2l {

Shape::Shape(std::span<const int64_t> dims) : rank_(int(dims.size())) {
  T2L_CHECK(dims.size() <= kMaxRank, "a shape of rank {}, at most {} is supported", dims.size(), kMaxRank);
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) {
    T2L_CHECK(dims[i] >= 0, "negative extent {} in a shape", dims[i]);
    T2L_CHECK(dims[i] == 0 || n <= (int64_t(1) << 60) / dims[i], "a shape with more than 2^60 elements");
    n *= dims[i];
    dims_[i] = dims[i];
  }
}

int64_t Shape::elements() const {
  int64_t n = 1;
  for (int64_t d : *this) n *= d;
  return n;
}

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(begin(), end(), ", ")); }

Tensor Tensor::empty(Shape shape, DType dtype, Device device) {
  return {allocate(device, size_t(shape.elements()) * size_of(dtype)), shape, dtype, device};
}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  t.zero();
  return t;
}

Tensor Tensor::full(Shape shape, float value, Device device) {
  Tensor t = empty(shape);
  std::fill_n(t.data<float>(), t.size(), value);
  return t.to(device);
}

Tensor Tensor::reshape(Shape shape) const {
  T2L_CHECK(shape.elements() == size(), "reshape of {} to {}", shape_.str(), shape.str());
  return {memory_, shape, dtype_, device_};
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  T2L_CHECK(rank() > 0 && 0 <= begin && begin <= end && end <= dim(0), "slice {}..{} of {}", begin, end, shape_.str());
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy(shape_.begin(), shape_.end(), dims.begin());
  dims[0] = end - begin;
  const Shape shape(std::span<const int64_t>(dims.data(), size_t(rank())));
  const size_t row = dim(0) ? bytes() / size_t(dim(0)) : 0;
  return {std::shared_ptr<std::byte>(memory_, memory_.get() + size_t(begin) * row), shape, dtype_, device_};
}

Tensor Tensor::view_as(DType dtype, Shape shape, size_t byte_offset) const {
  T2L_CHECK(byte_offset % size_of(dtype) == 0 && byte_offset + size_t(shape.elements()) * size_of(dtype) <= bytes(),
            "a view of {} {} at byte {} of {} bytes", name_of(dtype), shape.str(), byte_offset, bytes());
  return {std::shared_ptr<std::byte>(memory_, memory_.get() + byte_offset), shape, dtype, device_};
}

Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  Tensor t = empty(shape_, dtype_, device);
  t.copy_from(*this);
  return t;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor t = empty(shape_, dtype, device_);
  backend(device_).cast(t, *this, false);
  return t;
}

Tensor Tensor::clone() const {
  Tensor t = empty(shape_, dtype_, device_);
  t.copy_from(*this);
  return t;
}

void Tensor::copy_from(const Tensor& source) const {
  T2L_CHECK(shape_ == source.shape_ && dtype_ == source.dtype_, "copy of {} {} to {} {}", name_of(source.dtype_),
            source.shape_.str(), name_of(dtype_), shape_.str());
  if (device_ == source.device_)
    backend(device_).copy(raw(), source.raw(), bytes());
  else if (device_ == Device::CUDA)
    backend(device_).upload(raw(), source.raw(), bytes());
  else
    backend(source.device_).download(raw(), source.raw(), bytes());
}

void Tensor::zero() const { backend(device_).set_bytes(raw(), 0, bytes()); }

bool all_finite(const Tensor& x) {
  bool finite = true;
  for (const float v : x.host<float>()) finite &= bool(std::isfinite(v));
  return finite;
}

}  // namespace t2l
