// The lexer of Jinja: text up to the next tag, and within a tag the longest of the tokens that fit. White space around
// tags goes as "-" and "+" in them say, as does the line break after a block, and the indentation before it.
#include <algorithm>
#include <array>
#include <cmath>

#include "tensor/file.h"
#include "transformer/jinja_syntax.h"
#include "transformer/jinja_text.h"

namespace t2l::jinja {
namespace {

bool is_one_of(char c, View set) { return set.find(c) != View::npos; }

class Lexer {
 public:
  Lexer(View source, const std::string& where) : where_(where) {
    for (size_t i = 0; i < source.size(); ++i) {  // \r\n and \r are line breaks too; one at the end does not count
      if (source[i] != '\r') {
        source_ += source[i];
      } else if (i + 1 == source.size() || source[i + 1] != '\n') {
        source_ += '\n';
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text();
    add(Token::End);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const { fail("{}:{}: {}", where_, line_, what); }
  View rest() const { return View(source_).substr(at_); }
  bool at(View s) const { return rest().starts_with(s); }
  void add(Token::Type type, std::string text = {}, Value value = {}) {
    tokens_.push_back({type, line_, std::move(text), std::move(value)});
  }
  void advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
  }
  bool take(View s) {
    if (!at(s)) return false;
    advance(s.size());
    return true;
  }
  size_t spaces(size_t from) const {  // how many bytes of white space begin there
    size_t end = from;
    for (size_t next = from; next < source_.size(); end = next)
      if (!is_python_space(next_code_point(source_, next))) break;
    return end - from;
  }
  void skip_spaces() { advance(spaces(at_)); }

  // The text from at_ to `end`, where a tag with the given sign begins; stands at `end` then.
  void add_text(size_t end, char sign, bool variable) {
    View text = View(source_).substr(at_, end - at_);
    if (sign == '-') {
      text = strip(text, {}, false, true);
    } else if (sign != '+' && !variable) {
      const size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
      const View indentation = text.substr(line);
      if ((line > 0 || line_starting_) && strip(indentation, {}).empty()) text = text.substr(0, line);
    }
    if (!text.empty()) add(Token::Data, std::string(text));
    advance(end - at_);
  }

  // Takes the end of a tag: "-" eats the white space behind it, and where `trims` a line break goes, save behind "+".
  bool take_end(View end, bool trims) {
    if (at("-") && rest().substr(1).starts_with(end)) {
      advance(1 + end.size());
      skip_spaces();
    } else if (trims && at("+") && rest().substr(1).starts_with(end)) {
      advance(1 + end.size());
    } else if (at(end)) {
      advance(end.size());
      if (trims && at("\n")) advance(1);
    } else {
      return false;
    }
    line_starting_ = source_[at_ - 1] == '\n';
    return true;
  }

  void read_text() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos &&
           !is_one_of(tag + 1 < source_.size() ? source_[tag + 1] : ' ', "{%#"))
      ++tag;
    if (tag == std::string::npos) {
      add(Token::Data, std::string(rest()));
      at_ = source_.size();
      return;
    }
    const char kind = source_[tag + 1], next = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    const char sign = is_one_of(next, "-+") ? next : ' ';
    add_text(tag, sign, kind == '{');
    const size_t begin = sign == ' ' ? 2 : 3;
    if (kind == '#') return read_comment(begin);
    if (kind == '%' && take_raw(begin)) return read_raw();
    add(kind == '%' ? Token::BlockBegin : Token::VariableBegin);
    advance(begin);
    read_tag(kind == '%');
  }

  void read_comment(size_t begin) {
    advance(begin);
    for (;;) {
      const size_t end = source_.find("#}", at_);
      if (end == std::string::npos) wrong("a comment has no end: '#}' is missing");
      const bool signed_end = end > at_ && is_one_of(source_[end - 1], "-+");
      advance(end - signed_end - at_);
      if (take_end("#}", true)) return;
    }
  }

