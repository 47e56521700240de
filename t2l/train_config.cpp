#include "t2l/train_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <variant>

#include "transformer/base_model.h"

namespace t2l {
namespace {

using Bool = bool TrainConfig::*;
using Int = int64_t TrainConfig::*;
using Float = double TrainConfig::*;
using Text = std::string TrainConfig::*;
using List = std::vector<std::string> TrainConfig::*;
using Dict = Json TrainConfig::*;
struct Unused {};  // official, without effect here: any value will do

struct Option {
  const char* name;
  std::variant<Unused, Bool, Int, Float, Text, List, Dict> member;
  const char* help;
  double least = 0, most = INFINITY;  // of numbers
  std::vector<const char*> choices = {};
  bool result = true;     // determines the result, and so must not change on --resume
  bool nullable = false;  // null stands for "not set"

  template <class M>
  Option(const char* n, M m, const char* h) : name(n), member(m), help(h) {}
  Option within(double low, double high) const {
    return with([&](Option& o) { o.least = low, o.most = high; });
  }
  Option at_least(double low) const { return within(low, INFINITY); }
  Option one_of(std::vector<const char*> words) const {
    return with([&](Option& o) { o.choices = words; });
  }
  Option run() const {
    return with([](Option& o) { o.result = false; });
  }
  Option or_null() const {
    return with([](Option& o) { o.nullable = true; });
  }

