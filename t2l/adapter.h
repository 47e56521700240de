// A LoRA adapter on disk, in PEFT's layout: adapter_config.json and adapter_model.safetensors. Written as PEFT 0.15
// does it, readable by earlier and later ones, by vLLM and by llama.cpp's converter.
#pragma once
#include <string>
#include <vector>

#include "tensor/json.h"
#include "tensor/safetensors.h"

namespace t2l {

// y = W x + scaling B A x
struct AdapterSpec {
  std::string base_model;  // name or path, as adapter_config.json records it
  int64_t rank = 8;
  double alpha = 16;
  bool rslora = true;  // scaling = alpha / sqrt(rank) (Kalajdzievski, 2023) instead of alpha / rank
  double dropout = 0;  // of the training, recorded only
  std::vector<std::string> modules;

  double scaling() const;
};

// One module's weights in one layer.
struct LoraWeights {
  std::string module;  // q_proj
  int64_t layer = 0;
  Tensor a;  // [rank, in]
  Tensor b;  // [out, rank]
};

// What a user may ask of the written adapter.
struct AdapterFormat {
  enum class Scale { AsIs, RsLora, Plain, Baked } scale = Scale::AsIs;
  double baked = 1;  // Baked: B is multiplied by this and the config declares a scaling of 1
  Stored dtype = Stored::F32;
};

// What adapter_config.json says of it: only keys that every PEFT since 0.6 knows, as an unknown one makes old ones
// fail.
Json adapter_config(const AdapterSpec& spec);

// Writes the two files into `directory`, which exists. Error for a module that has no PEFT name.
void write_adapter(const std::string& directory, const AdapterSpec& spec, const std::vector<LoraWeights>& weights,
                   const AdapterFormat& format);

struct Adapter {
  std::string path;
  AdapterSpec spec;
  std::vector<LoraWeights> weights;  // f32, by layer, then as base_model.h orders the projections
};

// From a PEFT folder. Error for what would change the adapter's meaning and is not built here (DoRA, biases, whole
// modules, patterns of ranks), and for tensors that are missing, without a partner, or of shapes that do not fit.
Adapter load_adapter(const std::string& directory);
Adapter parse_adapter(const Json& config, const std::string& config_path, const SafeTensors& weights);

}  // namespace t2l
