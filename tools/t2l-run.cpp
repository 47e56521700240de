// A base model, with or without adapters: generates text, or gives logits, embeddings, token ids and rendered chats.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>

#include "t2l/apply_adapter.h"
#include "t2l/generate.h"
#include "t2l/task_embedding.h"
#include "tools/cli.h"
#include "tools/prompts.h"
#include "transformer/chat_template.h"
#include "transformer/generation.h"
#include "transformer/model_lookup.h"

using namespace t2l;

namespace {

constexpr size_t kMostBytes = size_t(1) << 30;  // of prompts
constexpr const char* kInterrupted = "interrupted";

// JSON Lines, with everything beyond ASCII escaped; bytes that are no UTF-8 become U+FFFD.
std::string line_of(const Json& json) { return json.dump(-1, ' ', true, Json::error_handler_t::replace) + "\n"; }

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

class Program {
 public:
  explicit Program(const CommandLine& cli)
      : cli_(cli), dir_(find_model(cli.get("model"), "give its directory with --model")) {}

  int run() {
    read_prompts();
    if (cli_.has("render")) return render();
    if (cli_.has("tokenize")) return tokenize();
    if (cli_.has("embed")) return embed();
    load();
    return cli_.has("logits") ? logits() : generate_text();
  }

 private:
  void read_prompts() {
    many_ = cli_.has("prompts");
    if (many_) {
      const std::string file = cli_.get("prompts");
      prompts_ = parse_prompts(read_input(file, kMostBytes), file == "-" ? "standard input" : file);
      return;
    }
    Prompt& p = prompts_.emplace_back();
    p.where = cli_.has("prompt") ? "--prompt" : cli_.has("chat") ? "--chat" : "--ids";
    if (cli_.has("prompt")) p.text = cli_.get("prompt");
    if (cli_.has("ids")) p.kind = Prompt::Kind::Ids, p.ids = parse_ids(cli_.get("ids"));
    if (cli_.has("chat")) {
      p.kind = Prompt::Kind::Chat;
      p.messages = OrderedJson::array();
      if (cli_.has("system")) p.messages.push_back({{"role", "system"}, {"content", cli_.get("system")}});
      p.messages.push_back({{"role", "user"}, {"content", cli_.get("chat")}});
    }
    for (const std::string* text : {&p.text})
      if (!valid_utf8(*text)) throw UsageError(fmt::format("{}: is not UTF-8", p.where));
  }

  const Tokenizer& tokenizer() {
    if (!tokenizer_) tokenizer_.emplace(Tokenizer::load(dir_));
    return *tokenizer_;
  }
  bool has_tokenizer() const { return std::filesystem::exists(dir_ + "/tokenizer.json"); }

  std::string rendered(const Prompt& p) {
    if (!template_) template_.emplace(ChatTemplate::load(dir_));
    return template_->render(p.messages, p.add_generation_prompt);
  }

  std::vector<int32_t> ids_of(const Prompt& p) {
    switch (p.kind) {
      case Prompt::Kind::Ids: return p.ids;
      case Prompt::Kind::Text: return tokenizer().encode(p.text, !cli_.has("no-special-tokens"));
      case Prompt::Kind::Chat: return tokenizer().encode(rendered(p), false);  // the template writes them itself
    }
    return {};
  }

  // Calls f for each prompt that is still without error; what f throws becomes its error.
  template <class F>
  void each(F&& f) {
    for (size_t i = 0; i < prompts_.size(); ++i) {
      stop_if_interrupted(kInterrupted);
      if (!prompts_[i].error.empty()) continue;
      try {
        f(i);
      } catch (const Interrupted&) {
        throw;
      } catch (const Error& e) {
        fail_row(i, e.what());
      }
    }
  }
  void fail_row(size_t i, const std::string& what) {
    if (!many_) throw Error(what);
    prompts_[i].error = what;
  }
  // One row of the output of many.
  void print_row(size_t i, const Json& row) {
    print(line_of(prompts_[i].error.empty() ? row : Json{{"error", prompts_[i].error}}));
  }
  int status() const {
    const auto bad = std::count_if(prompts_.begin(), prompts_.end(), [](auto& p) { return !p.error.empty(); });
    if (bad == 0) return 0;
    const auto first = std::find_if(prompts_.begin(), prompts_.end(), [](auto& p) { return !p.error.empty(); });
    fail("{} of {} prompts failed, the first: {}", bad, prompts_.size(), first->error);
  }

