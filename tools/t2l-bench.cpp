// Where the time goes.
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "tools/bench.h"

using namespace t2l;

namespace {

int run(int argc, char** argv) {
  CommandLine cli("t2l-bench", "Speed, against the machine's own ceilings and the libraries installed on it.",
                  "t2l-bench gemm [options]");
  cli.add()("filter", boost::program_options::value<std::string>(), "only the rows whose name contains this");
  const std::string what = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
  if (what.empty()) {
    cli.parse(argc, argv);  // --help and --version end here
    throw UsageError("t2l-bench: say what to measure: t2l-bench gemm");
  }
  for (const char* later : {"kernels", "generate", "train", "reconstruct", "load"})
    if (what == later) throw UsageError(fmt::format("t2l-bench {}: is not built yet; there is t2l-bench gemm", what));
  if (what != "gemm") throw UsageError(fmt::format("t2l-bench {}: must be gemm", what));
  argv[1] = argv[0];
  cli.parse(argc - 1, argv + 1);
  return bench_gemm(cli);
}

// OpenBLAS reads these as it is loaded; left in the environment they would have it run kernels of another CPU.
void forget_openblas_settings(char** argv) {
  bool any = false;
  for (const char* name : {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE"})
    if (const char* value = std::getenv(name)) {
      fmt::print(stderr, "{}={} is set; measuring without it\n", name, value);
      unsetenv(name);
      any = true;
    }
  if (any) execv("/proc/self/exe", argv);
}

}  // namespace

int main(int argc, char** argv) {
  forget_openblas_settings(argv);
  return run_program([&] { return run(argc, argv); });
}
