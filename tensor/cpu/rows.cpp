// Rows moved about. scatter_rows first sorts the row numbers by destination (a counting sort), so that each row of dx
// is summed by one thread, in order.
#include <cstring>

#include "tensor/alike.h"
#include "tensor/cpu/cpu.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kBlock = 128;  // columns summed at a time, in registers and the first-level cache

// Calls f(row, begin, end) for blocks of columns of all rows, in parallel. Threads part between blocks of columns
// first: those of a long and of a short row cost the same.
template <class F>
void for_column_blocks(int64_t rows, int64_t cols, int64_t cost_per_column, F&& f) {
  const int64_t blocks = (cols + kBlock - 1) / kBlock;
  parallel(rows * blocks, kGrain / (kBlock * cost_per_column), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i / rows * kBlock;
      f(i % rows, column, std::min(column + kBlock, cols));
    }
  });
}

template <class T>
void add_to(float* sum, const T* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sum[j] += float(x[j]);
}

template <class T>
void put_row(T* y, const float* x, float factor, int64_t n, bool accumulate) {
  if (accumulate)
    for (int64_t j = 0; j < n; ++j) y[j] = T(float(y[j]) + x[j] * factor);
  else
    for (int64_t j = 0; j < n; ++j) y[j] = T(x[j] * factor);
}

}  // namespace

void Cpu::gather_rows(Tensor& y, int64_t column, const Tensor& x, const Tensor& ids, bool accumulate) {
  const int64_t n = y.rows(), width = y.cols(), cols = x.cols();
  const int32_t* id = ids.data<int32_t>();
  with_type(y.dtype(), [&]<class T>(T*) {
    parallel(n, kGrain / std::max<int64_t>(cols, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* to = y.data<T>() + i * width + column;
        const T* from = x.data<T>() + id[i] * cols;
        if (accumulate)
          for (int64_t j = 0; j < cols; ++j) to[j] = T(float(to[j]) + float(from[j]));
        else
          std::copy_n(from, cols, to);
      }
    });
  });
}

void Cpu::scatter_rows(Tensor& dx, const Tensor& dy, int64_t column, const Tensor& ids, bool accumulate) {
  const int64_t n = ids.size(), m = dx.rows(), cols = dx.cols(), width = dy.cols();
  const int32_t* id = ids.data<int32_t>();
  // Row r of dx is the sum of the rows order[begin[r]] .. order[begin[r + 1]] of dy.
  std::vector<int64_t> begin(size_t(m + 2)), order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) ++begin[size_t(id[i] + 2)];
  for (size_t r = 2; r < begin.size(); ++r) begin[r] += begin[r - 1];
  for (int64_t i = 0; i < n; ++i) order[size_t(begin[size_t(id[i] + 1)]++)] = i;
  with_type(dx.dtype(), [&]<class T>(T*) {
    for_column_blocks(m, cols, 1 + n / std::max<int64_t>(m, 1), [&](int64_t r, int64_t c0, int64_t c1) {
      const int64_t first = begin[size_t(r)], last = begin[size_t(r + 1)];
      if (accumulate && first == last) return;
      float sum[kBlock] = {};
      for (int64_t k = first; k < last; ++k)
        add_to(sum, dy.data<T>() + order[size_t(k)] * width + column + c0, c1 - c0);
      put_row(dx.data<T>() + r * cols + c0, sum, 1, c1 - c0, accumulate);
    });
  });
}

void Cpu::put_rows(Tensor& y, const Tensor& x, const Tensor& ids) {
  check_put_rows(y, x, ids);
  const int64_t cols = x.cols();
  const int32_t* id = ids.data<int32_t>();
  with_type(y.dtype(), [&]<class T>(T*) {
    parallel(ids.size(), kGrain / std::max<int64_t>(cols, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(x.data<T>() + i * cols, cols, y.data<T>() + id[i] * cols);
    });
  });
}

void Cpu::transpose(Tensor& y, const Tensor& x, bool accumulate) {
  constexpr int64_t kTile = 32;
  const int64_t batch = x.dim(0), m = x.dim(1), n = x.dim(2);
  const int64_t tiles_m = (m + kTile - 1) / kTile, tiles_n = (n + kTile - 1) / kTile;
  with_type(y.dtype(), [&]<class T>(T*) {
    parallel(batch * tiles_m * tiles_n, kGrain / (kTile * kTile), [&](int64_t begin, int64_t end) {
      T tile[kTile][kTile + 1];  // one more: else a column of it would lie in few cache sets
      for (int64_t t = begin; t < end; ++t) {
        const int64_t b = t / (tiles_m * tiles_n), i0 = t / tiles_n % tiles_m * kTile, j0 = t % tiles_n * kTile;
        const int64_t rows = std::min(kTile, m - i0), cols = std::min(kTile, n - j0);
        for (int64_t i = 0; i < rows; ++i) {
          const T* from = x.data<T>() + (b * m + i0 + i) * n + j0;
          for (int64_t j = 0; j < cols; ++j) tile[i][j] = from[j];
        }
        for (int64_t j = 0; j < cols; ++j) {
          T* to = y.data<T>() + (b * n + j0 + j) * m + i0;
          for (int64_t i = 0; i < rows; ++i) put(to[i], float(tile[i][j]), accumulate);
        }
      }
    });
  });
}

void Cpu::segment_mean_forward(Tensor& y, const Tensor& x, const Tensor& offsets) {
  const int64_t samples = y.rows(), cols = y.cols();
  const int32_t* offset = offsets.data<int32_t>();
  with_type(y.dtype(), [&]<class T>(T*) {
    for_column_blocks(samples, cols, 1 + x.rows() / std::max<int64_t>(samples, 1),
                      [&](int64_t s, int64_t c0, int64_t c1) {
                        constexpr int64_t kPart =
                            32;  // rows summed on their own first: rounding then grows with the root of their number
                        float sum[kBlock] = {};
                        for (int64_t i0 = offset[s]; i0 < offset[s + 1]; i0 += kPart) {
                          float part[kBlock] = {};
                          for (int64_t i = i0; i < std::min<int64_t>(i0 + kPart, offset[s + 1]); ++i)
                            add_to(part, x.data<T>() + i * cols + c0, c1 - c0);
                          add_to(sum, part, c1 - c0);
                        }
                        put_row(y.data<T>() + s * cols + c0, sum, 1.f / float(std::max(1, offset[s + 1] - offset[s])),
                                c1 - c0, false);
                      });
  });
}

void Cpu::segment_mean_backward(Tensor& dx, const Tensor& dy, const Tensor& offsets, bool accumulate) {
  const int64_t samples = dy.rows(), cols = dx.cols();
  const int32_t* offset = offsets.data<int32_t>();
  with_type(dx.dtype(), [&]<class T>(T*) {
    parallel(dx.rows(), kGrain / std::max<int64_t>(cols, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = std::upper_bound(offset, offset + samples + 1, i) - offset - 1;
        T* to = dx.data<T>() + i * cols;
        if (s < 0 || s >= samples) {  // a row of no segment
          if (!accumulate) std::fill_n(to, cols, T(0.f));
          continue;
        }
        const float factor = 1.f / float(offset[s + 1] - offset[s]);
        const T* from = dy.data<T>() + s * cols;
        for (int64_t j = 0; j < cols; ++j) put(to[j], float(from[j]) * factor, accumulate);
      }
    });
  });
}

}  // namespace t2l::cpu
