#include "tools/demo/world.h"

#include <fmt/format.h>

#include <algorithm>

#include "tensor/check.h"

namespace t2l::world {
namespace {

constexpr int kShortest = 4, kLongest = 6;           // lists
constexpr int kFewestSingles = 4, kMostSingles = 8;  // training tasks of one step, of each family
constexpr size_t kDatasets = 2;  // of the same steps at most, each with rows of its own, for each unit of their weight
constexpr int kLeastUses = 3;    // training compositions of each primitive
constexpr int kPairsOfLetter = 3;              // held-out pairs that a letter may be in, of seven
constexpr int kSeen = 100;                     // training tasks that are also reported
constexpr int kUnseenDescriptions = 8;         // of each reported task
constexpr uint32_t kProbes = 100;              // inputs that decide on a task
constexpr size_t kTooAlike = kProbes * 3 / 4;  // answers in common with another task that a held-out one may not reach

// How many held-out tasks there are of each kind, of which `revealed` ones are besides.
struct HeldOut {
  const char* split;
  int compositions, revealed_compositions, parameters, revealed_parameters;
};
constexpr HeldOut kHeldOut[] = {{"test", 54, 14, 24, 6}, {"valid", 30, 8, 12, 4}};

// Of each family, how many values of its parameters are never trained on. A pair of letters is reserved for `exchange`
// and, in one of its two directions, for `replace`: otherwise one would show what the other does with it.
struct Reserved {
  const char* family;
  int test, valid;
};
constexpr Reserved kReserved[] = {{"exchange", 6, 4}, {"remove", 1, 1}, {"count", 1, 1}};

// How many compositions of two families there are for one of the plainest. Letter pairs are most of the parameter
// values that there are; arithmetic, filters, sorting and counting are learnt slowest.
int weight_of(const Primitive& first, const Primitive& second) {
  static const std::map<std::string, int> of_second = {{"replace", 5}, {"exchange", 2}, {"add", 2},     {"subtract", 2},
                                                       {"double", 2},  {"next", 2},     {"previous", 2}};
  const auto it = of_second.find(second.family);
  const bool slow = first.kind == Kind::Filter || first.kind == Kind::Order || second.kind == Kind::Summary;
  return (it == of_second.end() ? 1 : it->second) * (slow ? 2 : 1);
}

// Steps that work side by side, in either order or nearly so; two that each must wait for the other's result are more
// than a model of a few layers learns in minutes. Only what is short or long by itself is worth counting.
bool may_follow(const Primitive& first, const Primitive& second) {
  static const std::set<std::string> cuts = {"first", "last", "drop-first", "drop-last"};
  switch (second.kind) {
    case Kind::OfLetters: return first.kind != Kind::OfLetters && first.kind != Kind::Summary;
    case Kind::OfNumbers: return first.kind < Kind::OfNumbers;
    case Kind::Summary: return cuts.contains(first.family);
    default: return false;
  }
}

List apply(const std::vector<Primitive>& steps, List x, size_t without = ~size_t{0}) {
  for (size_t i = 0; i < steps.size() && !x.empty(); ++i)
    if (i != without) x = steps[i].apply(x);
  return x;
}

// Whether an input shows what each step does: without it the output would be another one.
bool shows(const std::vector<Primitive>& steps, const List& x, const List& y) {
  for (size_t i = 0; i < steps.size(); ++i)
    if (apply(steps, x, i) == y) return false;
  return true;
}

Item any_item(Random& random) { return random.one_in(2) ? Item(random.below(10)) : Item('a' + random.below(8)); }

List draw_list(const std::vector<Primitive>& steps, Random& random) {
  // Each list has an item that is frequent in it, so that frequent items do not tell the task.
  std::vector<Item> favourites;
  for (const Primitive& p : steps)
    if (p.favourite) favourites.push_back(p.favourite);
  const Item favourite = favourites.empty() ? any_item(random) : random.choose(favourites);
  List x(kShortest + random.below(kLongest - kShortest + 1));
  for (Item& v : x) v = random.below(10) < 3 ? favourite : any_item(random);
  return x;
}

// An input with an output. Every second one shows what each step does, if 20 draws find one.
List draw_input(const std::vector<Primitive>& steps, Random& random) {
  const bool must_show = random.one_in(2);
  List best;
  for (int i = 0; i < 20; ++i) {
    List x = draw_list(steps, random);
    const List y = apply(steps, x);
    if (y.empty()) continue;
    best = std::move(x);
    if (!must_show || shows(steps, best, y)) break;
  }
  return best;
}

std::vector<List> draw_inputs(const std::vector<Primitive>& steps, int count, Random& random) {
  std::vector<List> out;
  for (int tries = 0; int(out.size()) < count && tries < 100 * count; ++tries)
    if (List x = draw_input(steps, random); !x.empty()) out.push_back(std::move(x));
  return out;
}

std::string name_of(const std::vector<Primitive>& steps, bool revealed) {
  std::string out = revealed ? "formula" : "";
  for (const Primitive& p : steps) out += (out.empty() ? "" : ".") + p.name();
  return out;
}

// Two steps make a task of their own if both matter to many inputs, and no output is that of every second one.
bool is_task(const std::vector<Primitive>& steps, uint64_t seed) {
  Random random(seed, "is task " + name_of(steps, false));
  const std::vector<List> inputs = draw_inputs(steps, int(kProbes), random);
  if (inputs.size() < kProbes) return false;
  std::map<List, int> outputs;
  int showing = 0, most = 0;
  for (const List& x : inputs) {
    const List y = apply(steps, x);
    showing += shows(steps, x, y);
    most = std::max(most, ++outputs[y]);
  }
  return showing >= int(kProbes) * 2 / 5 && most <= int(kProbes) / 2;
}

bool commute(const std::vector<Primitive>& steps, Random& random) {
  if (steps.size() < 2) return false;
  const std::vector<Primitive> other = {steps[1], steps[0]};
  for (const List& x : draw_inputs(steps, int(kProbes), random))
    if (apply(steps, x) != apply(other, x)) return false;
  return true;
}

// Different sentences (not only in capitals), all held out or none.
std::vector<std::string> draw_descriptions(const Task& task, int count, bool held_out, uint64_t seed,
                                           const std::function<bool(const std::string&)>& good) {
  Random random(seed, (held_out ? "unseen descriptions " : "descriptions ") + task.name);
  std::vector<std::vector<std::string>> phrases;
  for (const Primitive& p : task.steps) phrases.push_back(p.phrases);
  const bool any_order = commute(task.steps, random);
  std::vector<std::string> out;
  std::set<std::string> known;
  for (int tries = 0; int(out.size()) < count && tries < 500 * count; ++tries) {
    std::string s = describe(phrases, any_order, random);
    if (is_held_out(s) == held_out && good(s) && known.insert(canonical(s)).second) out.push_back(std::move(s));
  }
  if (int(out.size()) < count)
    fail("task {}: has only {} different descriptions of the {} asked for; ask for fewer", task.name, out.size(),
         count);
  return out;
}

std::string input_text(const Task& task, const List& x) {
  if (!task.revealed) return text_of(x);
  std::string out;
  for (const Primitive& p : task.steps) out += (out.empty() ? "" : " , ") + p.formula;
  return out + " : " + text_of(x);
}

// Inputs that are not among the `known` ones, which they join.
void draw_rows(Task& task, int train, int test, uint64_t seed, std::set<List>& known) {
  Random random(seed, "rows " + task.name);
  for (int tries = 0; int(task.train.size() + task.test.size()) < train + test; ++tries) {
    if (tries > 100 * (train + test)) fail("task {}: has no {} different inputs", task.name, train + test);
    const List x = draw_input(task.steps, random);
    if (x.empty() || !known.insert(x).second) continue;
    auto& rows = int(task.train.size()) < train ? task.train : task.test;
    rows.push_back({input_text(task, x), text_of(task.apply(x))});
  }
}

// Words and marks as the tokenizer splits them.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out;
  bool inside = false;
  for (const char c : text) {
    const bool word = std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (c != ' ') word&& inside ? void(out.back() += c) : void(out.emplace_back(1, c));
    inside = word;
  }
  return out;
}

using Steps = std::vector<Primitive>;

class Builder {
 public:
  explicit Builder(const Options& options) : o_(options), random_(options.seed, "world") { world_.options = options; }

