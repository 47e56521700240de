// The parts of t2l-bench, one per subcommand; each prints its table, or one JSON document, and returns the exit status.
#pragma once
#include <algorithm>

#include "tools/cli.h"

namespace t2l {

inline double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.size() % 2 ? v[v.size() / 2] : (v[v.size() / 2 - 1] + v[v.size() / 2]) / 2;
}

// Matrix products against OpenBLAS, oneDNN and the peak of fused multiply-adds.
int bench_gemm(const CommandLine& cli);
// A cold t2l-gen process against memory copies and the matrix product.
int bench_generate(const CommandLine& cli);

}  // namespace t2l
