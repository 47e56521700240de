// The small world: what its primitives do, that its splits keep apart what they must, and that files and tokenizer are
// what training reads.
#include "tools/demo/world.h"

#include <catch2/catch.hpp>
#include <map>
#include <set>
#include <sstream>

#include "t2l/dataset.h"
#include "t2l/task_embedding.h"
#include "tests/support.h"

namespace t2l::world {
namespace {

namespace fs = std::filesystem;
using namespace test;

Options small(uint64_t seed = 3) {
  Options o;
  o.seed = seed;
  o.tasks = 640;
  o.rows = 24;
  o.test_rows = 12;
  o.descriptions = 24;
  return o;
}

const World& small_world() {
  static const World world = make_world(small());
  return world;
}

// A world on disk, made once.
const std::string& small_folder() {
  static const Scratch scratch;
  static const std::string dir = [] {
    write_world(small_world(), {}, scratch / "world");
    return scratch / "world";
  }();
  return dir;
}

List list_of(const std::string& text) {
  std::istringstream words(text);
  List out;
  for (std::string w; words >> w;) out.push_back(std::isdigit(static_cast<unsigned char>(w[0])) ? std::stoi(w) : w[0]);
  return out;
}

const Primitive& primitive(const std::string& name) {
  static const std::vector<Primitive> all = make_primitives();
  const auto it = std::find_if(all.begin(), all.end(), [&](const Primitive& p) { return p.name() == name; });
  INFO(name);
  REQUIRE(it != all.end());
  return *it;
}

std::vector<const Task*> held_out(const std::string& split) {
  std::vector<const Task*> out;
  const World& w = small_world();
  for (const Task& t : split == "valid" ? w.valid : w.compositions) out.push_back(&t);
  if (split == "test")
    for (const Task& t : w.parameters) out.push_back(&t);
  return out;
}

bool is_reserved(const Primitive& p, const std::string& split) {
  const std::vector<std::string>& names = small_world().held_out.at(split);
  return std::find(names.begin(), names.end(), p.name()) != names.end();
}

std::string function_of(const Task& t) {
  std::string out;
  for (const Primitive& p : t.steps) out += p.name() + " ";
  return out;
}

template <class F>
int count_if(const std::vector<const Task*>& tasks, F&& f) {
  return int(std::count_if(tasks.begin(), tasks.end(), [&](const Task* t) { return f(*t); }));
}

std::vector<std::string> folders(const std::string& dir) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(dir)) out.push_back(entry.path().string());
  std::sort(out.begin(), out.end());
  return out;
}

