// C is cut into blocks of at most [512, 1024], one task each; tasks share nothing, so threads never wait for each
// other. A task goes over k in passes of kc: it packs its rows of A into panels of one register tile's height (or reads
// them where they lie), then, panel of B by panel of B, packs 32 columns and runs the kernel down the rows. The sum of
// a pass starts at zero, passes are added in order: an element's value depends on its row of A, its column of B and k
// alone. Products of few rows (or columns) read B in place, by other kernels with the same sums.
#include "tensor/cpu/gemm.h"

#include <cpuid.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <utility>

#include "tensor/check.h"
#include "tensor/cpu/gemm_kernels.h"
#include "tensor/cpu/vmath.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kRows = 512, kCols = 1024;  // the largest block of C
constexpr int64_t kSmallB = 128 << 10;        // floats: half of an L2 of 1 MB
constexpr int64_t kThinDepth = 64 << 10;      // the largest k of a thin product, whose A is packed whole
constexpr const char* kIsaNames[] = {"avx2", "avx512", "avx512_bf16", "amx"};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A thread's buffer, kept from call to call: at most 7 MB for the four together.
class Scratch {
 public:
  ~Scratch() { operator delete(p_, kAlign); }
  float* get(int64_t floats) {
    if (floats > size_) {
      operator delete(std::exchange(p_, nullptr), kAlign);
      size_ = 0;
      p_ = static_cast<float*>(operator new(size_t(floats) * sizeof(float), kAlign));
      size_ = floats;
    }
    return p_;
  }

 private:
  static constexpr std::align_val_t kAlign{4096};
  float* p_ = nullptr;
  int64_t size_ = 0;
};

template <class T>
void add_bias(float* tile, const T* bias, int nr, int rows, int cols) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < cols; ++j) tile[i * nr + j] += float(bias[j]);
}

void activate(float* x, int n, Activation kind) {
  switch (kind) {
    case Activation::None: return;
    case Activation::SiLU:
      for (int i = 0; i < n; ++i) x[i] = silu(x[i]);
      return;
    case Activation::GELU:
      for (int i = 0; i < n; ++i) x[i] = gelu(x[i]);
      return;
    case Activation::GELUTanh:
      for (int i = 0; i < n; ++i) x[i] = gelu_tanh(x[i]);
      return;
  }
}

template <class T>
void write(T* c, int64_t ldc, const float* tile, int nr, int rows, int cols, bool accumulate) {
  for (int i = 0; i < rows; ++i, c += ldc, tile += nr)
    if (accumulate)
      for (int j = 0; j < cols; ++j) c[j] = T(float(c[j]) + tile[j]);
    else
      for (int j = 0; j < cols; ++j) c[j] = T(tile[j]);
}

// A or B: its element (w, k), where w counts rows of C for A, columns of C for B.
struct Operand {
  const std::byte* p;
  int64_t ld, group_stride;
  bool k_is_row;  // stored [k, w], not [w, k]
  int64_t size;   // bytes per element

  const void* at(int64_t group, int64_t w, int64_t k) const {
    return p + (group * group_stride + (k_is_row ? k * ld + w : w * ld + k)) * size;
  }
};

// A product as the kernels see it. If C has few columns its transpose is computed, with A and B in each other's place,
// as a tile is wider than it is high; the sums are the same.
struct Product {
  const Gemm& g;
  const GemmKernel& kernel;
  bool transposed;
  int64_t m, n, k;
  Operand a, b;

  Product(const Gemm& gemm, const GemmKernel& with) : g(gemm), kernel(with), m(g.spec.m), n(g.spec.n), k(g.spec.k) {
    const Matmul& s = g.spec;
    const auto size = int64_t(size_of(g.input));
    a = {static_cast<const std::byte*>(g.a), s.lda, s.stride_a, s.transpose_a, size};
    b = {static_cast<const std::byte*>(g.b), s.ldb, s.stride_b, !s.transpose_b, size};
    transposed = n <= kernel.nr / 2 && n < m;
    if (transposed) std::swap(a, b), std::swap(m, n);
  }
  void compute_block(int64_t group, int64_t i0, int64_t j0, int64_t rows, int64_t cols) const;
  void compute_thin_block(int64_t group, int64_t j0, int64_t cols) const;
  void finish(float* tile, int ld, int64_t group, int64_t i, int64_t j, int rows, int cols) const;
};

