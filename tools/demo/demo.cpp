// What `make demo` runs: the small world at work, on the weights in tools/demo/weights (ship.py puts them there).
//   description -> embedding -> hypernetwork -> adapter;   input -> base model, with and without it -> two answers
// Neither model reads the description with the input: what the adapted one knows of the task, its adapter holds.
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "nn/parameters.h"
#include "t2l/evaluate.h"
#include "t2l/generate.h"
#include "t2l/yaml.h"
#include "tools/cli.h"
#include "transformer/generation.h"

using namespace t2l;
namespace fs = std::filesystem;

namespace {

constexpr size_t kShown = 3;  // inputs of each task

// ---- the models -----------------------------------------------------------------------------------------------------

struct Generated {
  AdapterBatch adapter;
  double embedding, hypernet;  // seconds
};

class SmallWorld {
 public:
  SmallWorld(const std::string& weights, const CommandLine& cli)
      : base_(weights + "/base"),
        trained_(load_hypernet(weights + "/hypernet", {.module_order = {}, .base = base_})),
        decoder_(Decoder::load(base_, {cli.base_dtype(base_), cli.device, {}})),
        encoder_(trained_, "", base_, {DType::F32, cli.device, {}}),
        samples_(SampleEncoder::load(base_, base_, true, INT32_MAX)),
        tokenizer_(Tokenizer::load(base_)) {
    trained_.verified.get();
    trained_.net.parameters().move_to(cli.device);
    const GenerationConfig defaults = GenerationConfig::load(base_);
    options_.eos = defaults.eos;
    options_.max_new_tokens = 24;
  }

  Generated generate_adapter(const std::string& description) const {
    Stopwatch watch;
    const Tensor embedding = embed({description});
    const double seconds = watch.lap();
    AdapterBatch adapter = generated_adapters(trained_, embedding, decoder_).make(0, 1);
    backend(embedding).synchronize();
    return {std::move(adapter), seconds, watch.lap()};
  }

  // The new tokens of each prompt, greedily; without an adapter the base model's.
  TokenIds answer(const TokenIds& prompts, const AdapterBatch* adapter) const {
    return generate(decoder_, prompts, options_, adapter);
  }

  Tensor embed(const std::vector<std::string>& texts) const { return encoder_.embed(texts); }
  std::string text(const std::vector<int32_t>& ids) const { return tokenizer_.decode(ids, true); }

  std::vector<EvalTask> tasks(const std::string& folder, size_t descriptions) const {
    EvalOptions o;
    o.descriptions = descriptions;
    return load_eval_tasks(folder, tasks_in(folder), samples_, options_.eos, o);
  }

  double exact_match(const std::vector<Example>& questions, const AdapterBatch* adapter) const {
    std::vector<Question> list;
    for (const Example& e : questions) list.push_back({&e, 0});
    const std::vector<AnswerScore> scores = score_answers(decoder_, list, adapter);
    const auto exact = std::count_if(scores.begin(), scores.end(), [](const AnswerScore& s) { return s.exact(); });
    return double(exact) / double(scores.size());
  }

  int64_t base_parameters() {
    int64_t n = 0;
    for (const Decoder::Parameter& p : decoder_.parameters()) n += p.shape.elements();
    return n;
  }
  int64_t hypernet_parameters() const { return trained_.net.parameters().count(); }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  std::string base_;
  TrainedHypernet trained_;
  Decoder decoder_;
  HypernetEncoder encoder_;
  SampleEncoder samples_;
  Tokenizer tokenizer_;
  GenerationOptions options_;
};

std::vector<int32_t> prompt_of(const Example& e) { return {e.ids.begin(), e.ids.begin() + e.prompt}; }
std::vector<int32_t> answer_of(const Example& e) { return {e.ids.begin() + e.prompt, e.ids.end()}; }

// ---- how far a wording is from the world's language -----------------------------------------------------------------

struct Words {
  size_t all = 0;
  std::vector<std::string> unknown;  // no token by themselves: the model knows only their letters, and those hardly

