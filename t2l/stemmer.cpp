#include "t2l/stemmer.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

namespace t2l {
namespace {

using View = std::string_view;

// Which letters are consonants; a y is one where it follows none.
std::vector<bool> consonants(View w) {
  std::vector<bool> out(w.size());
  for (size_t i = 0; i < w.size(); ++i)
    out[i] = View("aeiou").find(w[i]) == View::npos && (w[i] != 'y' || i == 0 || !out[i - 1]);
  return out;
}

// m in [C](VC){m}[V], where C and V are runs of consonants and of vowels
int measure(View w) {
  const std::vector<bool> is = consonants(w);
  int m = 0;
  for (size_t i = 1; i < w.size(); ++i) m += !is[i - 1] && is[i];
  return m;
}

bool has_vowel(View w) {
  const std::vector<bool> is = consonants(w);
  return std::find(is.begin(), is.end(), false) != is.end();
}

bool ends_double_consonant(View w) {
  const size_t n = w.size();
  return n >= 2 && w[n - 1] == w[n - 2] && consonants(w)[n - 1];
}

// Consonant, vowel, consonant, the last none of w, x and y; a word of two letters needs no first.
bool ends_cvc(View w) {
  const std::vector<bool> is = consonants(w);
  const size_t n = w.size();
  if (n == 2) return !is[0] && is[1];
  return n >= 3 && is[n - 3] && !is[n - 2] && is[n - 1] && View("wxy").find(w[n - 1]) == View::npos;
}

View without(View w, View suffix) { return w.substr(0, w.size() - suffix.size()); }

// The first of these suffixes that the word has gives way to its replacement, if what stands before it has a measure
// above `least`.
using Rules = std::initializer_list<std::pair<View, View>>;
std::string replaced(const std::string& w, const Rules& rules, int least) {
  for (const auto& [suffix, replacement] : rules)
    if (w.ends_with(suffix)) {
      const View stem = without(w, suffix);
      return measure(stem) > least ? std::string(stem).append(replacement) : w;
    }
  return w;
}

std::string plurals(const std::string& w) {  // step 1a
  if (w.ends_with("ies") && w.size() == 4) return w.substr(0, 3);
  return replaced(w, {{"sses", "ss"}, {"ies", "i"}, {"ss", "ss"}, {"s", ""}}, -1);
}

std::string past_and_progressive(const std::string& w) {  // step 1b
  if (w.ends_with("ied")) return w.substr(0, w.size() - (w.size() == 4 ? 1 : 2));
  if (w.ends_with("eed")) return replaced(w, {{"eed", "ee"}}, 0);
  for (const View suffix : {View("ed"), View("ing")}) {
    if (!w.ends_with(suffix) || !has_vowel(without(w, suffix))) continue;
    std::string stem(without(w, suffix));
    for (const View open : {View("at"), View("bl"), View("iz")})
      if (stem.ends_with(open)) return stem + "e";
    if (ends_double_consonant(stem)) {
      if (View("lsz").find(stem.back()) == View::npos) stem.pop_back();
      return stem;
    }
    return measure(stem) == 1 && ends_cvc(stem) ? stem + "e" : stem;
  }
  return w;
}

std::string final_y(std::string w) {  // step 1c
  if (w.size() > 2 && w.back() == 'y' && consonants(w)[w.size() - 2]) w.back() = 'i';
  return w;
}

std::string double_suffixes(std::string w) {  // step 2
  if (w.ends_with("alli") && measure(without(w, "alli")) > 0) w.resize(w.size() - 2);
  static const Rules kRules = {{"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"},   {"anci", "ance"},
                               {"izer", "ize"},    {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"},
                               {"eli", "e"},       {"ousli", "ous"},   {"ization", "ize"}, {"ation", "ate"},
                               {"ator", "ate"},    {"alism", "al"},    {"iveness", "ive"}, {"fulness", "ful"},
                               {"ousness", "ous"}, {"aliti", "al"},    {"iviti", "ive"},   {"biliti", "ble"},
                               {"fulli", "ful"}};
  if (w.ends_with("logi")) return measure(without(w, "ogi")) > 0 ? std::string(without(w, "i")) : w;
  return replaced(w, kRules, 0);
}

std::string suffixes_of_adjectives(const std::string& w) {  // step 3
  return replaced(
      w, {{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"}, {"ical", "ic"}, {"ful", ""}, {"ness", ""}},
      0);
}

std::string last_suffix(const std::string& w) {  // step 4
  static const Rules kBefore = {{"al", ""},   {"ance", ""}, {"ence", ""},  {"er", ""},   {"ic", ""}, {"able", ""},
                                {"ible", ""}, {"ant", ""},  {"ement", ""}, {"ment", ""}, {"ent", ""}};
  static const Rules kAfter = {{"ou", ""},  {"ism", ""}, {"ate", ""}, {"iti", ""},
                               {"ous", ""}, {"ive", ""}, {"ize", ""}};
  for (const auto& [suffix, none] : kBefore)
    if (w.ends_with(suffix)) return replaced(w, kBefore, 1);
  if (w.ends_with("ion")) {
    const View stem = without(w, "ion");
    return measure(stem) > 1 && (stem.back() == 's' || stem.back() == 't') ? std::string(stem) : w;
  }
  return replaced(w, kAfter, 1);
}

std::string final_e_and_l(std::string w) {  // step 5
  if (w.ends_with("e")) {
    const View stem = without(w, "e");
    if (const int m = measure(stem); m > 1 || (m == 1 && !ends_cvc(stem))) w.pop_back();
  }
  if (w.ends_with("ll") && measure(without(w, "l")) > 1) w.pop_back();
  return w;
}

}  // namespace

std::string porter_stem(std::string w) {
  static const Rules kIrregular = {
      {"sky", "sky"},        {"skies", "sky"},       {"dying", "die"},        {"lying", "lie"},
      {"tying", "tie"},      {"news", "news"},       {"innings", "inning"},   {"inning", "inning"},
      {"outings", "outing"}, {"outing", "outing"},   {"cannings", "canning"}, {"canning", "canning"},
      {"howe", "howe"},      {"proceed", "proceed"}, {"exceed", "exceed"},    {"succeed", "succeed"}};
  for (const auto& [form, stem] : kIrregular)
    if (w == form) return std::string(stem);
  if (w.size() <= 2) return w;
  w = final_y(past_and_progressive(plurals(w)));
  return final_e_and_l(last_suffix(suffixes_of_adjectives(double_suffixes(w))));
}

}  // namespace t2l