// A tile of sums becomes the [rows, cols] of C at (i, j).
void Product::finish(float* tile, int ld, int64_t group, int64_t i, int64_t j, int rows, int cols) const {
  const Matmul& s = g.spec;
  float turned[32 * 32];
  if (transposed) {
    for (int c = 0; c < cols; ++c)
      for (int r = 0; r < rows; ++r) turned[c * rows + r] = tile[r * ld + c];
    std::swap(i, j), std::swap(rows, cols);
    tile = turned, ld = cols;
  }
  if (g.bias) {
    const int64_t at = group * s.stride_bias + j;
    if (g.input == DType::F32)
      add_bias(tile, static_cast<const float*>(g.bias) + at, ld, rows, cols);
    else
      add_bias(tile, static_cast<const bf16*>(g.bias) + at, ld, rows, cols);
  }
  activate(tile, rows * ld, s.activation);
  const int64_t at = group * s.stride_c + i * s.ldc + j;
  if (g.output == DType::F32)
    write(static_cast<float*>(g.c) + at, s.ldc, tile, ld, rows, cols, s.accumulate);
  else
    write(static_cast<bf16*>(g.c) + at, s.ldc, tile, ld, rows, cols, s.accumulate);
}

// The block of C [rows, cols] at (i0, j0).
void Product::compute_block(int64_t group, int64_t i0, int64_t j0, int64_t rows, int64_t cols) const {
  // Where k is small, writing C is what takes time: the rows of a tall tile, a power of two apart, compete for cache
  // sets (512x4096x8 in tiles of 4 rows: up to 1.9 times as fast as of 14).
  const int nr = kernel.nr, mr = int(std::clamp<int64_t>(k / 4, 4, kernel.mr));
  // Tiles of nearly equal height: 32 rows are 11 + 11 + 10, not 14 + 14 + 4.
  const int64_t height = round_up(ceil_div(rows, ceil_div(rows, mr)), kernel.rows_step);
  const int64_t row_tiles = ceil_div(rows, height), col_tiles = ceil_div(cols, nr);
  const int64_t max_units = round_up(ceil_div(std::min(k, kernel.kc), kernel.per_unit), 16);
  const int64_t panel_a = max_units * kernel.pitch_a, panel_b = max_units * nr, tile_size = height * nr;
  const bool one_pass = k <= kernel.kc;
  // Nothing left to do to a whole tile: it goes into C as it is.
  const bool straight = one_pass && !transposed && g.output == DType::F32 && !g.bias &&
                        g.spec.activation == Activation::None && (!g.spec.accumulate || kernel.adds_whole);
  // Few columns do not repay a copy of A (64x128x512: 1.04 times as fast without, 512x64x576: 1.1). Rows a multiple of
  // 4 KB apart share one set of the first cache, which has not room for all rows of a tile.
  const bool in_place = kernel.reads_rows && !a.k_is_row && cols <= 16 * nr && k >= 32 && k % kernel.per_unit == 0 &&
                        a.ld * a.size % 4096 != 0;
  // All of a small B is packed at once, so that C is written along its rows: up to 1.4 times as fast where k is small.
  const bool by_rows = rows >= 128 && panel_b * col_tiles <= kSmallB;

  static thread_local Scratch scratch_a, scratch_b, scratch_c;
  float* const packed_a = scratch_a.get(in_place ? 0 : row_tiles * panel_a);
  float* const packed_b = scratch_b.get(panel_b * (by_rows ? col_tiles : 1));
  float* const tiles = scratch_c.get(one_pass ? tile_size : row_tiles * col_tiles * tile_size);

  if (kernel.begin) kernel.begin();
  int64_t k0 = 0;
  do {
    const int64_t depth = std::min(k - k0, kernel.kc);
    const int64_t units = round_up(ceil_div(depth, kernel.per_unit), kernel.units_step);
    const bool last = k0 + depth == k;

    const auto pack_a = [&](int64_t t) {
      const int64_t i = t * height;
      // If k is the row, a full vector of a row is read where the matrix goes on that far.
      const int64_t width = a.k_is_row ? std::min<int64_t>(kernel.pitch_a, m - i0 - i) : std::min(height, rows - i);
      kernel.pack_a(packed_a + t * panel_a, a.at(group, i0 + i, k0), a.ld, a.k_is_row, int(width), depth, units);
    };
    const auto pack_b = [&](int64_t q, float* to) {
      const int64_t j = q * nr, width = std::min<int64_t>(nr, cols - j);
      kernel.pack_b(to, b.at(group, j0 + j, k0), b.ld, b.k_is_row, int(width), depth, units);
    };
    const auto compute_tile = [&](int64_t t, int64_t q, const float* panel, const Ahead& ahead) {
      const int64_t i = t * height, j = q * nr, lda = in_place ? a.ld * a.size : 0;
      const void* const rows_a = in_place ? a.at(group, i0 + i, k0) : packed_a + t * panel_a;
      const int h = int(std::min(height, rows - i)), width = int(std::min<int64_t>(nr, cols - j));
      if (straight && width == nr && h % kernel.rows_step == 0) {
        float* c = static_cast<float*>(g.c) + group * g.spec.stride_c + (i0 + i) * g.spec.ldc + j0 + j;
        kernel.run(c, g.spec.ldc, rows_a, lda, panel, units, h, g.spec.accumulate, ahead);
        return;
      }
      float* tile = tiles + (one_pass ? 0 : (q * row_tiles + t) * tile_size);
      kernel.run(tile, nr, rows_a, lda, panel, units, h, k0 > 0, ahead);
      if (last) finish(tile, nr, group, i0 + i, j0 + j, h, width);
    };
    // A tile in the middle of a column fetches nothing.
    const auto* const here = reinterpret_cast<const char*>(packed_b);
    const Ahead nothing{here, here, 0, 0};

    for (int64_t t = 0; t < row_tiles && !in_place; ++t) pack_a(t);
    if (by_rows) {
      for (int64_t q = 0; q < col_tiles; ++q) pack_b(q, packed_b + q * panel_b);
      for (int64_t t = 0; t < row_tiles; ++t)
        for (int64_t q = 0; q < col_tiles; ++q) compute_tile(t, q, packed_b + q * panel_b, nothing);
    } else {
      // The next panel of B is fetched while the last tiles are computed with this one.
      const int64_t b_rows = b.k_is_row ? depth : nr, b_row_bytes = (b.k_is_row ? nr : depth) * b.size;
      const int log2_lines = std::bit_width(uint64_t(std::max<int64_t>(b_row_bytes, 1) - 1) / 64);
      const int64_t rows_per_tile = std::max<int64_t>(units >> log2_lines, 1), stride = b.ld * b.size;
      const int64_t first_ahead = std::max<int64_t>(0, row_tiles - ceil_div(b_rows, rows_per_tile));
      for (int64_t q = 0; q < col_tiles; ++q) {
        pack_b(q, packed_b);
        for (int64_t t = 0; t < row_tiles; ++t) {
          if (t < first_ahead || q + 1 == col_tiles) {
            compute_tile(t, q, packed_b, nothing);
            continue;
          }
          const char* next = static_cast<const char*>(b.at(group, j0 + (q + 1) * nr, k0));
          next += (t - first_ahead) * rows_per_tile * stride;
          const char* also = row_tiles == 1 ? next + rows_per_tile * stride : next;
          compute_tile(t, q, packed_b, {next, also, stride, log2_lines});
        }
      }
    }
    k0 += depth;
  } while (k0 < k);
  if (kernel.end) kernel.end();
}

