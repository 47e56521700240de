// Where the time goes.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "tools/bench.h"

using namespace t2l;

namespace {

struct Table {
  const char* name;
  int (*measure)(const CommandLine& cli);
};
constexpr Table kTables[] = {
    {"gemm", bench_gemm}, {"kernels", bench_kernels}, {"generate", bench_generate},      {"run", bench_run},
    {"load", bench_load}, {"train", bench_train},     {"reconstruct", bench_reconstruct}};

int run(int argc, char** argv) {
  CommandLine cli("t2l-bench", "Speed, against the machine's own ceilings and the libraries installed on it.",
                  "t2l-bench gemm|kernels [--filter NAME]\n"
                  "       t2l-bench generate --model DIR [--variant L|M|S] [--n N]\n"
                  "       t2l-bench run|load --model DIR [--random]\n"
                  "       t2l-bench train --model DIR [--random] [--lengths 64,128,..] [--response 0.25] [--steps N]\n"
                  "       t2l-bench reconstruct --model DIR [--variant L|M|S] [--dense] [--layers N]");
  namespace po = boost::program_options;
  const auto number = [] { return po::value<int64_t>(); };
  cli.add()("filter", po::value<std::string>(), "gemm, kernels: only the rows whose name contains this")(
      "model", po::value<std::string>(),
      "directory of the base model; generate and --random read only its config.json")(
      "variant", po::value<std::string>(), "generate, train, reconstruct: L (default), M or S")(
      "n", number(), "generate: descriptions in one call (default 128); run: sequences decoded together (default 8)")(
      "random", "run, load, train: random weights instead of the model's own")(
      "lengths", po::value<std::string>(), "train: tokens of each sample (default 64,128,192,256,320,384,448,512)")(
      "response", po::value<double>(), "train: share of each that is an answer (default 0.25)")(
      "steps", number(), "train: steps after the first (default 5)")(
      "recompute", "train: compute activations again in backward instead of keeping them")(
      "prompt-tokens", number(), "run: tokens to prefill (default 512)")(
      "new-tokens", number(), "run: tokens to decode for each sequence (default 32)")(
      "repeat", number(), "run, load, reconstruct: how often (default 7, 5 and 5)")(
      "dense", "reconstruct: compare products B A instead of A and B")(
      "layers", number(), "reconstruct: only the first of the model's layers");
  const std::string what = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
  std::vector<std::string> names;
  for (const Table& t : kTables) names.push_back(t.name);
  const std::string choice = fmt::format("{}", fmt::join(names, ", "));
  if (what.empty()) {
    cli.parse(argc, argv);  // --help and --version end here
    throw UsageError("t2l-bench: say what to measure: one of " + choice);
  }
  const auto table =
      std::find_if(std::begin(kTables), std::end(kTables), [&](const Table& t) { return t.name == what; });
  if (table == std::end(kTables)) throw UsageError(fmt::format("t2l-bench {}: must be one of {}", what, choice));
  argv[1] = argv[0];
  cli.parse(argc - 1, argv + 1);
  return table->measure(cli);
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
