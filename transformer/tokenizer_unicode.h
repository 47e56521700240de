// UTF-8 and the Unicode properties tokenizers ask for, over ICU.
// All functions but to_valid_utf8() take valid UTF-8. "Bert" properties are those of Unicode 8, which the reference
// library froze.
#pragma once
#include <string>
#include <string_view>

namespace t2l {

// `text` itself when it is valid UTF-8; else a copy in `storage` with each maximal invalid part replaced by U+FFFD.
std::string_view to_valid_utf8(std::string_view text, std::string& storage);

bool is_ascii(std::string_view text);
char32_t next_beyond_ascii(std::string_view text, size_t& at);
void append_beyond_ascii(std::string& text, char32_t c);
// The code point at `at` < text.size(), which moves behind it.
inline char32_t next_code_point(std::string_view text, size_t& at) {
  const auto c = static_cast<unsigned char>(text[at]);
  return c < 0x80 ? (++at, c) : next_beyond_ascii(text, at);
}
inline void append_code_point(std::string& text, char32_t c) {
  c < 0x80 ? text.push_back(static_cast<char>(c)) : append_beyond_ascii(text, c);
}
size_t code_points(std::string_view text);

bool is_space(char32_t c);             // White_Space
bool is_numeric(char32_t c);           // Nd, Nl, No
bool is_word(char32_t c);              // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool is_mark(char32_t c);              // Mn, Mc, Me
bool is_bert_control(char32_t c);      // Cc, Cf, Co
bool is_bert_accent(char32_t c);       // Mn
bool is_bert_punctuation(char32_t c);  // ASCII symbols and P*
bool is_chinese(char32_t c);

enum class NormalForm { C, D, KC, KD };
void normalize(std::string& text, NormalForm form);
void lowercase(std::string& text);  // code point by code point: no final sigma, no locale

// Calls f(char32_t) for every code point.
template <class F>
void for_code_points(std::string_view text, F&& f) {
  for (size_t at = 0; at < text.size();) f(next_code_point(text, at));
}

}  // namespace t2l
