// Python's string methods over UTF-8, counting in code points, after ICU's tables. All take valid UTF-8. Internal to
// transformer/jinja_*.cpp.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transformer/tokenizer_unicode.h"

namespace t2l::jinja {

using View = std::string_view;

bool is_python_space(char32_t c);  // str.isspace(), also \s of its regular expressions
bool is_printable(char32_t c);
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric_value(char32_t c);
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);
inline bool is_alnum(char32_t c) { return is_alpha(c) || is_numeric_value(c); }
bool is_cased(char32_t c);
bool is_upper(View s);
bool is_lower(View s);
bool is_title(View s);

std::string upper(View s);
std::string lower(View s);
std::string fold(View s);
std::string title(View s);
std::string swap_case(View s);
std::string capitalize(View s);

// The byte at which code point n begins; s.size() beyond the end.
size_t offset_of(View s, size_t n);
// Where needle begins at or after `from`, or npos; in linear time.
size_t find(View s, View needle, size_t from = 0);
size_t find_last(View s, View needle);

View strip(View s, std::optional<View> characters, bool left = true, bool right = true);
// Pieces of s, all of them but for the last `limit` splits; by white space where there is no separator.
std::vector<View> split(View s, std::optional<View> separator, size_t limit, bool from_right = false);
std::vector<View> split_lines(View s, bool keep_ends = false);
std::string replace(View s, View from, View to, size_t limit);
size_t count(View s, View needle);
// s within `width` code points of `fill`, of which `left` shares stand before it: 0 none, 1 half, 2 all.
std::string pad(View s, size_t width, char32_t fill, int left);

}  // namespace t2l::jinja
