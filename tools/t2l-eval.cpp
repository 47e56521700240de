// How good a base model is at tasks: as it is, with an adapter, or with adapters that a hypernetwork generates.
#include <algorithm>
#include <filesystem>
#include <map>

#include "t2l/answer_score.h"
#include "t2l/evaluate.h"
#include "t2l/generate.h"
#include "tools/cli.h"
#include "transformer/model_lookup.h"

using namespace t2l;

namespace {

constexpr const char* kInterrupted = "interrupted";

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / double(x.size());
}

struct Row {
  const EvalTask* task;
  const TaskScore* score;
  double exact_match, token_accuracy;  // means over descriptions
};

// Means over tasks.
struct Group {
  std::vector<double> exact_match, token_accuracy;
  void add(const Row& row) {
    exact_match.push_back(row.exact_match);
    token_accuracy.push_back(row.token_accuracy);
  }
  Json json() const {
    return {
        {"tasks", exact_match.size()}, {"exact_match", mean(exact_match)}, {"token_accuracy", mean(token_accuracy)}};
  }
};

struct Report {
  std::vector<Row> rows;
  Group all;
  std::map<int, Group> level;      // of the tasks that say theirs
  std::map<bool, Group> revealed;  // if any is

  Report(const std::vector<EvalTask>& tasks, const std::vector<TaskScore>& scores) {
    const bool reveals = std::any_of(tasks.begin(), tasks.end(), [](const EvalTask& t) { return t.revealed; });
    for (size_t i = 0; i < tasks.size(); ++i) {
      const Row& row =
          rows.emplace_back(Row{&tasks[i], &scores[i], mean(scores[i].exact_match), mean(scores[i].token_accuracy)});
      all.add(row);
      if (tasks[i].level) level[tasks[i].level].add(row);
      if (reveals) revealed[tasks[i].revealed].add(row);
    }
  }

  Json json() const {
    Json list = Json::array(), groups = Json::object();
    for (const Row& r : rows) {
      Json& row = list.emplace_back(Json{{"name", r.task->name},
                                         {"examples", r.score->examples},
                                         {"exact_match", r.exact_match},
                                         {"token_accuracy", r.token_accuracy},
                                         {"revealed", r.task->revealed}});
      if (r.task->level) row["level"] = r.task->level;
      if (!r.task->descriptions.empty() && !r.task->own_prompts) row["descriptions"] = r.score->exact_match;
    }
    for (const auto& [number, group] : level) groups["level"][std::to_string(number)] = group.json();
    for (const auto& [is, group] : revealed) groups["revealed"][is ? "true" : "false"] = group.json();
    return {{"tasks", list}, {"mean", all.json()}, {"groups", groups}};
  }

  void print() const {
    size_t width = 32;
    for (const Row& r : rows) width = std::max(width, r.task->name.size());
    const bool several = std::any_of(rows.begin(), rows.end(),
                                     [](const Row& r) { return r.task->variants() > 1 && !r.task->own_prompts; });
    fmt::print("{:<{}}  examples  exact match  token accuracy{}\n", "task", width,
               several ? "  exact match by description" : "");
    for (const Row& r : rows) {
      std::string by;
      for (const double x : r.score->exact_match) by += fmt::format(" {:5.1f}", 100 * x);
      fmt::print("{:<{}}  {:>8}  {:>9.1f} %  {:>12.1f} %{}\n", r.task->name, width, r.score->examples,
                 100 * r.exact_match, 100 * r.token_accuracy, several ? " " + by : "");
    }
    const auto line = [&](const std::string& name, const Group& g) {
      fmt::print("{:<{}}  {:>8}  {:>9.1f} %  {:>12.1f} %\n", fmt::format("{} ({})", name, g.exact_match.size()), width,
                 "", 100 * mean(g.exact_match), 100 * mean(g.token_accuracy));
    };
    fmt::print("\n");
    line("mean of tasks", all);
    for (const auto& [number, group] : level) line(fmt::format("  level {}", number), group);
    for (const auto& [is, group] : revealed) line(is ? "  input reveals the task" : "  input does not", group);
  }
};

