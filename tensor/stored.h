// Elements as files store them, and the tensors they become. Files know more types than the engine computes with: f32,
// bf16 and i32 are used where they lie, f16 and f64 become f32, i64 becomes i32 if its values allow; others are
// refused.
#pragma once
#include <optional>
#include <string_view>
#include <vector>

#include "tensor/file.h"
#include "tensor/tensor.h"

namespace t2l {

enum class Stored : uint8_t { I64, F64, F32, I32, BF16, F16, I16, I8, U8, Bool, Other };  // in safetensors' order

const char* name_of(Stored t);  // as safetensors spells it
size_t size_of(Stored t);       // bytes an element takes; 0 for Other
inline Stored stored_as(DType t) {
  return t == DType::F32 ? Stored::F32 : t == DType::BF16 ? Stored::BF16 : Stored::I32;
}

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);  // to nearest even, as the hardware does

// The product of the extents, or nothing if one is negative or it exceeds 2^62.
std::optional<int64_t> count(std::span<const int64_t> extents);

// A host tensor of stored elements; `bytes` are within what `owner` keeps alive. Elements that need no conversion are
// not copied if they are aligned and contiguous. strides, in elements, may be empty: contiguous; the caller has checked
// that they stay within bytes. Error, naming `what`, for a type or value the engine has no place for.
Tensor to_tensor(Stored type, std::span<const int64_t> shape, std::span<const int64_t> strides, Bytes bytes,
                 const std::shared_ptr<const std::byte>& owner, const std::string& what);

// The reverse, for writers: a host f32 or bf16 tensor's elements as F32, BF16 or F16.
std::vector<std::byte> to_stored(const Tensor& x, Stored type);

}  // namespace t2l