 private:
  template <class F>
  Option with(F&& change) const {
    Option o = *this;
    change(o);
    return o;
  }
};

using C = TrainConfig;
const std::vector<Option>& options() {
  static const std::vector<Option> all = {
      // ---- the run
      Option("data", &C::data, "folder of tasks"),
      Option("out", &C::out, "folder of the results").run(),
      Option("resume", &C::resume, "continue the run in `out`").run(),
      Option("force", &C::force, "write into a folder that is not empty").run(),
      Option("dry_run", &C::dry_run, "say what would be done, and stop").run(),
      Option("export_official", &C::export_official, "also write the official checkpoint there").run(),
      Option("dump_grads", &C::dump_grads, "gradients of the first update, before clipping, to that file").run(),
      Option("cache_dir", &C::cache_dir, "where embeddings are kept; default ~/.cache/t2l").run(),
      Option("device", &C::device, "cpu or cuda[:N]").run(),
      Option("threads", &C::threads, "CPU threads; 0: all").within(0, 4096).run(),
      Option("quiet", &C::quiet, "no progress").run(),
      Option("json", &C::json, "the result as JSON on stdout").run(),
      Option("config", Unused{}, "the YAML file with these options").run(),
      // ---- the base model and what adapts it
      Option("model_dir", &C::model_dir, "base model: folder, or name in T2L_MODELS or the Hugging Face cache"),
      Option("base_dtype", &C::base_dtype, "arithmetic of the base model").one_of({"f32", "bf16"}).or_null(),
      Option("dtype", &C::base_dtype, "the same as base_dtype").one_of({"f32", "bf16"}).run().or_null(),
      Option("init_from", &C::init_from, "checkpoint or adapter to start from").or_null(),
      Option("per_task", &C::per_task, "lora: an adapter for each task, side by side, in OUT/TASK"),
      Option("target_modules", &C::target_modules, "linear layers that get an adapter").or_null(),
      Option("lora_r", &C::lora_r, "rank of the adapters").within(1, 4096),
      Option("lora_alpha", &C::lora_alpha, "scale: alpha / sqrt(r), or alpha / r without use_rslora"),
      Option("use_rslora", &C::use_rslora, "divide alpha by sqrt(r)"),
      Option("lora_dropout", &C::lora_dropout, "of the adapters' input").within(0, 0.999),
      // ---- the hypernetwork
      Option("variant", &C::variant, "instead of shared_AB_head and autoreg_gen").one_of({"L", "M", "S"}).or_null(),
      Option("shared_AB_head", &C::shared_AB_head, "one head for A and B"),
      Option("autoreg_gen", &C::autoreg_gen, "one rank at a time"),
      Option("learnable_pos_emb", &C::learnable_pos_emb, "of the ranks; else rotary"),
      Option("learnable_AB_offset", &C::learnable_AB_offset, "learn the adapter that is added to all"),
      Option("mt_lora_path", &C::mt_lora_path, "adapter that is added to all").or_null(),
      Option("hypernet_latent_size", &C::hypernet_latent_size, "width of the trunk").within(4, 1 << 20),
      Option("head_in_size", &C::head_in_size, "input width of the heads").within(1, 1 << 20),
      Option("dropout", &C::dropout, "in the hypernetwork").within(0, 0.999),
      Option("encoder_type", Unused{}, "linear is the only one").one_of({"linear"}),
      Option("head_use_bias", Unused{}, "the objective decides, as in the official code"),
      // ---- descriptions
      Option("emb_model", &C::emb_model, "text encoder; empty: the base model; or a file as for `embeddings`")
          .or_null(),
      Option("embeddings", &C::embeddings, "safetensors: per task [descriptions, dim] of raw encoder output").or_null(),
      Option("emb_layer", &C::emb_layer, "hidden state of a base model as encoder; -1: the last").within(-1e6, 1e6),
      Option("emb_pooling", &C::emb_pooling, "of the encoder").one_of({"cls", "mean", "last_token"}).or_null(),
      Option("emb_prefix", &C::emb_prefix, "before a description").or_null(),
      Option("emb_suffix", &C::emb_suffix, "after a description").or_null(),
      Option("use_per_task_emb", &C::use_per_task_emb, "embed the tasks' descriptions"),
      Option("use_one_hot_task_emb", &C::use_one_hot_task_emb, "the task's number instead of a description"),
      Option("use_inp_as_desc", &C::use_inp_as_desc, "each sample's prompt is its description"),
      Option("use_per_sample_desc", &C::use_per_sample_desc, "each row's field `context` is its description"),
      Option("use_default_desc", &C::use_default_desc,
             "the first paragraph of each sample's prompt is its description"),
      Option("n_descs_per_ds", &C::n_descs_per_ds, "only a task's first descriptions").within(1, 1 << 30).or_null(),
      // ---- data
      Option("train_ds_names", &C::train_ds_names, "tasks; default: all in `data`").or_null(),
      Option("n_train_ds", &C::n_train_ds, "only the first of them").within(1, 1 << 30).or_null(),
      Option("sft_mode", &C::sft_mode, "loss on responses, or on everything").one_of({"completion", "causal_lm"}),
      Option("inp_max_len", &C::inp_max_len, "tokens of a sample; more are cut off on the left").within(8, 1 << 20),
      Option("eval_ds_info", &C::eval_ds_info, "tasks to validate on, with descriptions").or_null(),
      Option("additional_eval_descs", &C::additional_eval_descs, "descriptions for every validation task").or_null(),
      Option("data_order", &C::data_order, "JSONL: the batches of an earlier run").or_null(),
      Option("shuffle", &C::shuffle, "else in the order of the data"),
      Option("use_hierarchical_sampler", &C::use_hierarchical_sampler, "draw tasks, then samples of them"),
      Option("n_tasks_per_batch", &C::n_tasks_per_batch, "tasks of a batch").within(1, 1 << 24),
      Option("n_points_per_task", &C::n_points_per_task, "samples of each").within(1, 1 << 24),
      Option("batch_size", &C::batch_size, "samples of a batch, without the hierarchical sampler").within(1, 1 << 24),
      Option("val_batch_size", &C::val_batch_size, "in validation").within(1, 1 << 24),
      // ---- reconstruction
      Option("oracle_dir", &C::oracle_dir, "a PEFT folder for each task"),
      Option("n_embs_per_sampled_task", &C::n_embs_per_sampled_task, "descriptions of a task in a batch; default: all")
          .within(1, 1 << 24)
          .or_null(),
      Option("pred_z_score", &C::pred_z_score, "predict (weight - mean) / deviation"),
      Option("factorized", &C::factorized, "compare A and B; else their product"),
      Option("delta_w_scaling", &C::delta_w_scaling, "of the product").within(1e-6, 1e12),
      // ---- loss and optimiser
      Option("training_task", Unused{}, "as the verb says").one_of({"sft", "recon"}),
      Option("exp_setup", Unused{}, "as the verb says"),
      Option("equally_weight_sample", &C::equally_weight_sample, "mean over samples of their means; else over tokens"),
      Option("label_smoothing", &C::label_smoothing, "of the cross-entropy").within(0, 0.999),
      Option("l2_reg_generated_w", &C::l2_reg_generated_w, "on generated weights"),
      Option("neftune_noise_alpha", &C::neftune_noise_alpha, "noise on the embedded tokens"),
      Option("lr", &C::lr, "learning rate").within(0, 1e6),
      Option("weight_decay", &C::weight_decay, "of AdamW").within(0, 1e6),
      Option("max_grad_norm", &C::max_grad_norm, "gradients are scaled down to it").at_least(1e-12),
      Option("adam_beta2", &C::adam_beta2, "of AdamW").within(0, 0.9999999),
      Option("warmup_frac", &C::warmup_frac, "of the updates, with rising learning rate").within(0, 1),
      Option("min_lr_frac", &C::min_lr_frac, "where the cosine ends").within(0, 1),
      Option("schedule", &C::schedule, "of the learning rate").one_of({"linear", "cosine"}),
      Option("compat", &C::compat, "official: with the faults of the official loop").one_of({"official"}).or_null(),
      Option("grad_accum_steps", &C::grad_accum_steps, "micro-batches of an update").within(1, 1 << 24),
      Option("epochs", &C::epochs, "through the data").within(1, 1e15),
      Option("steps", &C::steps, "updates, instead of epochs").within(1, 1e15).or_null(),
      Option("seed", &C::seed, "of all random numbers"),
      Option("recompute", &C::recompute, "activations in backward; less memory"),
      // ---- pretraining
      Option("gist_mask", &C::gist_mask, "the rule of the model's gist_token_id; false: drop it"),
      Option("curriculum", &C::curriculum, "part of the updates that keeps to simple tasks").within(0, 1),
      Option("p_no_description", &C::p_no_description, "prompts without description").within(0, 1),
      Option("p_shots", &C::p_shots, "prompts with examples").within(0, 1),
      // ---- validation and checkpoints
      Option("val_freq", &C::val_freq, "updates between validations").at_least(1),
      Option("also_val_on_train", &C::also_val_on_train, "validate on training data too"),
      Option("skip_eval", &C::skip_eval, "no validation"),
      Option("patience", &C::patience, "validations without a lower loss before the run stops; 0: none")
          .within(0, 1e15),
      Option("save_freq", &C::save_freq, "updates between checkpoints").at_least(1).run(),
      Option("keep_last", &C::keep_last, "checkpoints").within(1, 1e15).run(),
      Option("keep_best", &C::keep_best, "and the one of the lowest validation loss").run(),
      Option("keep_only_best", Unused{}, "keep_last and keep_best say it"),
      // ---- of the official scripts' bookkeeping
      Option("logging_freq", Unused{}, "every step is logged"),
      Option("model_watch_freq", Unused{}, "of wandb"),
      Option("debug", Unused{}, "of the log"),
      Option("notes", Unused{}, "of wandb"),
      Option("save_to_base_model_dir", Unused{}, "of the evaluation"),
      Option("run_name", Unused{}, "of an args.yaml"),
      Option("save_dir", Unused{}, "of an args.yaml"),
      Option("use_hypernet", Unused{}, "of an args.yaml"),
  };
  return all;
}

template <class M>
bool is(const Option& o) {
  return std::holds_alternative<M>(o.member);
}

// Levenshtein's distance.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

const Option* find_option(std::string_view name) {
  for (const Option& o : options())
    if (name == o.name) return &o;
  return nullptr;
}

std::string unknown(const std::string& key) {
  const std::string_view start = std::string_view(key).substr(0, 64);
  const auto nearest = std::min_element(options().begin(), options().end(), [&](const Option& a, const Option& b) {
    return distance(start, a.name) < distance(start, b.name);
  });
  return fmt::format("unknown key '{}'; did you mean '{}'?", printable(key), nearest->name);
}

std::string number(double x) {
  return std::abs(x) < 1e15 && x == std::floor(x) ? fmt::format("{:.0f}", x) : fmt::format("{}", x);
}

std::string expected(const Option& o) {
  if (!o.choices.empty()) return fmt::format("one of {}", fmt::join(o.choices, ", "));
  if (is<Bool>(o)) return "true or false";
  if (is<Text>(o)) return "a string";
  if (is<List>(o)) return "a list of strings";
  if (is<Dict>(o)) return "a mapping";
  const char* what = is<Int>(o) ? "an integer" : "a number";
  return o.most == INFINITY ? fmt::format("{} of at least {}", what, number(o.least))
                            : fmt::format("{} from {} to {}", what, number(o.least), number(o.most));
}

// The whole text as a number; NaN if it is none. Python's repr, and 1e-5, which PyYAML takes for a string.
double to_number(const std::string& s) {
  double x = NAN;
  const char *begin = s.data() + (s.starts_with('+') ? 1 : 0), *end = s.data() + s.size();
  const auto [stop, error] = std::from_chars(begin, end, x);
  return error == std::errc() && stop == end ? x : NAN;
}

std::vector<std::string> split(const std::string& s) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= s.size();) {
    const size_t end = std::min(s.find(',', at), s.size());
    parts.push_back(s.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// False if the value is not what the option takes.
bool assign(TrainConfig& config, const Option& o, const Json& value) {
  static const TrainConfig unset;
  if (!o.choices.empty() && !(o.nullable && value.is_null())) {
    const auto same = [&](const char* c) { return value == c; };
    if (std::none_of(o.choices.begin(), o.choices.end(), same)) return false;
  }
  if (is<Unused>(o)) return true;
  if (value.is_null()) {
    if (!o.nullable) return false;
    std::visit(
        [&](auto member) {
          if constexpr (!std::is_same_v<decltype(member), Unused>) config.*member = unset.*member;
        },
        o.member);
    return true;
  }
  if (is<Bool>(o)) {
    if (!value.is_boolean()) return false;
    config.*std::get<Bool>(o.member) = value.get<bool>();
  } else if (is<Int>(o)) {
    // The official save_freq is 10**100, which YAML readers make a double of.
    const double x = value.is_number() ? value.get<double>() : NAN;
    if (!(x >= o.least && x <= o.most && x == std::floor(x))) return false;
    config.*std::get<Int>(o.member) = x >= 0x1p63                 ? TrainConfig::kNever
                                      : value.is_number_integer() ? value.get<int64_t>()
                                                                  : int64_t(x);
  } else if (is<Float>(o)) {
    const double x = value.is_number()   ? value.get<double>()
                     : value.is_string() ? to_number(value.get<std::string>())
                                         : NAN;
    if (!(x >= o.least && x <= o.most && std::isfinite(x))) return false;
    config.*std::get<Float>(o.member) = x;
  } else if (is<Text>(o)) {
    if (!value.is_string()) return false;
    config.*std::get<Text>(o.member) = value.get<std::string>();
  } else if (is<List>(o)) {
    std::vector<std::string> list;
    if (value.is_string()) list = split(value.get<std::string>());
    if (!value.is_string() && !value.is_array()) return false;
    for (const Json& item : value.is_array() ? value : Json::array()) {
      if (!item.is_string()) return false;
      list.push_back(item.get<std::string>());
    }
    config.*std::get<List>(o.member) = std::move(list);
  } else {
    if (!value.is_object()) return false;
    config.*std::get<Dict>(o.member) = value;
  }
  return true;
}

// A command line's text as the value that YAML would have given.
Json value_of(const Option& o, const std::string& text) {
  if (o.nullable && (text == "null" || text == "None")) return nullptr;
  if (is<Bool>(o) && (text == "true" || text == "True")) return true;
  if (is<Bool>(o) && (text == "false" || text == "False")) return false;
  if (is<Int>(o)) {
    int64_t i = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), i);
    if (error == std::errc() && stop == text.data() + text.size()) return i;
  }
  if (is<Int>(o) || is<Float>(o))
    if (const double x = to_number(text); !std::isnan(x)) return x;
  if (is<Dict>(o)) return parse_yaml(text, fmt::format("--{}", o.name));
  return text;
}

// What yaml() writes of an option: PyYAML's own forms, in which a float has a point.
std::string written(const TrainConfig& config, const Option& o) {
  return std::visit(
      [&](auto member) -> std::string {
        if constexpr (std::is_same_v<decltype(member), Unused>) {
          return "null";
        } else {
          const auto& x = config.*member;
          static const TrainConfig unset;
          bool is_set = x != unset.*member;
          if constexpr (std::is_same_v<decltype(member), List>)
            is_set |= !x.empty();  // a default that others shall see
          if (o.nullable && !is_set) return "null";
          if constexpr (std::is_same_v<decltype(member), Float>) {
            std::string s = fmt::format("{}", x);
            if (s.find_first_of(".") == std::string::npos) s.insert(std::min(s.find('e'), s.size()), ".0");
            return s;
          } else {
            return Json(x).dump(-1, ' ', false, Json::error_handler_t::replace);
          }
        }
      },
      o.member);
}

std::string printed(const Json& value) {
  return printable(value.is_structured() ? value.type_name()
                                         : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// As the official scripts have them (scripts/train_*.sh, train_lora_baselines.py; the README for reconstruction),
// except that reconstruction is of the factors.
void set_defaults(TrainConfig& c) {
  switch (c.verb) {
    case Verb::Pretrain:
      c.use_per_task_emb = false;
      c.lr = 2.5e-3, c.weight_decay = 0.05, c.adam_beta2 = 0.98, c.schedule = "cosine", c.min_lr_frac = 0.05;
      c.warmup_frac = 0.02, c.label_smoothing = 0, c.neftune_noise_alpha = 0, c.batch_size = 64;
      c.equally_weight_sample = false, c.gist_mask = true, c.p_no_description = 0.12, c.p_shots = 0.1;
      break;
    case Verb::Lora:
      c.use_per_task_emb = c.equally_weight_sample = false;
      c.lr = 8e-5, c.warmup_frac = 0.1, c.batch_size = 8, c.grad_accum_steps = 2, c.val_batch_size = 32;
      c.epochs = 100, c.val_freq = 500, c.patience = 3;
      break;
    case Verb::Reconstruct:
      c.lr = 1e-3, c.warmup_frac = 0.1, c.n_tasks_per_batch = 4, c.n_embs_per_sampled_task = 1, c.epochs = 10000;
      c.factorized = true, c.n_descs_per_ds = 128;
      break;
    case Verb::Multitask:
    case Verb::Sft:
    case Verb::Hyperdecoders:
      c.use_per_task_emb = c.verb == Verb::Sft;
      c.use_inp_as_desc = c.verb == Verb::Hyperdecoders;
      c.use_hierarchical_sampler = true;
      c.lr = 2.5e-5, c.epochs = 20000;
      if (c.verb == Verb::Multitask)
        c.val_batch_size = 32;
      else
        c.weight_decay = 1e-2, c.n_descs_per_ds = 128;
  }
}

}  // namespace

const char* name_of(Verb verb) {
  static constexpr const char* kNames[] = {"pretrain", "lora", "multitask", "reconstruct", "sft", "hyperdecoders"};
  return kNames[size_t(verb)];
}

Verb parse_verb(const std::string& name) {
  for (int v = 0; v <= int(Verb::Hyperdecoders); ++v)
    if (name == name_of(Verb(v))) return Verb(v);
  throw UsageError(fmt::format(
      "'{}' is nothing to train; say pretrain, lora, multitask, reconstruct, sft or hyperdecoders", printable(name)));
}

std::vector<Setting> parse_settings(const std::vector<std::string>& arguments) {
  std::vector<Setting> settings;
  std::set<std::string> seen;
  const auto is_truth = [](const std::string& s) { return s == "true" || s == "True" || s == "false" || s == "False"; };
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with("--") || argument.size() == 2)
      throw UsageError(fmt::format("'{}' is no option; write --key=value", printable(argument)));
    const size_t equals = std::min(argument.find('='), argument.size());
    std::string key = argument.substr(2, equals - 2);
    std::replace(key.begin(), key.end(), '-', '_');
    const Option* option = find_option(key);
    if (!option) throw UsageError(unknown(key));
    if (!seen.insert(key).second) throw UsageError(fmt::format("--{} is given twice; give it once", key));
    if (equals < argument.size())
      settings.push_back({key, argument.substr(equals + 1)});
    else if (is<Bool>(*option) && (i + 1 == arguments.size() || !is_truth(arguments[i + 1])))
      settings.push_back({key, "true"});
    else if (i + 1 < arguments.size())
      settings.push_back({key, arguments[++i]});
    else
      throw UsageError(fmt::format("--{} has no value; write --{}=value", key, key));
  }
  return settings;
}

