#include "t2l/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

#include "t2l/task_embedding.h"
#include "t2l/torch_archive.h"
#include "t2l/yaml.h"
#include "tensor/json.h"
#include "transformer/base_model.h"

namespace t2l {
namespace {

using Objective = HypernetConfig::Objective;

bool exists(const std::string& path) {
  struct stat st {};
  return stat(path.c_str(), &st) == 0;
}

size_t file_bytes(const std::string& path) {
  struct stat st {};
  return stat(path.c_str(), &st) == 0 ? size_t(st.st_size) : 0;
}

// The two kinds of files with weights, alike.
struct Weights {
  std::string path;
  std::vector<std::string> names;
  std::function<Tensor(const std::string&)> get;
  std::function<std::vector<int64_t>(const std::string&)> shape;
  std::set<std::string> known;

  bool has(const std::string& name) const { return known.count(name) > 0; }
  int64_t extent(const std::string& name, size_t axis) const {
    if (!has(name)) fail("{}: has no tensor {}; is it a Text-to-LoRA hypernetwork?", path, name);
    const auto s = shape(name);
    if (s.size() <= axis || s[axis] < 1) fail("{}: tensor {} has an impossible shape", path, name);
    return s[axis];
  }
};

bool all_zero(const Tensor& t) {
  if (t.dtype() == DType::I32) return false;  // refused when it is loaded
  const Tensor f = t.to(DType::F32);
  const auto v = f.host<float>();
  return std::all_of(v.begin(), v.end(), [](float x) { return x == 0; });
}

// q_proj and v_proj from heads.q_proj.weight, heads.v_proj.weight, in the order of the file
std::vector<std::string> head_order(const std::vector<std::string>& names) {
  std::vector<std::string> order;
  for (const std::string& n : names)
    if (n.starts_with("heads.") && n.ends_with(".weight")) order.push_back(n.substr(6, n.size() - 13));
  return order;
}

std::string joined(const std::vector<std::string>& names) {
  return printable(fmt::format("{}", fmt::join(names, ",")));
}

void reorder(std::vector<std::string>& modules, const std::vector<std::string>& wanted) {
  if (!std::is_permutation(modules.begin(), modules.end(), wanted.begin(), wanted.end()))
    fail("--module-order {}: the hypernetwork has the modules {}", joined(wanted), joined(modules));
  modules = wanted;
}

// Do the adapted modules have the base model's shapes?
void check_base(const std::vector<AdaptedModule>& modules, int64_t layers, const BaseModel& base,
                const std::string& from) {
  if (base.layers != layers)
    fail("{}: the hypernetwork was trained for {} layers, {} has {}; give the base model it belongs to", from, layers,
         base.path, base.layers);
  for (const AdaptedModule& m : modules) {
    const BaseModel::Linear linear = *base.linear(m.name);
    if (m.in != linear.in || m.out != linear.out)
      fail("{}: {} was trained as {} x {}, in {} it is {} x {}; give the base model it belongs to", from, m.name, m.out,
           m.in, base.path, linear.out, linear.in);
  }
}

// In and out features of each module: those of the checkpoint's own adapters, else of the base model's config.
std::vector<AdaptedModule> module_shapes(const std::vector<std::string>& names, const Weights& w,
                                         const LoadOptions& options, int64_t layers, int64_t rank) {
  std::optional<BaseModel> base;
  if (!options.base.empty()) base = BaseModel::read(options.base);
  std::vector<AdaptedModule> modules;
  for (const std::string& name : names) {
    module_path(name, 0);  // refuses what has no place in a base model
    const std::string a = "AB_offset.A." + name, b = "AB_offset.B." + name;
    if (w.has(a) && w.has(b)) {
      modules.push_back({name, w.extent(a, 2), w.extent(b, 1)});
      if (w.extent(a, 0) != layers || w.extent(a, 1) != rank)
        fail("{}: tensor {} does not have {} layers and rank {}", w.path, a, layers, rank);
    } else if (base) {
      modules.push_back({name, base->linear(name)->in, base->linear(name)->out});
    } else {
      fail("{}: has no {}, so the shapes of the base model are not known; give its directory with --base", w.path, a);
    }
  }
  if (base) check_base(modules, layers, *base, w.path);
  return modules;
}

void load_parameters(Hypernet& net, const Weights& w) {
  for (const std::string& name : net.parameters().names()) {
    if (!w.has(name))
      fail("{}: has no tensor {}, which this variant needs; do args.yaml and the weights belong together?", w.path,
           name);
    net.parameters().load(name, w.get(name), w.path);
  }
  // What is left must be fixed tensors that this mode does not read.
  for (const std::string& name : w.names)
    if (!net.parameters().contains(name) && !name.starts_with("AB_offset.") &&
        !name.starts_with("mean_recon_target.") && !name.starts_with("std_recon_target."))
      fail("{}: tensor {} is none of this variant's; do args.yaml and the weights belong together?", w.path,
           printable(name));
}

// Common to both layouts, once modules' names are in order.
HypernetConfig complete(HypernetConfig c, const std::vector<std::string>& modules, const Weights& w,
                        const LoadOptions& options) {
  c.layers = w.extent("layer_depth_encoder.0.weight", 0);
  c.task_dim = w.extent("task_encoder.mlp.0.weight", 1);
  c.modules = module_shapes(modules, w, options, c.layers, c.rank);
  c.head_bias = w.has("heads." + modules.at(0) + ".bias");
  return c;
}

TrainedHypernet load_official(const std::string& directory, const LoadOptions& options) {
  // Training keeps checkpoints in checkpoints/it_N/ below the directory with the two configs.
  std::string configs = directory;
  for (int up = 0; up < 2 && !exists(configs + "/args.yaml"); ++up) configs += "/..";
  if (!exists(configs + "/args.yaml"))
    fail("{}: has hypermod.pt but no args.yaml; copy it from the training run", directory);

  const TorchArchive archive = TorchArchive::open(directory + "/hypermod.pt");
  Weights w{archive.path(),
            archive.names(),
            [&](auto& n) { return archive.get(n); },
            [&](auto& n) { return archive.info(n).shape; },
            {archive.names().begin(), archive.names().end()}};
  const std::string args_path = configs + "/args.yaml", adapter_path = configs + "/adapter_config.json";
  const Json args_json = read_yaml(args_path), adapter_json = read_json(adapter_path);
  const Object args(args_json, args_path), peft(adapter_json, adapter_path);

  HypernetConfig c;
  const std::string task = args.get_string("training_task");
  if (task != "sft" && task != "recon")
    fail("{}: training_task '{}' is neither sft nor recon", args_path, printable(task));
  if (args.get_string_or("encoder_type", "linear") != "linear")
    fail("{}: encoder_type '{}' is not supported, only linear", args_path, printable(args.get_string("encoder_type")));
  c.objective = task == "sft" ? Objective::SFT : Objective::Reconstruction;
  c.shared_head = args.get_bool_or("shared_AB_head", false);
  c.autoregressive = args.get_bool_or("autoreg_gen", false);
  c.learnable_positions = args.get_bool_or("learnable_pos_emb", false);
  c.latent = args.get_int_or("hypernet_latent_size", 128, 4, 1 << 16);
  c.head_in = args.get_int_or("head_in_size", 512, 1, 1 << 20);
  c.learnable_offset = args.get_bool_or("learnable_AB_offset", false);
  if (c.objective == Objective::Reconstruction) {
    c.dense = !args.get_bool_or("factorized", false);
    c.z_score = args.get_bool_or("pred_z_score", false);
    c.delta_w_scaling = args.get_float_or("delta_w_scaling", 10000);
    if (!(c.delta_w_scaling > 0)) fail("{}: delta_w_scaling {} is not positive", args_path, c.delta_w_scaling);
  }
  if (peft.get_string("peft_type") != "LORA")
    fail("{}: peft_type '{}' is not supported, only LORA", adapter_path, printable(peft.get_string("peft_type")));
  c.rank = peft.get_int("r", 1, 4096);

  std::vector<std::string> modules = head_order(w.names), warnings;
  if (modules.empty()) fail("{}: has no heads.*.weight; is it a Text-to-LoRA hypernetwork?", w.path);
  std::string order_from = "the key order of heads.* in hypermod.pt";
  if (!options.module_order.empty()) {
    reorder(modules, options.module_order);
    order_from = "--module-order";
  } else if (const Json* listed = peft.find("target_modules"); listed && listed->is_array()) {
    // PEFT keeps them as a set, whose order is another in each process: the weights know the one used in training.
    const auto other = peft.get_strings("target_modules");
    if (std::is_permutation(other.begin(), other.end(), modules.begin(), modules.end()) && other != modules)
      warnings.push_back(
          fmt::format("{} lists the modules as {}, but the weights were trained in the order {}, which is used",
                      adapter_path, joined(other), joined(modules)));
  }
  c = complete(std::move(c), modules, w, options);
  const bool adds_offset = c.objective == Objective::SFT || !c.dense;
  for (const std::string& m : modules)
    for (const std::string ab : {"AB_offset.A.", "AB_offset.B."})
      if (adds_offset && w.has(ab + m) && !c.offset) c.offset = c.learnable_offset || !all_zero(w.get(ab + m));

  TrainedHypernet t{Hypernet(c),        {},       {}, false, {}, directory, "official", order_from,
                    file_bytes(w.path), warnings, {}};
  if (c.dense && c.z_score)
    t.warnings.push_back(args_path + ": pred_z_score has no effect on dense reconstruction, in training neither");
  load_parameters(t.net, w);
  t.adapter = {peft.get_string_or("base_model_name_or_path", args.get_string_or("model_dir", "")),
               c.rank,
               peft.get_float("lora_alpha"),
               peft.get_bool_or("use_rslora", false),
               peft.get_float_or("lora_dropout", 0),
               modules};
  t.one_hot = args.get_bool_or("use_one_hot_task_emb", false);
  if (t.one_hot) {
    t.tasks = args.get_strings("train_ds_names");
    if (int64_t(t.tasks.size()) != c.task_dim)
      fail("{}: {} train_ds_names for {} one-hot tasks", args_path, t.tasks.size(), c.task_dim);
  }
  t.encoder.model = t.one_hot ? "" : args.get_string_or("emb_model", "");
  t.encoder.normalise = !t.one_hot;
  t.encoder.dim = c.task_dim;
  t.encoder.prefix = task_prefix(t.encoder.model);
  if (!t.encoder.prefix.empty()) t.encoder.pooling = "last_token";
  t.verified = std::async(std::launch::async, [archive] { archive.verify(); }).share();
  return t;
}

TrainedHypernet load_ours(const std::string& directory, const LoadOptions& options) {
  const std::string json_path = directory + "/hypernet.json";
  const SafeTensors file = SafeTensors::open(directory + "/hypernet.safetensors");
  Weights w{file.path(),
            file.names(),
            [&](auto& n) { return file.get(n); },
            [&](auto& n) { return file.info(n).shape; },
            {file.names().begin(), file.names().end()}};
  const Json json = read_json(json_path);
  const Object o(json, json_path);
  if (o.get_int("version") != 1)
    fail("{}: version {} is not 1, the only one this program reads", json_path, o.get_int("version"));

  HypernetConfig c;
  const std::string objective = o.get_string("objective");
  if (objective != "sft" && objective != "reconstruct")
    fail("{}: objective '{}' is neither sft nor reconstruct", json_path, printable(objective));
  c.objective = objective == "sft" ? Objective::SFT : Objective::Reconstruction;
  const std::string variant = o.get_string("variant");
  if (variant != "L" && variant != "M" && variant != "S" && variant != "AR")
    fail("{}: variant '{}' is none of L, M, S, AR", json_path, printable(variant));
  c.shared_head = variant == "M" || variant == "S";
  c.autoregressive = variant == "S" || variant == "AR";
  c.learnable_positions = o.get_bool("learnable_pos_emb");
  c.latent = o.get_int("latent", 4, 1 << 16);
  c.head_in = o.get_int("head_in", 1, 1 << 20);
  c.rank = o.get_int("rank", 1, 4096);
  c.offset = o.get_bool("offset");
  c.learnable_offset = o.get_bool("learnable_offset");
  c.z_score = o.get_bool("z_score");
  c.dense = o.get_bool("dense");
  c.delta_w_scaling = o.get_float("delta_w_scaling");
  if (!(c.delta_w_scaling > 0)) fail("{}: delta_w_scaling {} is not positive", json_path, c.delta_w_scaling);

  const Json* list = o.find("modules");
  if (!list || !list->is_array()) fail("{}: modules must be a list", json_path);
  std::vector<AdaptedModule> shapes;
  std::vector<std::string> modules;
  for (const Json& entry : *list) {
    const Object m(entry, json_path + ": modules");
    shapes.push_back({m.get_string("name"), m.get_int("in", 1, 1 << 24), m.get_int("out", 1, 1 << 24)});
    module_path(shapes.back().name, 0);
    modules.push_back(shapes.back().name);
  }
  if (std::set<std::string>(modules.begin(), modules.end()).size() != modules.size() || modules.empty())
    fail("{}: modules must be a list of different modules", json_path);
  std::string order_from = "hypernet.json";
  if (!options.module_order.empty()) {
    reorder(modules, options.module_order);
    order_from = "--module-order";
  }
  c.layers = w.extent("layer_depth_encoder.0.weight", 0);
  if (o.get_int("layers") != c.layers)
    fail("{}: {} layers, but {} has {}", json_path, o.get_int("layers"), w.path, c.layers);
  c.task_dim = w.extent("task_encoder.mlp.0.weight", 1);
  c.head_bias = w.has("heads." + modules[0] + ".bias");
  for (const std::string& name : modules)
    c.modules.push_back(*std::find_if(shapes.begin(), shapes.end(), [&](auto& m) { return m.name == name; }));
  if (!options.base.empty()) check_base(c.modules, c.layers, BaseModel::read(options.base), json_path);

  TrainedHypernet t{Hypernet(c), {}, {}, false, {}, directory, "ours", order_from, file_bytes(w.path), {}, {}};
  load_parameters(t.net, w);
  const Object adapter = o.get_object("adapter");
  t.adapter = {adapter.get_string("base_model"), c.rank, adapter.get_float("alpha"), adapter.get_bool("rslora"),
               adapter.get_float("dropout"),     modules};
  const Object e = o.get_object("encoder");
  t.encoder = {e.get_string_or("model", ""),
               e.get_int("layer"),
               e.get_string_or("pooling", ""),
               e.get_string_or("prefix", ""),
               e.get_string_or("suffix", ""),
               e.get_bool("normalise"),
               e.get_int("dim", 1)};
  t.one_hot = o.get_bool("one_hot");
  if (t.one_hot) t.tasks = o.get_strings("tasks");
  if (t.one_hot && int64_t(t.tasks.size()) != c.task_dim)
    fail("{}: {} tasks for {} one-hot embeddings", json_path, t.tasks.size(), c.task_dim);
  if (t.encoder.dim != c.task_dim)
    fail("{}: encoder.dim {} for a hypernetwork of {}", json_path, t.encoder.dim, c.task_dim);
  std::promise<void> nothing_to_verify;
  nothing_to_verify.set_value();
  t.verified = nothing_to_verify.get_future().share();
  return t;
}

}  // namespace

TrainedHypernet load_hypernet(const std::string& directory, const LoadOptions& options) {
  if (exists(directory + "/hypernet.json")) return load_ours(directory, options);
  if (exists(directory + "/hypermod.pt")) return load_official(directory, options);
  if (!exists(directory)) fail("{}: there is no such directory; give that of a trained hypernetwork", directory);
  fail("{}: has neither hypermod.pt nor hypernet.json; give the directory of a trained hypernetwork", directory);
}

void save_hypernet(const TrainedHypernet& t, const std::string& directory) {
  const HypernetConfig& c = t.net.config();
  Json modules = Json::array();
  for (auto& m : c.modules) modules.push_back({{"name", m.name}, {"in", m.in}, {"out", m.out}});
  Json json{{"version", 1},
            {"objective", c.objective == Objective::SFT ? "sft" : "reconstruct"},
            {"variant", c.variant()},
            {"learnable_pos_emb", c.learnable_positions},
            {"layers", c.layers},
            {"rank", c.rank},
            {"latent", c.latent},
            {"head_in", c.head_in},
            {"modules", modules},
            {"offset", c.offset},
            {"learnable_offset", c.learnable_offset},
            {"z_score", c.z_score},
            {"dense", c.dense},
            {"delta_w_scaling", c.delta_w_scaling},
            {"adapter",
             {{"base_model", t.adapter.base_model},
              {"alpha", t.adapter.alpha},
              {"rslora", t.adapter.rslora},
              {"dropout", t.adapter.dropout}}},
            {"encoder",
             {{"model", t.encoder.model},
              {"layer", t.encoder.layer},
              {"pooling", t.encoder.pooling},
              {"prefix", t.encoder.prefix},
              {"suffix", t.encoder.suffix},
              {"normalise", t.encoder.normalise},
              {"dim", t.encoder.dim}}},
            {"one_hot", t.one_hot}};
  if (t.one_hot) json["tasks"] = t.tasks;
  NamedTensors tensors;
  for (const std::string& name : t.net.parameters().names()) tensors.emplace_back(name, t.net.parameters().value(name));
  write_safetensors(directory + "/hypernet.safetensors", tensors);
  write_text_file(directory + "/hypernet.json", json.dump(2) + "\n");
}

}  // namespace t2l
