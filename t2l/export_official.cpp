#include "t2l/export_official.h"

#include <algorithm>

#include "t2l/torch_archive.h"

namespace t2l {
namespace {

// The official state dict has all three fixed adapters in every mode, each A and then each B by the modules' names;
// those that a mode does not read are zero.
NamedTensors official_tensors(const Hypernet& net) {
  static constexpr const char* kFixed[] = {"AB_offset", "mean_recon_target", "std_recon_target"};
  const HypernetConfig& c = net.config();
  const Parameters& p = net.parameters();
  std::vector<AdaptedModule> sorted = c.modules;
  std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.name < b.name; });
  NamedTensors tensors;
  for (const char* kind : kFixed)
    for (const bool is_a : {true, false})
      for (const AdaptedModule& m : sorted) {
        const std::string name = fmt::format("{}.{}.{}", kind, is_a ? 'A' : 'B', m.name);
        const Shape shape = is_a ? Shape{c.layers, c.rank, m.in} : Shape{c.layers, m.out, c.rank};
        tensors.emplace_back(name, p.contains(name) ? p.value(name) : Tensor::zeros(shape));
      }
  for (const std::string& name : p.names())
    if (std::none_of(std::begin(kFixed), std::end(kFixed), [&](auto* kind) { return name.starts_with(kind); }))
      tensors.emplace_back(name, p.value(name));
  return tensors;
}

// What the official code takes from args.yaml is what the network is, whatever the config said (init_from decides).
std::string official_args(const TrainedHypernet& t, TrainConfig args, const std::vector<std::string>& tasks) {
  const HypernetConfig& h = t.net.config();
  const bool sft = h.objective == HypernetConfig::Objective::SFT;
  args.shared_AB_head = h.shared_head;
  args.autoreg_gen = h.autoregressive;
  args.learnable_pos_emb = h.learnable_positions;
  args.learnable_AB_offset = h.learnable_offset;
  args.hypernet_latent_size = h.latent;
  args.head_in_size = h.head_in;
  args.delta_w_scaling = h.delta_w_scaling;
  args.factorized = !h.dense;
  // Heads have a bias where there is neither an offset (sft) nor a z-score (recon): the official code has no other key.
  args.pred_z_score = !sft && !h.head_bias;
  if (h.head_bias || !sft)
    args.mt_lora_path.clear();
  else if (args.mt_lora_path.empty())
    args.mt_lora_path = args.init_from;
  if (!t.one_hot) args.emb_model = t.encoder.model;
  args.use_one_hot_task_emb = t.one_hot;
  args.model_dir = t.adapter.base_model;
  args.lora_r = t.adapter.rank, args.lora_alpha = t.adapter.alpha, args.use_rslora = t.adapter.rslora;
  args.train_ds_names = t.one_hot ? t.tasks : tasks;
  args.target_modules.clear();
  for (const AdaptedModule& m : h.modules) args.target_modules.push_back(m.name);
  return args.yaml() + fmt::format(
                           "training_task: {}\nexp_setup: hyper_lora\nuse_hypernet: true\nencoder_type: linear\n"
                           "head_use_bias: false\nrun_name: null\nsave_dir: null\n",
                           sft ? "sft" : "recon");
}

std::vector<std::string> differences(const TrainedHypernet& t, const TrainConfig& c) {
  std::vector<std::string> lines;
  const auto warn = [&](std::string line) { lines.push_back("--export-official: " + line); };
  const EncoderSpec& e = t.encoder;
  if (!t.one_hot) {
    const bool gte = e.model.find("gte") != std::string::npos, sfr = e.model.find("SFR") != std::string::npos;
    const std::string pooling = gte && !sfr ? "cls" : "last_token", name = e.model.empty() ? "its base model" : e.model;
    if (!c.embeddings.empty())
      warn(fmt::format("descriptions were embedded in {}; the official code will embed them with {}", c.embeddings,
                       name));
    else if (!e.model.empty() && !gte && !sfr)
      warn(fmt::format("the official code has no pooling for {}, only for gte and SFR models", name));
    else if (!e.pooling.empty() && e.pooling != pooling)
      warn(fmt::format("emb_pooling is {}; the official code will take {} of {}", e.pooling, pooling, name));
    if (e.layer != -1) warn(fmt::format("emb_layer is {}; the official code will take the last hidden state", e.layer));
    if (e.prefix != task_prefix(e.model))
      warn(fmt::format("emb_prefix is '{}'; the official code will write '{}' before descriptions", printable(e.prefix),
                       printable(task_prefix(e.model))));
    if (!e.suffix.empty())
      warn(fmt::format("emb_suffix is '{}'; the official code will write nothing after descriptions",
                       printable(e.suffix)));
  }
  std::vector<std::string> modules;
  for (const AdaptedModule& m : t.net.config().modules) modules.push_back(m.name);
  if (modules.size() > 1)
    warn(
        fmt::format("the official code numbers modules in the order of a Python set; load it under a PYTHONHASHSEED "
                    "in which that is {}",
                    fmt::join(modules, ", ")));
  return lines;
}

}  // namespace

std::vector<std::string> export_official(const TrainedHypernet& trained, const TrainConfig& config,
                                         const std::vector<std::string>& tasks, const std::string& directory) {
  write_torch_archive(directory + "/hypermod.pt", official_tensors(trained.net));
  write_text_file(directory + "/args.yaml", official_args(trained, config, tasks));
  write_text_file(directory + "/adapter_config.json", adapter_config(trained.adapter).dump(2) + "\n");
  return differences(trained, config);
}

}  // namespace t2l
