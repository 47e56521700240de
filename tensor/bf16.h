// bfloat16 on the host: the upper half of a float, rounded to nearest even as the hardware does.
#pragma once
#include <bit>
#include <cstdint>

namespace t2l {

struct bf16 {
  uint16_t bits;

  constexpr bf16() : bits(0) {}  // constant, so that shared arrays of it need no initialisation guard
  constexpr bf16(float f) : bits(round(std::bit_cast<uint32_t>(f))) {}
  constexpr operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }

 private:
  static constexpr uint16_t round(uint32_t u) {
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return nan ? uint16_t(u >> 16 | 0x40) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
};
static_assert(sizeof(bf16) == 2);

}  // namespace t2l
