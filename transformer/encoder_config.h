// What a text encoder's folder says about it: config.json of BERT ("bert") or of gte ("new", Alibaba-NLP/new-impl), and
// the files that sentence-transformers puts beside it.
#pragma once
#include "tensor/json.h"
#include "tensor/ops.h"

namespace t2l {

// How the hidden states of a text become one vector.
enum class Pooling : uint8_t { Cls, Mean, LastToken };
const char* name_of(Pooling p);                  // cls, mean, last_token
Pooling parse_pooling(const std::string& name);  // Error for any other name

struct EncoderConfig {
  enum class Family : uint8_t { Bert, New };

  Family family = Family::Bert;
  std::string where;  // the file it is from
  int64_t vocab = 0, hidden = 0, layers = 0, heads = 0, intermediate = 0;
  int64_t positions = 0;  // bert: rows of the position table; new: the length it was trained for, no limit
  int64_t types = 0;      // rows of the token type table; 0: there is none
  Activation activation = Activation::GELU;
  float eps = 1e-12f;  // of the layer norms

  // new: rotary positions. frequency[j] = base^(-2j / head_dim) / divisor. Static ntk scaling by a factor f, for texts
  // of every length, is base = theta f and divisor = f^(2 / head_dim).
  double rope_base = 10000, rope_divisor = 1;
  bool packed_qkv = true;  // one qkv_proj, or q_proj, k_proj and v_proj
  // q is multiplied by log(length) / log(positions), with the clip by at least 1.
  bool logn_scale = false, logn_clip = false;

  // ---- from sentence-transformers' files where the folder has them
  std::string folder;               // with the weights and the tokenizer
  Pooling pooling = Pooling::Mean;  // without such files: cls for gte, mean for others
  int64_t max_tokens = 0;           // special tokens included; what lies beyond is cut off

  int64_t head_dim() const { return hidden / heads; }
  bool rotary() const { return family == Family::New; }
  std::vector<double> rope_frequencies() const;  // [head_dim / 2], radians per position

  // The folder of a model. Error, naming file and key, for what is missing, impossible, or means something that is not
  // built here.
  static EncoderConfig load(const std::string& dir);
  // config.json alone; pooling and max_tokens as without further files.
  static EncoderConfig parse(const Json& config, const std::string& where);
};

}  // namespace t2l
