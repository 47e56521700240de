#include "transformer/encoder_config.h"

#include <cmath>
#include <filesystem>
#include <optional>

#include "transformer/base_model.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

// Bounds beyond every real model, so that no product of two sizes overflows.
constexpr int64_t kMaxSize = 1 << 20, kMaxRows = 1 << 26, kMaxLayers = 4096;

// Both spellings: rope_theta beside rope_scaling {type, factor}, and the newer rope_parameters {rope_theta, rope_type,
// factor}, in which static ntk is written as linear with the adjusted theta.
void parse_rope(EncoderConfig& c, const Object& o) {
  const bool newer = o.has("rope_parameters");
  std::optional<Object> scaling;
  if (newer || o.has("rope_scaling")) scaling = o.get_object(newer ? "rope_parameters" : "rope_scaling");
  const auto in_range = [](const Object& from, const char* key, double x, double most) {
    if (!(x >= 1 && x <= most)) fail("{}: '{}' must be from 1 to {}, not {}", from.where(), key, most, x);
    return x;
  };
  const Object& with_theta = newer && scaling->has("rope_theta") ? *scaling : o;
  const double theta = in_range(with_theta, "rope_theta", with_theta.get_float_or("rope_theta", 10000), 1e15);
  c.rope_base = theta;
  if (!scaling) return;
  const std::string type = scaling->get_string_or("rope_type", scaling->get_string_or("type", newer ? "default" : ""));
  if (type == "default") return;
  if (type != "ntk" && type != "linear")
    fail("{}: rope type '{}' is not supported; ntk, linear and default are", scaling->where(), printable(type));
  if (scaling->has("mixed_b")) fail("{}: mixed_b (mixed ntk) is not supported", scaling->where());
  const double factor = in_range(*scaling, "factor", scaling->get_float("factor"), 1e6);
  if (type == "ntk") c.rope_base = theta * factor;
  c.rope_divisor = type == "ntk" ? std::pow(factor, 2. / double(c.head_dim())) : factor;
}

void parse_new(EncoderConfig& c, const Object& o) {
  parse_rope(c, o);
  c.packed_qkv = o.get_bool_or("pack_qkv", true);
  c.logn_scale = o.get_bool_or("logn_attention_scale", false);
  c.logn_clip = o.get_bool_or("logn_attention_clip1", false);
  if (c.logn_scale && c.positions < 2)
    fail("{}: logn_attention_scale divides by log(max_position_embeddings), which must be at least 2", o.where());
  const std::string norm = o.get_string_or("layer_norm_type", "layer_norm");
  if (norm != "layer_norm")
    fail("{}: layer_norm_type '{}' is not supported; layer_norm is", o.where(), printable(norm));
}

// A folder named in modules.json, "" being the model's own.
std::string module_folder(const std::string& dir, const Object& module) {
  const fs::path path = module.get_string("path");
  for (const fs::path& part : path)
    if (path.is_absolute() || part == "..")
      fail("{}: the module path '{}' leads out of the model's folder", module.where(), printable(path.string()));
  return path.empty() ? dir : dir + "/" + path.string();
}

Pooling read_pooling(const std::string& file, int64_t hidden) {
  const Json json = read_json(file);
  const Object o(json, file);
  if (const int64_t dim = o.get_int_or("word_embedding_dimension", hidden); dim != hidden)
    fail("{}: word_embedding_dimension is {}, but the model's hidden_size is {}", file, dim, hidden);
  std::vector<std::string> on;
  for (const auto& [key, value] : json.items())
    if (key.starts_with("pooling_mode_") && o.get_bool_or(key.c_str(), false)) on.push_back(key);
  if (on.size() != 1) fail("{}: {} pooling modes are true; exactly one must be", file, on.size());
  if (on[0] == "pooling_mode_cls_token") return Pooling::Cls;
  if (on[0] == "pooling_mode_mean_tokens") return Pooling::Mean;
  if (on[0] == "pooling_mode_lasttoken") return Pooling::LastToken;
  fail("{}: {} is not supported; cls_token, mean_tokens and lasttoken are", file, printable(on[0]));
}

}  // namespace

const char* name_of(Pooling p) { return p == Pooling::Cls ? "cls" : p == Pooling::Mean ? "mean" : "last_token"; }