TEST_CASE("each primitive does what it says") {
  const std::vector<std::array<std::string, 3>> examples = {
      {"first-3", "3 a 7 c b", "3 a 7"},
      {"last-2", "3 a 7 c b", "c b"},
      {"drop-first-1", "3 a 7 c b", "a 7 c b"},
      {"drop-last-3", "3 a 7 c b", "3 a"},
      {"drop-nth-2", "3 a 7 c b", "3 7 c b"},
      {"nth-4", "3 a 7 c b", "c"},
      {"nth-last-2", "3 a 7 c b", "c"},
      {"reverse", "3 a 7 c b", "b c 7 a 3"},
      {"reverse-first-3", "3 a 7 c b 9", "7 a 3"},
      {"reverse-last-3", "3 a 7 c b 9", "9 b c"},
      {"rotate-left-2", "3 a 7 c b", "7 c b 3 a"},
      {"rotate-right-1", "3 a 7 c b", "b 3 a 7 c"},
      {"swap-ends", "3 a 7 c b", "b a 7 c 3"},
      {"odd", "3 a 7 c b", "3 7 b"},
      {"even", "3 a 7 c b", "a c"},
      {"middle", "3 a 7 c b", "a 7 c"},
      {"ends", "3 a 7 c b", "3 b"},
      {"slice-2-3", "3 a 7 c b", "a 7"},
      {"swap-2-4", "3 a 7 c b 9", "3 c 7 a b 9"},
      {"repeat", "3 a", "3 3 a a"},
      {"append-e", "3 a", "3 a e"},
      {"prepend-e", "3 a", "e 3 a"},
      {"numbers-up", "c 3 a 9 a 3", "3 3 9"},
      {"numbers-down", "c 3 a 9 a 3", "9 3 3"},
      {"letters-up", "c 3 a 9 a 3", "a a c"},
      {"letters-down", "c 3 a 9 a b", "c b a a"},
      {"keep-letters", "c 3 a 9 a", "c a a"},
      {"keep-numbers", "c 3 a 9 a", "3 9"},
      {"remove-a", "c 3 a 9 a", "c 3 9"},
      {"add-4", "c 3 a 9", "c 7 a 13"},
      {"subtract-3", "c 5 a 1", "c 2 a 0"},
      {"double", "c 3 a 9", "c 6 a 18"},
      {"hide-numbers", "c 3 a 9", "c # a #"},
      {"hide-letters", "c 3 a 9", "* 3 * 9"},
      {"set-numbers-g", "c 3 a 9", "c g a g"},
      {"set-letters-7", "c 3 a 9", "7 3 7 9"},
      {"upper", "c 3 a 9", "C 3 A 9"},
      {"next", "h 3 a 9", "a 3 b 9"},
      {"previous", "h 3 a 9", "g 3 h 9"},
      {"replace-a-e", "a e 3 a b", "e e 3 e b"},
      {"exchange-a-e", "a e 3 a b", "e a 3 e b"},
      {"largest", "c 3 a 9 4", "9"},
      {"smallest", "c 3 a 9 4", "3"},
      {"latest", "c 3 a g 4", "g"},
      {"earliest", "c 3 a g 4", "a"},
      {"count-numbers", "c 3 a g 4", "2"},
      {"count-letters", "c 3 a g 4", "3"},
      {"count-a", "a 3 a g a", "3"},
      {"length", "c 3 a g 4 1", "6"},
  };
  std::set<std::string> families;
  for (const auto& [name, input, output] : examples) {
    INFO(name);
    CHECK(text_of(primitive(name).apply(list_of(input))) == output);
    families.insert(primitive(name).family);
  }
  for (const Primitive& p : make_primitives()) {
    INFO(p.name());
    CHECK(families.contains(p.family));
    CHECK(p.phrases.size() >= 2);
    // Filters leave lists of any length, which positions must bear.
    for (const List& x : {List{'a'}, List{3, 'a'}, List{5, 5, 5}}) CHECK(p.apply(x).size() <= 6);
  }
  const Task both{"", {primitive("keep-letters"), primitive("nth-2")}, false, {}, {}, {}, {}};
  CHECK(text_of(both.apply(list_of("3 a 7 c b"))) == "c");
  CHECK(both.apply(list_of("3 5 7")).empty());
}

TEST_CASE("no two primitives are the same function") {
  const std::vector<Primitive> all = make_primitives();
  for (const Primitive& a : all)
    for (const Primitive& b : all) {
      if (&a >= &b) continue;
      const Task one{"", {a}, false, {}, {}, {}, {}}, two{"", {b}, false, {}, {}, {}, {}};
      INFO(a.name() << " and " << b.name());
      const std::vector<List> inputs = sample_inputs(one, 60, 5);
      CHECK(inputs.size() == 60);
      CHECK(agreement(one, two, inputs) < inputs.size());
    }
}