  // ---- what needs the tokenizer's files alone
  int render() {
    std::vector<std::string> texts(prompts_.size());
    each([&](size_t i) {
      if (prompts_[i].kind != Prompt::Kind::Chat)
        fail("{}: --render is for chats; give \"messages\" or --chat", prompts_[i].where);
      texts[i] = rendered(prompts_[i]);
    });
    if (!many_) {
      print(cli_.json ? line_of({{"text", texts[0]}}) : texts[0] + "\n");
      return 0;
    }
    for (size_t i = 0; i < texts.size(); ++i) print_row(i, {{"text", texts[i]}});
    return status();
  }

  int tokenize() {
    TokenIds ids(prompts_.size());
    each([&](size_t i) { ids[i] = ids_of(prompts_[i]); });
    if (!many_) {
      print(cli_.json ? line_of({{"ids", ids[0]}}) : fmt::format("{}\n", fmt::join(ids[0], ",")));
      return 0;
    }
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i)
      out += line_of(prompts_[i].error.empty() ? Json{{"ids", ids[i]}} : Json{{"error", prompts_[i].error}});
    print(out);
    return status();
  }

  int embed() {
    const TaskEmbedder embedder = TaskEmbedder::load(dir_, {cli_.base_dtype(dir_), cli_.device, {}});
    std::vector<std::string> texts;
    for (Prompt& p : prompts_) {
      if (!p.error.empty()) throw Error(p.error);
      if (p.kind == Prompt::Kind::Ids) fail("{}: --embed takes text, not ids", p.where);
      texts.push_back(p.kind == Prompt::Kind::Chat ? rendered(p) : p.text);
    }
    write_safetensors(cli_.get("embed"), {{"embedding", embedder.embed_verbatim(texts)}});
    if (cli_.json && !many_) print(line_of({{"path", cli_.get("embed")}, {"shape", {texts.size(), embedder.dim()}}}));
    return 0;
  }

  // ---- what needs the model
  void load() {
    Stopwatch watch;
    Progress bar("loading", 1, cli_.quiet);
    decoder_.emplace(Decoder::load(dir_, {cli_.base_dtype(dir_), cli_.device, [&](int64_t done, int64_t all) {
                                            bar.update(done, all);
                                            stop_if_interrupted(kInterrupted);
                                          }}));
    each([&](size_t i) {
      prompts_[i].ids = ids_of(prompts_[i]);
      pack_ids({prompts_[i].ids}, decoder_->config().vocab,
               decoder_->config().path);  // refuses what the model cannot take
    });
    load_adapters();
    seconds_["load"] = watch.lap();
  }

  const Adapter& adapter(const std::string& path) {
    auto it = adapters_.find(path);
    if (it == adapters_.end()) it = adapters_.emplace(path, load_adapter(path)).first;
    return it->second;
  }