  bool take_raw(size_t begin) {
    size_t i = at_ + begin;
    i += spaces(i);
    if (!View(source_).substr(i).starts_with("raw")) return false;
    i += 3;
    i += spaces(i);
    const View end = View(source_).substr(i);
    if (end.starts_with("-%}")) {
      i += 3;
      i += spaces(i);
    } else if (end.starts_with("%}")) {
      i += 2;
    } else {
      return false;
    }
    advance(i - at_);
    line_starting_ = source_[at_ - 1] == '\n';
    return true;
  }

  void read_raw() {
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; tag += 2) {
      size_t i = tag + 2;
      const char sign = i < source_.size() && is_one_of(source_[i], "-+") ? source_[i++] : ' ';
      i += spaces(i);
      if (!View(source_).substr(i).starts_with("endraw")) continue;
      i += 6;
      i += spaces(i);
      const View end = View(source_).substr(i);
      if (!end.starts_with("%}") && !end.starts_with("-%}") && !end.starts_with("+%}")) continue;
      add_text(tag, sign, false);
      advance(i - at_);
      take_end("%}", true);
      return;
    }
    wrong("a raw block has no end: '{% endraw %}' is missing");
  }

  void read_tag(bool block) {
    std::string open;  // the brackets to be closed
    for (;;) {
      if (at_ == source_.size()) return;
      if (open.empty() && take_end(block ? "%}" : "}}", block))
        return add(block ? Token::BlockEnd : Token::VariableEnd);
      const size_t n = spaces(at_);
      if (n) {
        advance(n);
      } else if (!read_number() && !read_name() && !read_string()) {
        read_sign(open);
      }
    }
  }

  bool digit(size_t i) const { return i < source_.size() && source_[i] >= '0' && source_[i] <= '9'; }
  // The end of digits (with single _ between) of the base that begin at i; i itself if none do.
  size_t digits_end(size_t i, View set, bool underscore_first = false) const {
    size_t end = i;
    for (bool may_underscore = underscore_first;; may_underscore = true) {
      size_t j = end + (may_underscore && end < source_.size() && source_[end] == '_');
      if (j >= source_.size() || !is_one_of(source_[j], set)) return end;
      end = j + 1;
    }
  }

  bool read_number() {
    if (!digit(at_)) return false;
    static constexpr View decimal = "0123456789";
    const size_t whole = digits_end(at_, decimal);
    size_t end = whole;
    if (at_ == 0 || source_[at_ - 1] != '.') {
      if (end + 1 < source_.size() && source_[end] == '.' && digit(end + 1)) end = digits_end(end + 1, decimal);
      if (end < source_.size() && (source_[end] | 32) == 'e') {
        const size_t exponent = end + 1 + (end + 1 < source_.size() && is_one_of(source_[end + 1], "+-"));
        if (digit(exponent)) end = digits_end(exponent, decimal);
      }
    }
    if (end != whole) {
      const auto value = parse_float(View(source_).substr(at_, end - at_));
      add(Token::Number, {}, Value(value.value_or(INFINITY)));
    } else {
      int base = 10;
      if (source_[at_] == '0') {
        const char mark = at_ + 1 < source_.size() ? static_cast<char>(source_[at_ + 1] | 32) : ' ';
        const View set = mark == 'x' ? "0123456789abcdefABCDEF" : mark == 'o' ? "01234567" : mark == 'b' ? "01" : "";
        const size_t e = set.empty() ? at_ + 2 : digits_end(at_ + 2, set, true);
        base = set.empty() || e == at_ + 2 ? 10 : 0;
        end = base == 0 ? e : digits_end(at_, "0");
      }
      std::optional<Integer> value;
      try {
        value = parse_int(View(source_).substr(at_, end - at_), base);
      } catch (const Error& e) {
        wrong(e.what());
      }
      add(Token::Number, "int", Value(value.value_or(0)));
    }
    advance(end - at_);
    return true;
  }

