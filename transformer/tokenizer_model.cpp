// The models: text pieces to ids.
//
// WordPiece: greedy from the left, the longest token first, "##" before what continues a word; one [UNK] where none
// fits.
//
// BPE: characters (or bytes), then again and again the adjacent pair of lowest rank, leftmost first, is merged.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <optional>
#include <queue>
#include <utility>

#include "transformer/tokenizer_parts.h"
#include "transformer/tokenizer_unicode.h"

namespace t2l {

// --------------------------------------------------------------------------------------------------------------- Trie

size_t Trie::slot(uint64_t edge) const {
  size_t i = (edge * 0x9E3779B97F4A7C15u >> 32) & (edges_.size() - 1);
  while (edges_[i].edge != 0 && edges_[i].edge != edge) i = (i + 1) & (edges_.size() - 1);
  return i;
}

uint32_t Trie::child(uint32_t node, char c) const {
  if (node == 0) return root_[static_cast<uint8_t>(c)];
  return edges_[slot(uint64_t{node} << 8 | static_cast<uint8_t>(c))].to;
}

void Trie::insert(std::string_view key, int32_t value) {
  uint32_t at = 0;
  for (const char c : key) {
    uint32_t to = child(at, c);
    if (to == 0) {
      to = static_cast<uint32_t>(values_.size());
      values_.push_back(-1);
      if (at == 0) {
        root_[static_cast<uint8_t>(c)] = to;
      } else {
        if (edges_.size() < 2 * values_.size()) {
          std::vector<Edge> old(std::exchange(edges_, std::vector<Edge>(4 * edges_.size())));
          for (const Edge& e : old) edges_[slot(e.edge)] = e;
        }
        const uint64_t edge = uint64_t{at} << 8 | static_cast<uint8_t>(c);
        edges_[slot(edge)] = {edge, to};
      }
    }
    at = to;
  }
  if (values_[at] < 0) values_[at] = value;
}

uint32_t Trie::node(std::string_view prefix) const {
  uint32_t at = 0;
  for (const char c : prefix) {
    at = child(at, c);
    if (at == 0) return nowhere;
  }
  return at;
}

Trie::Hit Trie::longest(std::string_view text, uint32_t node) const {
  Hit hit;
  if (node == nowhere) return hit;
  for (size_t i = 0; i < text.size(); ++i) {
    node = child(node, text[i]);
    if (node == 0) break;
    if (values_[node] >= 0) hit = {i + 1, values_[node]};
  }
  return hit;
}

namespace {

// --------------------------------------------------------------------------------------------------------- word cache

// Language repeats itself: most words of a text were seen before. A direct-mapped cache for each thread keeps the ids
// of short words, one to a cache line. (2^15 slots, 2 MiB, encode English up to 5% faster than 2^14; 2^16 made
// Llama-3's form 15% slower.)
class CachedModel : public TokenizerModel {
 protected:
  virtual void encode_word(std::string_view word, std::vector<int32_t>& ids) const = 0;

  void encode_cached(std::string_view word, std::vector<int32_t>& ids) const {
    if (word.empty()) return;
    if (word.size() > sizeof(Key)) return encode_word(word, ids);
    thread_local const std::unique_ptr<Slot[]> slots(new Slot[size_t{1} << slot_bits]());
    const Key key = key_of(word);
    Slot& slot = slots[hash(key, word.size())];
    if (slot.owner == owner_ && slot.size == word.size() && slot.key == key) {
      for (int i = 0; i < slot.count; ++i) ids.push_back(slot.ids[i]);
      return;
    }
    const size_t before = ids.size();
    encode_word(word, ids);
    const size_t count = ids.size() - before;
    if (count > std::size(slot.ids)) return;
    slot.owner = owner_;
    slot.key = key;
    slot.size = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(count);
    std::copy_n(ids.data() + before, count, slot.ids);
  }

