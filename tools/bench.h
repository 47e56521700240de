// The parts of t2l-bench, one per subcommand; each prints its table, or one JSON document, and returns the exit status.
#pragma once
#include <chrono>
#include <vector>

#include "tools/cli.h"

namespace t2l {

struct BaseModel;
struct HypernetConfig;

// Matrix products against OpenBLAS, oneDNN and the peak of fused multiply-adds.
int bench_gemm(const CommandLine& cli);
// Attention against the matrix product.
int bench_kernels(const CommandLine& cli);
// A cold t2l-gen process against memory copies and the matrix product.
int bench_generate(const CommandLine& cli);

// A decoder's prefill and its steps against the matrix product and the memory.
int bench_run(const CommandLine& cli);
// A cold t2l-run process, until its first token, against reading the model's files.
int bench_load(const CommandLine& cli);

// A training step of supervised fine-tuning.
int bench_train(const CommandLine& cli);
// A training step of reconstruction.
int bench_reconstruct(const CommandLine& cli);

// ---- what they share
// A hypernetwork for q_proj and v_proj of the base model, of variant L, M or S; UsageError for another.
HypernetConfig hypernet_for(const BaseModel& base, const std::string& variant);

double median(std::vector<double> v);  // of an even count, the mean of the two in the middle

template <class F>
double timed(F&& f) {  // seconds
  const auto t = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// FLOP/s of a product [512, 2048] x [2048, 2048] in this type.
double product_rate(DType dtype, Device device);

// Training steps by stage, in seconds; the first step, which touches all memory, is not to be added.
struct StepTimes {
  std::vector<double> forward, backward, update, whole;

  void add(double forward_seconds, double backward_seconds, double update_seconds);
  double seconds() const { return median(whole); }
  // Adds seconds_per_step, fastest_step, stages, threads and memory to a report; `before`: peak_resident_bytes() before
  // the first step.
  void describe(Json& report, double before) const;
  void print_stages(double before) const;
};

struct ChildRun {
  double seconds = 0, peak_bytes = 0;
  Json report;  // what --json printed
};
// Runs the program beside this one; `scratch` is a folder for what it prints. Error if it fails.
ChildRun run_child(const std::string& name, const std::vector<std::string>& arguments, const std::string& scratch);

// A temporary folder, gone with it.
struct BenchFolder {
  std::string path;
  BenchFolder();
  ~BenchFolder();
  BenchFolder(const BenchFolder&) = delete;
};

}  // namespace t2l