  // A sum of adapters for every prompt, equal ones once.
  void load_adapters() {
    AdapterSum common;
    const std::vector<std::string> paths = cli_.get_all("adapter"), strengths = cli_.get_all("strength");
    const size_t terms = paths.size() + size_t(cli_.has("hypernet"));
    if (!strengths.empty() && strengths.size() != terms)
      throw UsageError(fmt::format("{} --strength for {} adapters; give one for each", strengths.size(), terms));
    const auto strength = [&](size_t i) {
      if (strengths.empty()) return 1.f;
      const std::string& s = strengths[i];
      float x = 0;
      const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), x);
      if (error != std::errc() || end != s.data() + s.size() || !std::isfinite(x))
        throw UsageError(fmt::format("--strength {}: must be a number", printable(s)));
      return x;
    };
    for (size_t i = 0; i < paths.size(); ++i) common.push_back({&adapter(paths[i]), strength(i)});
    if (cli_.has("hypernet")) common.push_back({&generated_adapter(), strength(paths.size())});
    check_fits(common, decoder_->config());

    std::vector<AdapterSum> sums;
    std::map<std::vector<std::pair<const Adapter*, float>>, int32_t> known;
    bool any = false;
    adapter_of_.assign(prompts_.size(), 0);
    each([&](size_t i) {
      AdapterSum sum = common;
      if (prompts_[i].has_adapters) {
        sum.clear();
        for (auto& [path, s] : prompts_[i].adapters) sum.push_back({&adapter(path), s});
        check_fits(sum, decoder_->config());
      }
      std::vector<std::pair<const Adapter*, float>> key;
      for (const AdapterTerm& t : sum) key.emplace_back(t.adapter, t.strength);
      const auto [it, fresh] = known.emplace(key, int32_t(sums.size()));
      if (fresh) sums.push_back(sum);
      any |= !sum.empty();
      adapter_of_[i] = it->second;
    });
    if (any) stacked_ = stack_adapters(sums, decoder_->config(), decoder_->options());
  }

  const Adapter& generated_adapter() {
    TrainedHypernet trained = load_hypernet(cli_.get("hypernet"), {.module_order = {}, .base = dir_});
    for (const std::string& w : trained.warnings) log_line("warning: " + w);
    const Tensor task =
        embed_tasks(trained, {cli_.get("task")}, cli_.get("encoder"), dir_, {DType::F32, cli_.device, {}});
    trained.net.parameters().move_to(cli_.device);
    Adapter& a = adapters_["--hypernet"];
    a = {"the generated adapter", trained.adapter, generate_adapter(trained, task)};
    trained.verified.get();
    return a;
  }

  std::vector<size_t> good() const {
    std::vector<size_t> list;
    for (size_t i = 0; i < prompts_.size(); ++i)
      if (prompts_[i].error.empty()) list.push_back(i);
    return list;
  }

  int logits() {
    const NoGrad no_grad;
    NamedTensors out;
    std::vector<size_t> order = good();
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return adapter_of_[a] < adapter_of_[b]; });
    Progress bar("prompts", int64_t(order.size()), cli_.quiet);
    constexpr size_t kTokens = 2048;  // at once
    for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
      stop_if_interrupted();
      TokenBatch batch;
      size_t tokens = 0;
      for (; end < order.size() && (end == begin || tokens + prompts_[order[end]].ids.size() <= kTokens); ++end) {
        batch.ids.push_back(prompts_[order[end]].ids);
        batch.adapters.push_back(adapter_of_[order[end]]);
        tokens += prompts_[order[end]].ids.size();
      }
      const Tensor all = decoder_->logits(decoder_->hidden(batch, stacked_ ? &*stacked_ : nullptr).value);
      int64_t row = 0;
      for (size_t i = begin; i < end; ++i) {
        const auto n = int64_t(prompts_[order[i]].ids.size());
        out.emplace_back(many_ ? fmt::format("logits_{}", order[i]) : "logits", all.slice(row, row + n));
        row += n;
      }
      bar.update(int64_t(end));
    }
    write_safetensors(cli_.get("logits"), out);
    if (cli_.json && !many_)
      print(line_of({{"path", cli_.get("logits")}, {"shape", {prompts_[0].ids.size(), decoder_->config().vocab}}}));
    return status();
  }

  GenerationOptions generation_options() const {
    const GenerationConfig defaults = GenerationConfig::load(dir_);
    GenerationOptions o;
    o.max_new_tokens = cli_.get_int("max-new-tokens", o.max_new_tokens);
    o.temperature = float(cli_.get_number("temperature", double(defaults.temperature)));
    o.top_p = float(cli_.get_number("top-p", double(defaults.top_p)));
    o.top_k = cli_.get_int("top-k", defaults.top_k);
    o.seed = cli_.seed;
    if (!cli_.has("ignore-eos")) o.eos = defaults.eos;
    if (!cli_.quiet)
      for (const std::string& w : defaults.warnings) log_line("warning: " + w);
    return o;
  }

  int generate_text() {
    const GenerationOptions options = generation_options();
    const std::vector<size_t> list = good();
    TokenIds prompts;
    std::vector<int32_t> adapter_of;
    size_t longest = 0;
    for (const size_t i : list) {
      prompts.push_back(prompts_[i].ids);
      adapter_of.push_back(adapter_of_[i]);
      longest = std::max(longest, prompts_[i].ids.size());
    }
    if (const int64_t n = decoder_->config().positions; !cli_.quiet && int64_t(longest) + options.max_new_tokens > n)
      log_line(fmt::format("warning: {} tokens may come together, but the model was trained for {}",
                           int64_t(longest) + options.max_new_tokens, n));

    std::vector<Json> rows(prompts_.size());
    TokenIds new_ids(list.size());
    Progress bar("sequences", int64_t(list.size()), cli_.quiet || !many_);
    std::optional<StreamDecoder> stream;
    if (!many_ && !cli_.json && has_tokenizer()) stream.emplace(tokenizer());
    size_t printed = 0;
    int64_t done = 0;
    const auto print_ready = [&] {  // in the order of the prompts
      for (; many_ && printed < rows.size(); ++printed) {
        if (rows[printed].is_null() && prompts_[printed].error.empty()) return;
        print_row(printed, rows[printed]);
      }
    };
    print_ready();
    GenerationTimes times;
    generate(
        *decoder_, prompts, options, stacked_ ? &*stacked_ : nullptr, adapter_of,
        [&](size_t i, int32_t id, bool last) {
          stop_if_interrupted(kInterrupted);
          new_ids[i].push_back(id);
          if (stream) print(stream->feed(id));
          if (!last) return;
          Json row{{"ids", new_ids[i]}};
          if (has_tokenizer()) row["text"] = tokenizer().decode(new_ids[i], true);
          rows[list[i]] = std::move(row);
          bar.update(++done);
          print_ready();
        },
        &times);
    print_ready();
    seconds_["prefill"] = times.prefill;
    seconds_["decode"] = times.decode;
    const double rate = times.decode > 0 ? double(times.new_tokens - int64_t(list.size())) / times.decode : 0;
    if (!many_) {
      if (stream) print(stream->finish() + "\n");
      if (cli_.json) {
        Json& report = rows[0];
        report["prompt_tokens"] = times.prompt_tokens;
        report["seconds"] = seconds_;
        report["tokens_per_second"] = rate;
        report["dtype"] = name_of(decoder_->options().dtype);
        report["device"] = name_of(cli_.device);
        report["peak_rss_mib"] = peak_resident_bytes() / (1 << 20);
        print(report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
      } else if (!stream) {
        print(fmt::format("{}\n", fmt::join(new_ids[0], ",")));
      }
    }
    if (!cli_.quiet)
      log_line(fmt::format("{} prompt tokens in {:.2f} s, {} new ones at {:.1f} tokens/s ({}, {})", times.prompt_tokens,
                           times.prefill, times.new_tokens, rate, name_of(decoder_->options().dtype),
                           name_of(cli_.device)));
    return status();
  }

  const CommandLine& cli_;
  std::string dir_;
  bool many_ = false;
  std::vector<Prompt> prompts_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> template_;
  std::optional<Decoder> decoder_;
  std::map<std::string, Adapter> adapters_;
  std::optional<AdapterBatch> stacked_;
  std::vector<int32_t> adapter_of_;  // by prompt
  Json seconds_;
};

