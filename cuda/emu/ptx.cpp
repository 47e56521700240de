// The warp-wide matrix instructions of ptx.cuh: the last lane to arrive computes for all, unseen by ThreadSanitizer.
#include "cuda/ptx.cuh"

namespace t2l::cuda {

namespace {
struct Mma {
  FragC* c;
  const FragA* a;
  const FragB* b;
};
struct Load {
  twin::Row* row;
  bool transposed;
};

#define UNSEEN __attribute__((no_sanitize("thread")))

UNSEEN void unpack(float* even_odd, uint32_t pair) {
  even_odd[0] = std::bit_cast<float>(pair << 16);
  even_odd[1] = std::bit_cast<float>(pair & 0xffff0000u);
}

UNSEEN void multiply(void* const payload[32], unsigned group) {
  if (group != 0xffffffffu) emu::fault("mma in a warp with exited lanes");
  float a[16][16], b[8][16];  // [m, k], [n, k]
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<const Mma*>(payload[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i) unpack(&a[g + i % 2 * 8][t + i / 2 * 8], lane.a->r[i]);
    for (int i = 0; i < 2; ++i) unpack(&b[g][t + i * 8], lane.b->r[i]);
  }
  float bt[16][8];
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 8; ++j) bt[k][j] = b[j][k];
  for (int i = 0; i < 16; ++i) {
    float sum[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) sum[j] += a[i][k] * bt[k][j];
    for (int j = 0; j < 8; ++j) static_cast<const Mma*>(payload[i % 8 * 4 + j / 2])->c->r[i / 8 * 2 + j % 2] += sum[j];
  }
}

UNSEEN void distribute(void* const payload[32], unsigned group) {
  if (group != 0xffffffffu) emu::fault("ldmatrix in a warp with exited lanes");
  uint16_t m[32][8];  // [8 * matrix + row, column]
  for (int l = 0; l < 32; ++l) std::memcpy(m[l], static_cast<const Load*>(payload[l])->row, 16);
  for (int l = 0; l < 32; ++l) {
    const auto& lane = *static_cast<const Load*>(payload[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int j = 0; j < 4; ++j)
      lane.row->r[j] = lane.transposed ? m[8 * j + t][g] | uint32_t(m[8 * j + t + 1][g]) << 16
                                       : m[8 * j + g][t] | uint32_t(m[8 * j + g][t + 1]) << 16;
  }
}
}  // namespace

void mma_16x8x16(FragC& c, const FragA& a, const FragB& b, const char* file, int line) {
  Mma mma{&c, &a, &b};
  emu::collective({"mma_16x8x16", file, line}, 0xffffffffu, &mma, multiply);
}

void twin::ldmatrix(emu::Site site, Row& row, bool transposed) {
  Load load{&row, transposed};
  emu::collective(site, 0xffffffffu, &load, distribute);
}

}  // namespace t2l::cuda
