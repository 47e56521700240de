// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Element i of a random tensor depends on the key and on i alone, so every backend, thread count and tile size
// draws the same bits.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define T2L_HOST_DEVICE __host__ __device__
#else
#define T2L_HOST_DEVICE
#endif

namespace t2l {

struct RandomKey {
  uint64_t seed = 0, stream = 0;  // a stream for each use of random numbers: one mask, one initial tensor, ...
};

struct Random4 {
  uint32_t v[4];
};

T2L_HOST_DEVICE inline Random4 philox(RandomKey key, uint64_t counter) {
  uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = uint32_t(key.stream),
           c3 = uint32_t(key.stream >> 32), k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The 32 random bits of element i.
T2L_HOST_DEVICE inline uint32_t random_bits(RandomKey key, uint64_t i) { return philox(key, i / 4).v[i % 4]; }

// Uniform in [0, 1), 24 bits.
T2L_HOST_DEVICE inline float unit_uniform(uint32_t bits) { return float(bits >> 8) * 0x1p-24f; }

}  // namespace t2l