  double share() const { return all ? double(unknown.size()) / double(all) : 0; }
};

// The text's words by the tokenizer's own division; marks are none.
Words words_of(const Tokenizer& tokenizer, const std::string& text) {
  Words words;
  std::string word;
  size_t pieces = 0;
  const auto end = [&] {
    if (pieces) ++words.all;
    if (pieces > 1 || word == "<unk>") words.unknown.push_back(word);
    pieces = 0;
  };
  for (const int32_t id : tokenizer.encode(text, false)) {
    const std::string& token = *tokenizer.token(id);
    if (token.starts_with("##")) {
      word += token.substr(2);
      ++pieces;
      continue;
    }
    end();
    word = token;
    pieces = std::isalnum(static_cast<unsigned char>(token[0])) || token == "<unk>";
  }
  end();
  return words;
}

// Of a text among those that the hypernetwork was trained on. e, known: rows of length sqrt(dim)
struct Nearest {
  double cosine = -1;
  size_t index = 0;
};
Nearest nearest(const Tensor& e, int64_t row, const Tensor& known) {
  const int64_t dim = e.dim(1);
  const float* x = e.data<float>() + row * dim;
  Nearest best;
  for (int64_t i = 0; i < known.dim(0); ++i) {
    double dot = 0;
    for (int64_t k = 0; k < dim; ++k) dot += double(x[k]) * known.data<float>()[i * dim + k];
    if (dot / double(dim) > best.cosine) best = {dot / double(dim), size_t(i)};
  }
  return best;
}

// Two measures, each with its limit: what all but the farthest hundredth of the validation tasks' descriptions keep to,
// which nothing was trained on and which are in the world's language.
struct Wording {
  Words words;
  double cosine = 0, least_cosine = 0, most_unknown = 0;
  std::string closest;
  std::vector<std::string> warnings;
};

Wording judge(const SmallWorld& world, const std::string& weights, const std::string& text) {
  const std::string file = weights + "/descriptions.json";
  const Json json = read_json(file);
  const Object o(json, file);
  const std::vector<std::string> trained = o.get_strings("trained"), held_out = o.get_strings("held_out");
  if (trained.empty() || held_out.empty()) fail("{}: holds no descriptions; make it with tools/demo/ship.py", file);
  const Tensor known = world.embed(trained).to(Device::CPU), others = world.embed(held_out).to(Device::CPU);
  std::vector<double> cosines, shares;
  for (size_t i = 0; i < held_out.size(); ++i) {
    cosines.push_back(nearest(others, int64_t(i), known).cosine);
    shares.push_back(words_of(world.tokenizer(), held_out[i]).share());
  }
  std::sort(cosines.begin(), cosines.end());
  std::sort(shares.rbegin(), shares.rend());

  Wording w;
  w.least_cosine = cosines[cosines.size() / 100];
  w.most_unknown = shares[shares.size() / 100];
  w.words = words_of(world.tokenizer(), text);
  const Nearest best = nearest(world.embed({text}).to(Device::CPU), 0, known);
  w.cosine = best.cosine;
  w.closest = trained[best.index];
  if (w.words.share() > w.most_unknown) {
    std::string list;
    for (const std::string& word : w.words.unknown) list += (list.empty() ? "" : ", ") + printable(word);
    w.warnings.push_back(fmt::format("of {} words the world does not know {}, which fall to pieces: {}", w.words.all,
                                     w.words.unknown.size(), list));
  }
  if (w.cosine < w.least_cosine)
    w.warnings.push_back(
        fmt::format("it is far from all {} descriptions of training tasks: cosine {:.3f} to the closest, where 99 % of "
                    "descriptions of other unseen tasks have {:.3f} or more",
                    trained.size(), w.cosine, w.least_cosine));
  return w;
}

// ---- what is shown --------------------------------------------------------------------------------------------------

enum class Colour : uint8_t { Plain, Bold, Dim, Green, Red, Yellow };

// Padded to `width`, or cut to it.
std::string cell(std::string text, size_t width, Colour colour, bool colours) {
  if (width && text.size() > width) text = text.substr(0, width - 3) + "...";
  text.resize(std::max(width, text.size()), ' ');
  static constexpr const char* kCodes[] = {"", "1", "2", "32", "31", "1;33"};
  if (!colours || colour == Colour::Plain) return text;
  return fmt::format("\x1b[{}m{}\x1b[0m", kCodes[size_t(colour)], text);
}

// What a user wrote may not drive the terminal.
std::string without_controls(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}

struct Row {
  std::string input, right, base, adapted;
  bool base_right = false, adapted_right = false;