  World build() {
    reserve_values();
    order_compositions();
    hold_out(false);
    choose_training();
    hold_out(true);
    describe_all();
    return std::move(world_);
  }

 private:
  // Which parameter values are kept for valid or test.
  void reserve_values() {
    std::map<std::string, std::vector<Primitive>> families;
    for (const Primitive& p : make_primitives()) families[p.family].push_back(p);
    for (auto& [family, values] : families) random_.shuffle(values);
    for (const Reserved& r : kReserved) {
      std::map<Item, int> pairs;  // that a letter is in: few, so that it is seen with most others
      int taken = 0;
      for (Primitive p : families.at(r.family)) {
        if (taken == r.test + r.valid) break;
        if (std::any_of(p.parameters.begin(), p.parameters.end(), [&](Item x) { return pairs[x] == kPairsOfLetter; }))
          continue;
        for (const Item x : p.parameters) ++pairs[x];
        const char* split = taken++ < r.test ? "test" : "valid";
        reserve(p, split);
        if (p.family != "exchange") continue;
        p.family = "replace";
        random_.shuffle(p.parameters);
        reserve(p, split);
      }
    }
    for (const Primitive& p : make_primitives()) {
      const std::string split = split_of(p);
      if (!split.empty()) reserved_[split].push_back({p});
    }
    // Of the families with most values only some are tasks by themselves: each value is in compositions.
    for (auto& [family, values] : families) {
      std::erase_if(values, [&](const Primitive& p) { return !split_of(p).empty(); });
      const size_t count = std::clamp<size_t>(values.size(), kFewestSingles, kMostSingles);
      for (size_t i = 0; i < count; ++i) singles_.push_back({values[i % values.size()]});
    }
  }

