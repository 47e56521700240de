// Where the time goes.
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "tools/bench.h"

using namespace t2l;

namespace {

int run(int argc, char** argv) {
  CommandLine cli("t2l-bench", "Speed, against the machine's own ceilings and the libraries installed on it.",
                  "t2l-bench gemm|kernels [--filter NAME] | t2l-bench generate --model DIR [--variant L|M|S] [--n N]");
  namespace po = boost::program_options;
  cli.add()("filter", po::value<std::string>(), "gemm, kernels: only the rows whose name contains this")(
      "model", po::value<std::string>(), "generate: directory of the base model, of which only config.json is read")(
      "variant", po::value<std::string>(), "generate: L (default), M or S")(
      "n", po::value<int64_t>(), "generate: descriptions in one call (default 128)");
  const std::string what = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
  if (what.empty()) {
    cli.parse(argc, argv);  // --help and --version end here
    throw UsageError("t2l-bench: say what to measure: gemm, kernels or generate");
  }
  for (const char* later : {"train", "reconstruct", "load"})
    if (what == later)
      throw UsageError(fmt::format("t2l-bench {}: is not built yet; there are gemm, kernels and generate", what));
  if (what != "gemm" && what != "kernels" && what != "generate")
    throw UsageError(fmt::format("t2l-bench {}: must be gemm, kernels or generate", what));
  argv[1] = argv[0];
  cli.parse(argc - 1, argv + 1);
  return what == "gemm" ? bench_gemm(cli) : what == "kernels" ? bench_kernels(cli) : bench_generate(cli);
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