  Json json(bool with_right) const {
    Json j{{"input", input}, {"base", base}, {"adapted", adapted}};
    if (with_right) j.update({{"right", right}, {"base_right", base_right}, {"adapted_right", adapted_right}});
    return j;
  }
};

// Inputs and answers side by side; `right`: shares of right answers, of the base model and of the adapted one.
void print_rows(const std::vector<Row>& rows, const std::string& adapted, bool colours,
                const std::optional<std::pair<double, double>>& right, size_t examples) {
  constexpr size_t kAnswer = 26;
  size_t input = kAnswer;
  for (const Row& r : rows) input = std::max(input, r.input.size());
  using Cell = std::pair<std::string, Colour>;
  const auto line = [&](const std::vector<Cell>& cells) {
    std::string text = " ";
    for (size_t i = 0; i < cells.size(); ++i)
      text += " " + cell(cells[i].first, i ? kAnswer : input, cells[i].second, colours);
    fmt::print("{}\n", text.substr(0, text.find_last_not_of(' ') + 1));
  };
  const auto marked = [](const std::string& text, bool is_right) {
    return Cell((is_right ? "+ " : "- ") + text, is_right ? Colour::Green : Colour::Red);
  };
  const Colour dim = Colour::Dim;
  if (!right) {
    line({{"input", dim}, {"base model", dim}, {adapted, dim}});
    for (const Row& r : rows) line({{r.input, Colour::Plain}, {r.base, Colour::Plain}, {r.adapted, Colour::Bold}});
    return;
  }
  line({{"input", dim}, {"right answer", dim}, {"  base model", dim}, {"  " + adapted, dim}});
  for (const Row& r : rows)
    line({{r.input, Colour::Plain},
          {r.right, Colour::Plain},
          marked(r.base, r.base_right),
          marked(r.adapted, r.adapted_right)});
  line({{fmt::format("right of {}", examples), Colour::Plain},
        {"", Colour::Plain},
        {fmt::format("{:5.0f} %", 100 * right->first), Colour::Plain},
        {fmt::format("{:5.0f} %", 100 * right->second), Colour::Plain}});
}

struct Seconds {
  double embedding = 0, hypernet = 0, answering = 0;
  Json json() const { return {{"embedding", embedding}, {"hypernet", hypernet}, {"answering", answering}}; }
  std::string text(size_t answers) const {
    return fmt::format("embedding {:.1f} ms, hypernetwork {:.1f} ms, {} answers {:.1f} ms", 1e3 * embedding,
                       1e3 * hypernet, answers, 1e3 * answering);
  }
};

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / double(x.size());
}

struct Scores {
  std::vector<double> base, adapted;  // of each task

  Json json() const { return {{"tasks", base.size()}, {"base", mean(base)}, {"adapted", mean(adapted)}}; }
  void print(const char* name, bool colours) const {
    if (base.empty()) return;
    fmt::print("  {:<54}{}{}\n", fmt::format("{} ({})", name, base.size()),
               cell(fmt::format("{:8.1f} %", 100 * mean(base)), 0, Colour::Red, colours),
               cell(fmt::format("{:18.1f} %", 100 * mean(adapted)), 0, Colour::Green, colours));
  }
};

class Demo {
 public:
  explicit Demo(const CommandLine& cli)
      : cli_(cli), weights_(cli.get("weights", "tools/demo/weights")), tasks_(weights_ + "/tasks") {
    const char* no_colour = std::getenv("NO_COLOR");
    colours_ = !cli.json && isatty(STDOUT_FILENO) && !(no_colour && *no_colour);
    if (!fs::exists(weights_ + "/base/model.safetensors"))
      fail("{}: has no weights yet; `make reproduce` trains them", weights_);
    Stopwatch watch;
    world_.emplace(weights_, cli);
    out_["seconds"]["load"] = watch.lap();
  }

  int run() {
    cli_.has("task") ? own_task(cli_.get("task")) : shipped_tasks();
    if (cli_.json) fmt::print("{}\n", out_.dump(2, ' ', false, Json::error_handler_t::replace));
    return 0;
  }

 private:
  void introduce() {
    if (cli_.json) return;
    fmt::print(
        "A language model of {} thousand parameters, and a hypernetwork of {} thousand that turns a description into "
        "a\nLoRA adapter for it. The models read the input alone: what to do with it, only the adapter knows.\n",
        world_->base_parameters() / 1000, world_->hypernet_parameters() / 1000);
  }

