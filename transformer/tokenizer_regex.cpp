#define PCRE2_CODE_UNIT_WIDTH 8
#include "transformer/tokenizer_regex.h"

#include <pcre2.h>

#include <cstdint>

#include "tensor/check.h"

namespace t2l {
namespace {

constexpr size_t max_pattern_bytes = 1 << 14;
// A match of a sane pattern backtracks a few times per byte of the longest run of like characters; PCRE2 counts each.
constexpr uint32_t max_backtracks = 1'000'000;

template <auto free>
struct Free {
  template <class T>
  void operator()(T* p) const {
    free(p);
  }
};

// What pcre2_match writes to, one for each thread.
struct Scratch {
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> data{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> stack{pcre2_jit_stack_create(1 << 15, 1 << 20, nullptr)};

  Scratch() {
    pcre2_set_match_limit(context.get(), max_backtracks);
    pcre2_set_heap_limit(context.get(), 1 << 16);  // KiB; only the interpreter, without JIT, uses the heap
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

// The pattern with \s and \S spelled out; refuses what Ruby and Perl read differently.
std::string translate(const std::string& pattern) {
  static constexpr char spaces[] =
      "\\x09-\\x0D\\x20\\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i], next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\') {
      ++i;
      if (next == 's') {
        out += in_class ? spaces : fmt::format("[{}]", spaces);
      } else if (next == 'S' && !in_class) {
        out += fmt::format("[^{}]", spaces);
      } else if (next == 'S' || next == 'h' || next == 'H' || next == 'Q') {
        fail("regular expression '{:.80}': \\{} is not supported here", pattern, next);
      } else {
        out.append(pattern, i - 1, 2);
      }
    } else if (in_class && (c == '[' || (c == '&' && next == '&'))) {
      fail("regular expression '{:.80}': sets inside a character class are not supported", pattern);
    } else {
      in_class = c == '[' || (in_class && c != ']');
      out += c;
    }
  }
  return out;
}

}  // namespace

Regex::Regex(const std::string& pattern) : pattern_(pattern) {
  if (pattern.size() > max_pattern_bytes) fail("regular expression of {} bytes: too long", pattern.size());
  const std::string spelled = translate(pattern);
  int error = 0;
  size_t at = 0;
  std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ match at lines; \C could end a match inside a character.
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at, context.get());
  if (!code) {
    char message[128] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    fail("regular expression '{:.80}': {}", pattern, message);
  }
  code_ = std::shared_ptr<const void>(code, [](pcre2_code* c) { pcre2_code_free(c); });
  jit_ = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
}

bool Regex::find(std::string_view text, size_t from, Match& match) const {
  thread_local const Scratch scratch;
  const auto match_code = jit_ ? pcre2_jit_match : pcre2_match;
  const int found = match_code(static_cast<const pcre2_code*>(code_.get()), reinterpret_cast<PCRE2_SPTR>(text.data()),
                               text.size(), from, PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0)
    fail("regular expression '{:.80}' takes too long on a text of {} bytes: simplify it", pattern_, text.size());
  const size_t* span = pcre2_get_ovector_pointer(scratch.data.get());
  match = {span[0], span[1]};
  if (match.begin < from || match.end < match.begin) fail("regular expression '{:.80}' matches backwards", pattern_);
  return true;
}

}  // namespace t2l
