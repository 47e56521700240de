#include "transformer/tokenizer_words.h"

#include <array>
#include <cstdint>

#include "tensor/check.h"

namespace t2l {

const std::string gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string llama3_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string qwen_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// What the patterns tell apart, as masks.
constexpr uint8_t end_of_text = 0, letter = 1, digit = 2, symbol = 4, newline = 8, space = 16, beyond = 32;
constexpr std::array<uint8_t, 256> kinds = [] {
  std::array<uint8_t, 256> out{};
  for (int c = 0; c < 256; ++c) {
    out[c] = c >= 0x80                              ? beyond
             : (c | 32) >= 'a' && (c | 32) <= 'z'   ? letter
             : c >= '0' && c <= '9'                 ? digit
             : c == '\r' || c == '\n'               ? newline
             : c == ' ' || (c >= '\t' && c <= '\f') ? space
                                                    : symbol;
  }
  return out;
}();

uint8_t kind(std::string_view text, size_t at) {
  return at < text.size() ? kinds[static_cast<uint8_t>(text[at])] : end_of_text;
}

// The end of the characters of these kinds from `at` on.
size_t end_of_run(std::string_view text, size_t at, uint8_t mask) {
  while (kind(text, at) & mask) ++at;
  return at;
}

// 's 't 're 've 'm 'll 'd at `at`: how many characters, or 0.
size_t contraction(std::string_view text, size_t at, bool any_case) {
  const auto c = [&](size_t i) {
    return at + i < text.size() ? static_cast<char>(text[at + i] | (any_case ? 32 : 0)) : '\0';
  };
  if (text[at] != '\'') return 0;
  switch (c(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 2;
    case 'r':
    case 'v': return c(2) == 'e' ? 3 : 0;
    case 'l': return c(2) == 'l' ? 3 : 0;
    default: return 0;
  }
}

}  // namespace

WordScanner::WordScanner(const std::string& pattern)
    : regex_(pattern), gpt2_(pattern == gpt2_words), digits_(pattern == llama3_words ? 3 : 1) {}

std::optional<WordScanner> WordScanner::known(const std::string& pattern) {
  if (pattern != gpt2_words && pattern != llama3_words && pattern != qwen_words) return std::nullopt;
  return WordScanner(pattern);
}

size_t WordScanner::regex_end(std::string_view text, size_t at) const {
  Match match{};
  const bool found = regex_.find(text, at, match);
  T2L_CHECK(found && match.begin == at && match.end > at, "words: none at {} of {}", at, text.size());
  return match.end;
}

// Below, an alternative of the pattern stands before what finds it. A run that ends in a byte beyond ASCII may go on
// with it.
size_t WordScanner::gpt2_end(std::string_view text, size_t at) const {
  if (const size_t n = contraction(text, at, false)) return at + n;  // 's|'t|'re|'ve|'m|'ll|'d
  const size_t begin = at + (text[at] == ' ');                       //  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
  const uint8_t first = kind(text, begin);
  if (first == beyond) return beyond_ascii;
  if (first & (letter | digit | symbol)) {
    const size_t end = end_of_run(text, begin, first);
    return kind(text, end) == beyond ? beyond_ascii : end;
  }
  const size_t end = end_of_run(text, at, space | newline);  // \s+(?!\S)|\s+
  if (kind(text, end) == beyond) return beyond_ascii;
  return end == text.size() || end == at + 1 ? end : end - 1;
}

size_t WordScanner::llama3_end(std::string_view text, size_t at) const {
  if (const size_t n = contraction(text, at, true)) return at + n;  // (?i:'s|'t|'re|'ve|'m|'ll|'d)
  const uint8_t first = kind(text, at), second = kind(text, at + 1);
  const bool prefix = first & (space | symbol);  // [^\r\n\p{L}\p{N}]?\p{L}+
  if (first == beyond || (prefix && second == beyond)) return beyond_ascii;
  if (first == letter || (prefix && second == letter)) {
    const size_t end = end_of_run(text, at + 1, letter);
    return kind(text, end) == beyond ? beyond_ascii : end;
  }
  if (first == digit) {  // \p{N}{1,3} or \p{N}
    size_t end = at + 1;
    while (end < at + digits_ && kind(text, end) == digit) ++end;
    return end < at + digits_ && kind(text, end) == beyond ? beyond_ascii : end;
  }
  if (first == symbol || (text[at] == ' ' && second == symbol)) {  //  ?[^\s\p{L}\p{N}]+[\r\n]*
    const size_t end = end_of_run(text, at + 1, symbol);
    return kind(text, end) == beyond ? beyond_ascii : end_of_run(text, end, newline);
  }
  const size_t end = end_of_run(text, at, space | newline);
  if (kind(text, end) == beyond) return beyond_ascii;
  for (size_t i = end; i > at; --i) {  // \s*[\r\n]+
    if (kind(text, i - 1) == newline) return i;
  }
  return end == text.size() || end == at + 1 ? end : end - 1;  // \s+(?!\S)|\s+
}

}  // namespace t2l
