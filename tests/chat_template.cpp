// Chat templates against transformers' Jinja environment: the golden file of tools/make_golden_chat.py, the large set
// of
// ../shared, renders handed in through T2L_EXPECTED_CHAT, and templates that are up to no good.
#include "transformer/chat_template.h"

#include <zlib.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/golden_files.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

void skip(const std::string& why) { WARN("skipped: " + why); }

std::string read(const std::string& path) {  // gzipped or not
  gzFile file = gzopen(path.c_str(), "rb");
  REQUIRE(file);
  std::string text;
  char buffer[1 << 16];
  for (int n; (n = gzread(file, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  gzclose(file);
  return text;
}
OrderedJson read_ordered(const std::string& path) { return OrderedJson::parse(read(path)); }

std::vector<OrderedJson> read_lines(const std::string& path) {
  std::vector<OrderedJson> out;
  const std::string text = read(path);
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out.push_back(OrderedJson::parse(text.substr(at, end - at)));
    at = end + 1;
  }
  return out;
}

const OrderedJson tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};

// The text, or "raises"; `why` is the message then.
std::string outcome(const std::string& source, const OrderedJson& messages, bool prompt, const OrderedJson& variables,
                    std::string& why, const OrderedJson& special = tokens) {
  try {
    return ChatTemplate::parse(source, "T", special).render(messages, prompt, variables);
  } catch (const Error& e) {
    why = e.what();
    CHECK(why.starts_with("T:"));
    CHECK(why.find('\n') == std::string::npos);
    CHECK(why.size() < 600);
    return "raises";
  }
}

void check_renders(const OrderedJson& golden) {
  for (const OrderedJson& row : golden.at("renders")) {
    const OrderedJson variables =
        row.at("tools").get<bool>() ? OrderedJson{{"tools", golden.at("tools")}} : OrderedJson::object();
    const auto& messages = golden.at("conversations").at(row.at("conversation").get<size_t>());
    std::string why;
    const std::string source = row.at("source"), got = outcome(source, messages, row.at("prompt"), variables, why);
    CAPTURE(source, why);
    CHECK(got == row.value("text", "raises"));
  }
}

std::string render(const std::string& source, const OrderedJson& variables = OrderedJson::object()) {
  return ChatTemplate::parse(source, "T", tokens).render({{{"role", "user"}, {"content", "hi"}}}, false, variables);
}
std::string refusal(const std::string& source) {
  std::string why = "(accepted)";
  outcome(source, {{{"role", "user"}, {"content", "hi"}}}, false, OrderedJson::object(), why);
  return why;
}
std::string repeat(const std::string& s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += s;
  return out;
}

struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("t2l-chat-{}", ::getpid());
  Folder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  void write(const char* name, const std::string& text) const { std::ofstream(path / name, std::ios::binary) << text; }
  std::string load() const {
    return ChatTemplate::load(path.string()).render({{{"role", "user"}, {"content", "hi"}}}, false);
  }
  std::string refusal() const {
    try {
      return load();
    } catch (const Error& e) {
      return e.what();
    }
  }
};

}  // namespace

TEST_CASE("chat templates render what transformers renders", "[chat]") {
  check_renders(read_ordered("tests/golden/chat.json"));
}

TEST_CASE("chat templates: the official source stripping", "[chat]") {
  CHECK(ChatTemplate::strip("{% if x %}\n    a     b\n\n{% endif %}") == "{% if x %}a b{% endif %}");
}

