#include "transformer/tokenizer_unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tensor/check.h"

namespace t2l {
namespace {

bool older_than(char32_t c, int unicode) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(c), age);
  return age[0] > 0 && age[0] <= unicode;
}

// The general category in Unicode 8, as a mask; 0 for what was not assigned then. Besides code points that came later,
// a few changed category, found by comparing all code points with the library (1734 Mn -> Mc, A9BD Mc -> Mn, 166D Po ->
// So, 1885 and 1886 Lo -> Mn, 111C9 Po -> Mn).
uint32_t bert_category(char32_t c) {
  switch (c) {
    case 0x1734: return U_GC_MN_MASK;
    case 0xA9BD: return U_GC_MC_MASK;
    case 0x166D:
    case 0x111C9: return U_GC_PO_MASK;
    case 0x1885:
    case 0x1886: return U_GC_LO_MASK;
    default: break;
  }
  return older_than(c, 8) ? U_GET_GC_MASK(static_cast<UChar32>(c)) : 0;
}

}  // namespace

bool is_ascii(std::string_view text) {
  size_t i = 0;
  for (uint64_t word; i + 8 <= text.size(); i += 8) {
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) return false;
  }
  return std::all_of(text.begin() + static_cast<ptrdiff_t>(i), text.end(), [](char c) { return c >= 0; });
}

std::string_view to_valid_utf8(std::string_view text, std::string& storage) {
  if (is_ascii(text)) return text;
  const auto* s = reinterpret_cast<const uint8_t*>(text.data());
  const size_t n = text.size();
  bool valid = true;
  for (size_t i = 0; i < n && valid;) {
    UChar32 c;
    U8_NEXT(s, i, n, c);
    valid = c >= 0;
  }
  if (valid) return text;
  storage.clear();
  for (size_t i = 0; i < n;) {
    UChar32 c;
    U8_NEXT_OR_FFFD(s, i, n, c);
    append_code_point(storage, static_cast<char32_t>(c));
  }
  return storage;
}

char32_t next_beyond_ascii(std::string_view text, size_t& at) {
  const auto* s = reinterpret_cast<const uint8_t*>(text.data());
  UChar32 c;
  U8_NEXT_OR_FFFD(s, at, text.size(), c);
  return static_cast<char32_t>(c);
}

void append_beyond_ascii(std::string& text, char32_t c) {
  uint8_t buffer[U8_MAX_LENGTH];
  size_t n = 0;
  U8_APPEND_UNSAFE(buffer, n, c);
  text.append(reinterpret_cast<const char*>(buffer), n);
}

size_t code_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !U8_IS_TRAIL(static_cast<uint8_t>(c)); }));
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return u_isUWhiteSpace(static_cast<UChar32>(c));
}
bool is_numeric(char32_t c) { return U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_N_MASK; }

// In Unicode 9, whose tables the library has: 1CF2 and 1CF3 were Mc, 111C9 Po.
bool is_mark(char32_t c) {
  if (c == 0x1CF2 || c == 0x1CF3 || c == 0x111C9) return c != 0x111C9;
  return older_than(c, 9) && (U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_M_MASK);
}

bool is_word(char32_t c) {
  return u_isUAlphabetic(static_cast<UChar32>(c)) || c == 0x200C || c == 0x200D ||
         (U_GET_GC_MASK(static_cast<UChar32>(c)) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK));
}

bool is_bert_control(char32_t c) {
  if (c < 0x80) return c < ' ' || c == 0x7F;
  return bert_category(c) & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK);
}
bool is_bert_accent(char32_t c) { return c >= 0x80 && (bert_category(c) & U_GC_MN_MASK); }

bool is_bert_punctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !((c | 32) >= 'a' && (c | 32) <= 'z');
  return bert_category(c) & U_GC_P_MASK;
}

// Not the ranges of BERT's Python code: the library begins one of them at 2B920 instead of 2B820.
bool is_chinese(char32_t c) {
  if (c < 0x3400) return false;
  static constexpr char32_t ranges[][2] = {{0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF},
                                           {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF},
                                           {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(ranges), std::end(ranges), [c](const auto& r) { return r[0] <= c && c <= r[1]; });
}

// The library's tables are those of Unicode 9: what came later has no decomposition, and is no mark to be reordered.
void normalize(std::string& text, NormalForm form) {
  if (is_ascii(text)) return;
  UErrorCode status = U_ZERO_ERROR;
  static const icu::UnicodeSet unicode9 = [] {
    UErrorCode failed = U_ZERO_ERROR;
    icu::UnicodeSet set(u"[:age=9.0:]", failed);
    set.freeze();
    T2L_CHECK(U_SUCCESS(failed), "Unicode data: {}", u_errorName(failed));
    return set;
  }();
  const bool compatible = form == NormalForm::KC || form == NormalForm::KD;
  const auto* normalizer = icu::Normalizer2::getInstance(
      nullptr, compatible ? "nfkc" : "nfc",
      form == NormalForm::C || form == NormalForm::KC ? UNORM2_COMPOSE : UNORM2_DECOMPOSE, status);
  T2L_CHECK(U_SUCCESS(status), "Unicode normalization data: {}", u_errorName(status));
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  icu::FilteredNormalizer2(*normalizer, unicode9)
      .normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr, status);
  T2L_CHECK(U_SUCCESS(status), "Unicode normalization: {}", u_errorName(status));
  text = std::move(out);
}

void lowercase(std::string& text) {
  if (is_ascii(text)) {
    for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return;
  }
  std::string out;
  out.reserve(text.size());
  for_code_points(text, [&](char32_t c) {
    if (c == 0x130) {  // the one code point whose lower case is two: i and a dot above
      out += "i\xCC\x87";
    } else {
      const bool ascii_upper = c >= 'A' && c <= 'Z';
      append_code_point(out,
                        c < 0x80 ? c + 32 * ascii_upper : static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))));
    }
  });
  text = std::move(out);
}

}  // namespace t2l
