#include "transformer/kv_cache.h"

namespace t2l {

KvCache::KvCache(const DecoderConfig& c, const std::vector<int64_t>& capacities, DType dtype, Device device)
    : begins_{0}, lengths_(capacities.size(), 0), gists_(capacities.size(), -1) {
  for (const int64_t n : capacities) begins_.push_back(begins_.back() + n);
  if (begins_.back() > INT32_MAX)
    fail("a cache for {} tokens is too large; run fewer sequences at once", begins_.back());
  for (int64_t i = 0; i < c.layers; ++i)
    for (auto* all : {&keys_, &values_})
      all->push_back(Tensor::empty({begins_.back(), c.kv_heads, c.head_dim}, dtype, device));
}

void KvCache::extend(int64_t sequence, int64_t tokens) {
  int64_t& n = lengths_.at(size_t(sequence));
  T2L_CHECK(begin(sequence) + n + tokens <= begin(sequence + 1), "{} tokens more than the cache of sequence {} holds",
            tokens, sequence);
  n += tokens;
}

size_t KvCache::bytes() const {
  size_t n = 0;
  for (auto* all : {&keys_, &values_})
    for (const Tensor& t : *all) n += t.bytes();
  return n;
}

}  // namespace t2l