  void reserve(const Primitive& p, const std::string& split) {
    split_of_[p.name()] = split;
    world_.held_out[split].push_back(p.name());
  }

  std::string split_of(const Primitive& p) const {
    const auto it = split_of_.find(p.name());
    return it == split_of_.end() ? "" : it->second;
  }

  // All compositions, so that any beginning of the list has something of every pair of families.
  void order_compositions() {
    struct Stratum {
      std::vector<Steps> steps;
      size_t next = 0;
    };
    std::map<std::pair<std::string, std::string>, Stratum> strata;
    const std::vector<Primitive> all = make_primitives();
    for (const Primitive& a : all)
      for (const Primitive& b : all)
        if (may_follow(a, b)) strata[{a.family, b.family}].steps.push_back({a, b});
    for (auto& [families, stratum] : strata) random_.shuffle(stratum.steps);
    while (!strata.empty()) {
      std::vector<Steps> round;
      for (auto it = strata.begin(); it != strata.end();) {
        auto& [all_steps, next] = it->second;
        const int weight = weight_of(all_steps[0][0], all_steps[0][1]);
        const size_t end = all_steps.size() * kDatasets * size_t(weight);
        for (int n = weight; n > 0 && next < end; --n, ++next) round.push_back(all_steps[next % all_steps.size()]);
        it = next == end ? strata.erase(it) : std::next(it);
      }
      random_.shuffle(round);
      for (Steps& steps : round) {
        const std::string first = split_of(steps[0]), second = split_of(steps[1]);
        if (!first.empty() && !second.empty()) continue;
        (first + second == "" ? compositions_ : reserved_[first + second]).push_back(std::move(steps));
      }
    }
  }

  bool is_like_any(const Task& task, const std::vector<Task>& others) const {
    const std::vector<List> inputs = sample_inputs(task, int(kProbes), o_.seed);
    return std::any_of(others.begin(), others.end(),
                       [&](const Task& other) { return agreement(task, other, inputs) > kTooAlike; });
  }