TEST_CASE("patterns are expanded to English") {
  Random random(1, "patterns");
  std::set<std::string> seen;
  for (int i = 0; i < 200; ++i) seen.insert(expand("[take [only|just]|keep]| the [|very ]end[s|]", random));
  CHECK(seen.count("keep| the ends") == 1);
  CHECK(seen.count("take just| the very end") == 1);
  CHECK(seen.size() == 3 * 2 * 2);
  CHECK(gerund("drop the last item") == "dropping the last item");
  CHECK(gerund("leave out each 3") == "leaving out each 3");
  CHECK(gerund("add two") == "adding two");

  CHECK(canonical("Add two to each 3.") == canonical("add two to each 3"));
  const std::vector<std::string> add = {"add two to each number"}, reverse = {"reverse the list"};
  std::set<std::string> sentences;
  int second_first = 0, held = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string s = describe({reverse, add}, i % 2 == 0, random);
    sentences.insert(s);
    CHECK(s.find("  ") == std::string::npos);
    CHECK(s.find_first_of("[]{}$|") == std::string::npos);
    CHECK(s.find(" ,") == std::string::npos);
    CHECK(s.ends_with('.'));
    held += is_held_out(s);
    const std::string c = canonical(s);
    if (i % 2) second_first += c.find("add two") < c.find("revers") && c.find("after rev") == std::string::npos;
  }
  CHECK(sentences.count("Reverse the list, then add two to each number.") == 1);
  CHECK(sentences.count("please add two to each number after reversing the list.") == 1);
  CHECK(second_first == 0);
  CHECK(held > 400);
  CHECK(held < 1400);
  CHECK(is_held_out("Reverse the list.") == is_held_out("reverse the list"));
}

TEST_CASE("a world has the tasks that it should") {
  const World& w = small_world();
  CHECK(w.train.size() == 640);
  const auto hidden = [](const Task& t) { return !t.revealed; };
  const auto hidden_of = [&](const std::vector<Task>& tasks) {
    return std::count_if(tasks.begin(), tasks.end(), hidden);
  };
  CHECK(hidden_of(w.compositions) >= 46);
  CHECK(hidden_of(w.parameters) >= 14);
  CHECK(count_if(held_out("valid"), hidden) >= 32);
  std::vector<const Task*> train;
  for (const Task& t : w.train) train.push_back(&t);
  for (const auto& tasks : {train, held_out("valid"), held_out("test")}) {
    const double revealed = 1 - double(count_if(tasks, hidden)) / double(tasks.size());
    CHECK(revealed >= 0.15);
    CHECK(revealed <= 0.25);
  }
  std::map<std::string, int> uses, formulas;
  std::set<std::string> names, pairs_from, pairs_to;
  for (const Task& t : w.train) {
    CHECK(names.insert(t.name).second);
    CHECK(t.descriptions.size() == 24);
    CHECK(t.train.size() == 24);
    CHECK(t.test.empty() == t.unseen.empty());
    for (const Primitive& p : t.steps) {
      ++uses[p.name()];
      if (t.revealed) ++formulas[p.family];
      if (p.family == "replace")
        pairs_from.insert(text_of({p.parameters[0]})), pairs_to.insert(text_of({p.parameters[1]}));
    }
  }
  CHECK(count_if(train, [](const Task& t) { return !t.test.empty(); }) == 100);
  CHECK(pairs_from.size() == 8);  // each letter in both roles
  CHECK(pairs_to.size() == 8);
  for (const std::string split : {"valid", "test"})
    for (const Task* t : held_out(split)) {
      INFO(t->name);
      CHECK(names.insert(t->name).second);
      CHECK(t->descriptions.size() == 8);
      CHECK(t->test.size() == 12);
      CHECK(t->train.size() == 24);
      int reserved = 0;
      for (const Primitive& p : t->steps) {
        if (is_reserved(p, split))
          ++reserved;
        else
          CHECK(uses[p.name()] >= 2);
        if (t->revealed) CHECK(formulas[p.family] >= 3);
      }
      CHECK(reserved <= 1);
      CHECK((reserved > 0 || t->steps.size() == 2));
    }
  for (const Task& t : w.parameters)
    CHECK(count_if({&t}, [](const Task& p) {
            return std::any_of(p.steps.begin(), p.steps.end(),
                               [](const Primitive& s) { return is_reserved(s, "test"); });
          }) == 1);
}

