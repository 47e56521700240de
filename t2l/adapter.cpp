#include "t2l/adapter.h"

#include <cfloat>
#include <cmath>

#include "tensor/backend.h"
#include "tensor/json.h"
#include "transformer/base_model.h"

namespace t2l {

double AdapterSpec::scaling() const { return alpha / (rslora ? std::sqrt(double(rank)) : double(rank)); }

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

  // Only keys that every PEFT since 0.6 knows: an unknown one makes old versions fail.
  const bool rslora =
      format.scale == AdapterFormat::Scale::AsIs ? spec.rslora : format.scale == AdapterFormat::Scale::RsLora;
  const double alpha = baked ? double(spec.rank) : spec.alpha;
  Json config{{"alpha_pattern", Json::object()},
              {"auto_mapping", nullptr},
              {"base_model_name_or_path", spec.base_model},
              {"bias", "none"},
              {"fan_in_fan_out", false},
              {"inference_mode", true},
              {"init_lora_weights", true},
              {"layers_pattern", nullptr},
              {"layers_to_transform", nullptr},
              {"lora_alpha", alpha},
              {"lora_dropout", spec.dropout},
              {"modules_to_save", nullptr},
              {"peft_type", "LORA"},
              {"r", spec.rank},
              {"rank_pattern", Json::object()},
              {"revision", nullptr},
              {"target_modules", spec.modules},
              {"task_type", "CAUSAL_LM"},
              {"use_dora", false},
              {"use_rslora", rslora}};
  if (alpha == std::floor(alpha) && std::abs(alpha) < 1e15) config["lora_alpha"] = int64_t(alpha);  // as PEFT writes it
  write_text_file(directory + "/adapter_config.json", config.dump(2) + "\n");
}

}  // namespace t2l
