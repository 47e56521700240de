// The parts of t2l-bench, one per subcommand; each prints its table, or one JSON document, and returns the exit status.
#pragma once
#include "tools/cli.h"

namespace t2l {

int bench_gemm(const CommandLine& cli);

}  // namespace t2l