 private:
  static constexpr int slot_bits = 15;
  using Key = std::array<uint64_t, 3>;
  struct alignas(64) Slot {
    uint64_t owner;  // 0: free
    Key key;
    int32_t ids[7];
    uint8_t size, count;
  };
  static_assert(sizeof(Slot) == 64);

  // A word of 1 to 24 bytes in three numbers that overlap: with its size they tell it from all others.
  static Key key_of(std::string_view word) {
    const auto load = [&](size_t at, size_t n) {
      uint64_t x = 0;
      std::memcpy(&x, word.data() + at, n);
      return x;
    };
    const size_t n = word.size();
    if (n >= 8) return {load(0, 8), load(n - 8, 8), n > 16 ? load(8, 8) : 0};
    if (n >= 4) return {load(0, 4) | load(n - 4, 4) << 32, 0, 0};
    return {load(0, 1) | load(n / 2, 1) << 8 | load(n - 1, 1) << 16, 0, 0};
  }
  size_t hash(const Key& key, size_t size) const {
    uint64_t h = (size + owner_ * 0x9E3779B97F4A7C15u) ^ key[0] * 0xD6E8FEB86659FD93u;
    h += key[1] * 0xA0761D6478BD642Fu ^ key[2] * 0xE7037ED1A0B428DBu;
    h ^= h >> 32;
    return h * 0x9E3779B97F4A7C15u >> (64 - slot_bits);
  }

  static inline std::atomic<uint64_t> owners_{0};
  const uint64_t owner_ = ++owners_;
};

std::optional<int32_t> find(const Vocabulary& vocabulary, const std::string& token) {
  const auto found = vocabulary.find(token);
  return found == vocabulary.end() ? std::nullopt : std::optional(found->second);
}

int32_t unknown_token(const Object& json, const char* otherwise, const Vocabulary& vocabulary) {
  const std::string token = json.get_string_or("unk_token", otherwise);
  const auto id = find(vocabulary, token);
  if (!id) fail("{}: 'unk_token', '{}', is not in the vocabulary", json.where(), printable(token));
  return *id;
}

// ---------------------------------------------------------------------------------------------------------- WordPiece

class WordPiece : public CachedModel {
 public:
  WordPiece(const Object& json, const Vocabulary& vocabulary)
      : unknown_(unknown_token(json, "[UNK]", vocabulary)),
        max_characters_(static_cast<size_t>(json.get_int_or("max_input_chars_per_word", 100, 0, int64_t{1} << 32))) {
    for (const auto& [key, value] : vocabulary) tokens_.insert(key, value);
    continuing_ = tokens_.node(json.get_string_or("continuing_subword_prefix", "##"));
  }

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override { encode_cached(piece, ids); }

 private:
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const override {
    const size_t before = ids.size();
    bool known = word.size() <= max_characters_ || code_points(word) <= max_characters_;
    for (size_t at = 0; known && at < word.size();) {
      const Trie::Hit hit = tokens_.longest(word.substr(at), at == 0 ? 0 : continuing_);
      known = hit.length > 0;
      at += hit.length;
      ids.push_back(hit.value);
    }
    if (!known) {
      ids.resize(before);
      ids.push_back(unknown_);
    }
  }

  Trie tokens_;
  uint32_t continuing_;  // the node of "##"
  const int32_t unknown_;
  const size_t max_characters_;
};

// ---------------------------------------------------------------------------------------------------------------- BPE

// Merges by pair of ids: open addressing, at most half full.
class MergeTable {
 public:
  struct Merge {
    uint64_t pair = none;
    int32_t rank = 0, id = 0;  // id: of the merged token
  };

  explicit MergeTable(size_t count) {
    while (size_t{1} << bits_ < 2 * count) ++bits_;
    slots_.resize(size_t{1} << bits_);
  }
  const Merge* find(int32_t left, int32_t right) const {
    const Merge& m = slots_[slot(key(left, right))];
    return m.pair == none ? nullptr : &m;
  }
  void set(int32_t left, int32_t right, int32_t rank, int32_t id) {
    slots_[slot(key(left, right))] = {key(left, right), rank, id};
  }