  bool read_name() {
    size_t end = at_;
    for (size_t next = at_; next < source_.size(); end = next)
      if (!is_identifier_part(next_code_point(source_, next))) break;
    if (end == at_) return false;
    size_t first = at_;
    if (!is_identifier_start(next_code_point(source_, first)))
      wrong("a name begins with a character that none may begin with");
    add(Token::Name, source_.substr(at_, end - at_));
    advance(end - at_);
    return true;
  }

  bool read_string() {
    const char quote = source_[at_];
    if (!is_one_of(quote, "'\"")) return false;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) wrong("a string has no end");
    add(Token::String, {}, Value(unescape(View(source_).substr(at_ + 1, end - at_ - 1))));
    advance(end + 1 - at_);
    return true;
  }

  // As Python's codec "unicode-escape" reads it.
  std::string unescape(View s) const {
    std::string out;
    for (size_t i = 0; i < s.size();) {
      if (s[i] != '\\') {
        out += s[i++];
        continue;
      }
      const char c = s[++i];
      static constexpr View plain = "\\'\"abfnrtv", meant = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t k = plain.find(c); k != View::npos) {
        out += meant[k];
        ++i;
      } else if (c == '\n') {
        ++i;
      } else if (c >= '0' && c <= '7') {
        char32_t value = 0;
        for (int n = 0; n < 3 && i < s.size() && s[i] >= '0' && s[i] <= '7'; ++n)
          value = value * 8 + static_cast<char32_t>(s[i++] - '0');
        append_code_point(out, value);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        const View hex = s.substr(i + 1, n);
        if (hex.size() < n || hex.find_first_not_of("0123456789abcdefABCDEF") != View::npos)
          wrong(fmt::format("a string's \\{} needs {} hexadecimal digits", c, n));
        const auto value = static_cast<char32_t>(std::stoul(std::string(hex), nullptr, 16));
        if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
          wrong(fmt::format("\\{}{} in a string is no character", c, hex));
        append_code_point(out, value);
        i += 1 + n;
      } else if (c == 'N') {
        wrong("\\N{...} in a string is not supported; use \\u");
      } else {
        out += '\\';
        if (static_cast<uint8_t>(c) >= 0x80) {  // Jinja has escaped what is not ASCII before, and so spoils it
          const auto point = static_cast<uint32_t>(next_code_point(s, i));
          out += point < 0x100     ? fmt::format("x{:02x}", point)
                 : point < 0x10000 ? fmt::format("u{:04x}", point)
                                   : fmt::format("U{:08x}", point);
        }
      }
    }
    return out;
  }

  void read_sign(std::string& open) {
    static constexpr std::array<View, 6> pairs = {"//", "**", "==", "!=", ">=", "<="};
    const auto pair = std::find_if(pairs.begin(), pairs.end(), [&](View p) { return at(p); });
    const std::string sign = pair != pairs.end() ? std::string(*pair) : source_.substr(at_, 1);
    if (sign.size() == 1 && !is_one_of(sign[0], "+-/*%~[](){}><=.:|,;"))
      wrong(fmt::format("unexpected character '{}'", printable(rest().substr(0, offset_of(rest(), 1)))));
    static constexpr View opening = "([{", closing = ")]}";
    if (const size_t k = opening.find(sign); k != View::npos) {
      open += closing[k];
    } else if (closing.find(sign) != View::npos) {
      if (open.empty()) wrong(fmt::format("unexpected '{}'", sign));
      if (open.back() != sign[0]) wrong(fmt::format("unexpected '{}' where '{}' is expected", sign, open.back()));
      open.pop_back();
    }
    add(Token::Sign, sign);
    advance(sign.size());
  }

  const std::string& where_;
  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& where) { return Lexer(source, where).run(); }

}  // namespace t2l::jinja
