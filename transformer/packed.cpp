#include "transformer/packed.h"

#include "tensor/check.h"

namespace t2l {

PackedIds pack_ids(const TokenIds& texts, int64_t vocab, const std::string& where) {
  PackedIds p{{}, {}, {0}};
  for (size_t s = 0; s < texts.size(); ++s) {
    if (texts[s].empty()) fail("{}: text {} has no tokens", where, s);
    if (p.ids.size() + texts[s].size() > size_t(INT32_MAX))
      fail("{}: more than 2^31 tokens in one batch; split it", where);
    for (const int32_t id : texts[s])
      if (id < 0 || id >= vocab)
        fail("{}: token id {} of text {} is not below vocab_size {}; is the tokenizer the model's own?", where, id, s,
             vocab);
    p.ids.insert(p.ids.end(), texts[s].begin(), texts[s].end());
    for (size_t i = 0; i < texts[s].size(); ++i) p.positions.push_back(int32_t(i));
    p.offsets.push_back(int32_t(p.ids.size()));
  }
  return p;
}

}  // namespace t2l
