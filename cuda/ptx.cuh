// Every PTX instruction the kernels use, each with a host twin of the same meaning.
#pragma once
#include "cuda/gpu.cuh"

namespace t2l::cuda {

// Fragments of a warp's matrices; g = lane / 4, t = lane % 4. Each r of A and B holds two bf16, the lower index in the
// lower half.
struct FragA {
  uint32_t r[4];  // A 16x16: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8
};
struct FragB {
  uint32_t r[2];  // B 16x8: rows 2t, 2t+8; column g
};
struct FragC {
  float r[4];  // C 16x8: rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1
};

#ifdef __CUDACC__
// c += a b over the warp, accumulated in f32
__device__ inline void mma_16x8x16(FragC& c, const FragA& a, const FragB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.r[0]), "+f"(c.r[1]), "+f"(c.r[2]), "+f"(c.r[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

// Four 8x8 matrices of bf16 from shared memory: lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned) and receives in r[j] the elements 2t, 2t+1 of row g of matrix j; of its transpose in the _trans form.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// Copies Bytes (4, 8 or 16; both addresses aligned to it) from global to shared memory in the background: the first
// `given` of them, zeros for the rest; global is not read where given is 0. Lands when its group has been waited for.
template <int Bytes>
__device__ inline void cp_async(void* shared, const void* global, int given = Bytes) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(given) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes), "r"(given)
                 : "memory");
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most Groups of this thread's committed groups are under way; other threads see the data after a
// barrier.
template <int Groups>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else
void mma_16x8x16(FragC& c, const FragA& a, const FragB& b, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE());

namespace twin {
struct Row {
  uint32_t r[4];  // in: the eight bf16 of the lane's row; out: the lane's fragment
};
void ldmatrix(emu::Site site, Row& row, bool transposed);
inline void ldmatrix(emu::Site site, uint32_t (&r)[4], const void* from, bool transposed) {
  emu::check_aligned(from, 16);
  Row row;
  std::memcpy(&row, from, 16);
  ldmatrix(site, row, transposed);
  std::memcpy(r, &row, 16);
}
}  // namespace twin

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                        int line = __builtin_LINE()) {
  twin::ldmatrix({"ldmatrix_x4", file, line}, r, row, false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  twin::ldmatrix({"ldmatrix_x4_trans", file, line}, r, row, true);
}

// Between issue and landing the destination is NaN: whoever still reads it, or reads it too early, shows.
template <int Bytes>
inline void cp_async(void* shared, const void* global, int given = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emu::check_aligned(shared, Bytes);
  emu::check_aligned(global, Bytes);
  constexpr uint32_t kNaN[4] = {~0u, ~0u, ~0u, ~0u};
  std::memcpy(shared, kNaN, Bytes);
  emu::queue_copy({shared, global, Bytes, unsigned(given)});
}
inline void cp_async_commit() { emu::commit_copies(); }
template <int Groups>
inline void cp_async_wait() {
  for (emu::Copy c; emu::next_landing(Groups, c);) {
    std::memset(c.to, 0, c.bytes);
    if (c.given) std::memcpy(c.to, c.from, c.given);
  }
}

inline float exp2_approx(float x) { return std::exp2(x); }
#endif

}  // namespace t2l::cuda
