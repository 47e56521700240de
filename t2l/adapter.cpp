#include "t2l/adapter.h"

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <map>

#include "tensor/backend.h"
#include "tensor/json.h"
#include "transformer/base_model.h"

namespace t2l {

double AdapterSpec::scaling() const { return alpha / (rslora ? std::sqrt(double(rank)) : double(rank)); }

Json adapter_config(const AdapterSpec& spec) {
  Json config{{"alpha_pattern", Json::object()},
              {"auto_mapping", nullptr},
              {"base_model_name_or_path", spec.base_model},
              {"bias", "none"},
              {"fan_in_fan_out", false},
              {"inference_mode", true},
              {"init_lora_weights", true},
              {"layers_pattern", nullptr},
              {"layers_to_transform", nullptr},
              {"lora_alpha", spec.alpha},
              {"lora_dropout", spec.dropout},
              {"modules_to_save", nullptr},
              {"peft_type", "LORA"},
              {"r", spec.rank},
              {"rank_pattern", Json::object()},
              {"revision", nullptr},
              {"target_modules", spec.modules},
              {"task_type", "CAUSAL_LM"},
              {"use_dora", false},
              {"use_rslora", spec.rslora}};
  if (spec.alpha == std::floor(spec.alpha) && std::abs(spec.alpha) < 1e15)
    config["lora_alpha"] = int64_t(spec.alpha);  // as PEFT writes it
  return config;
}

namespace {

// What the stored type would turn into infinity, or was none before, teaches a model nothing.
void check_finite(const Tensor& t, const std::string& name, Stored as) {
  const float most = as == Stored::F16 ? 65504.0f : as == Stored::BF16 ? 3.38e38f : FLT_MAX;
  bool bad = false;
  for (const float x : t.host<float>()) bad |= !(std::abs(x) <= most);
  if (bad)
    fail("{}: the adapter has a value that is not finite{}", name,
         as == Stored::F16 ? " in f16; use --out-dtype bf16 or f32"
                           : "; is the hypernetwork damaged, or --scale too large?");
}

}  // namespace

void write_adapter(const std::string& directory, const AdapterSpec& spec, const std::vector<LoraWeights>& weights,
                   const AdapterFormat& format) {
  const bool baked = format.scale == AdapterFormat::Scale::Baked;
  NamedTensors tensors;
  for (const LoraWeights& w : weights) {
    const std::string name = "base_model.model." + module_path(w.module, w.layer);
    Tensor b = w.b;
    if (baked) {
      b = Tensor::empty(w.b.shape(), w.b.dtype(), w.b.device());
      backend(b).scale(b, w.b, float(format.baked), false);
    }
    check_finite(w.a, name + ".lora_A.weight", format.dtype);
    check_finite(b, name + ".lora_B.weight", format.dtype);
    tensors.emplace_back(name + ".lora_A.weight", w.a);
    tensors.emplace_back(name + ".lora_B.weight", b);
  }
  write_safetensors(directory + "/adapter_model.safetensors", tensors, format.dtype);

  AdapterSpec declared = spec;
  if (format.scale != AdapterFormat::Scale::AsIs) declared.rslora = format.scale == AdapterFormat::Scale::RsLora;
  if (baked) declared.alpha = double(spec.rank);
  write_text_file(directory + "/adapter_config.json", adapter_config(declared).dump(2) + "\n");
}

namespace {

// Settings under which an adapter is more, or other, than y = W x + scaling B A x.
void check_plain(const Object& o) {
  if (const std::string type = o.get_string("peft_type"); type != "LORA")
    fail("{}: peft_type '{}' is not supported; LORA is", o.where(), printable(type));
  for (const char* key : {"use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"})
    if (o.get_bool_or(key, false)) fail("{}: {} is not supported", o.where(), key);
  if (const std::string bias = o.get_string_or("bias", "none"); bias != "none")
    fail("{}: bias '{}' is not supported; none is", o.where(), printable(bias));
  for (const char* key : {"modules_to_save", "alpha_pattern", "rank_pattern", "trainable_token_indices",
                          "layer_replication", "target_parameters"})
    if (const Json* value = o.find(key); value && !value->empty())
      fail("{}: {} is not supported; one rank and one alpha for all linear layers are", o.where(), key);
}

// base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight, with or without ".default" before ".weight"
struct TensorName {
  Projection projection = Projection::Q;
  int64_t layer = 0;
  bool is_a = false;
};
TensorName parse_tensor_name(const std::string& name, const std::string& where) {
  constexpr std::string_view kPrefix = "base_model.model.model.layers.";
  std::string_view rest = name;
  TensorName t;
  const auto unknown = [&]() {
    fail("{}: tensor '{}' belongs to no linear layer of a decoder's block; remove it, or train without it", where,
         printable(name));
  };
  if (!rest.starts_with(kPrefix)) unknown();
  rest.remove_prefix(kPrefix.size());
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), t.layer);
  if (error != std::errc() || t.layer < 0 || t.layer > 4096) unknown();
  rest.remove_prefix(size_t(end - rest.data()));
  for (size_t i = 0; i < kProjections; ++i)
    for (const bool is_a : {true, false})
      for (const char* adapter : {"", ".default"}) {
        t.projection = Projection(i);
        t.is_a = is_a;
        const std::string path = module_path(t.projection, 0);  // model.layers.0.self_attn.q_proj
        if (rest == fmt::format("{}.lora_{}{}.weight", path.substr(path.find(".0.") + 2), is_a ? "A" : "B", adapter))
          return t;
      }
  unknown();
  return t;
}

}  // namespace