// What must not leak, looked for in the files that training reads.
TEST_CASE("nothing of held-out tasks is in a training file") {
  std::set<std::string> sentences, inputs;
  std::string text;  // all descriptions and formulas, a line each, without capitals
  for (const std::string& folder : folders(small_folder() + "/train")) {
    CHECK_FALSE(fs::exists(folder + "/test.jsonl"));
    const Json metadata =
        read_text_file(folder + "/metadata.yaml").empty() ? Json() : read_yaml(folder + "/metadata.yaml");
    for (const std::string& d : Object(metadata, folder).get_strings("descriptions")) {
      CHECK_FALSE(is_held_out(d));
      sentences.insert(canonical(d));
      text += canonical(d) + "\n";
    }
    for_lines(read_text_file(folder + "/train.jsonl"), [&](std::string_view line, int64_t) {
      const auto input = Json::parse(line).at("input").get<std::string>();
      inputs.insert(input);
      if (const size_t colon = input.find(" : "); colon != std::string::npos)
        text += ", " + input.substr(0, colon) + " ,\n";
    });
  }
  REQUIRE(sentences.size() > 10000);

  std::map<std::string, std::set<std::string>> functions;  // of splits: names without number and formula
  for (const Task& t : small_world().train) functions["train"].insert(function_of(t));
  for (const std::string split : {"valid", "test"}) {
    for (const Task* t : held_out(split)) {
      INFO(t->name);
      for (const std::string& d : t->descriptions) CHECK_FALSE(sentences.contains(canonical(d)));
      CHECK_FALSE(functions["train"].contains(function_of(*t)));
      CHECK(functions[split].insert(function_of(*t)).second);
    }
    for (const std::string& name : small_world().held_out.at(split)) {
      // Neither the value itself, nor what it is called in a description or an input.
      for (const Task& t : small_world().train)
        for (const Primitive& p : t.steps) CHECK(p.name() != name);
      const Primitive& p = primitive(name);
      CHECK(text.find(", " + p.formula + " ,") == std::string::npos);
      Random random(1, name);
      std::set<std::string> phrases;
      for (int i = 0; i < 200; ++i) phrases.insert(expand(random.choose(p.phrases), random));
      for (const std::string& phrase : phrases)
        for (size_t at = text.find(phrase); at != std::string::npos; at = text.find(phrase, at + 1)) {
          const std::string_view rest = std::string_view(text).substr(at + phrase.size());
          INFO(phrase << rest.substr(0, 20));
          for (const char* end : {"\n", ",", ".", " and", " before", " after"}) CHECK_FALSE(rest.starts_with(end));
        }
    }
  }
  for (const std::string& f : functions["valid"]) CHECK_FALSE(functions["test"].contains(f));
  const auto& reserved = small_world().held_out;
  for (const std::string& name : reserved.at("valid"))
    CHECK(std::count(reserved.at("test").begin(), reserved.at("test").end(), name) == 0);

  // Descriptions of training tasks that are reported as unseen.
  for (const std::string& folder : folders(small_folder() + "/test/seen")) {
    CHECK(fs::exists(small_folder() + "/train/" + fs::path(folder).filename().string()));
    for (const std::string& d : Object(read_yaml(folder + "/metadata.yaml"), folder).get_strings("descriptions"))
      CHECK_FALSE(sentences.contains(canonical(d)));
  }
}

TEST_CASE("held-out tasks do what no training task does") {
  std::vector<const Task*> earlier;
  for (const Task& t : small_world().train) earlier.push_back(&t);
  for (const std::string split : {"valid", "test"})
    for (const Task* t : held_out(split)) {
      const std::vector<List> inputs = sample_inputs(*t, 200, 77);
      REQUIRE(inputs.size() == 200);
      const auto like = std::find_if(earlier.begin(), earlier.end(),
                                     [&](const Task* other) { return agreement(*t, *other, inputs) >= 170; });
      INFO(t->name << " and " << (like == earlier.end() ? "" : (*like)->name));
      CHECK(like == earlier.end());
      std::map<List, int> outputs;
      for (const List& x : inputs) ++outputs[t->apply(x)];
      for (const auto& [y, n] : outputs)
        if (t->steps.size() == 2) CHECK(n < 130);
      earlier.push_back(t);
    }
}

