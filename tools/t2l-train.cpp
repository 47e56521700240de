// Everything that learns: adapters and hypernetworks, by the official options.
#include <omp.h>

#include <algorithm>
#include <filesystem>

#include "t2l/learners.h"
#include "tools/cli.h"

using namespace t2l;

namespace {

// Options that are read, since official configs have them, but do nothing yet: --help does not list them.
constexpr const char* kNotBuilt[] = {"dry_run",           "export_official",
                                     "mt_lora_path",      "learnable_AB_offset",
                                     "use_inp_as_desc",   "use_per_sample_desc",
                                     "val_freq",          "val_batch_size",
                                     "keep_best",         "patience",
                                     "also_val_on_train", "skip_eval"};

std::string help_of(Verb verb) {
  std::string listed;
  for_lines(TrainConfig::help(verb), [&](std::string_view line, int64_t) {
    const auto is_of = [&](const char* key) { return line.starts_with(fmt::format("  {} ", key)); };
    if (std::none_of(std::begin(kNotBuilt), std::end(kNotBuilt), is_of)) listed += std::string(line) + "\n";
  });
  return listed;
}

constexpr const char* kUsage =
    "Trains adapters, hypernetworks and small base models.\n\n"
    "Usage: t2l-train pretrain|lora|multitask|reconstruct|sft --config FILE.yaml --data DIR --out DIR [--key=value ..] "
    "[--resume]\n";

int run(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto given = [&](const char* option) {
    return std::find(arguments.begin(), arguments.end(), option) != arguments.end();
  };
  if (given("--version")) {
    fmt::print("t2l-train {}\n", T2L_VERSION);
    return 0;
  }
  if (arguments.empty() || arguments[0].starts_with("-")) {
    if (!given("--help"))
      throw UsageError("t2l-train: say what to learn: pretrain, lora, multitask, reconstruct or sft");
    fmt::print("{}\nt2l-train VERB --help lists the options of each.\n", kUsage);
    return 0;
  }
  const Verb verb = parse_verb(arguments[0]);
  if (given("--help")) {
    fmt::print("{}\n{}", kUsage, help_of(verb));
    return 0;
  }
  arguments.erase(arguments.begin());
  std::vector<Setting> settings = parse_settings(arguments);
  std::string file;
  std::erase_if(settings, [&](const Setting& s) { return s.key == "config" && (file = s.value, true); });
  const TrainConfig c = TrainConfig::load(verb, file, settings);
  if (c.data.empty() || c.out.empty()) throw UsageError("--data and --out are needed; see t2l-train --help");
  if (c.threads > 0) omp_set_num_threads(int(c.threads));
  const Device device = select_device(c.device);
  const bool bf16_by_default = verb != Verb::Pretrain && is_fast(device, DType::BF16);
  const DType dtype = c.base_dtype == "bf16" || (c.base_dtype.empty() && bf16_by_default) ? DType::BF16 : DType::F32;
  for (const std::string& w : c.warnings) log_line("warning: " + w);
  if (!c.eval_ds_info.empty() && !c.skip_eval)
    log_line("warning: validation is not built yet; the run trains without it, and without early stopping");

  // Everything that can be wrong shows before the directory is made.
  Progress reading("rows read", 1, c.quiet);
  const std::unique_ptr<Learner> learner = make_learner(c, dtype, device, [&](int64_t done, int64_t all) {
    reading.update(done, all);
    stop_if_interrupted();
  });
  const TrainPlan plan = plan_of(c, *learner);
  if (plan.iterations < plan.accumulate)
    fail("nothing to train: {} batches for {} an update", plan.iterations, plan.accumulate);
  namespace fs = std::filesystem;
  if (fs::exists(c.out) && !fs::is_directory(c.out)) fail("{}: is a file; --out is a directory", c.out);
  if (fs::exists(c.out) && !fs::is_empty(c.out) && !c.resume && !c.force)
    fail("{}: is not empty; give another --out, --resume to go on, or --force to begin anew in it", c.out);
  if (!c.resume) fs::remove_all(c.out + "/checkpoints");
  fs::create_directories(c.out);

  Progress bar("steps", plan.iterations, c.quiet);
  Stopwatch watch;
  Json last;
  train(learner->parameters(), plan,
        {.forward = [&](int64_t i) { return learner->forward(i); },
         .progress =
             [&](int64_t i, const Json& row) {
               last = row;
               bar.update(i + 1);
             },
         .check_interrupt = [] { stop_if_interrupted("interrupted; the run is saved, --resume goes on"); },
         .changed =
             [&](const Json& before) {
               const Object o(before, c.out + ": the checkpoint's config");
               const std::string key = c.changed_key(TrainConfig::parse(verb, o.get_string("yaml"), o.where()));
               return !key.empty() || o.get_string("dtype") == name_of(dtype) ? key : "base_dtype";
             }},
        c.out, Json{{"yaml", c.yaml()}, {"dtype", name_of(dtype)}}, c.resume);
  OutputDirectory final_files(c.out, true);
  learner->save(final_files.path());
  final_files.commit();
  if (c.json)
    fmt::print("{}\n", Json{{"out", c.out},
                            {"verb", name_of(verb)},
                            {"iterations", plan.iterations},
                            {"parameters", learner->parameters().count()},
                            {"last", last},
                            {"seconds", watch.lap()},
                            {"dtype", name_of(dtype)},
                            {"device", name_of(device)},
                            {"peak_rss_mib", peak_resident_bytes() / (1 << 20)}}
                           .dump(2));
  if (!c.quiet)
    log_line(fmt::format("{} steps, {} parameters, in {}", plan.iterations, learner->parameters().count(), c.out));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
