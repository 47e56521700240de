// A tensor is a handle: shared memory, a shape, a dtype, a device. It is row-major and contiguous, always;
// reshapes and slices of the first axis are views of the same memory. Copying a Tensor copies the handle.
#pragma once
#include <array>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/check.h"
#include "tensor/dtype.h"

namespace t2l {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);  // throws on a negative extent, rank > kMaxRank or 2^60 elements

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i < 0 ? i + rank_ : i]; }
  int64_t elements() const;
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }
  bool operator==(const Shape& o) const { return std::equal(begin(), end(), o.begin(), o.end()); }
  std::string str() const;  // [2, 3]

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;  // no tensor: false in a condition
  Tensor(std::shared_ptr<std::byte> memory, Shape shape, DType dtype, Device device)
      : memory_(std::move(memory)), shape_(shape), dtype_(dtype), device_(device) {}

  static Tensor empty(Shape shape, DType dtype = DType::F32, Device device = Device::CPU);  // uninitialised
  static Tensor zeros(Shape shape, DType dtype = DType::F32, Device device = Device::CPU);
  static Tensor full(Shape shape, float value, Device device = Device::CPU);  // f32
  template <class T>
  static Tensor from(std::span<const T> values, Shape shape, Device device = Device::CPU);
  template <class T>
  static Tensor from(const std::vector<T>& values, Device device = Device::CPU) {
    return from(std::span<const T>(values), {int64_t(values.size())}, device);
  }

  explicit operator bool() const { return memory_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }  // negative: from the end
  int64_t size() const { return shape_.elements(); }
  size_t bytes() const { return size_t(size()) * size_of(dtype_); }
  int64_t cols() const { return rank() ? dim(-1) : 1; }          // the last extent
  int64_t rows() const { return cols() ? size() / cols() : 0; }  // all others
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  template <class T>
  T* data() const {  // wherever it lives; for backends
    return reinterpret_cast<T*>(memory_.get());
  }
  void* raw() const { return memory_.get(); }
  template <class T>
  std::span<T> host() const;  // checks that it is on the CPU and of type T

  Tensor reshape(Shape shape) const;                                       // view
  Tensor slice(int64_t begin, int64_t end) const;                          // view of rows begin..end of the first axis
  Tensor view_as(DType dtype, Shape shape, size_t byte_offset = 0) const;  // view of raw bytes

  Tensor to(Device device) const;  // itself if it is there already
  Tensor to(DType dtype) const;    // itself if it is of that type already; f32 <-> bf16
  Tensor clone() const;
  void copy_from(const Tensor& source) const;  // same shape and dtype, any device
  void zero() const;
  template <class T>
  std::vector<T> to_vector() const;  // copied to the host

 private:
  std::shared_ptr<std::byte> memory_;
  Shape shape_;
  DType dtype_ = DType::F32;
  Device device_ = Device::CPU;
};

bool all_finite(const Tensor& x);  // of a host f32 tensor

template <class T>
std::span<T> Tensor::host() const {
  T2L_CHECK(device_ == Device::CPU && dtype_ == dtype_of<T>::value, "a {} tensor on {} read as host {}",
            name_of(dtype_), name_of(device_), name_of(dtype_of<T>::value));
  return {data<T>(), size_t(size())};
}

template <class T>
Tensor Tensor::from(std::span<const T> values, Shape shape, Device device) {
  T2L_CHECK(int64_t(values.size()) == shape.elements(), "{} values for shape {}", values.size(), shape.str());
  Tensor t = empty(shape, dtype_of<T>::value);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t.to(device);
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const Tensor t = to(Device::CPU);
  const auto s = t.host<T>();
  return {s.begin(), s.end()};
}

}  // namespace t2l
