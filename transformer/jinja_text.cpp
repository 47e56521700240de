#include "transformer/jinja_text.h"

#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <cstring>

#include "transformer/jinja_value.h"

namespace t2l::jinja {
namespace {

UChar32 u(char32_t c) { return static_cast<UChar32>(c); }
uint32_t category(char32_t c) { return U_GET_GC_MASK(u(c)); }
int numeric_type(char32_t c) { return u_getIntPropertyValue(u(c), UCHAR_NUMERIC_TYPE); }

// Full case mapping: a code point may become several.
template <class Map>
std::string map_case(View s, const Map& map) {
  T2L_CHECK(s.size() < size_t{1} << 30, "a text of {} bytes", s.size());
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(s.size()));
  UErrorCode status = U_ZERO_ERROR;
  map(icu::StringPiece(s.data(), static_cast<int32_t>(s.size())), sink, status);
  T2L_CHECK(U_SUCCESS(status), "Unicode case data: {}", u_errorName(status));
  return out;
}

std::string title_of(View c) {  // of one code point
  return map_case(c, [](icu::StringPiece from, icu::ByteSink& to, UErrorCode& status) {
    icu::CaseMap::utf8ToTitle("", U_TITLECASE_WHOLE_STRING | U_TITLECASE_NO_BREAK_ADJUSTMENT, nullptr, from, to,
                              nullptr, status);
  });
}

bool ends_line(char32_t c) {
  return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

size_t before(View s, size_t end) {  // where the code point that ends at `end` begins
  do --end;
  while (end && (static_cast<uint8_t>(s[end]) & 0xC0) == 0x80);
  return end;
}

}  // namespace

bool is_python_space(char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }
bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= ' ';
  return !(category(c) & (U_GC_C_MASK | U_GC_Z_MASK));
}
bool is_alpha(char32_t c) { return category(c) & U_GC_L_MASK; }
bool is_decimal(char32_t c) { return numeric_type(c) == U_NT_DECIMAL; }
bool is_digit(char32_t c) { return is_decimal(c) || numeric_type(c) == U_NT_DIGIT; }
bool is_numeric_value(char32_t c) { return numeric_type(c) != U_NT_NONE; }
bool is_identifier_start(char32_t c) { return c == '_' || u_hasBinaryProperty(u(c), UCHAR_XID_START); }
bool is_identifier_part(char32_t c) { return u_hasBinaryProperty(u(c), UCHAR_XID_CONTINUE); }
bool is_cased(char32_t c) { return u_hasBinaryProperty(u(c), UCHAR_CASED); }

namespace {

bool has_case(View s, bool wanted_upper) {
  bool any = false;
  for (size_t at = 0; at < s.size();) {
    const UChar32 c = u(next_code_point(s, at));
    const bool is_upper_case = u_hasBinaryProperty(c, UCHAR_UPPERCASE),
               is_lower_case = u_hasBinaryProperty(c, UCHAR_LOWERCASE);
    if ((wanted_upper ? is_lower_case : is_upper_case) || u_charType(c) == U_TITLECASE_LETTER) return false;
    any |= wanted_upper ? is_upper_case : is_lower_case;
  }
  return any;
}

}  // namespace

bool is_upper(View s) { return has_case(s, true); }
bool is_lower(View s) { return has_case(s, false); }

bool is_title(View s) {
  bool cased = false, previous = false;
  for (size_t at = 0; at < s.size();) {
    const UChar32 c = u(next_code_point(s, at));
    if (u_hasBinaryProperty(c, UCHAR_UPPERCASE) || u_charType(c) == U_TITLECASE_LETTER) {
      if (previous) return false;
      previous = cased = true;
    } else if (u_hasBinaryProperty(c, UCHAR_LOWERCASE)) {
      if (!previous) return false;
      cased = true;
    } else {
      previous = false;
    }
  }
  return cased;
}

