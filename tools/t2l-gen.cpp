// Text to adapter: one sentence that describes a task becomes a LoRA adapter, in one forward pass of a hypernetwork and
// without loading the base model.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "t2l/estimate.h"
#include "t2l/generate.h"
#include "t2l/task_embedding.h"
#include "tools/cli.h"
#include "tools/tasks.h"

using namespace t2l;

namespace {

// What to make adapters of.
struct Tasks {
  std::vector<NamedTask> list;  // description empty where embeddings were given
  bool one = false;             // the adapter goes into OUT itself, not into OUT/<name>
  Tensor embedding;             // f32 [n, dim], normalised
  std::string encoder;          // where the encoder was found, if one was used
};

AdapterFormat adapter_format(const CommandLine& cli) {
  AdapterFormat f;
  if (const std::string format = cli.get("format", "peft"); format == "gguf" || format == "merged")
    throw UsageError(fmt::format("--format {}: is not built yet; use peft", format));
  else if (format != "peft")
    throw UsageError(fmt::format("--format {}: must be peft", format));
  if (cli.has("scale")) {
    const std::string s = cli.get("scale");
    double x = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), x);
    if (s == "rslora")
      f.scale = AdapterFormat::Scale::RsLora;
    else if (s == "plain")
      f.scale = AdapterFormat::Scale::Plain;
    else if (error == std::errc() && end == s.data() + s.size() && std::isfinite(float(x)))
      f.scale = AdapterFormat::Scale::Baked, f.baked = x;
    else
      throw UsageError(fmt::format("--scale {}: must be rslora, plain or a number", s));
  }
  const std::string dtype = cli.get("out-dtype", "f32");
  if (dtype == "f32")
    f.dtype = Stored::F32;
  else if (dtype == "bf16")
    f.dtype = Stored::BF16;
  else if (dtype == "f16")
    f.dtype = Stored::F16;
  else
    throw UsageError(fmt::format("--out-dtype {}: must be f32, bf16 or f16", dtype));
  return f;
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts(1);
  for (char c : list) c == ',' ? void(parts.emplace_back()) : parts.back().push_back(c);
  return parts;
}

constexpr int64_t kEncodedAtOnce = 64;  // descriptions; between them the program can be stopped

Tensor encode(Tasks& tasks, const TrainedHypernet& trained, const CommandLine& cli) {
  EncoderOptions options{cli.dtype, cli.device, {}};
  if (cli.has("pooling")) options.pooling = parse_pooling(cli.get("pooling"));
  const HypernetEncoder encoder(trained, cli.get("encoder"), cli.get("base"), options);
  tasks.encoder = encoder.path();
  const auto n = int64_t(tasks.list.size());
  Tensor all = Tensor::empty({n, trained.net.config().task_dim}, DType::F32, cli.device);
  Progress bar("descriptions", n, cli.quiet);
  for (int64_t begin = 0; begin < n; begin += kEncodedAtOnce) {
    stop_if_interrupted();
    const int64_t end = std::min(n, begin + kEncodedAtOnce);
    std::vector<std::string> texts;
    for (int64_t i = begin; i < end; ++i) texts.push_back(tasks.list[size_t(i)].description);
    all.slice(begin, end).copy_from(encoder.embed(texts));
    bar.update(end);
  }
  return all;
}

// The names of training tasks, given as descriptions.
Tensor one_hot(const Tasks& tasks, const TrainedHypernet& trained) {
  std::vector<std::string> names;
  for (const NamedTask& t : tasks.list) names.push_back(t.description);
  return one_hot_tasks(trained, names);
}

