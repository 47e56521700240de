// Token ids of several texts side by side, without padding.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace t2l {

using TokenIds = std::vector<std::vector<int32_t>>;  // one list per text

struct PackedIds {
  std::vector<int32_t> ids;        // [tokens]
  std::vector<int32_t> positions;  // [tokens], from 0 in each text
  std::vector<int32_t> offsets;    // [texts + 1]: where texts begin
};

// Error, naming `where` (the model's config), for a text without tokens, an id not below `vocab`, or too many tokens.
PackedIds pack_ids(const TokenIds& texts, int64_t vocab, const std::string& where);

}  // namespace t2l