Pooling parse_pooling(const std::string& name) {
  for (const Pooling p : {Pooling::Cls, Pooling::Mean, Pooling::LastToken})
    if (name == name_of(p)) return p;
  fail("pooling '{}' is unknown; choose cls, mean or last_token", printable(name));
}

std::vector<double> EncoderConfig::rope_frequencies() const {
  std::vector<double> f(size_t(head_dim() / 2));
  for (size_t j = 0; j < f.size(); ++j) f[j] = std::pow(rope_base, -2. * double(j) / double(head_dim())) / rope_divisor;
  return f;
}

EncoderConfig EncoderConfig::parse(const Json& config, const std::string& where) {
  const Object o(config, where);
  EncoderConfig c;
  c.where = where;
  const std::string type = o.get_string("model_type");
  if (type != "bert" && type != "new")
    fail("{}: model_type '{}' is not a supported text encoder; bert and new (gte) are", where, printable(type));
  c.family = type == "bert" ? Family::Bert : Family::New;
  c.vocab = o.get_int("vocab_size", 1, kMaxRows);
  c.hidden = o.get_int("hidden_size", 1, kMaxSize);
  c.layers = o.get_int("num_hidden_layers", 1, kMaxLayers);
  c.heads = o.get_int("num_attention_heads", 1, kMaxSize);
  c.intermediate = o.get_int("intermediate_size", 1, kMaxSize);
  c.positions = o.get_int("max_position_embeddings", 1, kMaxRows);
  c.types = o.get_int_or("type_vocab_size", c.rotary() ? 1 : 2, 0, kMaxSize);
  if (c.hidden % c.heads || c.head_dim() % 2 || c.head_dim() > 256)
    fail("{}: hidden_size {} over num_attention_heads {} must be an even head size of at most 256", where, c.hidden,
         c.heads);
  c.activation = parse_activation(o.get_string_or("hidden_act", "gelu"), where);
  c.eps = float(o.get_float_or("layer_norm_eps", 1e-12));
  if (!(c.eps > 0 && c.eps < 1)) fail("{}: 'layer_norm_eps' must lie between 0 and 1, not {}", where, c.eps);
  const std::string kind = c.rotary() ? "rope" : "absolute";
  if (const std::string p = o.get_string_or("position_embedding_type", kind); p != kind)
    fail("{}: position_embedding_type '{}' is not supported for model_type '{}'; {} is", where, printable(p), type,
         kind);
  if (o.get_bool_or("is_decoder", false)) fail("{}: is_decoder is true; a text encoder sees both directions", where);
  if (c.rotary()) parse_new(c, o);
  c.pooling = c.rotary() ? Pooling::Cls : Pooling::Mean;
  c.max_tokens = c.positions;
  return c;
}

EncoderConfig EncoderConfig::load(const std::string& dir) {
  if (!fs::is_directory(dir)) fail("{}: is no directory; name the folder with the encoder's config.json", dir);
  std::string folder = dir, pooling = dir + "/1_Pooling";
  if (const std::string file = dir + "/modules.json"; fs::exists(file)) {
    const Json modules = read_json(file);
    if (!modules.is_array()) fail("{}: must be a list of modules", file);
    for (const Json& m : modules) {
      const Object module(m, file);
      const std::string type = module.get_string("type"), last = type.substr(type.rfind('.') + 1);
      if (last == "Transformer")
        folder = module_folder(dir, module);
      else if (last == "Pooling")
        pooling = module_folder(dir, module);
      else if (last != "Normalize")  // that is the caller's to do, or not to
        fail("{}: the module '{}' is not supported; Transformer, Pooling and Normalize are", file, printable(type));
    }
  }
  const std::string config = folder + "/config.json";
  EncoderConfig c = parse(read_json(config), config);
  c.folder = folder;
  const fs::path path = fs::path(dir + "/").lexically_normal().parent_path();  // without slashes at its end
  if (path.filename().string().find("gte") != std::string::npos) c.pooling = Pooling::Cls;
  if (const std::string file = pooling + "/config.json"; fs::exists(file)) c.pooling = read_pooling(file, c.hidden);
  if (const std::string file = folder + "/sentence_bert_config.json"; fs::exists(file)) {
    const Json json = read_json(file);
    c.max_tokens = Object(json, file).get_int_or("max_seq_length", c.positions, 1, kMaxRows);
    if (!c.rotary()) c.max_tokens = std::min(c.max_tokens, c.positions);
  }
  return c;
}

}  // namespace t2l