void TrainConfig::read(const Json& values, const std::string& where) {
  if (!values.is_object()) fail("{}: holds {}; write one `key: value` a line", where, values.type_name());
  for (const auto& [key, value] : values.items()) {
    const Option* option = find_option(key);
    if (!option) fail("{}: {}", where, unknown(key));
    if (!assign(*this, *option, value))
      fail("{}: '{}' must be {}, not {}", where, key, expected(*option), printed(value));
    given[key] = where;
    // What the verb decides may be said too, if it says the same.
    if (key == "training_task" && uses_hypernet(verb) && value != (verb == Verb::Reconstruct ? "recon" : "sft"))
      fail("{}: 'training_task' is {}, but the verb is {}; remove the key or change the verb", where, printed(value),
           name_of(verb));
    if (key == "exp_setup" && !value.is_null() && value != "lora" && value != "oracle_lora" && value != "mt_lora" &&
        value != "hyper_lora")
      fail("{}: 'exp_setup' {} is not built; use lora, oracle_lora, mt_lora or hyper_lora", where, printed(value));
  }
}

void TrainConfig::finish(const std::string& where) {
  const auto place = [&](const char* key) {
    const auto it = given.find(key);
    return it == given.end() ? where : it->second;
  };
  const auto wrong = [&](const char* key, const std::string& what) { fail("{}: '{}' {}", place(key), key, what); };
  const auto is_given = [&](const char* key) { return given.contains(key); };

  if (!variant.empty()) {
    const bool shared = variant != "L", autoregressive = variant == "S";
    if (is_given("shared_AB_head") && shared_AB_head != shared)
      wrong("variant", fmt::format("{} contradicts shared_AB_head: {}; remove one of them", variant, shared_AB_head));
    if (is_given("autoreg_gen") && autoreg_gen != autoregressive)
      wrong("variant", fmt::format("{} contradicts autoreg_gen: {}; remove one of them", variant, autoreg_gen));
    shared_AB_head = shared;
    autoreg_gen = autoregressive;
    variant.clear();
  }
  if (emb_model.ends_with(".safetensors")) {
    if (embeddings.empty()) embeddings = emb_model;
    emb_model.clear();
  }

  if (!uses_hypernet(verb)) {
    const std::pair<const char*, bool> sources[] = {{"use_one_hot_task_emb", use_one_hot_task_emb},
                                                    {"use_inp_as_desc", use_inp_as_desc},
                                                    {"use_per_sample_desc", use_per_sample_desc},
                                                    {"use_default_desc", use_default_desc}};
    for (const auto& [key, on] : sources)
      if (on) wrong(key, fmt::format("needs a hypernetwork, which {} does not train; remove it", name_of(verb)));
    if (!export_official.empty())
      wrong("export_official", fmt::format("is for hypernetworks; {} writes {}, which the official code reads as it is",
                                           name_of(verb), verb == Verb::Pretrain ? "a model" : "a PEFT adapter"));
    use_per_task_emb = false;
  } else {
    const int kinds = int(use_per_task_emb) + int(use_inp_as_desc) + int(use_per_sample_desc) + int(use_default_desc);
    const char* other = use_inp_as_desc       ? "use_inp_as_desc"
                        : use_per_sample_desc ? "use_per_sample_desc"
                                              : "use_default_desc";
    if (kinds > 1)
      wrong(other, use_per_task_emb ? "excludes use_per_task_emb; set use_per_task_emb: false"
                                    : "is one of two sources of descriptions; keep one");
    if (kinds == 0)
      wrong("use_per_task_emb",
            "is false and no other source of descriptions is set; set use_inp_as_desc, use_per_sample_desc or "
            "use_default_desc, or train with multitask");
    if (use_one_hot_task_emb && !use_per_task_emb) wrong("use_one_hot_task_emb", "needs use_per_task_emb: true");
    if (use_one_hot_task_emb && !embeddings.empty())
      wrong("embeddings", "has no use with use_one_hot_task_emb; remove one of them");
    if (learnable_pos_emb && !autoreg_gen) wrong("learnable_pos_emb", "needs autoreg_gen: true (variant S)");
    if (verb == Verb::Hyperdecoders && !use_inp_as_desc)
      wrong("use_inp_as_desc", "is what hyperdecoders trains; set it, or train with sft");
    if (!embeddings.empty() && !use_per_task_emb)
      wrong("embeddings",
            "holds an embedding for each of a task's descriptions, not for each sample; name an encoder in emb_model");
  }
  if (verb == Verb::Reconstruct) {
    if (!use_per_task_emb)
      wrong("use_per_task_emb", "must be true: adapters are reconstructed from their tasks' descriptions");
    if (!mt_lora_path.empty()) wrong("mt_lora_path", "is for sft: reconstruction has no offset; remove it");
    if (learnable_AB_offset) wrong("learnable_AB_offset", "is for sft: reconstruction has no offset; remove it");
    if (!factorized && pred_z_score)
      warnings.push_back("pred_z_score has no effect on the loss of products (factorized: false)");
  }
  if (verb == Verb::Pretrain && !eval_ds_info.empty())
    warnings.push_back("eval_ds_info has no effect in pretrain; judge the model with t2l-eval");
  if (verb != Verb::Pretrain) {
    const std::pair<const char*, bool> of_pretraining[] = {{"gist_mask", gist_mask},
                                                           {"curriculum", curriculum > 0},
                                                           {"p_no_description", p_no_description > 0},
                                                           {"p_shots", p_shots > 0}};
    for (const auto& [key, on] : of_pretraining)
      if (on) wrong(key, fmt::format("is for pretrain; {} has no use for it, remove it", name_of(verb)));
  } else {
    if (p_no_description + p_shots > 1)
      wrong("p_shots", fmt::format("{} and p_no_description {} are more than 1 together; lower one of them", p_shots,
                                   p_no_description));
    if (!data_order.empty()) wrong("data_order", "has no use in pretrain, which draws its batches; remove it");
  }
  if (export_official.find("checkpoint") != std::string::npos)
    wrong("export_official", "has 'checkpoint' in it, where the official loader cuts the path; name it otherwise");
  if (target_modules.empty()) wrong("target_modules", "is empty; name the layers to adapt, like q_proj");
  for (const std::string& m : target_modules)
    if (!find_projection(m))
      wrong("target_modules",
            fmt::format("has '{}'; the layers there are: {}", printable(m), fmt::join(kProjectionNames, ", ")));
  for (const auto* list : {&target_modules, &train_ds_names}) {
    const std::set<std::string> unique(list->begin(), list->end());
    if (unique.size() != list->size())
      wrong(list == &target_modules ? "target_modules" : "train_ds_names", "names something twice; name it once");
  }
  if (verb == Verb::Lora && !per_task && train_ds_names.size() > 1 && n_train_ds != 1)
    wrong("train_ds_names", fmt::format("has {} tasks; lora trains on one, lora with per_task on each by itself, "
                                        "multitask on all together",
                                        train_ds_names.size()));
  if (per_task) {
    if (verb != Verb::Lora)
      wrong("per_task", fmt::format("is for lora; remove it, {} trains one thing", name_of(verb)));
    if (!init_from.empty()) wrong("init_from", "has no use with per_task; remove one of them");
    if (!eval_ds_info.empty()) wrong("eval_ds_info", "cannot judge adapters that train side by side; remove it");
  }
  if (learnable_AB_offset && mt_lora_path.empty())
    wrong("learnable_AB_offset", "needs mt_lora_path, the adapter that it starts from");
}