Adapter load_adapter(const std::string& directory) {
  const std::string config = directory + "/adapter_config.json";
  Adapter adapter =
      parse_adapter(read_json(config), config, SafeTensors::open(directory + "/adapter_model.safetensors"));
  adapter.path = directory;
  return adapter;
}

Adapter parse_adapter(const Json& config, const std::string& config_path, const SafeTensors& file) {
  Adapter adapter;
  adapter.path = config_path;
  const Object o(config, config_path);
  check_plain(o);
  AdapterSpec& spec = adapter.spec;
  spec.base_model = o.get_string_or("base_model_name_or_path", "");
  spec.rank = o.get_int_or("r", 8, 1, 4096);
  spec.alpha = o.get_float_or("lora_alpha", 8);
  spec.rslora = o.get_bool_or("use_rslora", false);
  spec.dropout = o.get_float_or("lora_dropout", 0);

  std::map<std::pair<int64_t, Projection>, LoraWeights> found;
  for (const std::string& name : file.names()) {
    const TensorName t = parse_tensor_name(name, file.path());
    LoraWeights& w = found[{t.layer, t.projection}];
    w.module = kProjectionNames[size_t(t.projection)];
    w.layer = t.layer;
    Tensor values = file.get(name);
    if (values.dtype() == DType::I32 || values.rank() != 2 || values.dim(t.is_a ? 0 : 1) != spec.rank)
      fail("{}: tensor '{}' is {}, not a float matrix of the rank {} that adapter_config.json says", file.path(),
           printable(name), values.shape().str(), spec.rank);
    Tensor& place = t.is_a ? w.a : w.b;
    if (place) fail("{}: tensor '{}' is there twice", file.path(), printable(name));
    place = values.to(DType::F32);
  }
  if (found.empty()) fail("{}: holds no adapter weights", file.path());
  for (auto& [key, w] : found) {
    if (!w.a || !w.b) fail("{}: {} of layer {} has only one of lora_A and lora_B", file.path(), w.module, w.layer);
    if (std::find(spec.modules.begin(), spec.modules.end(), w.module) == spec.modules.end())
      spec.modules.push_back(w.module);
    adapter.weights.push_back(std::move(w));
  }
  return adapter;
}

}  // namespace t2l