void read_embedding(Tasks& tasks, const std::string& file, const TrainedHypernet& trained) {
  Tensor raw = SafeTensors::open(file).get("embedding");
  if (raw.dtype() == DType::I32) fail("{}: embedding holds integers, floats are needed", file);
  raw = raw.to(DType::F32);
  if (raw.rank() != 2 || raw.dim(0) < 1 || raw.dim(1) != trained.net.config().task_dim)
    fail("{}: embedding is {}, the hypernetwork takes [n, {}]", file, raw.shape().str(), trained.net.config().task_dim);
  for (const float x : raw.host<float>())
    if (!(std::abs(x) < 1e15f)) fail("{}: embedding holds {}, which no encoder gives", file, x);
  for (int64_t i = 0; i < raw.dim(0); ++i) tasks.list.push_back({std::to_string(i), ""});
  tasks.one = raw.dim(0) == 1;
  tasks.embedding = trained.encoder.normalise ? normalise_embedding(raw) : raw;
}

// ---- --info
// -------------------------------------------------------------------------------------------------------------

int info(const TrainedHypernet& t, bool json) {
  const HypernetConfig& c = t.net.config();
  const Parameters& p = t.net.parameters();
  const int64_t total = p.count();
  const auto parts = parameters_by_part(p);
  int64_t adapter = 0;
  for (auto& m : c.modules) adapter += c.layers * c.rank * (m.in + m.out);
  const char* objective = c.objective == HypernetConfig::Objective::SFT ? "sft"
                          : c.dense                                     ? "reconstruct (dense)"
                          : c.z_score                                   ? "reconstruct (z-scored factors)"
                                                                        : "reconstruct (factors)";
  if (json) {
    Json modules = Json::array(), order = Json::array(), by_part = Json::object();
    for (auto& m : c.modules) {
      modules.push_back({{"name", m.name}, {"in", m.in}, {"out", m.out}});
      order.push_back(m.name);
    }
    for (auto& [name, n] : parts) by_part[name] = n;
    Json parameters = by_part;
    parameters["total"] = total;
    fmt::print("{}\n",
               Json{{"path", t.path},
                    {"layout", t.layout},
                    {"variant", c.variant()},
                    {"objective", objective},
                    {"rank_position", c.autoregressive ? (c.learnable_positions ? "learnable" : "rotary") : "none"},
                    {"layers", c.layers},
                    {"rank", c.rank},
                    {"latent", c.latent},
                    {"head_in", c.head_in},
                    {"task_dim", c.task_dim},
                    {"head_bias", c.head_bias},
                    {"offset", c.offset},
                    {"modules", modules},
                    {"module_order", order},
                    {"module_order_from", t.order_from},
                    {"parameters", parameters},
                    {"adapter_parameters", adapter},
                    {"file_bytes", t.file_bytes},
                    {"base_model", t.adapter.base_model},
                    {"encoder", t.one_hot ? "one-hot" : t.encoder.model},
                    {"scaling", t.adapter.scaling()},
                    {"use_rslora", t.adapter.rslora},
                    {"warnings", t.warnings}}
                   .dump(2, ' ', false, Json::error_handler_t::replace));
    return 0;
  }
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<16}{}\n", name, value); };
  row("hypernetwork", fmt::format("{} ({} layout, {:.1f} MB)", t.path, t.layout, double(t.file_bytes) / 1e6));
  row("variant",
      c.variant() +
          (c.autoregressive ? c.learnable_positions ? ", learnable rank positions" : ", rotary rank positions" : ""));
  row("objective", objective + std::string(c.offset ? ", with a fixed adapter added" : ""));
  row("base model", fmt::format("{}, {} layers", printable(t.adapter.base_model), c.layers));
  row("encoder",
      t.one_hot ? fmt::format("one-hot over {} tasks", t.tasks.size())
                : fmt::format("{} ({} dimensions)",
                              t.encoder.model.empty() ? "the base model" : printable(t.encoder.model), c.task_dim));
  row("sizes", fmt::format("latent {}, trunk {}, head input {}, rank {}", c.latent, c.width(), c.head_in, c.rank));
  row("scaling", fmt::format("{:.4g} (alpha {}, {})", t.adapter.scaling(), t.adapter.alpha,
                             t.adapter.rslora ? "rslora" : "plain"));
  std::vector<std::string> order;
  for (auto& m : c.modules) order.push_back(m.name);
  row("module order", fmt::format("{} (from {})", fmt::join(order, ", "), t.order_from));
  fmt::print("\n{:<16}{:>8}{:>8}{:>12}\n", "module", "in", "out", "head rows");
  for (auto& m : c.modules) fmt::print("{:<16}{:>8}{:>8}{:>12}\n", m.name, m.in, m.out, c.head_out(m));
  fmt::print("\n{:<16}{:>14}\n", "part", "parameters");
  for (auto& [name, n] : parts) fmt::print("{:<16}{:>14}\n", name, n);
  fmt::print("{:<16}{:>14}\n{:<16}{:>14}\n", "total", total, "one adapter", adapter);
  return 0;
}