  // Greedy answers of both models to these questions.
  std::vector<Row> answer(const std::vector<const Example*>& questions, const std::vector<std::string>& inputs,
                          const AdapterBatch& adapter, double& seconds) const {
    TokenIds prompts;
    for (const Example* e : questions) prompts.push_back(prompt_of(*e));
    const TokenIds base = world_->answer(prompts, nullptr);
    Stopwatch watch;
    const TokenIds adapted = world_->answer(prompts, &adapter);
    seconds = watch.lap();
    std::vector<Row> rows;
    for (size_t i = 0; i < questions.size(); ++i) {
      const std::vector<int32_t> right = answer_of(*questions[i]);
      rows.push_back({inputs[i], world_->text(right), world_->text(base[i]), world_->text(adapted[i]), base[i] == right,
                      adapted[i] == right});
    }
    return rows;
  }

  std::vector<std::string> inputs_of(const std::string& name) const {
    std::vector<std::string> inputs;
    for (const Conversation& c : TaskSource::open(tasks_, name, tasks_).read("test")) inputs.push_back(c.user);
    return inputs;
  }

  // One of the shipped tasks, described in one of its ways.
  struct Shown {
    const EvalTask& task;
    std::string kind, description;
    std::vector<Row> rows;
    double base, adapted;  // the share of right answers to all questions
    Seconds seconds;

    size_t examples() const { return task.questions[0].size(); }
    Json json() const {
      Json list = Json::array();
      for (const Row& r : rows) list.push_back(r.json(true));
      return {{"name", task.name}, {"kind", kind},           {"revealed", task.revealed},
              {"rows", list},      {"examples", examples()}, {"description", description},
              {"base", base},      {"adapted", adapted},     {"seconds", seconds.json()}};
    }
    void print(bool colours) const {
      const std::string unseen = kind == "compositions" ? "a composition never trained on"
                                 : kind == "parameters" ? "a parameter's value never trained on"
                                                        : "never trained on";
      const std::string what =
          fmt::format("{}, {}{}", task.name, unseen, task.revealed ? "; its input says what to do" : "");
      fmt::print("\n{}\n  {}\n", cell(description, 0, Colour::Bold, colours), cell(what, 0, Colour::Dim, colours));
      print_rows(rows, "with the adapter", colours, std::pair(base, adapted), examples());
      fmt::print("  {}\n", cell(seconds.text(rows.size()), 0, Colour::Dim, colours));
    }
  };

  Shown show(const EvalTask& task) const {
    const std::vector<Example>& questions = task.questions[0];
    const std::string& description = task.descriptions[cli_.seed % task.descriptions.size()];
    const Generated generated = world_->generate_adapter(description);
    Seconds seconds{generated.embedding, generated.hypernet};
    std::vector<const Example*> first;
    for (size_t i = 0; i < std::min(kShown, questions.size()); ++i) first.push_back(&questions[i]);
    std::vector<Row> rows = answer(first, inputs_of(task.name), generated.adapter, seconds.answering);
    const std::string file = tasks_ + "/" + task.name + "/metadata.yaml";
    const Json metadata = read_yaml(file);
    return {task,
            Object(metadata, file).get_string_or("kind", ""),
            description,
            std::move(rows),
            world_->exact_match(questions, nullptr),
            world_->exact_match(questions, &generated.adapter),
            seconds};
  }

  void shipped_tasks() {
    const auto most = size_t(cli_.get_int("tasks", INT32_MAX));
    const std::vector<EvalTask> tasks = world_->tasks(tasks_, INT32_MAX);
    introduce();
    out_["tasks"] = Json::array();
    Scores all, by_revealed[2];
    for (size_t t = 0; t < std::min(most, tasks.size()); ++t) {
      const Shown shown = show(tasks[t]);
      out_["tasks"].push_back(shown.json());
      if (!cli_.json) shown.print(colours_);
      for (Scores* s : {&all, &by_revealed[tasks[t].revealed]}) {
        s->base.push_back(shown.base);
        s->adapted.push_back(shown.adapted);
      }
    }
    out_["mean"] = all.json();
    out_["revealed"] = {{"false", by_revealed[0].json()}, {"true", by_revealed[1].json()}};
    if (cli_.json) return;
    fmt::print("\n{:<56}{:>10}{:>20}\n", "Mean of right answers", "base model", "with the adapter");
    all.print("all tasks", colours_);
    by_revealed[0].print("the input does not say what to do", colours_);
    by_revealed[1].print("the input says what to do", colours_);
    fmt::print("\nYour own: make demo TASK=\"keep the first two items, and then add one to each number\"\n");
  }