// All m rows of C, few, in the columns from j0.
void Product::compute_thin_block(int64_t group, int64_t j0, int64_t cols) const {
  const ThinKernel& thin = kernel.thin;
  const int64_t panel_a = round_up(ceil_div(kernel.kc, kernel.per_unit), 16) * 8;
  static thread_local Scratch scratch_a;
  float* const packed_a = scratch_a.get(std::max<int64_t>(1, ceil_div(k, kernel.kc)) * panel_a);
  const auto depth_at = [&](int64_t k0) { return std::min(k - k0, kernel.kc); };
  for (int64_t k0 = 0, pass = 0; k0 < k; k0 += kernel.kc, ++pass) {
    const int64_t units = round_up(ceil_div(depth_at(k0), kernel.per_unit), 8);
    thin.pack_a(packed_a + pass * panel_a, a.at(group, 0, k0), a.ld, a.k_is_row, int(m), depth_at(k0), units);
  }
  alignas(64) float tile[8 * 16];
  for (int64_t j = j0; j < j0 + cols; j += thin.cols) {
    const int width = int(std::min<int64_t>(thin.cols, j0 + cols - j));
    if (k == 0) std::fill_n(tile, m * thin.cols, 0.f);
    for (int64_t k0 = 0, pass = 0; k0 < k; k0 += kernel.kc, ++pass) {
      const int64_t depth = depth_at(k0), ahead = k0 + depth == k ? thin.cols * b.ld - k : 0;
      thin.run(tile, packed_a + pass * panel_a, b.at(group, j, k0), b.ld, depth, int(m), width, k0 > 0, ahead);
    }
    finish(tile, thin.cols, group, 0, j, int(m), width);
  }
}

bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 24, kBf16 = 1u << 22;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTiles | kBf16)) != (kTiles | kBf16)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, per process
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa detect() {
  Isa best = Isa::AVX2;
  if (__builtin_cpu_supports("avx512f")) {
    best = Isa::AVX512;
    if (__builtin_cpu_supports("avx512bf16")) best = has_amx() ? Isa::AMX : Isa::AVX512BF16;
  }
  const char* wanted = std::getenv("T2L_CPU");
  if (!wanted || !*wanted) return best;
  for (int i = 0; i < 4; ++i)
    if (std::string_view(wanted) == kIsaNames[i]) return std::min(best, Isa(i));
  fail("T2L_CPU is \"{}\"; it may be avx2, avx512, avx512_bf16 or amx", wanted);
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* name_of(Isa isa) { return kIsaNames[int(isa)]; }

const GemmKernel& gemm_kernel(Isa isa, DType input) {
  if (input == DType::F32) return isa == Isa::AVX2 ? kAvx2F32 : kAvx512F32;
  switch (isa) {
    case Isa::AVX2: return kAvx2BF16;
    case Isa::AVX512: return kAvx512WidenBF16;
    case Isa::AVX512BF16: return kAvx512BF16;
    default: return kAmxBF16;
  }
}

void gemm(const Gemm& g) { gemm(g, gemm_kernel(isa(), g.input)); }

void gemm(const Gemm& g, const GemmKernel& kernel) {
  const Matmul& s = g.spec;
  T2L_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0 && s.groups >= 0, "gemm: m {} n {} k {} groups {}", s.m, s.n, s.k,
            s.groups);
  if (s.m == 0 || s.n == 0 || s.groups == 0) return;
  T2L_CHECK(g.c && g.a && g.b, "gemm: null operand");
  T2L_CHECK(g.input != DType::I32 && g.output != DType::I32, "gemm: i32");
  T2L_CHECK(s.lda >= (s.transpose_a ? s.m : s.k) && s.ldb >= (s.transpose_b ? s.k : s.n) && s.ldc >= s.n,
            "gemm: m {} n {} k {} lda {} ldb {} ldc {}", s.m, s.n, s.k, s.lda, s.ldb, s.ldc);
  T2L_CHECK(!s.accumulate || (!g.bias && s.activation == Activation::None), "gemm: accumulate with an epilogue");

  // Packing costs about as much as 7 more rows and 7 more columns, so blocks are large, and square where they are
  // small. Threads share no row of C shorter than a page or two: one's prefetching takes lines from the other
  // (256x512x128 by rows: 1.3 times as fast as by columns). Several passes keep their sums in a buffer, so their blocks
  // are narrower.
  const Product product(g, kernel);
  const bool thin = product.m <= kernel.thin.rows && !product.b.k_is_row && s.k <= kThinDepth;
  const int64_t m = product.m, n = product.n, threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  int64_t row_blocks = ceil_div(m, kRows), col_blocks = std::max<int64_t>(1, n / (s.k > kernel.kc ? kCols : 4 * kCols));
  const auto blocks = [&] { return s.groups * row_blocks * col_blocks; };
  while (blocks() < 2 * threads && n / col_blocks >= 2048) col_blocks *= 2;
  for (;;) {
    const int64_t rows = m / row_blocks, cols = n / col_blocks;
    if (blocks() >= threads || (rows <= kernel.mr && cols <= kernel.nr)) break;
    (cols > kernel.nr && rows < 256 && (cols >= rows || rows <= kernel.mr) ? col_blocks : row_blocks) *= 2;
  }
  if (blocks() < 8 * threads && blocks() % threads != 0) col_blocks = round_up(col_blocks, threads);
  const int64_t block_rows = round_up(ceil_div(m, row_blocks), kernel.rows_step);
  const int64_t block_cols = round_up(ceil_div(n, col_blocks), kernel.nr);
  row_blocks = ceil_div(m, block_rows), col_blocks = ceil_div(n, block_cols);

  const int64_t tasks = blocks(), chunk = std::max<int64_t>(1, tasks / (64 * threads));
  const bool parallel = threads > 1 && tasks > 1 && double(m) * double(n) * double(s.k + 16) * double(s.groups) > 1e5;
#pragma omp parallel for schedule(dynamic, chunk) if (parallel)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t i = task % row_blocks * block_rows;
    const int64_t j = task / row_blocks % col_blocks * block_cols;
    if (thin)
      product.compute_thin_block(task / row_blocks / col_blocks, j, std::min(block_cols, n - j));
    else
      product.compute_block(task / row_blocks / col_blocks, i, j, std::min(block_rows, m - i),
                            std::min(block_cols, n - j));
  }
}

}  // namespace t2l::cpu
