// The words of Llama-3's, Qwen's and GPT-2's regular expressions, found by a scanner: most tokenizers there are split
// by one of these three, and a regex engine takes longer over it than all the rest of encoding.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "transformer/tokenizer_regex.h"

namespace t2l {

extern const std::string gpt2_words, llama3_words, qwen_words;

class WordScanner {
 public:
  // Nothing unless `pattern` is, to the letter, one of the three.
  static std::optional<WordScanner> known(const std::string& pattern);

  // The end of the pattern's match at `at` < text.size(), in valid UTF-8; these patterns match everywhere. The regular
  // expression itself decides where a byte beyond ASCII has a say.
  size_t end(std::string_view text, size_t at) const {
    const size_t end = gpt2_ ? gpt2_end(text, at) : llama3_end(text, at);
    return end != beyond_ascii ? end : regex_end(text, at);
  }

 private:
  explicit WordScanner(const std::string& pattern);
  static constexpr size_t beyond_ascii = ~size_t{0};
  size_t gpt2_end(std::string_view text, size_t at) const;
  size_t llama3_end(std::string_view text, size_t at) const;
  size_t regex_end(std::string_view text, size_t at) const;

  Regex regex_;
  bool gpt2_;
  size_t digits_;  // in a word: Llama-3's 3, Qwen's 1
};

}  // namespace t2l