int64_t longest(const std::vector<EvalTask>& tasks) {
  size_t most = 0;
  for (const EvalTask& t : tasks)
    for (const auto& questions : t.questions)
      for (const Example& e : questions) most = std::max(most, e.ids.size());
  return int64_t(most);
}

std::vector<std::string> split_names(const std::string& list) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    names.push_back(list.substr(begin, end - begin));
    if (names.back().empty())
      throw UsageError(fmt::format("--tasks {}: names are separated by commas", printable(list)));
    if (std::count(names.begin(), names.end(), names.back()) > 1)
      throw UsageError(fmt::format("--tasks: '{}' occurs twice", printable(names.back())));
    begin = end + 1;
  }
  return names;
}

size_t count_of(const CommandLine& cli, const char* option, int64_t fallback, int64_t least) {
  const int64_t n = cli.get_int(option, fallback);
  if (cli.has(option) && (n < least || n > INT32_MAX))
    throw UsageError(fmt::format("--{} {}: must be {} or more", option, n, least));
  return size_t(n);
}

EvalOptions eval_options(const CommandLine& cli) {
  EvalOptions o;
  o.split = cli.get("split", o.split);
  if (o.split != "train" && o.split != "valid" && o.split != "test")
    throw UsageError(fmt::format("--split {}: must be train, valid or test", printable(o.split)));
  o.examples = count_of(cli, "examples", 0, 1);
  o.shots = count_of(cli, "shots", 0, 0);
  o.description_first = cli.has("with-description");
  const bool reads = o.description_first || cli.has("hypernet");
  const std::string describe = cli.get("describe", "own");
  const bool input = describe == "input";
  if (input && (!cli.has("hypernet") || o.description_first || cli.has("descriptions")))
    throw UsageError("--describe input goes with --hypernet, and neither with --with-description nor --descriptions");
  o.descriptions = count_of(cli, "descriptions", !reads || input ? 0 : cli.has("hypernet") ? 3 : 1, 1);
  o.describe = describe == "other"    ? EvalOptions::Describe::Other
               : describe == "random" ? EvalOptions::Describe::Random
               : input                ? EvalOptions::Describe::Input
                                      : EvalOptions::Describe::Own;
  if (describe != "own" && o.describe == EvalOptions::Describe::Own)
    throw UsageError(fmt::format("--describe {}: must be own, other, random or input", printable(describe)));
  for (const char* option : {"descriptions", "describe"})
    if (cli.has(option) && !reads)
      throw UsageError(fmt::format("--{} goes with --hypernet or --with-description", option));
  o.seed = cli.seed;
  return o;
}

// The better of an answer's scores against its references: `reference` is one, or a list.
double score_of(const Json& row, const std::string& where,
                double (*score_one)(const std::string&, const std::string&)) {
  const Object o(row, where);
  const std::string output = o.get_string("output");
  const Json* reference = o.find("reference");
  const std::vector<std::string> references = reference && reference->is_array()
                                                  ? o.get_strings("reference")
                                                  : std::vector<std::string>{o.get_string("reference")};
  if (references.empty()) fail("{}: 'reference' is an empty list", where);
  double best = 0;
  try {
    for (const std::string& r : references) best = std::max(best, score_one(output, r));
  } catch (const Error& e) {
    fail("{}: {}", where, e.what());
  }
  return best;
}