std::string upper(View s) {
  return map_case(s, [](icu::StringPiece from, icu::ByteSink& to, UErrorCode& status) {
    icu::CaseMap::utf8ToUpper("", 0, from, to, nullptr, status);
  });
}
std::string lower(View s) {
  return map_case(s, [](icu::StringPiece from, icu::ByteSink& to, UErrorCode& status) {
    icu::CaseMap::utf8ToLower("", 0, from, to, nullptr, status);
  });
}
std::string fold(View s) {
  return map_case(s, [](icu::StringPiece from, icu::ByteSink& to, UErrorCode& status) {
    icu::CaseMap::utf8Fold(0, from, to, nullptr, status);
  });
}

std::string title(View s) {
  const std::string small = lower(s);  // as a whole: a sigma's form depends on what stands around it
  std::string out;
  bool previous = false;
  for (size_t at = 0, at_small = 0; at < s.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(s, at);
    const View one = s.substr(begin, at - begin);
    const size_t n = lower(one).size();
    out += previous ? small.substr(at_small, n) : title_of(one);
    at_small += n;
    previous = is_cased(c);
  }
  return out;
}

std::string swap_case(View s) {
  std::string out;
  for (size_t at = 0; at < s.size();) {
    const size_t begin = at;
    const UChar32 c = u(next_code_point(s, at));
    const View one = s.substr(begin, at - begin);
    out += u_hasBinaryProperty(c, UCHAR_UPPERCASE)   ? lower(one)
           : u_hasBinaryProperty(c, UCHAR_LOWERCASE) ? upper(one)
                                                     : std::string(one);
  }
  return out;
}

std::string capitalize(View s) {
  if (s.empty()) return {};
  const size_t first = offset_of(s, 1);
  return title_of(s.substr(0, first)) + lower(s).substr(lower(s.substr(0, first)).size());
}

size_t offset_of(View s, size_t n) {
  size_t at = 0;
  while (n-- && at < s.size()) next_code_point(s, at);
  return at;
}

size_t find(View s, View needle, size_t from) {
  if (from > s.size()) return View::npos;
  if (needle.empty()) return from;
  // AddressSanitizer's memmem looks at all of the rest on every call; its memchr at what comes before the hit.
  const char* begin = s.data() + from;
  const void* hit = needle.size() == 1 ? memchr(begin, needle[0], s.size() - from)
                                       : memmem(begin, s.size() - from, needle.data(), needle.size());
  return hit ? static_cast<size_t>(static_cast<const char*>(hit) - s.data()) : View::npos;
}

size_t find_last(View s, View needle) {
  if (needle.empty()) return s.size();
  size_t last = View::npos;
  for (size_t at = find(s, needle); at != View::npos; at = find(s, needle, at + 1)) {
    last = at;
    Meter::scan(needle.size());
  }
  return last;
}

View strip(View s, std::optional<View> characters, bool left, bool right) {
  std::u32string set;
  if (characters) for_code_points(*characters, [&](char32_t c) { set += c; });
  std::sort(set.begin(), set.end());
  const auto goes = [&](size_t at) {
    const char32_t c = next_code_point(s, at);
    return characters ? std::binary_search(set.begin(), set.end(), c) : is_python_space(c);
  };
  size_t begin = 0, end = s.size();
  while (left && begin < end && goes(begin)) next_code_point(s, begin);
  while (right && begin < end && goes(before(s, end))) end = before(s, end);
  return s.substr(begin, end - begin);
}

