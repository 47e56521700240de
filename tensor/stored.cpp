#include "tensor/stored.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace t2l {

const char* name_of(Stored t) {
  static constexpr const char* kNames[] = {"I64", "F64", "F32", "I32",  "BF16",   "F16",
                                           "I16", "I8",  "U8",  "BOOL", "another"};
  return kNames[size_t(t)];
}

size_t size_of(Stored t) {
  static constexpr size_t kSizes[] = {8, 8, 4, 4, 2, 2, 2, 1, 1, 1, 0};
  return kSizes[size_t(t)];
}

float f16_to_f32(uint16_t h) {
  // Exponent and fraction moved in place, then rescaled from bias 15 to 127: exact, for subnormals too.
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = uint32_t(h & 0x7fff) << 13;
  const float scaled = std::bit_cast<float>(rest) * 0x1p112f;
  const uint32_t bits = rest >= 0x0f800000u ? rest | 0x7f800000u : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

uint16_t f32_to_f16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return uint16_t(sign | 0x7e00 | (a >> 13 & 0x3ff));
  if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  // Below the smallest normal the addition of 0.5 aligns the last kept bit with the float's, which rounds it.
  if (a < 0x38800000) return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000));
  return uint16_t(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}

std::optional<int64_t> count(std::span<const int64_t> extents) {
  // Zeros come last: [2^40, 2^40, 0] is no shape either.
  int64_t n = 1;
  bool empty = false;
  for (int64_t d : extents) {
    if (d < 0) return {};
    if (d == 0)
      empty = true;
    else if (n > (int64_t(1) << 62) / d)
      return {};
    else
      n *= d;
  }
  return empty ? 0 : n;
}

namespace {

// Calls f(i, j) for each element i of the tensor in row-major order, j its place in storage.
template <class F>
void each(std::span<const int64_t> shape, std::span<const int64_t> strides, int64_t n, F f) {
  if (strides.empty()) {
    for (int64_t i = 0; i < n; ++i) f(i, i);
    return;
  }
  std::array<int64_t, Shape::kMaxRank> at{};
  for (int64_t i = 0, j = 0; i < n; ++i) {
    f(i, j);
    for (size_t k = shape.size(); k-- > 0;) {
      j += strides[k];
      if (++at[k] < shape[k]) break;
      j -= strides[k] * at[k];
      at[k] = 0;
    }
  }
}

template <class T>
T load(const std::byte* p, int64_t i) {
  T x;
  std::memcpy(&x, p + size_t(i) * sizeof(T), sizeof(T));
  return x;
}

}  // namespace

Tensor to_tensor(Stored type, std::span<const int64_t> shape, std::span<const int64_t> strides, Bytes bytes,
                 const std::shared_ptr<const std::byte>& owner, const std::string& what) {
  const auto n = count(shape);
  if (shape.size() > Shape::kMaxRank || !n)
    fail("{}: has {} dimensions or too many elements; at most {} dimensions are supported", what, shape.size(),
         Shape::kMaxRank);
  int64_t contiguous = 1;
  bool strided = false;
  for (size_t k = shape.size(); k-- > 0 && !strides.empty(); contiguous *= shape[k])
    strided |= *n > 0 && shape[k] > 1 && strides[k] != contiguous;
  if (!strided) strides = {};

  DType dtype = DType::F32;
  switch (type) {
    case Stored::F32:
    case Stored::F64:
    case Stored::F16: break;
    case Stored::BF16: dtype = DType::BF16; break;
    case Stored::I32:
    case Stored::I64: dtype = DType::I32; break;
    default:
      fail("{}: has elements of type {}, only F32, F16, BF16, F64, I32 and I64 can be used", what, name_of(type));
  }
  const std::byte* p = bytes.data();
  const bool native = type == stored_as(dtype);
  if (native && !strided && reinterpret_cast<uintptr_t>(p) % size_of(dtype) == 0)
    return {std::shared_ptr<std::byte>(std::const_pointer_cast<std::byte>(owner), const_cast<std::byte*>(p)),
            Shape(shape), dtype, Device::CPU};

  Tensor t = Tensor::empty(Shape(shape), dtype);
  if (native && !strided) {
    if (*n) std::memcpy(t.raw(), p, t.bytes());
    return t;
  }
  auto fill = [&]<class To, class From>(To*, From*, auto convert) {
    To* out = t.data<To>();
    each(shape, strides, *n, [&](int64_t i, int64_t j) { out[i] = convert(load<From>(p, j)); });
  };
  const auto same = [](auto x) { return x; };
  constexpr auto* f32 = static_cast<float*>(nullptr);
  constexpr auto* i32 = static_cast<int32_t*>(nullptr);
  constexpr auto* u16 = static_cast<uint16_t*>(nullptr);
  switch (type) {
    case Stored::F32: fill(f32, f32, same); break;
    case Stored::F64: fill(f32, static_cast<double*>(nullptr), [](double x) { return float(x); }); break;
    case Stored::F16: fill(f32, u16, f16_to_f32); break;
    case Stored::BF16: fill(u16, u16, same); break;
    case Stored::I32: fill(i32, i32, same); break;
    default:
      fill(i32, static_cast<int64_t*>(nullptr), [&](int64_t x) {
        if (x != int32_t(x)) fail("{}: has the value {}, more than 32 bits hold; store smaller ones", what, x);
        return int32_t(x);
      });
  }
  return t;
}

std::vector<std::byte> to_stored(const Tensor& x, Stored type) {
  T2L_CHECK(x.dtype() != DType::I32 && (type == Stored::F32 || type == Stored::BF16 || type == Stored::F16),
            "{} elements as {}", name_of(x.dtype()), name_of(type));
  const auto n = size_t(x.size());
  std::vector<std::byte> bytes(n * size_of(type));
  auto fill = [&]<class To>(To* out, auto convert) {
    if (x.dtype() == DType::F32) {
      const float* in = x.data<float>();
      for (size_t i = 0; i < n; ++i) out[i] = convert(in[i]);
    } else {
      const bf16* in = x.data<bf16>();
      for (size_t i = 0; i < n; ++i) out[i] = convert(float(in[i]));
    }
  };
  if (type == Stored::F32)
    fill(reinterpret_cast<float*>(bytes.data()), [](float f) { return f; });
  else if (type == Stored::BF16)
    fill(reinterpret_cast<bf16*>(bytes.data()), [](float f) { return bf16(f); });
  else
    fill(reinterpret_cast<uint16_t*>(bytes.data()), f32_to_f16);
  return bytes;
}

}  // namespace t2l
