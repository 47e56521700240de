// Text to token ids and back, as a Hugging Face tokenizer.json says, id for id what the `tokenizers` library gives:
//   encode: cut out added tokens -> normalizer -> pre-tokenizer -> model, piece by piece -> special tokens around it
//   decode: ids -> tokens -> decoder -> text
// Forms: WordPiece as BERT has it; BPE on bytes (GPT-2, Llama-3, Qwen) and on characters with byte fallback (Llama-2,
// Mistral, Gemma). "truncation" and "padding" in the file are ignored: they belong to the caller.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace t2l {

struct Encoding {
  std::vector<int32_t> ids;       // [tokens]
  std::vector<int32_t> type_ids;  // [tokens]: 0 for the first text of a pair and its special tokens, 1 for the second
};

// Text tokens beyond the limit are cut off, from the right unless `left` says the beginning; special tokens stay.
struct Truncation {
  size_t max_length = std::numeric_limits<size_t>::max();  // tokens, special ones included
  bool left = false;
};

// Immutable; copies share their tables, and all functions may be called from several threads.
class Tokenizer {
 public:
  // From a file or from tokenizer.json in a directory. Error if it is not valid, or asks for parts not supported here.
  static Tokenizer load(const std::string& dir_or_file);
  static Tokenizer parse(std::string_view json, const std::string& name);

  // Invalid UTF-8 is read as U+FFFD. Error if max_length leaves no room for the special tokens, if the text is longer
  // than 256 MiB, or if one of the file's regular expressions takes exponential time on it.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true, Truncation truncation = {}) const;
  // Two texts, cut together: the longer one first, then both to half of max_length (the longer one keeps an odd token).
  Encoding encode_pair(std::string_view a, std::string_view b, bool add_special_tokens = true,
                       Truncation truncation = {}) const;

  // Ids that mean nothing are left out.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  std::optional<int32_t> id(const std::string& token) const;  // of an ordinary or an added token
  const std::string* token(int32_t id) const;                 // null if there is none
  bool is_special(int32_t id) const;                          // left out by decode() on demand
  size_t vocab_size() const;                                  // one more than the largest id

 private:
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  std::shared_ptr<const Parts> parts_;
};

// Decodes token by token. What feed() and finally finish() return, put together, is decode() of all ids; text is held
// back while a further token can change it, so no character is ever split.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special_tokens = true)
      : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}
  std::string feed(int32_t id);
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::vector<int32_t> ids_;  // the last tokens that were emitted together, as context, and those held back
  size_t emitted_ = 0;        // how many of them were emitted
};

}  // namespace t2l
