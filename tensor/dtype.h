// What a tensor's elements are and where they live.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tensor/bf16.h"

namespace t2l {

enum class DType : uint8_t { F32, BF16, I32 };
enum class Device : uint8_t { CPU, CUDA };

constexpr size_t size_of(DType t) { return t == DType::BF16 ? 2 : 4; }
constexpr const char* name_of(DType t) { return t == DType::F32 ? "f32" : t == DType::BF16 ? "bf16" : "i32"; }
constexpr const char* name_of(Device d) { return d == Device::CPU ? "cpu" : "cuda"; }

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::F32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::BF16;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::I32;
};

}  // namespace t2l
