#include <fcntl.h>
#include <omp.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "t2l/hypernet.h"
#include "tools/bench.h"
#include "transformer/base_model.h"

extern char** environ;

namespace t2l {

namespace fs = std::filesystem;

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.size() % 2 ? v[v.size() / 2] : (v[v.size() / 2 - 1] + v[v.size() / 2]) / 2;
}

HypernetConfig hypernet_for(const BaseModel& base, const std::string& variant) {
  if (variant != "L" && variant != "M" && variant != "S")
    throw UsageError(fmt::format("--variant {}: must be L, M or S", variant));
  HypernetConfig c;
  c.shared_head = variant != "L";
  c.autoregressive = variant == "S";
  c.objective = HypernetConfig::Objective::Reconstruction;  // whose initial adapters are not zero
  c.layers = base.layers;
  c.task_dim = 1024;
  for (const char* m : {"q_proj", "v_proj"}) c.modules.push_back({m, base.linear(m)->in, base.linear(m)->out});
  return c;
}

double product_rate(DType dtype, Device device) {
  const int64_t m = 512, n = 2048;
  const Tensor a = Tensor::full({m, n}, 0.5f, device).to(dtype), b = Tensor::full({n, n}, 0.25f, device).to(dtype);
  Tensor c = Tensor::empty({m, n}, dtype, device);
  const double seconds = timed([&] {
    backend(c).matmul(c, a, b, nullptr, {.m = m, .n = n, .k = n, .transpose_b = true, .lda = n, .ldb = n, .ldc = n});
    backend(c).synchronize();
  });
  return 2 * double(m) * double(n) * double(n) / seconds;
}

void StepTimes::add(double f, double b, double u) {
  forward.push_back(f), backward.push_back(b), update.push_back(u), whole.push_back(f + b + u);
}

void StepTimes::describe(Json& report, double before) const {
  report["seconds_per_step"] = seconds();
  report["fastest_step"] = *std::min_element(whole.begin(), whole.end());
  report["stages"] = {{"forward", median(forward)}, {"backward", median(backward)}, {"update", median(update)}};
  report["threads"] = omp_get_max_threads();
  report["rss_before_first_step_mib"] = before / (1 << 20);
  report["peak_rss_mib"] = peak_resident_bytes() / (1 << 20);
}

void StepTimes::print_stages(double before) const {
  fmt::print("  forward, backward, update {:>8.3f} {:>8.3f} {:>8.3f} s\n", median(forward), median(backward),
             median(update));
  fmt::print("peak memory {:.0f} MiB, {:.0f} MiB of it before the first step\n", peak_resident_bytes() / (1 << 20),
             before / (1 << 20));
}

ChildRun run_child(const std::string& name, const std::vector<std::string>& arguments, const std::string& scratch) {
  const std::string program = fs::read_symlink("/proc/self/exe").parent_path() / name,
                    output = scratch + "/report.json";
  std::vector<std::string> all{program};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (auto& a : all) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ChildRun run;
  int status = 0;
  run.seconds = timed([&] {
    pid_t pid = 0;
    if (posix_spawn(&pid, program.c_str(), &files, nullptr, argv.data(), environ) || waitpid(pid, &status, 0) < 0)
      fail("{}: cannot be run; build it beside t2l-bench", program);
  });
  posix_spawn_file_actions_destroy(&files);
  if (!WIFEXITED(status) || WEXITSTATUS(status)) fail("{}: failed, see its message above", program);
  run.report = read_json(output);
  run.peak_bytes = run.report["peak_rss_mib"].get<double>() * (1 << 20);
  return run;
}

BenchFolder::BenchFolder() {
  path = (fs::temp_directory_path() / "t2l-bench-XXXXXX").string();
  if (!mkdtemp(path.data())) fail("{}: cannot be created; set TMPDIR to a folder with a gigabyte of room", path);
}

BenchFolder::~BenchFolder() {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

}  // namespace t2l