TEST_CASE("chat templates are found in a model's folder", "[chat]") {
  const Folder f;
  CHECK(f.refusal().find("has no chat template") != std::string::npos);
  f.write("chat_template.json", R"({"chat_template": "json {{ messages[0].content }}"})");
  CHECK(f.load() == "json hi");
  f.write("chat_template.jinja", "jinja {{ eos_token }}\n");
  f.write("tokenizer_config.json", R"({"eos_token": {"content": "</s>"}, "bos_token": null})");
  CHECK(f.load() == "jinja </s>");
  f.write("tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": "config {{ bos_token }}"})");
  CHECK(f.load() == "config <s>");
  f.write("tokenizer_config.json",
          R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  CHECK(f.load() == "d");
  for (const char* bad : {R"({"chat_template": [{"name": "tool_use", "template": "t"}]})", R"({"chat_template": 1})",
                          R"({"chat_template": [1]})", R"({"chat_template": [{"name": "default"}]})",
                          R"({"chat_template": "{% if %}"})", R"({"chat_template": "{{ 1 + none }}"})", "[]", "{"}) {
    f.write("tokenizer_config.json", bad);
    const std::string why = f.refusal();
    CAPTURE(bad, why);
    CHECK(why.find("tokenizer_config.json") != std::string::npos);
    CHECK(why.find('\n') == std::string::npos);
  }
}

TEST_CASE("chat templates: errors say where", "[chat]") {
  CHECK(refusal("a\n{{ 1 + none }}") == "T:2: unsupported operands of +: 'int' and 'NoneType'");
  CHECK(refusal("a\n\n{% if true %}") == "T:3: the template ends where '{% endif %}' is expected");
  CHECK(refusal("{{ raise_exception('roles\nmust alternate') }}") == "T:1: roles must alternate");
  CHECK(refusal("{% for m in messages %}\n{{ m.nope.x }}{% endfor %}") == "T:2: 'dict object' has no attribute 'nope'");
  CHECK(refusal("{{ nope() }}") == "T:1: 'nope' is undefined");
}

TEST_CASE("chat templates: the time is now", "[chat]") {
  const std::time_t before = std::time(nullptr);
  const std::string year = render("{{ strftime_now('%Y-%m-%d %H:%M') }}");
  char a[64], b[64];
  std::strftime(a, sizeof a, "%Y-%m-%d %H:%M", std::localtime(&before));
  const std::time_t after = std::time(nullptr);
  std::strftime(b, sizeof b, "%Y-%m-%d %H:%M", std::localtime(&after));
  CHECK((year == a || year == b));
  CHECK(render("{{ strftime_now('') }}{{ strftime_now('%f') | length }}") == "6");
}

TEST_CASE("chat templates: variables of the call win over those of the model, messages over both", "[chat]") {
  CHECK(render("{{ bos_token }}{{ messages | length }}", {{"bos_token", "B"}, {"messages", 5}}) == "B1");
  CHECK(render("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}") == "TrueTrueFalse");
  CHECK(render("{{ range }}", {{"range", "mine"}}) == "mine");
}

TEST_CASE("chat templates may be used from several threads", "[chat]") {
  const ChatTemplate t = ChatTemplate::parse(
      "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content|upper %}{% endfor %}{{ ns.s "
      "}}",
      "T");
  OrderedJson messages = OrderedJson::array();
  for (int i = 0; i < 50; ++i) messages.push_back({{"content", "abc"}});
  std::vector<int> right(4);
  std::vector<std::thread> threads;
  for (int& r : right)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) r += t.render(messages, false) == repeat("ABC", 50);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(right == std::vector<int>(4, 50));
}

TEST_CASE("chat templates: integers that do not fit are errors, never wrong numbers", "[chat]") {
  CHECK(render("{{ 2 ** 126 }}") == "85070591730234615865843651857942052864");
  for (const char* source :
       {"{{ 2 ** 127 }}", "{{ 2 ** 126 * 2 }}", "{{ 2 ** 126 + 2 ** 126 }}", "{{ -(2 ** 126) - 2 ** 126 - 1 }}",
        "{{ 10 ** 10 ** 10 }}", "{{ 1000000000000000000000000000000000000000000 }}",
        "{{ '1000000000000000000000000000000000000000000' | int }}", "{{ 1e40 | int }}",
        "{{ -(-(2 ** 126) - 2 ** 126) }}", "{{ (-(2 ** 126) - 2 ** 126) // -1 }}"})
    CHECK(refusal(source).find("127 bits") != std::string::npos);
  CHECK(render("{{ (-(2 ** 126) - 2 ** 126) % -1 }}") == "0");
}