TEST_CASE("rows are answers, and no input is twice in what there is of the same steps") {
  const World& w = small_world();
  std::map<std::string, std::set<std::string>> inputs_of;
  std::vector<const Task*> tasks = held_out("valid");
  for (const Task* t : held_out("test")) tasks.push_back(t);
  for (const Task& t : w.train) tasks.push_back(&t);
  for (const Task* t : tasks) {
    INFO(t->name);
    std::set<std::string>& inputs = inputs_of[function_of(*t)];
    for (const auto* rows : {&t->train, &t->test})
      for (const Row& r : *rows) {
        const size_t colon = r.input.find(" : ");
        CHECK(inputs.insert(t->revealed ? r.input.substr(colon + 3) : r.input).second);
        CHECK(t->revealed == (colon != std::string::npos));
        const List x = list_of(t->revealed ? r.input.substr(colon + 3) : r.input);
        CHECK(x.size() >= 4);
        CHECK(x.size() <= 6);
        CHECK(!r.output.empty());
        CHECK(text_of(t->apply(x)) == r.output);
        if (t->revealed) CHECK(r.input.starts_with(t->steps[0].formula + " "));
      }
  }
}

TEST_CASE("a world is a function of its seed") {
  const World again = make_world(small());
  const World& w = small_world();
  REQUIRE(again.train.size() == w.train.size());
  for (size_t i = 0; i < w.train.size(); ++i) {
    CHECK(again.train[i].name == w.train[i].name);
    CHECK(again.train[i].descriptions == w.train[i].descriptions);
    CHECK(again.train[i].train[5].input == w.train[i].train[5].input);
  }
  CHECK(again.words == w.words);
  const World other = make_world(small(4));
  CHECK(other.held_out != w.held_out);
  CHECK(other.train[0].name != w.train[0].name);
}

TEST_CASE("every word of the world is one token, and any text has tokens") {
  const Tokenizer tokenizer = Tokenizer::load(small_folder() + "/base");
  const auto is_whole = [&](const std::string& text) {
    for (const int32_t id : tokenizer.encode(text, false)) {
      const std::string* token = tokenizer.token(id);
      if (!token || token->starts_with("##") || *token == "<unk>") return false;
    }
    return true;
  };
  const auto check = [&](const Task& t) {
    INFO(t.name);
    for (const auto* list : {&t.descriptions, &t.unseen})
      for (const std::string& d : *list) {
        INFO(d);
        CHECK(is_whole(d));
        CHECK(tokenizer.decode(tokenizer.encode(d, false), false).find("##") == std::string::npos);
      }
    for (const auto* rows : {&t.train, &t.test})
      for (const Row& r : *rows) {
        CHECK(is_whole(r.input));
        CHECK(tokenizer.encode(r.output, false).size() == list_of(r.output).size());
        CHECK(tokenizer.decode(tokenizer.encode(r.output, false), true) == r.output);
      }
  };
  for (const Task& t : small_world().train) check(t);
  for (const std::string split : {"valid", "test"})
    for (const Task* t : held_out(split)) check(*t);

  CHECK_FALSE(is_whole("Summarise the following paragraph."));
  CHECK(tokenizer.decode(tokenizer.encode("Unbelievable, isn't it?", false), true) == "Unbelievable, isn ' t it?");
  CHECK(tokenizer.encode("日本", false) == std::vector<int32_t>(2, *tokenizer.id("<unk>")));
}

