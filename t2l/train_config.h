// The options of training: the official ones (TrainingArguments of configs.py) under their names, and ours. One table
// (train_config.cpp) drives all that is done with them: reading from YAML and from the command line, checks, defaults,
// --help, and writing them back beside a checkpoint.
//
//   defaults of the verb  <-  YAML file  <-  --key=value
#pragma once
#include <map>

#include "t2l/yaml.h"

namespace t2l {

// What t2l-train learns: a base model, one task's adapter, one adapter for all tasks, a hypernetwork that reproduces
// given adapters, one trained through the base model, one that reads each sample's own prompt.
enum class Verb : uint8_t { Pretrain, Lora, Multitask, Reconstruct, Sft, Hyperdecoders };
const char* name_of(Verb verb);
Verb parse_verb(const std::string& name);  // UsageError, listing them, for another
inline bool uses_hypernet(Verb v) { return v >= Verb::Reconstruct; }

// A setting of the command line.
struct Setting {
  std::string key, value;
};
// `--key=value`, `--key value` and, for what is true or false, `--key`; `-` in a key is `_`. UsageError for anything
// else, an unknown key, and one that is given twice.
std::vector<Setting> parse_settings(const std::vector<std::string>& arguments);

struct TrainConfig {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  Verb verb = Verb::Sft;

  // ---- the run
  std::string data, out, device, export_official, dump_grads, cache_dir;
  int64_t threads = 0;
  bool resume = false, force = false, dry_run = false, quiet = false, json = false;

  // ---- the base model and what adapts it
  std::string model_dir, base_dtype;  // dtype empty: bf16 where the device is fast in it, else f32
  std::string init_from;              // checkpoint or adapter to start from
  bool per_task = false;              // lora: an adapter for each task, trained side by side
  std::vector<std::string> target_modules = {"q_proj", "v_proj"};
  int64_t lora_r = 8;
  double lora_alpha = 16, lora_dropout = 0.05;
  bool use_rslora = true;

  // ---- the hypernetwork; `variant` sets shared_AB_head and autoreg_gen
  std::string variant, mt_lora_path;
  bool shared_AB_head = false, autoreg_gen = false, learnable_pos_emb = false, learnable_AB_offset = false;
  int64_t hypernet_latent_size = 128, head_in_size = 512;
  double dropout = 0.05;

  // ---- descriptions
  std::string emb_model;   // empty: the base model itself
  std::string embeddings;  // a safetensors file instead of an encoder
  int64_t emb_layer = -1;
  std::string emb_pooling, emb_prefix, emb_suffix;  // empty: as the encoder's own files and the official code say
  bool use_per_task_emb = true, use_one_hot_task_emb = false;
  bool use_inp_as_desc = false, use_per_sample_desc = false, use_default_desc = false;
  int64_t n_descs_per_ds = 0;  // 0: all

  // ---- data
  std::vector<std::string> train_ds_names;  // empty: every task in `data`
  int64_t n_train_ds = 0;                   // only the first; 0: all
  std::string sft_mode = "completion";      // completion: the loss is on responses; causal_lm: on prompts too
  int64_t inp_max_len = 512;
  Json eval_ds_info = Json::object();
  std::vector<std::string> additional_eval_descs;
  std::string data_order;
  bool shuffle = true, use_hierarchical_sampler = false;
  int64_t n_tasks_per_batch = 8, n_points_per_task = 1, batch_size = 8, val_batch_size = 64;

  // ---- reconstruction
  std::string oracle_dir = "train_outputs/sft/oracle_lora";
  int64_t n_embs_per_sampled_task = 0;  // 0: all
  bool pred_z_score = true, factorized = false;
  double delta_w_scaling = 10000;

  // ---- loss and optimiser
  bool equally_weight_sample = true;
  double label_smoothing = 0.1, l2_reg_generated_w = 1e-3, neftune_noise_alpha = 5;
  double lr = 1e-4, weight_decay = 1e-3, max_grad_norm = 1, adam_beta2 = 0.999, warmup_frac = 0.2, min_lr_frac = 0;
  std::string schedule = "linear", compat;
  int64_t grad_accum_steps = 1, epochs = 20, steps = 0;  // steps: optimiser updates, instead of epochs
  int64_t seed = 42;
  bool recompute = false;  // activations of a block, in backward, instead of keeping them

  // ---- pretraining (the small world)
  bool gist_mask = false;  // pretrain's default is true: as the model's config.json says
  double curriculum = 0, p_no_description = 0, p_shots = 0;

  // ---- validation and checkpoints
  int64_t val_freq = 10000, save_freq = kNever, keep_last = 2, patience = 0;  // patience 0: no early stopping
  bool keep_best = true, also_val_on_train = false, skip_eval = false;

  // What was set otherwise than by default, and where: a file's name, or "command line".
  std::map<std::string, std::string> given;
  std::vector<std::string> warnings;  // settings without the effect one might expect

  // From a YAML file, where `file` is not empty. Error, of one line that names file and key, for an unknown key (with
  // the nearest known one), a wrong type or range, and settings that do not go together (with the remedy).
  static TrainConfig load(Verb verb, const std::string& file, const std::vector<Setting>& settings = {});
  static TrainConfig parse(Verb verb, std::string_view yaml, const std::string& where,
                           const std::vector<Setting>& settings = {});

  // Everything that determines the result, as YAML that parse() reads and PyYAML too.
  std::string yaml() const;
  // The first key of yaml() that differs; empty if none does.
  std::string changed_key(const TrainConfig& earlier) const;
  // A line per option, with its default for the verb.
  static std::string help(Verb verb);

 private:
  void read(const Json& values, const std::string& where);
  void finish(const std::string& where);
};

}  // namespace t2l
