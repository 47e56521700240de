// The primitives: what each does to a list, and the ways to say it.
#include <fmt/format.h>

#include <algorithm>

#include "tools/demo/world.h"

namespace t2l::world {
namespace {

constexpr int kLetters = 8, kNumbers = 10;  // a to h, 0 to 9

Item next_letter(Item x, int by) { return 'a' + (x - 'a' + by + kLetters) % kLetters; }

// The part of a list, where it has one, in Python's sense of x[begin:end].
List part(const List& x, int begin, int end) {
  const int n = int(x.size());
  const auto at = [&](int i) { return std::clamp(i < 0 ? i + n : i, 0, n); };
  return at(begin) < at(end) ? List(x.begin() + at(begin), x.begin() + at(end)) : List{};
}

List reversed(const List& x) { return {x.rbegin(), x.rend()}; }

List joined(List a, const List& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

List sorted(List x) {
  std::sort(x.begin(), x.end());  // numbers before letters: so are their codes
  return x;
}

template <class F>
List kept(const List& x, F&& keep) {
  List out;
  std::copy_if(x.begin(), x.end(), std::back_inserter(out), keep);
  return out;
}

template <class F>
List mapped(List x, F&& f) {
  for (Item& v : x) v = f(v);
  return x;
}

template <class F>
List counted(const List& x, F&& f) {
  return {int(std::count_if(x.begin(), x.end(), f))};
}

struct Maker {
  std::vector<Primitive> all;

  void add(const std::string& family, List parameters, Kind kind, std::function<List(const List&)> f,
           const std::string& formula, std::vector<std::string> phrases, Item favourite = 0) {
    all.push_back({family, std::move(parameters), kind, std::move(f), std::move(phrases), formula, favourite});
  }

  void positions();
  void orders();
  void filters();
  void of_numbers();
  void of_letters();
  void summaries();
};

void Maker::positions() {
  const auto position = [&](const std::string& family, List parameters, auto f, const std::string& formula,
                            std::vector<std::string> phrases) {
    std::string name = formula;
    for (const Item p : parameters) name += " " + text_of({p});
    add(family, std::move(parameters), Kind::Position, f, name, std::move(phrases));
  };
  const std::string backwards = "[backwards|in reverse|in reverse order|from the end to the start]";
  for (const int k : {2, 3, 4}) {
    const std::string n = number_pattern(k);
    position(
        "first", {k}, [k](const List& x) { return part(x, 0, k); }, "head",
        {fmt::format("$take the first {} $items$of", n), fmt::format("$take only the [initial|leading] {} $items", n),
         fmt::format("$take [only|just] the first {} $items", n),
         fmt::format("$drop everything after the first {} $items", n)});
    position(
        "last", {k}, [k](const List& x) { return part(x, -k, 99); }, "tail",
        {fmt::format("$take the last {} $items$of", n), fmt::format("$take only the [final|trailing] {} $items", n),
         fmt::format("$take [only|just] the last {} $items", n),
         fmt::format("$drop everything before the last {} $items", n)});
  }
  for (const int k : {1, 2, 3}) {
    const std::string n = k == 1 ? "" : number_pattern(k), items = k == 1 ? "$item" : "$items";
    std::vector<std::string> front = {fmt::format("$drop the first {} {}$of", n, items),
                                      fmt::format("$drop the [initial|leading] {} {}", n, items),
                                      fmt::format("$take [all|everything] but the first {} {}", n, items)};
    std::vector<std::string> back = {fmt::format("$drop the last {} {}$of", n, items),
                                     fmt::format("$drop the [final|trailing] {} {}", n, items),
                                     fmt::format("$take [all|everything] but the last {} {}", n, items)};
    position(
        "drop-first", {k}, [k](const List& x) { return part(x, k, 99); }, "behead", front);
    position(
        "drop-last", {k}, [k](const List& x) { return part(x, 0, std::max(0, int(x.size()) - k)); }, "curtail", back);
  }
  for (const int k : {2, 3})
    position("drop-nth", {k}, [k](const List& x) { return joined(part(x, 0, k - 1), part(x, k, 99)); }, "without",
             {fmt::format("$drop the {} $item$of", ordinal_pattern(k)),
              fmt::format("$drop the $item at [position|index|place] {}", number_pattern(k)),
              fmt::format("$take [all|everything] but the {} $item", ordinal_pattern(k))});
  for (const int k : {1, 2, 3, 4})
    position("nth", {k}, [k](const List& x) { return part(x, k - 1, k); }, "at",
             {fmt::format("$give the {} $item$of", ordinal_pattern(k)),
              fmt::format("$give [only|just] the {} $item", ordinal_pattern(k)),
              fmt::format("$give the $item at [position|index|place] {}", number_pattern(k)),
              fmt::format("$give [item|element|entry] number {}", number_pattern(k))});
  for (const int k : {1, 2, 3}) {
    std::vector<std::string> phrases = {
        fmt::format("$give the {} $item [from the end|from the back|counting from the end]", ordinal_pattern(k)),
        fmt::format(
            "$give the $item at [position|index|place] {} [counting backwards|counting from the end|from the end]",
            number_pattern(k))};
    if (k == 1) phrases.push_back("$give the [last|final] $item$of");
    if (k == 2) phrases.push_back("$give the $item before the last one");
    position(
        "nth-last", {k}, [k](const List& x) { return part(x, int(x.size()) - k, int(x.size()) - k + 1); }, "back",
        phrases);
  }
  position("reverse", {}, reversed, "rev",
           {"[reverse|invert|flip|turn around] the [$list|order|order of the $items]",
            fmt::format("$write the [$items|$list] {}", backwards), "put the $items [in reverse|in reverse order]"});
  position("reverse-first", {3}, [](const List& x) { return reversed(part(x, 0, 3)); }, "rev head",
           {fmt::format("$write the first [three|3] $items {}", backwards),
            "[take|keep] the first [three|3] $items and [reverse|invert|flip] them"});
  position("reverse-last", {3}, [](const List& x) { return reversed(part(x, -3, 99)); }, "rev tail",
           {fmt::format("$write the last [three|3] $items {}", backwards),
            "[take|keep] the last [three|3] $items and [reverse|invert|flip] them"});
  for (const int k : {1, 2}) {
    const std::string n = number_pattern(k), items = k == 1 ? "$item" : n + " $items", step = k == 1 ? "step" : "steps";
    position("rotate-left", {k}, [k](const List& x) { return joined(part(x, k, 99), part(x, 0, k)); }, "roll",
             {fmt::format("[rotate|shift|cycle] the $list to the left by {}", n),
              fmt::format("[rotate|shift|cycle] the $list left by {} [{}|places|positions]", n, step),
              fmt::format("[move|bring] the first {} to the [end|back]", items)});
    position("rotate-right", {k}, [k](const List& x) { return joined(part(x, -k, 99), part(x, 0, int(x.size()) - k)); },
             "unroll",
             {fmt::format("[rotate|shift|cycle] the $list to the right by {}", n),
              fmt::format("[rotate|shift|cycle] the $list right by {} [{}|places|positions]", n, step),
              fmt::format("[move|bring] the last {} to the [start|front|beginning]", items)});
  }
  position("swap-ends", {},
           [](List x) {
             std::swap(x.front(), x.back());
             return x;
           },
           "outer",
           {"[swap|exchange|switch] the first and the last $item$of", "[swap|exchange|switch] the [two ends|ends]$of",
            "let the first and the last $item trade places"});
  position("odd", {},
           [](const List& x) {
             List out;
             for (size_t i = 0; i < x.size(); i += 2) out.push_back(x[i]);
             return out;
           },
           "odd",
           {"$take every [second|other] $item, starting [from|with|at] the first",
            "$take the $items at odd [positions|places]", "$drop the $items at even [positions|places]"});
  position("even", {},
           [](const List& x) {
             List out;
             for (size_t i = 1; i < x.size(); i += 2) out.push_back(x[i]);
             return out;
           },
           "even",
           {"$take every [second|other] $item, starting [from|with|at] the second",
            "$take the $items at even [positions|places]", "$drop the $items at odd [positions|places]"});
  position("middle", {}, [](const List& x) { return part(x, 1, int(x.size()) - 1); }, "inner",
           {"$drop the first and the last $item$of", "$drop [both|the two] ends$of",
            "$take [everything|all] [except|but] the [two ends|ends]"});
  position("ends", {}, [](const List& x) { return joined(part(x, 0, 1), part(x, -1, 99)); }, "rim",
           {"$take [only|just] the first and the last $item", "$take [only|just] the [two ends|ends]$of",
            "$drop everything [between the first and the last $item|between the two ends]"});
  for (int i = 2; i <= 3; ++i)
    for (int j = i + 1; j <= 4; ++j)
      position(
          "slice", {i, j}, [i, j](const List& x) { return part(x, i - 1, j); }, "slice",
          {fmt::format("$take the $items from [position|place|index] {} to {}", number_pattern(i), number_pattern(j)),
           fmt::format("$take [$items|$items number] {} to {}", number_pattern(i), number_pattern(j)),
           fmt::format("$take the {} to the {} $item$of", ordinal_pattern(i), ordinal_pattern(j)),
           fmt::format("$take the part [from|between] the {} [to|through] the {} $item", ordinal_pattern(i),
                       ordinal_pattern(j))});
  for (int i = 1; i <= 3; ++i)
    for (int j = i + 1; j <= 4; ++j)
      position(
          "swap", {i, j},
          [i, j](List x) {
            if (int(x.size()) >= j) std::swap(x[size_t(i - 1)], x[size_t(j - 1)]);
            return x;
          },
          "switch",
          {fmt::format("[swap|exchange|switch] the {} and the {} $item$of", ordinal_pattern(i), ordinal_pattern(j)),
           fmt::format("[swap|exchange|switch] the $items at [positions|places] {} and {}", number_pattern(i),
                       number_pattern(j)),
           fmt::format("let the {} and the {} $item trade places", ordinal_pattern(i), ordinal_pattern(j))});
  position("repeat", {},
           [](const List& x) {
             List out;
             for (const Item v : x) out.insert(out.end(), {v, v});
             return out;
           },
           "stutter", {"[write|output|repeat] $each $item [twice|two times]", "[duplicate|repeat] $each $item$of"});
  for (int i = 0; i < kLetters; ++i) {
    const Item c = 'a' + i;
    const std::string l = fmt::format("[|the letter ]{}", char(c));
    position("append", {c}, [c](const List& x) { return joined(x, {c}); }, "suffix",
             {fmt::format("[append|attach|add] {} [at the end|to the end|after the last $item]", l),
              fmt::format("[append|attach] {} to the $list", l),
              fmt::format("put {} [at the end|after the last $item]", l)});
    position("prepend", {c}, [c](const List& x) { return joined({c}, x); }, "prefix",
             {fmt::format("[prepend|attach|add] {} [at the start|at the front|before the first $item]", l),
              fmt::format("prepend {} to the $list", l),
              fmt::format("put {} [at the start|at the front|before the first $item]", l)});
  }
}

void Maker::orders() {
  const auto order = [&](const std::string& family, auto is, bool up, const std::string& of, const std::string& others,
                         const std::string& how, const std::string& formula) {
    add(family, {}, Kind::Order,
        [is, up](const List& x) {
          const List of_kind = sorted(kept(x, is));
          return up ? of_kind : reversed(of_kind);
        },
        formula,
        {fmt::format("$write [|only |just ]the {} {}", of, how),
         fmt::format("[pick|take] out the {} and sort them {}", of, how),
         fmt::format("[sort|order|arrange] the {} {} and [leave out|drop|omit] the {}", of, how, others),
         fmt::format("[sort|order|arrange] [just|only] the {} {}", of, how)});
  };
  const std::string up = "[in ascending order|in increasing order|from small to large|from lowest to highest]";
  const std::string down = "[in descending order|in decreasing order|from large to small|from highest to lowest]";
  const std::string a_to_h = "[in alphabetical order|alphabetically|from a to h]";
  const std::string h_to_a = "[in reverse alphabetical order|in reverse alphabetical order|from h to a]";
  order("numbers-up", is_number, true, "$numbers", "$letters", up, "asc");
  order("numbers-down", is_number, false, "$numbers", "$letters", down, "desc");
  order("letters-up", is_letter, true, "$letters", "$numbers", a_to_h, "abc");
  order("letters-down", is_letter, false, "$letters", "$numbers", h_to_a, "cba");
}

void Maker::filters() {
  add("keep-letters", {}, Kind::Filter, [](const List& x) { return kept(x, is_letter); }, "alpha",
      {"$take only the $letters$of", "$remove [all|all the|the] $numbers$of", "$remove $each $number"});
  add("keep-numbers", {}, Kind::Filter, [](const List& x) { return kept(x, is_number); }, "numeric",
      {"$take only the $numbers$of", "$remove [all|all the|the] $letters$of", "$remove $each $letter"});
  for (int i = 0; i < kLetters; ++i) {
    const Item c = 'a' + i;
    add(
        "remove", {c}, Kind::Filter, [c](const List& x) { return kept(x, [c](Item v) { return v != c; }); },
        fmt::format("no {}", char(c)),
        {fmt::format("$remove $each [|letter ]{}", char(c)),
         fmt::format("$remove all [occurrences|copies] of [|the letter ]{}", char(c)),
         fmt::format("$take everything [except|but] [|the letter ]{}", char(c))},
        c);
  }
}

void Maker::of_numbers() {
  const auto of_numbers = [&](const std::string& family, List parameters, auto f, const std::string& formula,
                              std::vector<std::string> phrases) {
    add(
        family, std::move(parameters), Kind::OfNumbers,
        [f](const List& x) { return mapped(x, [f](Item v) { return is_number(v) ? f(v) : v; }); }, formula,
        std::move(phrases));
  };
  for (const int k : {1, 2, 3, 4, 5})
    of_numbers("add", {k}, [k](Item v) { return v + k; }, fmt::format("plus {}", k),
               {fmt::format("add {} to $each $number", number_pattern(k)),
                fmt::format("[increase|raise] $each $number by {}", number_pattern(k)),
                fmt::format("make $each $number {} [larger|bigger|greater]", number_pattern(k))});
  for (const int k : {1, 2, 3})
    of_numbers("subtract", {k}, [k](Item v) { return std::max(0, v - k); }, fmt::format("minus {}", k),
               {fmt::format("subtract {} from $each $number[|, stopping at zero]", number_pattern(k)),
                fmt::format("[decrease|lower|reduce] $each $number by {}[|, but not below zero]", number_pattern(k)),
                fmt::format("make $each $number {} smaller", number_pattern(k))});
  of_numbers("double", {}, [](Item v) { return 2 * v; }, "times 2",
             {"double $each $number", "multiply $each $number by [two|2]",
              "[replace|substitute] $each $number by its double"});
  of_numbers("hide-numbers", {}, [](Item) { return '#'; }, "maskn",
             {"replace $each $number $with [the hash symbol|the hash sign|#]",
              "[mask|hide] $each $number[| with the hash symbol| with #]",
              "write [the hash symbol|#] [in place of|instead of] $each $number"});
  for (int i = 0; i < kLetters; ++i) {
    const Item c = 'a' + i;
    const std::string l = fmt::format("[|the letter ]{}", char(c));
    of_numbers("set-numbers", {c}, [c](Item) { return c; }, fmt::format("setn {}", char(c)),
               {fmt::format("replace $each $number $with {}", l),
                fmt::format("[change|turn|convert] $each $number into {}", l),
                fmt::format("write {} [in place of|instead of] $each $number", l)});
  }
}

void Maker::of_letters() {
  const auto of_letters = [&](const std::string& family, List parameters, auto f, const std::string& formula,
                              std::vector<std::string> phrases, Item favourite = 0) {
    add(
        family, std::move(parameters), Kind::OfLetters,
        [f](const List& x) { return mapped(x, [f](Item v) { return is_letter(v) ? f(v) : v; }); }, formula,
        std::move(phrases), favourite);
  };
  of_letters("upper", {}, [](Item v) { return v - 'a' + 'A'; }, "caps",
             {"[uppercase|capitalize|capitalise] $each $letter",
              "[write|turn|convert|change] $each $letter [into|to] [upper case|capitals|uppercase]",
              "replace $each $letter $with its capital form"});
  of_letters("next", {}, [](Item v) { return next_letter(v, 1); }, "succ",
             {"replace $each $letter $with the next one in the alphabet",
              "[change|turn] $each $letter into [its successor|the following one|the next one]",
              "[shift|move] $each $letter one [step|place] forward in the alphabet"});
  of_letters("previous", {}, [](Item v) { return next_letter(v, -1); }, "pred",
             {"replace $each $letter $with the previous one in the alphabet",
              "[change|turn] $each $letter into [its predecessor|the preceding one|the previous one]",
              "[shift|move] $each $letter one [step|place] back in the alphabet"});
  of_letters("hide-letters", {}, [](Item) { return '*'; }, "maskl",
             {"replace $each $letter $with [the star symbol|the star sign|*]",
              "[mask|hide] $each $letter[| with the star symbol| with *]",
              "write [the star symbol|*] [in place of|instead of] $each $letter"});
  for (int k = 0; k < kNumbers; ++k)
    of_letters("set-letters", {k}, [k](Item) { return k; }, fmt::format("setl {}", k),
               {fmt::format("replace $each $letter $with [|the number ]{}", number_pattern(k)),
                fmt::format("[change|turn|convert] $each $letter into [|the number ]{}", number_pattern(k)),
                fmt::format("write {} [in place of|instead of] $each $letter", number_pattern(k))});
  for (int i = 0; i < kLetters; ++i)
    for (int j = 0; j < kLetters; ++j) {
      if (i == j) continue;
      const Item a = 'a' + i, b = 'a' + j;
      const char from = char(a), to = char(b);
      of_letters(
          "replace", {a, b}, [a, b](Item v) { return v == a ? b : v; }, fmt::format("{} into {}", from, to),
          {fmt::format("replace $each [|letter ]{} $with {}", from, to),
           fmt::format("[change|turn|convert] $each [|letter ]{} [to|into] {}", from, to),
           fmt::format("substitute {} for $each [|letter ]{}", to, from),
           fmt::format("write {} [in place of|instead of] $each [|letter ]{}", to, from),
           fmt::format("write {} wherever there is [|the letter ]{}", to, from)},
          a);
      if (i < j)
        of_letters(
            "exchange", {a, b}, [a, b](Item v) { return v == a   ? b
                                                        : v == b ? a
                                                                 : v; },
            fmt::format("{} versus {}", from, to),
            {fmt::format("[swap|exchange|interchange] the letters [{0} and {1}|{1} and {0}]", from, to),
             fmt::format("replace $each {} $with {} and $each {} $with {}", from, to, to, from),
             fmt::format("replace $each {} $with {} and $each {} $with {}", to, from, from, to),
             fmt::format("let the letters [{0} and {1}|{1} and {0}] trade [roles|meanings]", from, to)},
            a);
    }
}

void Maker::summaries() {
  const auto extreme = [&](const std::string& family, auto is, bool last, const std::string& formula,
                           std::vector<std::string> phrases) {
    add(
        family, {}, Kind::Summary,
        [is, last](const List& x) {
          const List of = sorted(kept(x, is));
          return last ? part(of, -1, 99) : part(of, 0, 1);
        },
        formula, std::move(phrases));
  };
  extreme("largest", is_number, true, "max",
          {"$find the [largest|biggest|greatest|highest] $number$of", "$find the maximum$of"});
  extreme("smallest", is_number, false, "min",
          {"$find the [smallest|least|lowest] $number$of", "$find the minimum$of"});
  extreme("latest", is_letter, true, "zed",
          {"$find the $letter that comes last in the alphabet", "$find the alphabetically [last|latest] $letter$of"});
  extreme(
      "earliest", is_letter, false, "aye",
      {"$find the $letter that comes first in the alphabet", "$find the alphabetically [first|earliest] $letter$of"});
  add("count-numbers", {}, Kind::Summary, [](const List& x) { return counted(x, is_number); }, "numn",
      {"$count the $numbers$of", "$tell how many $numbers there are$of"});
  add("count-letters", {}, Kind::Summary, [](const List& x) { return counted(x, is_letter); }, "numl",
      {"$count the $letters$of", "$tell how many $letters there are$of"});
  add("length", {}, Kind::Summary, [](const List& x) { return List{int(x.size())}; }, "size",
      {"$count the $items$of", "$tell how many $items there are$of", "$find the length of the $list",
       "$tell how long the $list is"});
  for (int i = 0; i < kLetters; ++i) {
    const Item c = 'a' + i;
    add(
        "count", {c}, Kind::Summary, [c](const List& x) { return counted(x, [c](Item v) { return v == c; }); },
        fmt::format("num {}", char(c)),
        {fmt::format("$count the [occurrences|copies] of [|the letter ]{}", char(c)),
         fmt::format("$tell how [often|many times] [|the letter ]{} [occurs|appears]$of", char(c))},
        c);
  }
}

}  // namespace

std::string text_of(const List& list) {
  std::string out;
  for (const Item x : list) {
    if (!out.empty()) out += ' ';
    out += is_number(x) ? std::to_string(x) : std::string(1, char(x));
  }
  return out;
}

std::string Primitive::name() const {
  std::string out = family;
  for (const Item p : parameters) out += "-" + text_of({p});
  return out;
}

std::vector<Primitive> make_primitives() {
  Maker m;
  m.positions();
  m.orders();
  m.filters();
  m.of_numbers();
  m.of_letters();
  m.summaries();
  return std::move(m.all);
}

}  // namespace t2l::world