TEST_CASE("samples are encoded as the base model reads them") {
  const std::string base = small_folder() + "/base";
  const Tokenizer tokenizer = Tokenizer::load(base);
  const SampleEncoder encoder = SampleEncoder::load(base, base, true, 512);
  const auto tokens = [&](const std::vector<int32_t>& ids) {
    std::string out;
    for (const int32_t id : ids) out += (out.empty() ? "" : " ") + *tokenizer.token(id);
    return out;
  };
  const auto split = [&](const Conversation& c) {
    const Example e = encoder.encode(c);
    return std::pair(tokens({e.ids.begin(), e.ids.begin() + e.prompt}),
                     tokens({e.ids.begin() + e.prompt, e.ids.end()}));
  };
  CHECK(split({"", "3 a 7 c", "c 7 a 3", "c 7 a 3"}) ==
        std::pair<std::string, std::string>("<bos> <sep> 3 a 7 c =", "c 7 a 3 <eos>"));
  CHECK(split({"Reverse the list.", "3 a", "a 3", "a 3"}) ==
        std::pair<std::string, std::string>("<bos> Reverse the list . <sep> 3 a =", "a 3 <eos>"));

  const ChatTemplate chat = ChatTemplate::load(base);
  OrderedJson turns = OrderedJson::array();
  const auto say = [&](const char* role, const char* text) { turns.push_back({{"role", role}, {"content", text}}); };
  say("user", "3 a"), say("assistant", "a 3"), say("user", "1 2");
  CHECK(tokens(tokenizer.encode(chat.render(turns, true), false)) == "<bos> <sep> 3 a = a 3 <sep> 1 2 =");
  turns = OrderedJson::array();
  say("system", "Reverse the list."), say("user", "3 a"), say("assistant", "a 3"), say("user", "1 2");
  CHECK(tokens(tokenizer.encode(chat.render(turns, false), false)) ==
        "<bos> Reverse the list . <sep> 3 a = a 3 <sep> 1 2 =");
  say("robot", "?");
  CHECK_THROWS_AS(chat.render(turns, false), Error);

  // As the text encoder reads a description, with emb_suffix " <sep>".
  CHECK(tokens(tokenizer.encode(add_full_stop("Reverse the list") + " <sep>")) == "<bos> Reverse the list . <sep>");

  // A whole task through t2l-train's own reader.
  TrainConfig config = TrainConfig::parse(Verb::Sft, "", "c.yaml", {{"data", small_folder() + "/train"}});
  config.n_train_ds = 3;
  const TaskSet set = TaskSet::load(config, &encoder);
  REQUIRE(set.tasks.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    const Task& task = small_world().train[i];
    CHECK(set.tasks[i].name == task.name);
    CHECK(set.tasks[i].descriptions == task.descriptions);
    REQUIRE(set.tasks[i].train.size() == task.train.size());
    const Example& e = set.tasks[i].train[7];
    CHECK(tokens(e.ids) == "<bos> <sep> " + task.train[7].input + " = " + task.train[7].output + " <eos>");
  }
}

TEST_CASE("t2l-world writes a folder or says why not") {
  const Scratch scratch;
  const std::vector<std::string> few = {"--tasks", "400", "--rows", "4", "--test-rows", "2", "--descriptions", "4"};
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), few.begin(), few.end());
    return run_program(scratch, "t2l-world", arguments);
  };
  const Run made = run({"--out", scratch / "w", "--seed", "5"});
  INFO(made.err);
  CHECK(made.status == 0);
  CHECK(made.err.find("400 training tasks") != std::string::npos);
  CHECK(folders(scratch / "w/train").size() == 400);
  CHECK(folders(scratch / "w/test/seen").size() == 100);
  const Json index = read_json(scratch / "w/world.json");
  CHECK(index.at("train").size() == 400);
  CHECK(index.at("test").at("seen").size() == 100);
  CHECK(index.at("held_out").at("test").size() > index.at("held_out").at("valid").size());
  CHECK(read_json(scratch / "w/base/config.json").at("gist_token_id") == 4);

  const Run again = run({"--out", scratch / "w", "--seed", "5"});
  CHECK(again.status == 1);
  CHECK(again.err.find("not empty") != std::string::npos);
  CHECK(run_program(scratch, "t2l-world", {"--out", scratch / "v", "--tasks", "20"}).status == 1);
  CHECK_FALSE(fs::exists(scratch / "v"));
  CHECK(run_program(scratch, "t2l-world", {"--out", scratch / "v", "--tasks", "0"}).status == 2);
  CHECK(run_program(scratch, "t2l-world", {}).status == 2);
}

}  // namespace
}  // namespace t2l::world
