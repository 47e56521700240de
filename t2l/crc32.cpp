// A message is a polynomial over GF(2), its CRC the remainder modulo P (of degree 32). A 128-bit lane X = (lo, hi) that
// is D bits further up than the next block may be replaced by lo x^(D+32) + hi x^(D-32), added to that block, without
// changing the remainder: two carry-less multiplications (Gopal et al., "Fast CRC computation for generic polynomials
// using PCLMULQDQ", 2009). Several lanes hide the multiplier's latency. What remains, a few lanes and a tail, is itself
// a short message, which zlib finishes.
#include "t2l/crc32.h"

#include <immintrin.h>
#include <zlib.h>

namespace t2l {
namespace {

// x^n modulo P, reflected and shifted as the multiplication of reflected operands needs it.
constexpr uint64_t power(int n) {
  uint32_t r = 0x80000000;
  for (; n > 0; --n) r = r >> 1 ^ (r & 1 ? 0xEDB88320 : 0);
  return uint64_t(r) << 1;
}
static_assert(power(512 + 32) == 0x154442bd4 && power(512 - 32) == 0x1c6e41596);  // the paper's constants

// zlib's function for any length. The register is ~crc: it is 0 for the message that folding leaves.
uint32_t finish(uint32_t crc, const std::byte* p, size_t n) {
  return uint32_t(::crc32_z(crc, reinterpret_cast<const Bytef*>(p), n));
}
constexpr uint32_t kZeroRegister = 0xFFFFFFFF;

__attribute__((target("pclmul,sse4.1"))) uint32_t crc32_pclmul(const std::byte* p, size_t n) {
  constexpr int kLanes = 4, kStep = 16 * kLanes;
  const __m128i k = _mm_set_epi64x(power(8 * kStep - 32), power(8 * kStep + 32));
  const auto* in = reinterpret_cast<const __m128i*>(p);
  __m128i x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = _mm_loadu_si128(in + i);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(-1));  // the register's first value
  size_t at = kStep;
  for (in += kLanes; at + kStep <= n; at += kStep, in += kLanes)
    for (int i = 0; i < kLanes; ++i) {
      const __m128i lo = _mm_clmulepi64_si128(x[i], k, 0x00), hi = _mm_clmulepi64_si128(x[i], k, 0x11);
      x[i] = _mm_xor_si128(_mm_xor_si128(lo, hi), _mm_loadu_si128(in + i));
    }
  return finish(finish(kZeroRegister, reinterpret_cast<const std::byte*>(x), sizeof x), p + at, n - at);
}

__attribute__((target("avx512f,vpclmulqdq"))) uint32_t crc32_avx512(const std::byte* p, size_t n) {
  constexpr int kLanes = 4, kStep = 64 * kLanes;
  constexpr int64_t lower = power(8 * kStep + 32), upper = power(8 * kStep - 32);
  const __m512i k = _mm512_set4_epi64(upper, lower, upper, lower);
  __m512i x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = _mm512_loadu_si512(p + 64 * i);
  x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(-1)));
  size_t at = kStep;
  for (; at + kStep <= n; at += kStep)
    for (int i = 0; i < kLanes; ++i) {
      const __m512i lo = _mm512_clmulepi64_epi128(x[i], k, 0x00), hi = _mm512_clmulepi64_epi128(x[i], k, 0x11);
      x[i] = _mm512_ternarylogic_epi64(lo, hi, _mm512_loadu_si512(p + at + 64 * i), 0x96);  // exclusive or of three
    }
  return finish(finish(kZeroRegister, reinterpret_cast<const std::byte*>(x), sizeof x), p + at, n - at);
}

}  // namespace

uint32_t crc32(Bytes bytes) {
  static const bool pclmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
  if (avx512 && bytes.size() >= 1024) return crc32_avx512(bytes.data(), bytes.size());
  if (pclmul && bytes.size() >= 128) return crc32_pclmul(bytes.data(), bytes.size());
  return finish(0, bytes.data(), bytes.size());
}

}  // namespace t2l
