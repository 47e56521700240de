// Everything that learns: adapters and hypernetworks, by the official options.
#include <omp.h>

#include <algorithm>
#include <filesystem>

#include "t2l/report.h"
#include "tools/cli.h"
#include "tools/dry_run.h"

using namespace t2l;

namespace {

constexpr const char* kUsage =
    "Trains adapters, hypernetworks and small base models.\n\n"
    "Usage: t2l-train pretrain|lora|multitask|reconstruct|sft|hyperdecoders --config FILE.yaml --data DIR --out DIR "
    "[--key=value ..] "
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
      throw UsageError("t2l-train: say what to learn: pretrain, lora, multitask, reconstruct, sft or hyperdecoders");
    fmt::print("{}\nt2l-train VERB --help lists the options of each.\n", kUsage);
    return 0;
  }
  const Verb verb = parse_verb(arguments[0]);
  if (given("--help")) {
    fmt::print("{}\n{}", kUsage, TrainConfig::help(verb));
    return 0;
  }
  arguments.erase(arguments.begin());
  std::vector<Setting> settings = parse_settings(arguments);
  std::string file;
  std::erase_if(settings, [&](const Setting& s) { return s.key == "config" && (file = s.value, true); });
  const TrainConfig c = TrainConfig::load(verb, file, settings);
  if (c.data.empty() || (c.out.empty() && !c.dry_run))
    throw UsageError("--data and --out are needed; see t2l-train --help");
  if (c.threads > 0) omp_set_num_threads(int(c.threads));
  const Device device = select_device(c.device);
  const bool bf16_by_default = verb != Verb::Pretrain && is_fast(device, DType::BF16);
  const DType dtype = c.base_dtype == "bf16" || (c.base_dtype.empty() && bf16_by_default) ? DType::BF16 : DType::F32;
  for (const std::string& w : c.warnings) log_line("warning: " + w);

  if (!std::filesystem::is_directory(c.data)) fail("--data {}: is no directory; give the folder of tasks", c.data);

  // Everything that can be wrong shows before the directory is made.
  const std::unique_ptr<Learner> learner = [&] {
    Progress reading("rows read", 1, c.quiet);
    return make_learner(c, dtype, device, [&](int64_t done, int64_t all) {
      reading.update(done, all);
      stop_if_interrupted();
    });
  }();
  const TrainPlan plan = plan_of(c, *learner);
  if (plan.iterations < plan.accumulate)
    fail("nothing to train: {} batches for {} an update; lower grad_accum_steps, or train for more epochs",
         plan.iterations, plan.accumulate);
  if (c.dry_run) {
    print_dry_run(c, *learner, learner->parameters(), plan, dtype, device);
    return 0;
  }
  namespace fs = std::filesystem;
  if (fs::exists(c.out) && !fs::is_directory(c.out)) fail("{}: is a file; --out is a directory", c.out);
  if (fs::exists(c.out) && !fs::is_empty(c.out) && !c.resume && !c.force)
    fail("{}: is not empty; give another --out, --resume to go on, or --force to begin anew in it", c.out);
  if (!c.export_official.empty() && fs::exists(c.export_official) && !c.resume && !c.force &&
      (!fs::is_directory(c.export_official) || !fs::is_empty(c.export_official)))
    fail("--export-official {}: is there already; give another, or --force to write into it", c.export_official);
  if (!c.resume) fs::remove_all(c.out + "/checkpoints");
  fs::create_directories(c.out);

  RunMetrics metrics(c.out + "/metrics.jsonl");
  ReportFacts facts{fmt::format("{}: {}", name_of(verb), fs::path(c.out).lexically_normal().string()),
                    {{"of", fmt::format("{} steps", plan.iterations)},
                     {"parameters", fmt::format("{}", learner->parameters().count())},
                     {"base model", fmt::format("{}, {}", c.model_dir, name_of(dtype))},
                     {"device", name_of(device)}},
                    {},
                    c.yaml()};
  for (const auto& [part, n] : parameters_by_part(learner->parameters())) facts.parameters.emplace_back(part, n);
  const auto report = [&] {
    metrics.update();
    write_text_file(c.out + "/report.html", report_html(facts, metrics, learner->similarity()));
  };

  Progress bar("steps", plan.iterations, c.quiet);
  Stopwatch watch;
  Json last;
  int64_t tokens = 0;
  double seconds = 0;
  const TrainResult result =
      train(learner->parameters(), plan,
            {.forward = [&](int64_t i) { return learner->forward(i); },
             .progress =
                 [&](int64_t i, const Json& row) {
                   last = row;
                   tokens += row.value("tokens", int64_t(0));
                   seconds += row["seconds"].get<double>();
                   bar.note(fmt::format("loss {:.4f}{}", row["loss"].get<double>(),
                                        tokens ? fmt::format(", {:.0f} tokens/s", double(tokens) / seconds) : ""));
                   bar.update(i + 1);
                 },
             .validate =
                 [&] {
                   Progress judging("validation batches", 1, c.quiet);
                   return learner->validate([&](int64_t done, int64_t all) {
                     judging.update(done, all);
                     stop_if_interrupted("interrupted; the run is saved, --resume goes on");
                   });
                 },
             .saved = report,
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
  if (!c.export_official.empty()) {
    OutputDirectory official(c.export_official, true);
    for (const std::string& line : learner->save_official(official.path())) log_line("warning: " + line);
    official.commit();
  }
  if (c.json)
    fmt::print("{}\n", Json{{"out", c.out},
                            {"verb", name_of(verb)},
                            {"iterations", plan.iterations},
                            {"parameters", learner->parameters().count()},
                            {"last", last},
                            {"updates", result.updates},
                            {"stopped_early", result.stopped_early},
                            {"best", result.best_updates < 0
                                         ? Json()
                                         : Json{{"updates", result.best_updates}, {"loss", result.best_loss}}},
                            {"seconds", watch.lap()},
                            {"dtype", name_of(dtype)},
                            {"device", name_of(device)},
                            {"peak_rss_mib", peak_resident_bytes() / (1 << 20)}}
                           .dump(2));
  if (!c.quiet && result.stopped_early)
    log_line(fmt::format("stopped after {} updates: {} validations without a lower loss", result.updates, c.patience));
  if (!c.quiet && c.keep_best && result.best_updates >= 0 && result.best_updates != result.updates)
    log_line(fmt::format("of {} updates, kept what there was after {}, with a validation loss of {:.4f}",
                         result.updates, result.best_updates, result.best_loss));
  if (!c.quiet)
    log_line(fmt::format("{} steps, {} parameters, in {}", plan.iterations, learner->parameters().count(), c.out));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