 private:
  static constexpr uint64_t none = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot(uint64_t pair) const {
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    size_t i = h >> (64 - bits_);
    while (slots_[i].pair != none && slots_[i].pair != pair) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  int bits_ = 4;
  std::vector<Merge> slots_;
};

class Bpe : public CachedModel {
 public:
  Bpe(const Object& json, const Vocabulary& vocabulary, bool byte_level)
      : merges_(json.has("merges") ? json.find("merges")->size() : 0),
        byte_level_(byte_level),
        fuse_unknown_(json.get_bool_or("fuse_unk", false)) {
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!json.get_string_or(key, "").empty()) fail("{}: '{}' is not supported", json.where(), key);
    }
    if (json.get_float_or("dropout", 0) != 0) fail("{}: 'dropout' is not supported; set it to null", json.where());
    read_symbols(json, vocabulary);
    read_merges(json, vocabulary);
    if (json.get_bool_or("ignore_merges", false)) {
      std::string bytes;
      for (const auto& [token, id] : vocabulary) {
        if (!byte_level) {
          whole_words_.emplace(token, id);
        } else if (byte_level_bytes(token, bytes)) {
          whole_words_.emplace(bytes, id);
        }
      }
    }
    cut_ = !byte_level && whole_words_.empty();
  }

  // A pre-tokenizer that leaves the text in one piece (Llama-2's, Mistral's, Gemma's) makes it too long to be cached,
  // and its merging a long one. Where no merge joins the characters on both sides, it can be cut.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override {
    size_t begin = 0;
    uint8_t left = unknown_kind;
    for (size_t at = 0; cut_ && at < piece.size();) {
      const size_t here = at;
      const uint8_t right = kind(next_code_point(piece, at));
      if (!joined_[left * kinds + right]) {
        encode_cached(piece.substr(begin, here - begin), ids);
        begin = here;
      }
      left = right;
    }
    encode_cached(piece.substr(begin), ids);
  }

 private:
  struct Symbol {
    int32_t id, previous, next;  // neighbours by index, -1: none
  };
  struct Pair {
    int32_t id;            // of its left symbol
    int32_t rank, merged;  // with the next one
  };
  struct Candidate {
    int32_t rank, left, id;  // left: index of the left symbol
    bool operator<(const Candidate& o) const {
      return rank != o.rank ? rank > o.rank : left > o.left;
    }  // lowest on top
  };

  // Kinds of characters: an ASCII one is its own.
  static constexpr uint8_t metaspace_kind = 128, other_kind = 129, unknown_kind = 130;  // not in the vocabulary
  static constexpr size_t kinds = 131;
  uint8_t kind(char32_t c) const {
    if (c < 0x80) return ascii_[c] >= 0 ? static_cast<uint8_t>(c) : unknown_kind;
    if (c == 0x2581) return metaspace_;
    return character(c) < 0 ? unknown_kind : other_kind;
  }

  // The token of one character, or -1.
  int32_t character(char32_t c) const {
    if (c < 0x80) return ascii_[c];
    const auto found = characters_.find(c);
    return found == characters_.end() ? -1 : found->second;
  }

  void read_symbols(const Object& json, const Vocabulary& vocabulary) {
    std::fill(std::begin(bytes_), std::end(bytes_), -1);
    std::fill(std::begin(ascii_), std::end(ascii_), -1);
    const bool fallback = json.get_bool_or("byte_fallback", false);
    for (const auto& [token, id] : vocabulary) {
      if (code_points(token) == 1) {
        size_t at = 0;
        const char32_t c = next_code_point(token, at);
        (c < 0x80 ? ascii_[c] : characters_[c]) = id;
      }
      const int byte = byte_fallback_byte(token);
      if (fallback && byte >= 0 && token == fmt::format("<0x{:02X}>", byte)) bytes_[byte] = id;
    }
    if (byte_level_) {
      bool complete = true;
      for (size_t b = 0; b < 256; ++b) {
        bytes_[b] = character(byte_level_alphabet[b]);
        complete = complete && bytes_[b] >= 0;
      }
      if (fallback && !complete)
        fail("{}: 'byte_fallback' with a byte-level vocabulary that lacks bytes is not supported", json.where());
      if (complete) return;
    }
    if (json.has("unk_token")) unknown_ = unknown_token(json, "", vocabulary);
  }