TEST_CASE("hostile chat templates fail in one line, soon", "[chat]") {
  const std::string grow = "{% set ns = namespace(x='a') %}";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{{ 'a' * 10 ** 9 }}", "MiB"},
      {"{{ 'a' * 10 ** 30 }}", "MiB"},
      {"{{ [1] * 10 ** 9 }}", "MiB"},
      {"{{ (1, 2) * 10 ** 18 }}", "MiB"},
      {"{{ range(10 ** 12) | list }}", "100000"},
      {"{{ range(10 ** 30) | list }}", "62 bits"},
      {"{{ 10 ** 10 ** 10 }}", "127 bits"},
      {grow + "{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = ns.x | replace('', 'aa') %}{% endfor %}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}", "steps"},
      {grow + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}", "MiB"},
      {grow + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{% set y = ns.x %}{% set ns.x = 'a' "
              "%}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == y }}",
       "steps"},
      {grow + "{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1}[ns.x] }}", "steps"},
      {grow + "{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}", "within"},
      {grow + "{% for i in range(1000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}", "within"},
      {grow + "{% for i in range(1000) %}{% set ns.x = [1] | map('list') | map('list') %}{% endfor %}{{ ns.x | list }}",
       "iterable"},
      {"{% set ns = namespace(x=[1]) %}{% for i in range(1000) %}{% set ns.x = ns.x | map('string') %}{% endfor %}{{ "
       "ns.x | list }}",
       "recurses"},
      {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "recurses"},
      {"{{ 'a' | center(10 ** 9) }}", "MiB"},
      {"{{ 'a'.ljust(10 ** 18) }}", "MiB"},
      {"{{ 'a'.zfill(10 ** 18) }}", "MiB"},
      {"{{ '\t'.expandtabs(10 ** 18) }}", "MiB"},
      {"{{ 'a\nb' | indent(10 ** 9) }}", "MiB"},
      {"{{ ('a\n' * 10 ** 6) | indent(10 ** 6) }}", "MiB"},
      {"{{ [[1]] | tojson(indent=10 ** 9) }}", "MiB"},
      {"{{ '%99999999999d' % 1 }}", "width"},
      {"{{ '%.99999d' % 1 }}", "precision"},
      {"{{ '%*d' % (10 ** 20, 1) }}", "width"},
      {"{{ '{:99999999999}'.format(1) }}", "width"},
      {"{{ '{:.99999f}'.format(1.0) }}", "precision"},
      {"{{ [1] | batch(10 ** 9, 0) | list }}", "MiB"},
      {"{{ [1] | slice(10 ** 9) | list }}", "m"},  // memory or steps
      {"{{ ('a,' * 10 ** 7).split(',') | length }}", "memory"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"},
      {"{% macro f(n) %}{{ f(n + 1) ~ f(n + 2) }}{% endmacro %}{{ f(0) }}", "recurses"},
      {"{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}", "steps"},
      {"{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ "
       "g() }}",
       "recurses"},
      {"{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recurses"},
      {"{% for a in range(10 ** 5) %}{% for b in range(10 ** 5) %}{% endfor %}{% endfor %}", "steps"},
      {"{% for a in range(10 ** 5) %}{% for b in range(10 ** 5) %}{{ 'text' }}{% endfor %}{% endfor %}", "steps"},
      {"{% set s = 'ab' * 10 ** 6 %}{% for a in range(10 ** 5) %}{{ 'ba' * 10 ** 5 ~ 'c' in s }}{% endfor %}", "m"},
      {"{% set s = 'a' * 10 ** 7 %}{{ s.rsplit('a' * 10 ** 6 ~ 'b') | length }}", "steps"},
      {"{% set s = 'a' * 10 ** 7 %}{{ s.rfind('b' ~ 'a' * 10 ** 6) }}", "-1"},
      {"{% set s = 'a' * 10 ** 7 %}{% for a in range(10 ** 5) %}{{ s == s ~ '' }}{% endfor %}", "memory"},
      {"{{ '{0:{0:{0}}}'.format(1) }}", "format within a format"},
      {"{{ ''.__class__.__mro__ }}", "unsafe"},
      {"{{ '{0.__class__.__init__}'.format(1) }}", "unsafe"},
      {"{{ messages.clear() }}", "unsafe"},
      {"{{ " + repeat("(", 100000), "levels"},
      {"{{ " + repeat("(", 300) + "1" + repeat(")", 300) + " }}", "levels"},
      {"{{ " + repeat("[", 5000) + repeat("]", 5000) + " }}", "levels"},
      {"{{ " + repeat("-", 5000) + "1 }}", "levels"},
      {"{{ " + repeat("not ", 5000) + "1 }}", "levels"},
      {"{{ 1" + repeat(" + 1", 5000) + " }}", "levels"},
      {"{{ 1" + repeat(" or 0", 5000) + " }}", "levels"},
      {"{{ 1" + repeat(" if 1 else 0", 5000) + " }}", "levels"},
      {"{{ 1" + repeat(" | string", 5000) + " }}", "levels"},
      {"{{ x" + repeat(".x", 5000) + " }}", "levels"},
      {"{{ x" + repeat("[0]", 5000) + " }}", "levels"},
      {"{{ x" + repeat("()", 5000) + " }}", "levels"},
      {repeat("{% if 1 %}", 5000), "levels"},
      {repeat("{% for x in y %}", 5000), "levels"},
      {repeat("{% if 1 %}", 300) + repeat("{% endif %}", 300), "levels"},
      {"{{ f(" + repeat("a=1, ", 100) + ") }}", "twice"},
      {std::string((1 << 20) + 1, 'x'), "at most"},
      {"{{ lipsum() }}", "not supported"},
  };
  for (const auto& [source, expected] : cases) {
    const auto start = std::chrono::steady_clock::now();
    std::string why;
    const std::string text =
        outcome(source, {{{"role", "user"}, {"content", "hi"}}}, false, OrderedJson::object(), why);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const std::string shown = source.substr(0, 150), said = why.empty() ? text : why;
    CAPTURE(shown, said, seconds);
    CHECK(said.find(expected) != std::string::npos);
    CHECK(seconds < 60);  // a second or less, but for sanitizers and busy machines
  }
}

TEST_CASE("chat templates take what is large but not hostile", "[chat]") {
  OrderedJson messages = OrderedJson::array();
  for (int i = 0; i < 2000; ++i)
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", repeat("word ", 200)}});
  const ChatTemplate t = ChatTemplate::parse(
      "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m['content'] | trim ~ eos_token }}{% endfor %}", "T", tokens);
  CHECK(t.render(messages, false).size() > 2'000'000);
  CHECK(render("{{ 0" + repeat(" ~ 0", 5000) + " }}").size() == 5001);
  CHECK(render("{% if 0 %}" + repeat("{% elif 0 %}", 5000) + "{% else %}x{% endif %}") == "x");
  CHECK(render("{{ " + repeat("(", 150) + "1" + repeat(")", 150) + " }}") == "1");
  OrderedJson many = OrderedJson::object();
  for (int i = 0; i < 20000; ++i) many[fmt::format("k{}", i)] = i;
  CHECK(render("{{ d['k19999'] }} {{ d | length }} {{ d.k7 }}", {{"d", many}}) == "19999 20000 7");
}

TEST_CASE("chat templates: what outlives its block still works", "[chat]") {
  CHECK(render("{% set ns = namespace() %}{% macro f(y) %}{% for x in [1, 2, 3] if x and y %}{% set ns.l = loop %}{% "
               "break %}"
               "{% endfor %}{% endmacro %}{{ f(1) }}{{ ns.l.last }} {{ ns.l.length }}") == "False 3");
  // Jinja prints its own "missing" here: it has taken the loop's variables back.
  CHECK(render("{% set ns = namespace() %}{% for x in [1, 2] %}{% macro f() %}{{ x }}{% endmacro %}{% set ns.f = f %}"
               "{% endfor %}{{ ns.f() }}") == "2");
  CHECK(
      render("{% set ns = namespace() %}{% for x in [[1, [2]]] recursive %}{% set ns.l = loop %}{{ x if x is number }}"
             "{% endfor %}{{ ns.l([3, 4]) }}") == "34");
  CHECK(render(
            "{% set ns = namespace(g=[3, 4] | map('string')) %}{{ ns.g | first }}{{ ns.g | list }}{{ ns.g | list }}") ==
        "3['4'][]");
}

TEST_CASE("JSON that nests too deeply is refused by chat templates", "[chat]") {
  OrderedJson deep = 1;
  for (int i = 0; i < 150; ++i) deep = OrderedJson::array({deep});
  CHECK_THROWS_AS(ChatTemplate::parse("x", "T").render(deep, false), Error);
}

TEST_CASE("ordered JSON keeps the order of keys, and refuses repeated ones", "[chat]") {
  CHECK(parse_ordered_json(R"({"b": 1, "a": {"d": [1, {}], "c": null}})", "F").dump() ==
        R"({"b":1,"a":{"d":[1,{}],"c":null}})");
  for (const char* bad : {R"({"a": 1, "b": 2, "a": 3})", R"([{"x": {"q": 1, "q": 1}}])"})
    CHECK_THROWS_AS(parse_ordered_json(bad, "F"), Error);
  std::string many = "{";
  for (int i = 0; i < 200'000; ++i) many += fmt::format("\"k{}\": {},", i, i);
  many.back() = '}';
  CHECK(parse_ordered_json(many, "F").size() == 200'000);
}

TEST_CASE("chat templates: renders handed in", "[chat][expected]") {
  const char* path = std::getenv("T2L_EXPECTED_CHAT");
  if (!path) return skip("T2L_EXPECTED_CHAT names no file of tools/make_golden_chat.py");
  check_renders(read_ordered(path));
}

TEST_CASE("chat templates: golden renders", "[chat][shared]") {
  const std::string root = test::shared_folder() + "/golden/chat";
  if (!fs::exists(root + "/renders.jsonl.gz")) return skip("no " + root);
  const OrderedJson conversations = read_ordered(root + "/conversations.json"),
                    special = read_ordered(root + "/templates.json");
  size_t right = 0;
  const auto rows = read_lines(root + "/renders.jsonl.gz");
  std::map<std::string, std::string> sources;
  for (const OrderedJson& row : rows) {
    const std::string name = row.at("template");
    std::string& source = sources[name];
    if (source.empty()) source = read(root + "/templates/" + name + ".jinja");
    std::string why;
    const std::string got =
        outcome(source, conversations.at(row.at("conversation").get<size_t>()), row.at("add_generation_prompt"),
                row.value("variables", OrderedJson::object()), why, special.at(name));
    CAPTURE(name, why, row.at("conversation").get<int>());
    CHECK(got == row.value("text", "raises"));
    if (row.contains("message")) CHECK(why.find(row.at("message").get<std::string>()) != std::string::npos);
    right += got == row.value("text", "raises");
  }
  CHECK(right == rows.size());
}

TEST_CASE("chat templates: golden expressions", "[chat][shared]") {
  const std::string root = test::shared_folder() + "/golden/chat";
  if (!fs::exists(root + "/expressions.jsonl")) return skip("no " + root);
  const OrderedJson messages = read_ordered(root + "/conversations.json").at(3);
  for (const OrderedJson& row : read_lines(root + "/expressions.jsonl")) {
    std::string why;
    const std::string source = row.at("source"), got = outcome(source, messages, true, OrderedJson::object(), why);
    CAPTURE(source, why);
    if (why.find("is not supported") == std::string::npos) CHECK(got == row.value("text", "raises"));
  }
}

}  // namespace t2l
