// Regular expressions as tokenizer.json means them (Oniguruma, Ruby syntax, UTF-8), matched by PCRE2's JIT.
// \s is spelled out: PCRE2 counts U+180E among the spaces. With that, Llama-3's pattern splits around every code point
// as the library does.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace t2l {

struct Match {
  size_t begin, end;
};

class Regex {
 public:
  // Throws where PCRE2 refuses the pattern.
  explicit Regex(const std::string& pattern);
  // The first match at or behind `from` in valid UTF-8. Throws where a pathological pattern exceeds the match limits.
  bool find(std::string_view text, size_t from, Match& match) const;

 private:
  std::string pattern_;
  std::shared_ptr<const void> code_;
  bool jit_ = false;  // else interpreted
};

}  // namespace t2l