int run(int argc, char** argv) {
  CommandLine cli("t2l-gen", "Turns task descriptions into LoRA adapters.",
                  "t2l-gen --hypernet DIR (--task TEXT | --tasks FILE | --embedding FILE) --out DIR");
  namespace po = boost::program_options;
  const auto text = [] { return po::value<std::string>(); };
  cli.add()("hypernet", text(),
            "directory of the trained hypernetwork: hypernet.safetensors and hypernet.json, or the official "
            "hypermod.pt, args.yaml and adapter_config.json")(
      "task", text(), "one description (for a one-hot hypernetwork: the name of a training task)")(
      "tasks", text(), "many: a line each, or JSON Lines with name and description; - is standard input")(
      "embedding", text(), "safetensors with `embedding` [n, dim], raw encoder output, instead of text")(
      "out", text(), "directory for the adapter, or for one directory per task")(
      "force", "write into a directory that is not empty")(
      "encoder", text(),
      "text encoder, a directory or a name (default: the one the hypernetwork names, looked up in T2L_MODELS and "
      "the Hugging Face cache)")("pooling", text(),
                                 "cls, mean or last_token (default: as the encoder's own files say)")(
      "base", text(), "directory of the base model; its config.json is checked against the hypernetwork")(
      "format", text(), "peft (default)")("scale", text(),
                                          "rslora, plain, or a number that is baked into B (default: as trained)")(
      "out-dtype", text(), "f32 (default), bf16 or f16")(
      "module-order", text(), "the order of the type embedding, such as q_proj,v_proj (default: as in the checkpoint)")(
      "save", text(),
      "also write the hypernetwork in our layout, without pickles and unused tensors, into this directory")(
      "info", "print what the hypernetwork is, and stop");
  cli.parse(argc, argv);
  if (!cli.has("hypernet")) throw UsageError("--hypernet is missing; see t2l-gen --help");
  const AdapterFormat format = adapter_format(cli);
  const int sources = int(cli.has("task")) + int(cli.has("tasks")) + int(cli.has("embedding"));
  const bool generate = !cli.has("info") && (sources > 0 || !cli.has("save"));
  if (generate && sources != 1)
    throw UsageError("give exactly one of --task, --tasks and --embedding; see t2l-gen --help");
  if (generate && !cli.has("out")) throw UsageError("--out is missing; see t2l-gen --help");
  const auto without_effect = [&](const char* with, std::initializer_list<const char*> options) {
    for (const char* option : options)
      if (cli.has(option)) throw UsageError(fmt::format("--{} has no effect {}; leave it out", option, with));
  };
  if (cli.has("info")) without_effect("with --info", {"task", "tasks", "embedding", "out", "save", "encoder"});
  if (!generate) without_effect("without a task", {"out"});
  if (cli.has("embedding")) without_effect("with --embedding", {"encoder", "pooling"});
  if (cli.has("pooling")) try {
      parse_pooling(cli.get("pooling"));
    } catch (const Error& e) {
      throw UsageError(fmt::format("--pooling: {}", e.what()));
    }

  // The descriptions first: what is wrong with them shows before any work.
  Tasks tasks;
  if (cli.has("tasks")) tasks.list = read_tasks(cli.get("tasks"));
  if (cli.has("task")) {
    tasks.list = parse_tasks("task", "--task");
    tasks.list[0].description = cli.get("task");
    if (cli.get("task").find_first_not_of(" \t\r\n\v\f") == std::string::npos)
      throw UsageError("--task: the description is blank");
    if (!valid_utf8(cli.get("task"))) throw UsageError("--task: the description is not UTF-8");
    tasks.one = true;
  }

  Stopwatch watch;
  Json seconds;
  LoadOptions options;
  if (cli.has("module-order")) options.module_order = split(cli.get("module-order"));
  if (cli.has("base")) options.base = cli.get("base");
  TrainedHypernet trained = load_hypernet(cli.get("hypernet"), options);
  for (const std::string& w : trained.warnings) log_line("warning: " + w);
  if (cli.has("info")) {
    trained.verified.get();
    return info(trained, cli.json);
  }
  std::optional<OutputDirectory> saved;
  if (cli.has("save")) {
    saved.emplace(cli.get("save"), cli.has("force"));
    save_hypernet(trained, saved->path());
    if (!generate) {
      trained.verified.get();
      saved->commit();
      return 0;
    }
  }
  OutputDirectory out(cli.get("out"), cli.has("force"));
  if (cli.has("embedding")) read_embedding(tasks, cli.get("embedding"), trained);
  seconds["load"] = watch.lap();
  if (!tasks.embedding) tasks.embedding = trained.one_hot ? one_hot(tasks, trained) : encode(tasks, trained, cli);
  seconds["encode"] = watch.lap();

  trained.net.parameters().move_to(cli.device);
  const auto folder = [&](int64_t i) { return tasks.one ? "" : "/" + tasks.list[size_t(i)].name; };
  const auto directory = [&](int64_t i) {
    const std::string path = out.path() + folder(i);
    std::filesystem::create_directory(path);
    if (const std::string& text_of = tasks.list[size_t(i)].description; !text_of.empty())
      write_text_file(path + "/task_desc.txt", text_of);
    return path;
  };
  Progress bar("adapters", int64_t(tasks.list.size()), cli.quiet);
  const GenerateTimes times =
      generate_adapters(trained, tasks.embedding.to(cli.device), format, directory, [&](int64_t done) {
        bar.update(done);
        stop_if_interrupted();
      });
  const double generated = watch.lap();
  trained.verified.get();  // the weights were what their checksums say, so what was made of them may stay
  if (saved) saved->commit();
  out.commit();
  seconds["hypernet"] = times.hypernet;
  seconds["write"] = times.writing;
  seconds["generate"] = generated;  // hypernet and write, which overlap
  seconds["commit"] = watch.lap();

  const std::string base = cli.get("out");
  if (cli.json) {
    Json adapters = Json::array();
    for (size_t i = 0; i < tasks.list.size(); ++i)
      adapters.push_back({{"name", tasks.list[i].name}, {"path", base + folder(int64_t(i))}});
    fmt::print("{}\n", Json{{"adapters", adapters},
                            {"seconds", seconds},
                            {"hypernet_flops", times.flops},
                            {"hypernet_gflops_per_second", times.flops / times.hypernet / 1e9},
                            {"variant", trained.net.config().variant()},
                            {"encoder", tasks.encoder},
                            {"device", name_of(cli.device)},
                            {"peak_rss_mib", peak_resident_bytes() / (1 << 20)},
                            {"warnings", trained.warnings}}
                           .dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (!cli.quiet) {
    log_line(fmt::format("{} adapter{} in {} ({:.0f} ms hypernetwork)", tasks.list.size(),
                         tasks.list.size() == 1 ? "" : "s", base, times.hypernet * 1e3));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
