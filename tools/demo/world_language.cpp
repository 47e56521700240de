#include "tools/demo/world_language.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <map>

#include "tensor/check.h"

namespace t2l::world {
namespace {

// FNV-1a (Fowler, Noll & Vo).
uint64_t hash_of(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : text) h = (h ^ uint8_t(c)) * 0x100000001b3u;
  return h;
}

const std::map<std::string, std::string, std::less<>>& shared_patterns() {
  static const std::map<std::string, std::string, std::less<>> all = {
      {"item", "[item|item|element|entry|member]"},
      {"items", "[items|items|elements|entries|members]"},
      {"list", "[list|list|sequence|input|row]"},
      {"of", "[|||| of the $list| in the $list]"},
      {"take", "[take|keep|return|select|output|retain]"},
      {"give", "[take|return|select|output|give|pick|find]"},
      {"drop", "[drop|skip|omit|discard|delete|leave out|cut off]"},
      {"remove", "[remove|delete|drop|discard|eliminate|leave out]"},
      {"each", "[each|every]"},
      {"number", "[number|number|integer|digit]"},
      {"numbers", "[numbers|numbers|integers|digits]"},
      {"letter", "[letter|letter|character]"},
      {"letters", "[letters|letters|characters]"},
      {"with", "[with|by]"},
      {"find", "[find|return|give|output|determine|report]"},
      {"write", "[write|output|give|list|print]"},
      {"count", "[count|find the number of|give the number of|determine the number of]"},
      {"tell", "[tell|say|state|work out|find out]"},
  };
  return all;
}

// Verbs whose last consonant doubles before -ing.
constexpr std::array kDoubling = {"drop", "skip", "omit", "cut", "swap", "flip", "put", "let", "output"};

std::string tidied(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == ' ' && (out.empty() || out.back() == ' ')) continue;
    if ((c == ',' || c == '.') && !out.empty() && out.back() == ' ') out.pop_back();
    out += c;
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace

Random::Random(uint64_t seed, std::string_view purpose) : key_{seed, hash_of(purpose)} {}

uint32_t Random::below(uint32_t n) { return uint32_t(uint64_t(random_bits(key_, next_++)) * n >> 32); }

std::string expand(std::string_view pattern, Random& random) {
  std::string out;
  for (size_t i = 0; i < pattern.size();) {
    if (pattern[i] == '$') {
      size_t end = i + 1;
      while (end < pattern.size() && std::islower(static_cast<unsigned char>(pattern[end]))) ++end;
      const auto it = shared_patterns().find(pattern.substr(i + 1, end - i - 1));
      T2L_CHECK(it != shared_patterns().end(), "no pattern of that name in '{}'", pattern);
      out += expand(it->second, random);
      i = end;
    } else if (pattern[i] == '[') {
      std::vector<std::string_view> choices;
      size_t begin = ++i;
      for (int depth = 1; depth > 0; ++i) {
        T2L_CHECK(i < pattern.size(), "a [ without ] in '{}'", pattern);
        depth += (pattern[i] == '[') - (pattern[i] == ']');
        if ((pattern[i] == '|' && depth == 1) || depth == 0) {
          choices.push_back(pattern.substr(begin, i - begin));
          begin = i + 1;
        }
      }
      out += expand(random.choose(choices), random);
    } else {
      out += pattern[i++];
    }
  }
  return out;
}

std::string gerund(const std::string& imperative) {
  const size_t end = std::min(imperative.find(' '), imperative.size());
  std::string verb = imperative.substr(0, end);
  if (std::find(kDoubling.begin(), kDoubling.end(), verb) != kDoubling.end())
    verb += verb.back();
  else if (verb.ends_with('e'))
    verb.pop_back();
  return verb + "ing" + imperative.substr(end);
}

std::string describe(const std::vector<std::vector<std::string>>& steps, bool commute, Random& random) {
  // {0} and {1}: imperatives; {2} and {3}: the same with -ing. Those of the second list do not begin with a verb, so
  // they cannot be wrapped.
  static const std::vector<std::string> joins = {"{0} and {1}",      "{0} and {1}",       "{0}, then {1}",
                                                 "{0} and then {1}", "{0}, and then {1}", "first {0}, then {1}",
                                                 "{0} before {3}",   "{0}. then {1}",     "{0}. after that, {1}",
                                                 "{0}. next, {1}",   "{1} after {2}"};
  static const std::vector<std::string> adverbial = {"after you {0}, {1}", "after {2}, {1}", "before {3}, {0}"};
  static const std::vector<std::string> wraps = {"{0}",
                                                 "{0}",
                                                 "{0}",
                                                 "{0}",
                                                 "please {0}",
                                                 "your task is to {0}",
                                                 "you must {0}",
                                                 "you should {0}",
                                                 "given the list, {0}",
                                                 "given the input, {0}",
                                                 "for each input, {0}",
                                                 "in this task, {0}",
                                                 "the goal is to {0}",
                                                 "i want you to {0}",
                                                 "the task: {0}"};
  std::vector<std::string> parts;
  for (const auto& patterns : steps) parts.push_back(expand(random.choose(patterns), random));
  if (commute && random.one_in(2)) std::swap(parts[0], parts[1]);
  std::string text = parts[0];
  bool wrappable = true;
  if (parts.size() == 2) {
    wrappable = !random.one_in(5);
    const std::string& join = wrappable ? random.choose(joins) : random.choose(adverbial);
    text = fmt::format(fmt::runtime(join), parts[0], parts[1], gerund(parts[0]), gerund(parts[1]));
  }
  if (wrappable) text = fmt::format(fmt::runtime(random.choose(wraps)), text);
  text = tidied(text);

  const bool capitals = !random.one_in(3);
  bool begins = true;
  for (char& c : text) {
    if (begins && capitals && c != ' ') c = char(std::toupper(static_cast<unsigned char>(c)));
    if (c != ' ') begins = c == '.';
  }
  if (!capitals && text.starts_with("i ")) text[0] = 'I';
  // The official code adds a full stop after letters only.
  if (!std::isdigit(static_cast<unsigned char>(text.back())) || random.one_in(2)) text += '.';
  return text;
}

std::string canonical(const std::string& sentence) {
  std::string out;
  for (const char c : sentence) out += char(std::tolower(static_cast<unsigned char>(c)));
  if (out.ends_with('.')) out.pop_back();
  return out;
}

bool is_held_out(const std::string& sentence) {
  const uint64_t h = hash_of(canonical(sentence));
  return philox({h, 0x5e47}, 0).v[0] % 5 == 0;
}

std::string number_pattern(int n) {
  static constexpr std::array words = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};
  return fmt::format("[{}|{}]", words.at(size_t(n)), n);
}

std::string ordinal_pattern(int n) {
  static constexpr std::array words = {"first", "second", "third", "fourth", "fifth"};
  static constexpr std::array digits = {"1st", "2nd", "3rd", "4th", "5th"};
  return fmt::format("[{0}|{0}|{1}]", words.at(size_t(n - 1)), digits.at(size_t(n - 1)));
}

}  // namespace t2l::world