void check_usage(const CommandLine& cli) {
  const auto given = [&](std::initializer_list<const char*> options) {
    return std::count_if(options.begin(), options.end(), [&](const char* o) { return cli.has(o); });
  };
  if (!cli.has("model")) throw UsageError("--model is missing; see t2l-run --help");
  if (given({"prompt", "chat", "ids", "prompts"}) != 1)
    throw UsageError("give exactly one of --prompt, --chat, --ids and --prompts; see t2l-run --help");
  if (given({"tokenize", "render", "embed", "logits"}) > 1)
    throw UsageError("give at most one of --tokenize, --render, --embed and --logits");
  if (cli.has("hypernet") != cli.has("task")) throw UsageError("--hypernet and --task go together; give both");
  if (cli.has("system") && !cli.has("chat")) throw UsageError("--system goes with --chat");
  if (cli.has("encoder") && !cli.has("hypernet")) throw UsageError("--encoder goes with --hypernet");
  if (cli.has("strength") && !cli.has("adapter") && !cli.has("hypernet"))
    throw UsageError("--strength goes with --adapter or --hypernet");
  if (given({"tokenize", "render", "embed"}))
    for (const char* o : {"adapter", "hypernet"})
      if (cli.has(o)) throw UsageError(fmt::format("--{} has no effect here; leave it out", o));
  if (const int64_t n = cli.get_int("max-new-tokens", 1); n < 1 || n > (1 << 24))
    throw UsageError(fmt::format("--max-new-tokens {}: must be from 1 to {}", n, 1 << 24));
  if (const double t = cli.get_number("temperature", 0); !(t >= 0 && t <= 1e6))
    throw UsageError(fmt::format("--temperature {}: must be 0 (greedy) or more", t));
  if (const double p = cli.get_number("top-p", 1); !(p > 0 && p <= 1))
    throw UsageError(fmt::format("--top-p {}: must be above 0 and at most 1", p));
  if (const int64_t k = cli.get_int("top-k", 0); k < 0 || k > INT32_MAX)
    throw UsageError(fmt::format("--top-k {}: must be 0 (no limit) or more", k));
}