int score(int argc, char** argv) {
  CommandLine cli("t2l-eval score", "Scores answers made elsewhere.",
                  "t2l-eval score --kind exact|rouge --outputs FILE.jsonl");
  namespace po = boost::program_options;
  cli.add()("kind", po::value<std::string>(), "exact: equal but for form; rouge: ROUGE-L's F-measure, stemmed")(
      "outputs", po::value<std::string>(),
      "JSON Lines with output and reference, a text or a list of which the best counts; - is standard input");
  cli.parse(argc, argv);
  if (!cli.has("kind") || !cli.has("outputs")) throw UsageError("--kind and --outputs are needed; see --help");
  const std::string kind = cli.get("kind"), file = cli.get("outputs");
  if (kind != "exact" && kind != "rouge")
    throw UsageError(fmt::format("--kind {}: is not built yet; there are exact and rouge", printable(kind)));
  const auto score_one = kind == "rouge" ? rouge_l : [](const std::string& output, const std::string& reference) {
    return double(exact_answer(output, reference));
  };
  const std::string text = read_input(file, size_t(1) << 30);
  std::vector<std::pair<std::string_view, int64_t>> lines;
  for_lines(text, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t\r") != line.npos) lines.emplace_back(line, number);
  });
  if (lines.empty()) fail("{}: holds no answer", file);
  std::vector<OrderedJson> rows(lines.size());
  std::vector<double> scores(lines.size());
  each_in_parallel(0, lines.size(), [&](size_t i) {
    const std::string where = fmt::format("{}:{}", file == "-" ? "standard input" : file, lines[i].second);
    rows[i] = parse_ordered_json(lines[i].first, where);
    scores[i] = score_of(parse_json(lines[i].first, where), where, score_one);
    rows[i]["score"] = scores[i];
  });
  if (cli.json) {
    fmt::print("{}\n",
               OrderedJson{{"kind", kind}, {"examples", rows.size()}, {"mean", mean(scores)}, {"rows", rows}}.dump(2));
  } else {
    for (const OrderedJson& row : rows) fmt::print("{}\n", row.dump(-1, ' ', true));
  }
  if (!cli.quiet) log_line(fmt::format("{} answers, {}: {:.2f} %", rows.size(), kind, 100 * mean(scores)));
  return 0;
}