  // Moves up to `count` tasks out of `from` that do what no other task does.
  void take(std::vector<Steps>& from, int count, bool revealed, std::vector<Task>& into,
            const std::function<bool(const Steps&)>& good) {
    std::vector<Steps> left;
    for (Steps& steps : from) {
      Task task{name_of(steps, revealed), steps, revealed, {}, {}, {}, {}};
      const bool fits = count > 0 && good(steps) && (steps.size() == 1 || is_task(steps, o_.seed));
      if (!fits || is_like_any(task, world_.train) || is_like_any(task, world_.valid) ||
          is_like_any(task, world_.compositions) || is_like_any(task, world_.parameters)) {
        left.push_back(std::move(steps));
        continue;
      }
      --count;
      into.push_back(std::move(task));
    }
    if (count > 0) fail("the world has {} held-out tasks too few; ask for fewer training tasks", count);
    from = std::move(left);
  }

  // Those that inputs reveal come after the training tasks, which must have their formulas.
  void hold_out(bool revealed) {
    if (!revealed)
      for (const Steps& steps : singles_) world_.train.push_back({name_of(steps, false), steps, false, {}, {}, {}, {}});
    std::map<std::string, int> formulas, of_families;
    for (const Task& t : world_.train)
      if (t.revealed)
        for (const Primitive& p : t.steps) ++formulas[p.name()], ++of_families[p.family];
    const auto is_taught = [&](const Steps& steps) {
      return !revealed || std::all_of(steps.begin(), steps.end(), [&](const Primitive& p) {
        return (!split_of(p).empty() || formulas.contains(p.name())) && of_families[p.family] >= 3;
      });
    };
    for (const HeldOut& h : kHeldOut) {
      std::vector<Task>&compositions = h.split == std::string("test") ? world_.compositions : world_.valid,
      &parameters = h.split == std::string("test") ? world_.parameters : world_.valid;
      // Spread over what the world has of them, not only over the first round.
      std::vector<Steps>& pool = compositions_;
      const size_t most = std::min(pool.size(), size_t(std::max(o_.tasks, 1024)));
      std::vector<Steps> early(pool.begin(), pool.begin() + int64_t(most)),
          late(pool.begin() + int64_t(most), pool.end());
      random_.shuffle(early);
      take(early, revealed ? h.revealed_compositions : h.compositions, revealed, compositions, is_taught);
      early.insert(early.end(), late.begin(), late.end());
      pool = std::move(early);
      // Every value in turn.
      std::vector<Steps>& reserved = reserved_[h.split];
      std::map<std::string, int> turns;
      std::vector<std::pair<int, Steps>> by_turn;
      for (const Steps& steps : reserved)
        for (const Primitive& p : steps)
          if (!split_of(p).empty()) by_turn.emplace_back(turns[p.name()]++, steps);
      std::stable_sort(by_turn.begin(), by_turn.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      reserved.clear();
      for (auto& [turn, steps] : by_turn) reserved.push_back(std::move(steps));
      take(reserved, revealed ? h.revealed_parameters : h.parameters, revealed, parameters, is_taught);
    }
  }

  void choose_training() {
    std::vector<Task>& train = world_.train;
    random_.shuffle(singles_);
    for (size_t i = 0; i < singles_.size(); i += 5)
      train.push_back({name_of(singles_[i], true), singles_[i], true, {}, {}, {}, {}});
    if (int(train.size()) > o_.tasks)
      fail("{} training tasks are too few; there are {} of a single step", o_.tasks, train.size());
    std::vector<std::pair<const Task*, std::vector<List>>> held_out;
    for (const auto* tasks : {&world_.valid, &world_.compositions, &world_.parameters})
      for (const Task& t : *tasks) held_out.emplace_back(&t, sample_inputs(t, int(kProbes), o_.seed));
    // First what gives every primitive some compositions, then whatever comes.
    std::map<std::string, int> uses;
    std::map<std::string, bool> verdicts;  // on steps, by name
    const auto may_train = [&](const Steps& steps) {
      const auto [it, is_new] = verdicts.try_emplace(name_of(steps, false), false);
      if (!is_new) return it->second;
      const Task task{"", steps, false, {}, {}, {}, {}};
      const auto is_like = [&](const auto& h) { return agreement(*h.first, task, h.second) > kTooAlike; };
      return it->second = is_task(steps, o_.seed) && std::none_of(held_out.begin(), held_out.end(), is_like);
    };
    const auto fill = [&](int least) {
      std::vector<Steps> left;
      for (Steps& steps : compositions_) {
        const auto is_rare = [&](const Primitive& p) { return uses[p.name()] < least; };
        if (int(train.size()) == o_.tasks || std::none_of(steps.begin(), steps.end(), is_rare) || !may_train(steps)) {
          left.push_back(std::move(steps));
          continue;
        }
        for (const Primitive& p : steps) ++uses[p.name()];
        const bool revealed = int(train.size()) % o_.revealed_every == 0;
        train.push_back({name_of(steps, revealed), std::move(steps), revealed, {}, {}, {}, {}});
      }
      compositions_ = std::move(left);
    };
    for (int least = 1; least <= kLeastUses; ++least) fill(least);
    fill(o_.tasks);
    if (int(train.size()) < o_.tasks) fail("there are only {} training tasks; ask for fewer", train.size());
    // A number in front, so that the first tasks by name are some of all kinds.
    random_.shuffle(train);
    for (size_t i = 0; i < train.size(); ++i) train[i].name = fmt::format("{:04}.{}", i, train[i].name);
  }

  void describe_all() {
    const auto learn = [&](const std::string& text) {
      for (std::string& w : words_of(text)) world_.words.insert(std::move(w));
    };
    const auto is_known = [&](const std::string& text) {
      const std::vector<std::string> words = words_of(text);
      return std::all_of(words.begin(), words.end(), [&](const auto& w) { return world_.words.contains(w); });
    };
    std::map<std::string, std::set<List>> inputs;  // of all datasets with the same steps
    for (size_t i = 0; i < world_.train.size(); ++i) {
      Task& t = world_.train[i];
      draw_rows(t, o_.rows, i < kSeen ? o_.test_rows : 0, o_.seed, inputs[name_of(t.steps, false)]);
      t.descriptions = draw_descriptions(t, o_.descriptions, false, o_.seed, [](const std::string&) { return true; });
      for (const std::string& d : t.descriptions) learn(d);
      for (const Row& r : t.train) learn(r.input), learn(r.output);
    }
    for (size_t i = 0; i < world_.train.size() && i < kSeen; ++i)
      world_.train[i].unseen = draw_descriptions(world_.train[i], kUnseenDescriptions, true, o_.seed, is_known);
    for (auto* tasks : {&world_.valid, &world_.compositions, &world_.parameters})
      for (Task& t : *tasks) {
        draw_rows(t, o_.rows, o_.test_rows, o_.seed, inputs[name_of(t.steps, false)]);
        t.descriptions = draw_descriptions(t, kUnseenDescriptions, true, o_.seed, is_known);
      }
  }

  Options o_;
  Random random_;
  World world_;
  std::map<std::string, std::string> split_of_;         // of a held-out primitive, by name
  std::vector<Steps> singles_, compositions_;           // of values to train on
  std::map<std::string, std::vector<Steps>> reserved_;  // with a held-out value, by split
};

}  // namespace

List Task::apply(const List& input) const { return world::apply(steps, input); }

size_t agreement(const Task& a, const Task& b, const std::vector<List>& inputs) {
  // Most tasks differ at once: a few inputs decide on them.
  size_t same = 0, left = inputs.size();
  for (const List& x : inputs) {
    same += a.apply(x) == b.apply(x);
    if (same + --left <= inputs.size() / 2) break;
  }
  return same;
}

std::vector<List> sample_inputs(const Task& task, int count, uint64_t seed) {
  Random random(seed, "inputs " + name_of(task.steps, false));
  return draw_inputs(task.steps, count, random);
}

World make_world(const Options& options) { return Builder(options).build(); }

}  // namespace t2l::world