  void own_task(const std::string& text) {
    const Generated generated = world_->generate_adapter(text);
    Seconds seconds{generated.embedding, generated.hypernet};
    const Wording wording = judge(*world_, weights_, text);
    introduce();

    // Inputs of the shipped tasks that look like lists and nothing else, in an order that the seed gives.
    const std::vector<EvalTask> tasks = world_->tasks(tasks_, 0);
    std::vector<std::pair<std::string, const Example*>> pool;
    for (const EvalTask& task : tasks) {
      if (task.revealed) continue;
      const std::vector<std::string> inputs = inputs_of(task.name);
      for (size_t i = 0; i < inputs.size(); ++i) pool.emplace_back(inputs[i], &task.questions[0][i]);
    }
    if (pool.empty()) fail("{}: has no task whose input does not reveal it; make it with tools/demo/ship.py", tasks_);
    const RandomKey key{cli_.seed, stream_of("demo inputs")};
    std::vector<const Example*> questions;
    std::vector<std::string> inputs;
    for (size_t i = 0; i < std::min<size_t>(2 * kShown, pool.size()); ++i) {
      std::swap(pool[i], pool[i + (uint64_t(random_bits(key, i)) * (pool.size() - i) >> 32)]);
      inputs.push_back(pool[i].first);
      questions.push_back(pool[i].second);
    }
    const std::vector<Row> rows = answer(questions, inputs, generated.adapter, seconds.answering);

    out_["description"] = text;
    out_["warnings"] = wording.warnings;
    out_["words"] = {{"all", wording.words.all}, {"unknown", wording.words.unknown}, {"most", wording.most_unknown}};
    out_["nearest"] = {{"cosine", wording.cosine}, {"least", wording.least_cosine}, {"description", wording.closest}};
    out_["seconds"].update(seconds.json());
    out_["rows"] = Json::array();
    for (const Row& r : rows) out_["rows"].push_back(r.json(false));
    if (cli_.json) return;
    fmt::print("\n{}\n", cell(without_controls(text), 0, Colour::Bold, colours_));
    for (const std::string& w : wording.warnings)
      fmt::print("{}\n", cell("warning: " + w, 0, Colour::Yellow, colours_));
    if (!wording.warnings.empty())
      fmt::print("{}\n", cell("warning: so do not take the answers below for this task's; they show only where such "
                              "an adapter leads",
                              0, Colour::Yellow, colours_));
    print_rows(rows, wording.warnings.empty() ? "with the adapter" : "with the adapter, a guess", colours_, {}, 0);
    fmt::print("  {}\n", cell(seconds.text(rows.size()), 0, Colour::Dim, colours_));
    fmt::print("  {}\n",
               cell(fmt::format("closest that was trained on: \"{}\" (cosine {:.3f})", wording.closest, wording.cosine),
                    0, Colour::Dim, colours_));
  }

  const CommandLine& cli_;
  std::string weights_, tasks_;
  bool colours_ = false;
  std::optional<SmallWorld> world_;
  Json out_;
};

int run(int argc, char** argv) {
  CommandLine cli("demo", "Shows Text-to-LoRA at work: tasks never trained on, answered with and without adapters.",
                  "demo [--task TEXT | --tasks N] [--weights DIR]");
  namespace po = boost::program_options;
  cli.add()("task", po::value<std::string>(), "a description of your own")(
      "tasks", po::value<int64_t>(), "of the shipped tasks, how many (default: all)")(
      "weights", po::value<std::string>(), "base, hypernet, tasks (default: tools/demo/weights)");
  cli.parse(argc, argv);
  // The model is so small that a second thread costs more than it gives; on a busy machine a thousandfold.
  if (!cli.has("threads")) omp_set_num_threads(1);
  if (cli.has("task") && cli.has("tasks")) throw UsageError("give at most one of --task and --tasks");
  if (const int64_t n = cli.get_int("tasks", 1); n < 1)
    throw UsageError(fmt::format("--tasks {}: must be 1 or more", n));
  return Demo(cli).run();
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
