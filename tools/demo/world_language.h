// English for tasks. A pattern is text with choices, [take|keep|return], which may be nested and empty, and names of
// shared patterns, $item. A description is the patterns of a task's steps, joined and wrapped:
//
//   "$take the first [three|3] $items", "add [two|2] to $each $number"
//     -> "Your task is to keep the first 3 elements and then add two to every number."
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/random.h"

namespace t2l::world {

// Random numbers of a purpose: the same on every machine.
class Random {
 public:
  Random(uint64_t seed, std::string_view purpose);
  uint32_t below(uint32_t n);  // uniform in [0, n)
  bool one_in(uint32_t n) { return below(n) == 0; }
  template <class T>
  const T& choose(const std::vector<T>& of) {
    return of[below(uint32_t(of.size()))];
  }
  template <class T>
  void shuffle(std::vector<T>& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[below(uint32_t(i))]);
  }

 private:
  RandomKey key_;
  uint64_t next_ = 0;
};

std::string expand(std::string_view pattern, Random& random);
// "drop the last item" -> "dropping the last item"
std::string gerund(const std::string& imperative);
// One sentence, or two, of one or two steps; each step is one of its patterns. Either order, if they commute.
std::string describe(const std::vector<std::vector<std::string>>& steps, bool commute, Random& random);
// The same for sentences that differ only in capitals and the full stop. A fifth of all are never trained on.
std::string canonical(const std::string& sentence);
bool is_held_out(const std::string& sentence);

std::string number_pattern(int n);   // "[two|2]"
std::string ordinal_pattern(int n);  // "[second|2nd]"

}  // namespace t2l::world
