#include "t2l/answer_score.h"

#include <unicode/uchar.h>
#include <unicode/ustring.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <vector>

#include "t2l/stemmer.h"
#include "t2l/task_embedding.h"
#include "tensor/check.h"

namespace t2l {
namespace {

void check_length(const std::string& text) {
  constexpr size_t kMost = size_t(64) << 20;
  if (text.size() > kMost) fail("a text of {} bytes is too long to be scored; at most {}", text.size(), kMost);
}

void append(std::string& out, UChar32 c) {
  char bytes[U8_MAX_LENGTH];
  int32_t n = 0;
  U8_APPEND_UNSAFE(bytes, n, c);
  out.append(bytes, size_t(n));
}

bool is_one_of(UChar32 c, std::u32string_view set) { return set.find(char32_t(c)) != set.npos; }

std::string folded(const std::string& text) {
  std::string out;
  for (int32_t i = 0; i < int32_t(text.size());) {
    UChar32 c;
    U8_NEXT_OR_FFFD(text.data(), i, int32_t(text.size()), c);
    if (is_one_of(c, U"\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e")) continue;
    if (is_one_of(c, U"‘’‚‛′")) c = '\'';
    if (is_one_of(c, U"“”„‟″")) c = '"';
    if (is_one_of(c, U"‐‑‒–—―−")) c = '-';
    if (c >= 0xff01 && c <= 0xff5e) c -= 0xfee0;  // full-width ASCII
    if (u_charType(c) == U_DECIMAL_DIGIT_NUMBER) c = '0' + u_charDigitValue(c);
    append(out, is_python_space(c) ? ' ' : c);
  }
  return out;
}

// str.lower(). No lower case is more than three times as long.
std::string lower(const std::string& text) {
  std::vector<UChar> from(text.size() + 1), to(3 * text.size() + 1);
  std::string out(9 * text.size() + 1, 0);
  int32_t length = 0;
  UErrorCode error = U_ZERO_ERROR;
  u_strFromUTF8WithSub(from.data(), int32_t(from.size()), &length, text.data(), int32_t(text.size()), 0xfffd, nullptr,
                       &error);
  length = u_strToLower(to.data(), int32_t(to.size()), from.data(), length, "", &error);
  u_strToUTF8(out.data(), int32_t(out.size()), &length, to.data(), length, &error);
  T2L_CHECK(U_SUCCESS(error), "{}", u_errorName(error));
  out.resize(size_t(length));
  return out;
}

std::string normal(const std::string& text) {
  constexpr const char* kEdge = " :;,.!?`'\"()[]{}*";
  std::string out;
  for (const char c : folded(text))
    if (c != ' ' || out.empty() || out.back() != ' ') out += c;
  const size_t begin = std::min(out.find_first_not_of(kEdge), out.size());
  return lower(out.substr(begin, out.find_last_not_of(kEdge) + 1 - begin));
}

bool digits(std::string_view s) { return !s.empty() && s.find_first_not_of("0123456789") == s.npos; }

// [+-] digits, with commas before each three or without, [. digits]
std::optional<double> plain_number(std::string_view s) {
  std::string plain;
  if (!s.empty() && (s[0] == '+' || s[0] == '-')) {
    if (s[0] == '-') plain = "-";
    s.remove_prefix(1);
  }
  const size_t point = std::min(s.find('.'), s.size());
  if (point < s.size() && !digits(s.substr(point + 1))) return {};
  std::string_view whole = s.substr(0, point);
  const size_t comma = std::min(whole.find(','), whole.size());
  const bool grouped = comma < whole.size();
  if (!digits(whole.substr(0, comma)) || (grouped && comma > 3)) return {};
  plain += whole.substr(0, comma);
  for (whole.remove_prefix(comma); !whole.empty(); whole.remove_prefix(4)) {
    if (whole.size() < 4 || whole[0] != ',' || !digits(whole.substr(1, 3))) return {};
    plain += whole.substr(1, 3);
  }
  plain += s.substr(point);
  return std::strtod(plain.c_str(), nullptr);
}

bool is_token_character(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

std::vector<std::string> tokens_of(const std::string& text) {
  std::vector<std::string> tokens;
  const std::string all = lower(text);
  for (auto at = all.begin();;) {
    const auto begin = std::find_if(at, all.end(), is_token_character);
    if (begin == all.end()) break;
    at = std::find_if_not(begin, all.end(), is_token_character);
    std::string token(begin, at);
    tokens.push_back(token.size() > 3 ? porter_stem(token) : token);
  }
  constexpr size_t kMost = size_t(1) << 15;
  if (tokens.size() > kMost) fail("a text of {} words is too long for ROUGE; at most {}", tokens.size(), kMost);
  return tokens;
}

}  // namespace

bool exact_answer(const std::string& output, const std::string& reference) {
  check_length(output), check_length(reference);
  const std::string a = normal(output), b = normal(reference);
  if (b.empty()) return python_strip(output) == python_strip(reference);
  const std::optional<double> x = plain_number(a), y = plain_number(b);
  return x && y ? *x == *y : a == b;
}

double rouge_l(const std::string& output, const std::string& reference) {
  check_length(output), check_length(reference);
  const std::vector<std::string> a = tokens_of(output), b = tokens_of(reference);
  if (b.empty()) return python_strip(output) == python_strip(reference);
  // longest[j]: of a's tokens so far and b's first j.
  std::vector<int32_t> longest(b.size() + 1, 0);
  for (const std::string& token : a) {
    int32_t diagonal = 0;
    for (size_t j = 1; j <= b.size(); ++j) {
      const int32_t above = longest[j];
      longest[j] = token == b[j - 1] ? diagonal + 1 : std::max(above, longest[j - 1]);
      diagonal = above;
    }
  }
  const double common = longest.back(), precision = a.empty() ? 0 : common / double(a.size()),
               recall = common / double(b.size());
  return common > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

}  // namespace t2l