TrainConfig TrainConfig::parse(Verb verb, std::string_view text, const std::string& where,
                               const std::vector<Setting>& settings) {
  TrainConfig config;
  config.verb = verb;
  set_defaults(config);
  if (const Json values = parse_yaml(text, where); !values.is_null()) config.read(values, where);
  Json overrides = Json::object();
  for (const Setting& s : settings) {
    const Option* option = find_option(s.key);
    if (!option) fail("command line: {}", unknown(s.key));
    overrides[s.key] = value_of(*option, s.value);
  }
  config.read(overrides, "command line");
  config.finish(where);
  return config;
}

TrainConfig TrainConfig::load(Verb verb, const std::string& file, const std::vector<Setting>& settings) {
  if (file.empty()) return parse(verb, "", "command line", settings);
  return parse(verb, read_text_file(file, size_t(4) << 20), file, settings);
}

std::string TrainConfig::yaml() const {
  std::string text;
  for (const Option& o : options())
    if (!is<Unused>(o) && o.result) text += fmt::format("{}: {}\n", o.name, written(*this, o));
  return text;
}

std::string TrainConfig::changed_key(const TrainConfig& earlier) const {
  if (verb != earlier.verb) return "verb";
  for (const Option& o : options())
    if (o.result && written(*this, o) != written(earlier, o)) return o.name;
  return {};
}

std::string TrainConfig::help(Verb verb) {
  TrainConfig config;
  config.verb = verb;
  set_defaults(config);
  std::string text;
  for (const Option& o : options()) {
    if (is<Unused>(o)) continue;
    const std::string choices = o.choices.empty() ? "" : fmt::format(" ({})", fmt::join(o.choices, "|"));
    std::string value = written(config, o);
    if (value == "null" || value == "\"\"" || value == "{}") value = "-";
    if (value == fmt::format("{}", kNever)) value = "never";
    text += fmt::format("  {:<26}{:<22}{}{}\n", o.name, value, o.help, choices);
  }
  return text;
}

}  // namespace t2l