namespace {

void add(std::vector<View>& pieces, View piece) {
  Meter::bytes(sizeof(View) + sizeof(Value));
  pieces.push_back(piece);
}

std::vector<View> split_spaces(View s, size_t limit) {
  std::vector<View> out;
  size_t at = 0;
  const auto skip = [&](bool spaces) {
    while (at < s.size()) {
      size_t next = at;
      if (is_python_space(next_code_point(s, next)) != spaces) break;
      at = next;
    }
  };
  for (skip(true); at < s.size(); skip(true)) {
    const size_t begin = at;
    if (out.size() == limit) {
      out.push_back(s.substr(begin));
      break;
    }
    skip(false);
    add(out, s.substr(begin, at - begin));
  }
  return out;
}

std::vector<View> split_spaces_from_right(View s, size_t limit) {
  std::vector<View> out;
  View rest = strip(s, {}, false, true);
  while (!rest.empty() && out.size() < limit) {
    size_t begin = rest.size();
    for (size_t at; begin && (at = before(rest, begin), true); begin = at) {
      size_t end = at;
      if (is_python_space(next_code_point(rest, end))) break;
    }
    add(out, rest.substr(begin));
    rest = strip(rest.substr(0, begin), {}, false, true);
  }
  if (!rest.empty()) out.push_back(rest);
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace

std::vector<View> split(View s, std::optional<View> separator, size_t limit, bool from_right) {
  if (!separator) return from_right ? split_spaces_from_right(s, limit) : split_spaces(s, limit);
  std::vector<size_t> cuts;
  const auto cut = [&](size_t at) {
    Meter::bytes(sizeof at);
    cuts.push_back(at);
  };
  if (!from_right) {
    for (size_t at = 0; cuts.size() < limit && (at = find(s, *separator, at)) != View::npos; at += separator->size())
      cut(at);
  } else {
    Meter::scan(product(s.size(), separator->size()));
    for (View rest = s; cuts.size() < limit;) {
      const size_t at = rest.rfind(*separator);
      if (at == View::npos) break;
      cut(at);
      rest = rest.substr(0, at);
    }
    std::reverse(cuts.begin(), cuts.end());
  }
  std::vector<View> out;
  size_t begin = 0;
  for (const size_t at : cuts) {
    add(out, s.substr(begin, at - begin));
    begin = at + separator->size();
  }
  out.push_back(s.substr(begin));
  return out;
}

std::vector<View> split_lines(View s, bool keep_ends) {
  std::vector<View> out;
  for (size_t at = 0, begin = 0; at < s.size(); begin = at) {
    size_t end = at;
    while (at < s.size()) {
      end = at;
      const char32_t c = next_code_point(s, at);
      if (ends_line(c)) {
        if (c == '\r' && at < s.size() && s[at] == '\n') ++at;
        break;
      }
      end = at;
    }
    add(out, s.substr(begin, (keep_ends ? at : end) - begin));
  }
  return out;
}

std::string replace(View s, View from, View to, size_t limit) {
  std::string out;
  size_t begin = 0, done = 0;
  if (from.empty()) {  // before each code point, and at the end
    for (; done < limit; ++done) {
      out += to;
      if (begin == s.size()) break;
      const size_t at = begin;
      next_code_point(s, begin);
      out += s.substr(at, begin - at);
      if (out.size() > max_value_bytes) break;
    }
  } else {
    for (size_t at; done < limit && (at = find(s, from, begin)) != View::npos; ++done) {
      out += s.substr(begin, at - begin);
      out += to;
      begin = at + from.size();
      if (out.size() > max_value_bytes) break;
    }
  }
  return out += s.substr(begin);
}

size_t count(View s, View needle) {
  if (needle.empty()) return code_points(s) + 1;
  size_t n = 0;
  for (size_t at = 0; (at = find(s, needle, at)) != View::npos; at += needle.size()) ++n;
  return n;
}

std::string pad(View s, size_t width, char32_t fill, int left) {
  const size_t n = code_points(s), missing = width > n ? width - n : 0;
  Meter::bytes(product(missing, 4) + s.size());
  // Python's center() puts the odd one to the left if the width is odd.
  const size_t before_it = left == 0 ? 0 : left == 2 ? missing : missing / 2 + (missing & width & 1);
  std::string out;
  for (size_t i = 0; i < before_it; ++i) append_code_point(out, fill);
  out += s;
  for (size_t i = before_it; i < missing; ++i) append_code_point(out, fill);
  return out;
}

}  // namespace t2l::jinja
