// Keys and values of the tokens a decoder has seen, so that each further token costs one row of work. Every sequence
// has a fixed stretch of rows; a step writes its new rows behind those that are there.
#pragma once
#include "transformer/decoder_config.h"

namespace t2l {

class KvCache {
 public:
  // Room for capacities[i] tokens of sequence i. Memory is only touched as tokens come.
  KvCache(const DecoderConfig& config, const std::vector<int64_t>& capacities, DType dtype, Device device);

  int64_t sequences() const { return int64_t(lengths_.size()); }
  int64_t length(int64_t sequence) const { return lengths_.at(size_t(sequence)); }
  int64_t begin(int64_t sequence) const { return begins_.at(size_t(sequence)); }  // its first row
  void extend(int64_t sequence, int64_t tokens);                                  // Error if there is no room
  int32_t& gist(int64_t sequence) { return gists_.at(size_t(sequence)); }  // its first gist token, -1 before it came
  size_t bytes() const;

  // [rows, kv_heads, head_dim], rotated keys
  Tensor& keys(int64_t layer) { return keys_.at(size_t(layer)); }
  Tensor& values(int64_t layer) { return values_.at(size_t(layer)); }

 private:
  std::vector<int64_t> begins_, lengths_;  // begins_ has one more: the end
  std::vector<int32_t> gists_;
  std::vector<Tensor> keys_, values_;
};

}  // namespace t2l