int run(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "score") return score(argc - 1, argv + 1);
  CommandLine cli("t2l-eval", "Measures a base model at tasks: as it is, with adapters, or with generated ones.",
                  "t2l-eval --model DIR [--adapter DIR | --adapters DIR | --hypernet DIR] --data DIR\n"
                  "                [--tasks a,b,c] [--shots N] [--with-description]\n"
                  "       t2l-eval score --kind exact|rouge --outputs FILE.jsonl");
  namespace po = boost::program_options;
  const auto text = [] { return po::value<std::string>(); };
  const auto number = [] { return po::value<int64_t>(); };
  cli.add()("model", text(),
            "the base model: a directory, or a name looked up in T2L_MODELS and the Hugging Face cache")(
      "adapter", text(), "directory of a PEFT LoRA adapter, for all tasks")(
      "adapters", text(), "directory with a PEFT LoRA adapter for each task, DIR/TASK")(
      "hypernet", text(), "directory of a trained hypernetwork: an adapter for each description of each task")(
      "encoder", text(), "text encoder of the hypernetwork, as in t2l-gen")(
      "data", text(), "folder of tasks: NAME/metadata.yaml and NAME/test.jsonl, or Super-NaturalInstructions files")(
      "tasks", text(), "names, separated by commas (default: all)")(
      "split", text(), "train, valid or test (default: test)")("examples", number(),
                                                               "of each task at most, its first (default: all)")(
      "shots", number(), "training rows before each question, as earlier turns")(
      "with-description", "a description before each question, as system message")(
      "descriptions", number(),
      "of each task at most, its first; the score is the mean (default: 3 for a hypernetwork, else 1)")(
      "describe", text(),
      "own, other (another task's), random (shuffled words of all) or input (each question's own prompt, for "
      "Hyperdecoders): what a task is described by (default: own)")("batch-tokens", number(),
                                                                    "tokens through the model at once (default: 2048)");
  cli.parse(argc, argv);
  if (!cli.has("model")) throw UsageError("--model is missing; see t2l-eval --help");
  if (!cli.has("data")) throw UsageError("--data is missing; see t2l-eval --help");
  if (cli.has("adapter") + cli.has("adapters") + cli.has("hypernet") > 1)
    throw UsageError("give at most one of --adapter, --adapters and --hypernet");
  if (cli.has("encoder") && !cli.has("hypernet")) throw UsageError("--encoder goes with --hypernet");
  EvalOptions options = eval_options(cli);
  ScoreOptions score_options;
  score_options.batch_tokens = int64_t(count_of(cli, "batch-tokens", score_options.batch_tokens, 1));
  const std::vector<std::string> given = cli.has("tasks") ? split_names(cli.get("tasks")) : std::vector<std::string>{};

  Stopwatch watch;
  Json seconds;
  const std::string dir = find_model(cli.get("model"), "give its directory with --model");
  std::optional<TrainedHypernet> trained;
  if (cli.has("hypernet")) {
    trained.emplace(load_hypernet(cli.get("hypernet"), {.module_order = {}, .base = dir}));
    for (const std::string& w : trained->warnings) log_line("warning: " + w);
    options.chat_descriptions = trained->encoder.model.empty();  // as in training
    if (trained->one_hot && !options.description_first) {
      for (const char* option : {"descriptions", "describe"})
        if (cli.has(option))
          throw UsageError(fmt::format("--{}: a one-hot hypernetwork reads no descriptions; leave it out", option));
      options.descriptions = 0;
    }
  }

  // What is wrong with the data shows before anything large is read.
  const std::string data = cli.get("data");
  const SampleEncoder encoder = SampleEncoder::load(dir, cli.get("model"), true, INT32_MAX);
  const std::vector<EvalTask> tasks =
      load_eval_tasks(data, given.empty() ? tasks_in(data) : given, encoder, GenerationConfig::load(dir).eos, options);
  seconds["data"] = watch.lap();
  stop_if_interrupted(kInterrupted);
  const Decoder decoder = Decoder::load(
      dir, {cli.base_dtype(dir), cli.device, [](int64_t, int64_t) { stop_if_interrupted(kInterrupted); }});
  seconds["load"] = watch.lap();

  if (const int64_t n = decoder.config().positions, most = longest(tasks); most > n)
    log_line(fmt::format("warning: {} tokens come together, but the model was trained for {}", most, n));

  VariantAdapters adapters;
  if (cli.has("adapter")) adapters = common_adapter(load_adapter(cli.get("adapter")), decoder);
  if (cli.has("adapters")) adapters = adapters_by_task(cli.get("adapters"), tasks, decoder);
  if (trained) {
    std::vector<std::string> texts;
    for (const EvalTask& t : tasks)
      for (size_t v = 0; v < t.variants(); ++v) texts.push_back(trained->one_hot ? t.name : t.descriptions[v]);
    const Tensor embeddings = embed_tasks(*trained, texts, cli.get("encoder"), dir, {DType::F32, cli.device, {}});
    trained->net.parameters().move_to(cli.device);
    adapters = generated_adapters(*trained, embeddings, decoder);
    seconds["encoder"] = watch.lap();
  }

  const int64_t all = tokens_of(tasks);
  int64_t done = 0, adapter_count = 0;
  double making = 0;
  if (adapters.make)
    adapters.make = [&, make = adapters.make](size_t begin, size_t end) {
      stop_if_interrupted(kInterrupted);
      Stopwatch own;
      AdapterBatch batch = make(begin, end);
      backend(cli.device).synchronize();
      making += own.lap();
      adapter_count += batch.count;
      return batch;
    };
  Progress bar("tokens", all, cli.quiet);
  score_options.progress = [&](int64_t tokens) {
    bar.update(done += tokens);
    stop_if_interrupted(kInterrupted);
  };
  watch.lap();
  const std::vector<TaskScore> scores = evaluate(decoder, tasks, adapters, score_options);
  const double scoring = watch.lap() - making;
  if (trained) trained->verified.get();
  if (adapters.make) seconds["adapters"] = making;
  seconds["score"] = scoring;

  const Report report(tasks, scores);
  const double rate = double(all) / std::max(scoring, 1e-9);
  if (cli.json) {
    Json json = report.json();
    json["split"] = options.split;
    json["shots"] = options.shots;
    json["with_description"] = options.description_first;
    json["describe"] = cli.get("describe", "own");
    json["adapters"] = adapter_count;
    json["tokens"] = all;
    json["tokens_per_second"] = rate;
    json["seconds"] = seconds;
    json["dtype"] = name_of(decoder.options().dtype);
    json["device"] = name_of(cli.device);
    json["peak_rss_mib"] = peak_resident_bytes() / (1 << 20);
    fmt::print("{}\n", json.dump(2));
  } else {
    report.print();
  }
  if (!cli.quiet)
    log_line(fmt::format(
        "{} tokens in {:.2f} s, {:.0f} tokens/s{} ({}, {})", all, scoring, rate,
        adapter_count ? fmt::format(", {} adapter{} in {:.2f} s", adapter_count, adapter_count == 1 ? "" : "s", making)
                      : "",
        name_of(decoder.options().dtype), name_of(cli.device)));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
