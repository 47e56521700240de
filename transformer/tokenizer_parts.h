// The parts a tokenizer is built of, each made from its object in tokenizer.json. A part is a function (or, for the
// model, an interface of one function); a "Sequence" is flattened into a vector of them. Internal to
// transformer/tokenizer*.cpp.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "tensor/json.h"

namespace t2l {

// Bounds that no real file comes near: they keep hostile ones from exploding.
constexpr size_t max_text_bytes = size_t{1} << 28;  // of a text, also while it is being normalized or decoded
constexpr size_t max_token_bytes = 1024;
constexpr int32_t max_token_id = (1 << 22) - 1;
constexpr size_t max_parts = 64;  // in a (flattened) Sequence, and pieces in a template

// The objects of the array `key`, which must be there.
std::vector<Object> objects(const Object& json, const char* key);

// A function that is called while its caller still runs: no ownership, no allocation.
template <class Signature>
class FunctionRef;
template <class R, class... A>
class FunctionRef<R(A...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT: implicit on purpose
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, A... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(A... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, A...);
};

// A stretch of normalized text between added tokens, or a part of it; never empty.
struct Piece {
  std::string_view text;
  bool first;  // begins where the whole text begins
};
using Sink = FunctionRef<void(Piece)>;

using Normalizer = std::function<void(std::string&)>;
using PreTokenizer = std::function<void(Piece, Sink)>;  // hands on the parts of a piece, in order
using Decoder = std::function<void(std::vector<std::string>&)>;

using Vocabulary = std::unordered_map<std::string, int32_t>;

// Strings with values, searched by what a text begins with.
class Trie {
 public:
  static constexpr uint32_t nowhere = ~0u;
  struct Hit {
    size_t length = 0;  // 0: no key fits
    int32_t value = -1;
  };
  void insert(std::string_view key, int32_t value);  // the first value of a key stays; values >= 0
  uint32_t node(std::string_view prefix) const;      // nowhere if no key begins so
  // The longest key, behind the prefix `node` stands for, that text begins with.
  Hit longest(std::string_view text, uint32_t node = 0) const;
  bool may_start(char c) const { return root_[static_cast<uint8_t>(c)] != 0; }
  bool empty() const { return values_.size() == 1; }

 private:
  struct Edge {
    uint64_t edge = 0;  // node, byte; no edge in the table leaves the root
    uint32_t to = 0;
  };
  uint32_t child(uint32_t node, char c) const;  // 0: none
  size_t slot(uint64_t edge) const;             // where it is, or belongs
  std::array<uint32_t, 256> root_{};
  std::vector<Edge> edges_{16};      // open addressing, at most half full
  std::vector<int32_t> values_{-1};  // by node
};

struct TokenizerModel {
  virtual ~TokenizerModel() = default;
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;  // appends; thread-safe
};

struct PreTokenizers {
  std::vector<PreTokenizer> stages;
  bool byte_level = false;  // the model reads bytes: its vocabulary is written in the alphabet of ByteLevel

  void run(Piece piece, Sink sink, size_t stage = 0) const {
    if (stage == stages.size()) return sink(piece);
    stages[stage](piece, [&](Piece part) {
      if (!part.text.empty()) run(part, sink, stage + 1);
    });
  }
};

// From the whole tokenizer.json; empty where it has none.
std::vector<Normalizer> make_normalizers(const Object& json);
PreTokenizers make_pre_tokenizers(const Object& json);
std::vector<Decoder> make_decoders(const Object& json);
std::unique_ptr<TokenizerModel> make_model(const Object& json, const Vocabulary& vocabulary, bool byte_level);

// ByteLevel's alphabet writes byte b as the code point byte_level_alphabet[b]: itself where printable, else 256, 257,
// ...
extern const std::array<char32_t, 256> byte_level_alphabet;
// The bytes a token stands for; false where it has a code point outside the alphabet.
bool byte_level_bytes(std::string_view token, std::string& bytes);
// The byte of a token "<0xHH>", or -1.
int byte_fallback_byte(std::string_view token);

}  // namespace t2l