  // ["a", "b"] or "a b"; two empty strings for a comment.
  static std::pair<std::string, std::string> read_merge(const Json& item, const Object& json) {
    if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string() && item[0] != "" &&
        item[1] != "") {
      return {item[0], item[1]};
    }
    if (item.is_string()) {
      const auto& line = item.get_ref<const std::string&>();
      if (line.starts_with("#version")) return {};
      const size_t space = line.find(' ');
      if (space != 0 && space < line.size() - 1 && line.find(' ', space + 1) == std::string::npos) {
        return {line.substr(0, space), line.substr(space + 1)};
      }
    }
    fail("{}: 'merges' must hold pairs of tokens, not {}", json.where(),
         printable(item.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

  void read_merges(const Object& json, const Vocabulary& vocabulary) {
    if (character(0x2581) >= 0) metaspace_ = metaspace_kind;
    joined_.assign(kinds * kinds, false);
    for (size_t k = 0; k < kinds; ++k) joined_[k * kinds + unknown_kind] = joined_[unknown_kind * kinds + k] = true;
    const Json* merges = json.find("merges");
    if (!merges || !merges->is_array()) fail("{}: 'merges' must be a list", json.where());
    int32_t rank = 0;
    for (const Json& item : *merges) {
      const auto [left, right] = read_merge(item, json);
      if (left.empty()) continue;
      const auto a = find(vocabulary, left), b = find(vocabulary, right), both = find(vocabulary, left + right);
      if (!a || !b || !both) {
        fail("{}: 'merges' joins '{}' and '{}', but one of them or the result is not in the vocabulary", json.where(),
             printable(left), printable(right));
      }
      merges_.set(*a, *b, rank++, *both);
      size_t begin = 0, end = left.size() - 1;
      while (end > 0 && (static_cast<uint8_t>(left[end]) & 0xC0) == 0x80) --end;
      const uint8_t last = kind(next_code_point(left, end)), first = kind(next_code_point(right, begin));
      joined_[last * kinds + first] = true;
    }
  }

  // A character outside the vocabulary becomes its byte tokens if all of them exist, else the unknown token, else
  // nothing. As in the library an unknown token waits until the next character that is in the vocabulary: byte tokens
  // overtake it.
  // Calls add(id) for each symbol, at most one a byte.
  template <class Add>
  void read_characters(std::string_view word, Add add) const {
    bool waiting = false;
    const auto flush = [&] {
      if (waiting) add(*unknown_);
      waiting = false;
    };
    for (size_t at = 0; at < word.size();) {
      const size_t begin = at;
      const int32_t id = byte_level_ ? bytes_[static_cast<uint8_t>(word[at++])] : character(next_code_point(word, at));
      const std::string_view character = word.substr(begin, at - begin);
      if (id >= 0) {
        flush();
        add(id);
      } else if (!byte_level_ && std::all_of(character.begin(), character.end(),
                                             [&](char c) { return bytes_[static_cast<uint8_t>(c)] >= 0; })) {
        for (const char c : character) add(bytes_[static_cast<uint8_t>(c)]);
      } else if (unknown_) {
        if (!fuse_unknown_) flush();
        waiting = true;
      }
    }
    flush();
  }

  void encode_word(std::string_view word, std::vector<int32_t>& ids) const override {
    if (!whole_words_.empty()) {
      if (const auto id = find(whole_words_, std::string(word))) return ids.push_back(*id);
    }
    word.size() <= short_word ? merge_short(word, ids) : merge_long(word, ids);
  }

  // Among a few pairs the lowest is found faster by looking at all of them.
  void merge_short(std::string_view word, std::vector<int32_t>& ids) const {
    Pair pairs[short_word];
    size_t n = 0;
    read_characters(word, [&](int32_t id) { pairs[n++].id = id; });
    const auto look_up = [&](size_t i) {
      const auto* m = i + 1 < n ? merges_.find(pairs[i].id, pairs[i + 1].id) : nullptr;
      pairs[i].rank = m ? m->rank : no_rank;
      pairs[i].merged = m ? m->id : -1;
    };
    for (size_t i = 0; i < n; ++i) look_up(i);
    while (n > 1) {
      Pair* best = std::min_element(pairs, pairs + n, [](const Pair& a, const Pair& b) { return a.rank < b.rank; });
      if (best->rank == no_rank) break;
      best->id = best->merged;
      std::copy(best + 2, pairs + n, best + 1);
      --n;
      const auto at = static_cast<size_t>(best - pairs);
      look_up(at);
      if (at > 0) look_up(at - 1);
    }
    for (size_t i = 0; i < n; ++i) ids.push_back(pairs[i].id);
  }

  void merge_long(std::string_view word, std::vector<int32_t>& ids) const {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    read_characters(word, [&](int32_t id) {
      const auto i = static_cast<int32_t>(symbols.size());
      symbols.push_back({id, i - 1, i + 1});
    });
    if (!symbols.empty()) symbols.back().next = -1;
    std::priority_queue<Candidate> queue;
    const auto propose = [&](int32_t left) {
      if (left < 0 || symbols[left].next < 0) return;
      if (const auto* m = merges_.find(symbols[left].id, symbols[symbols[left].next].id))
        queue.push({m->rank, left, m->id});
    };
    for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) propose(i);
    while (!queue.empty()) {
      const Candidate top = queue.top();
      queue.pop();
      Symbol& left = symbols[top.left];
      // Earlier merges may have taken either symbol: only a pair that still makes the same token counts.
      if (left.id < 0 || left.next < 0) continue;
      Symbol& right = symbols[left.next];
      const auto* m = merges_.find(left.id, right.id);
      if (!m || m->id != top.id) continue;
      left.id = top.id;
      left.next = right.next;
      right.id = -1;
      if (left.next >= 0) symbols[left.next].previous = top.left;
      propose(left.previous);
      propose(top.left);
    }
    for (const Symbol& s : symbols) {
      if (s.id >= 0) ids.push_back(s.id);
    }
  }

  static constexpr size_t short_word = 32;  // bytes
  static constexpr int32_t no_rank = std::numeric_limits<int32_t>::max();

  MergeTable merges_;
  bool byte_level_, fuse_unknown_, cut_ = false;
  uint8_t metaspace_ = unknown_kind;
  std::vector<uint8_t> joined_;                       // [kinds, kinds]: whether a merge joins such characters
  int32_t bytes_[256];                                // byte level: of each byte; else: of "<0xHH>"; -1: none
  int32_t ascii_[128];                                // tokens of one character; -1: none
  std::unordered_map<char32_t, int32_t> characters_;  // those beyond ASCII
  std::optional<int32_t> unknown_;
  Vocabulary whole_words_;  // ignore_merges: words that are tokens are not split
};

}  // namespace

std::unique_ptr<TokenizerModel> make_model(const Object& json, const Vocabulary& vocabulary, bool byte_level) {
  // Files older than the type field are told apart by what they hold.
  const std::string type = json.get_string_or("type", json.has("merges") ? "BPE" : "WordPiece");
  if (type == "WordPiece" && !byte_level) return std::make_unique<WordPiece>(json, vocabulary);
  if (type == "BPE") return std::make_unique<Bpe>(json, vocabulary, byte_level);
  fail("{}: '{}' is not supported{}", json.where(), printable(type), byte_level ? " with ByteLevel" : "");
}

}  // namespace t2l