int run(int argc, char** argv) {
  CommandLine cli("t2l-run", "Runs a base model, with or without adapters.",
                  "t2l-run --model DIR [--adapter DIR .. [--strength X ..]] [--hypernet DIR --task TEXT]\n"
                  "               (--prompt TEXT | --chat TEXT | --ids 1,2,3 | --prompts FILE)");
  namespace po = boost::program_options;
  const auto text = [] { return po::value<std::string>(); };
  const auto texts = [] { return po::value<std::vector<std::string>>(); };
  cli.add()("model", text(),
            "the base model: a directory, or a name looked up in T2L_MODELS and the Hugging Face cache")(
      "adapter", texts(), "directory of a PEFT LoRA adapter; several add up")(
      "strength", texts(), "multiplies an adapter; once for each (default 1)")(
      "hypernet", text(), "directory of a trained hypernetwork that makes an adapter of --task")(
      "task", text(), "the task's description")("encoder", text(), "text encoder of the hypernetwork, as in t2l-gen")(
      "prompt", text(), "text to continue")("chat", text(), "a user's message, put into the model's chat template")(
      "system", text(), "a system message before it")("ids", text(), "token ids to continue")(
      "prompts", text(),
      "many at once: JSON Lines with text, ids or messages, each optionally with adapter and strength; - is standard "
      "input")("max-new-tokens", po::value<int64_t>(), "tokens to generate at most (default 256)")(
      "temperature", po::value<double>(), "0 is greedy (default: generation_config.json, else greedy)")(
      "top-p", po::value<double>(), "sample from the most likely tokens of this mass (default: likewise, else 1)")(
      "top-k", po::value<int64_t>(), "sample from this many most likely tokens, 0 for all (default: likewise, else 0)")(
      "ignore-eos", "go on behind tokens that end a text")(
      "logits", text(), "write safetensors `logits` [tokens, vocab] (logits_0, .. of --prompts) and stop")(
      "embed", text(),
      "write safetensors `embedding` [n, dim] of the text, by an encoder or of the last token, and stop")(
      "tokenize", "print token ids and stop")("render", "print the chat prompt and stop")(
      "no-special-tokens", "text without the special tokens that the tokenizer adds");
  cli.parse(argc, argv);
  check_usage(cli);
  return Program(cli).run();
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
