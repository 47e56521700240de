// Tokenizers against the `tokenizers` library: the small golden files in tests/golden (made by
// tools/make_golden_tokenizer.py), the large golden sets of ../shared, and ids handed in through T2L_EXPECTED_IDS (by
// tools/check_tokenizer.py).
#include "transformer/tokenizer.h"

#include <zlib.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tensor/json.h"
#include "transformer/tokenizer_words.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;
using namespace std::string_literals;

fs::path repository() { return fs::path(__FILE__).parent_path().parent_path(); }

fs::path shared() {
  const char* given = std::getenv("T2L_SHARED");
  return given ? fs::path(given) : repository().parent_path() / "shared";
}

void skip(const std::string& why) { WARN("skipped: " + why); }

// The lines of a file, gzipped or not, as JSON.
std::vector<Json> read_lines(const fs::path& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  REQUIRE(file);
  std::string text;
  char buffer[1 << 16];
  for (int n; (n = gzread(file, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  gzclose(file);
  std::vector<Json> out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out.push_back(Json::parse(text.substr(at, end - at)));
    at = end + 1;
  }
  return out;
}

std::string stream(const Tokenizer& t, const Ids& ids, bool skip) {
  StreamDecoder decoder(t, skip);
  std::string out;
  for (const int32_t id : ids) out += decoder.feed(id);
  return out + decoder.finish();
}

// What is wrong with one expected line, or nothing. `row` has text, ids, and where they were recorded prefix and suffix
// (special tokens), decoded (skipping special tokens; the text itself if absent and `implied`) and decoded_all.
std::string complaint(const Tokenizer& t, const std::string& text, const Json& row, bool implied) {
  const Ids ids = row.at("ids"), prefix = row.value("prefix", Ids()), suffix = row.value("suffix", Ids());
  Ids all = prefix;
  all.insert(all.end(), ids.begin(), ids.end());
  all.insert(all.end(), suffix.begin(), suffix.end());
  if (t.encode(text, false) != ids)
    return fmt::format("'{}': ids {}, not {}", text, Json(t.encode(text, false)).dump(), Json(ids).dump());
  if (t.encode(text) != all) return fmt::format("'{}' with special tokens: {}", text, Json(t.encode(text)).dump());
  for (const bool skip : {true, false}) {
    const char* key = skip ? "decoded" : "decoded_all";
    if (!row.contains(key) && !(skip && implied)) continue;
    const std::string expected = row.value(key, text);
    if (t.decode(all, skip) != expected)
      return fmt::format("'{}' decodes to '{}', not '{}'", text, t.decode(all, skip), expected);
    if (stream(t, all, skip) != expected) return fmt::format("'{}' streams as '{}'", expected, stream(t, all, skip));
  }
  return {};
}

void check_pairs(const Tokenizer& t, const Json& row) {
  const Encoding e = t.encode_pair(row.at("a").get<std::string>(), row.at("b").get<std::string>());
  CAPTURE(row.dump());
  CHECK(e.ids == row.at("ids").get<Ids>());
  CHECK(e.type_ids == row.at("type_ids").get<Ids>());
}

// {"tokenizer", "cases": as for complaint(), "pairs", "truncated": [{text, max_length, left, ids}]}
struct Golden {
  explicit Golden(const std::string& name)
      : json(parse_json(read_text_file((repository() / "tests/golden" / ("tokenizer_" + name + ".json")).string()),
                        name)),
        tokenizer(Tokenizer::parse(json.at("tokenizer").dump(), name)) {}
  Json json;
  Tokenizer tokenizer;
};

const std::vector<std::string> forms = {"bert", "bytes", "qwen", "gpt2", "digits", "legacy", "metaspace", "gemma"};

Json minimal() {
  return Json::parse(R"({"model": {"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 100,
    "continuing_subword_prefix": "##", "vocab": {"[UNK]": 0, "a": 1, "##b": 2, "b": 3, "##a": 4}},
    "added_tokens": [{"id": 0, "content": "[UNK]", "special": true}], "pre_tokenizer": {"type": "BertPreTokenizer"}})");
}

std::string refusal(const Json& json) {
  try {
    Tokenizer::parse(json.dump(), "x.json");
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

}  // namespace

TEST_CASE("tokenizers give the library's ids, types, and text", "[tokenizer]") {
  for (const std::string& form : forms) {
    const Golden golden(form);
    for (const Json& row : golden.json.at("cases"))
      CHECK(complaint(golden.tokenizer, row.at("text"), row, false) == "");
    for (const Json& row : golden.json.at("pairs")) check_pairs(golden.tokenizer, row);
    for (const Json& row : golden.json.at("truncated")) {
      CAPTURE(form, row.dump());
      const Truncation t{row.at("max_length"), row.at("left")};
      const std::string text = row.at("text");
      CHECK(golden.tokenizer.encode(text, true, t) == row.at("ids").get<Ids>());
      if (row.contains("pair"))
        CHECK(golden.tokenizer.encode_pair(text, row.at("pair").get<std::string>(), true, t).ids ==
              row.at("pair_ids").get<Ids>());
    }
  }
}

TEST_CASE("tokens have ids, and ids tokens", "[tokenizer]") {
  const Tokenizer t = Golden("bert").tokenizer;
  REQUIRE(t.vocab_size() > 100);
  for (int32_t id = 0; id < static_cast<int32_t>(t.vocab_size()); ++id) {
    REQUIRE(t.token(id));
    CHECK(t.id(*t.token(id)) == id);
  }
  CHECK_FALSE(t.id("no such token"));
  CHECK_FALSE(t.token(-1));
  CHECK_FALSE(t.token(static_cast<int32_t>(t.vocab_size())));
  CHECK(t.decode(Ids{-5, 1 << 30}, false) == "");
}

TEST_CASE("truncation must leave room for special tokens", "[tokenizer]") {
  const Tokenizer t = Golden("bert").tokenizer;
  CHECK(t.encode("a text", true, {2}).size() == 2);
  CHECK_THROWS_AS(t.encode("a text", true, {1}), Error);
  CHECK(t.encode("a text", false, {0}).empty());
}

TEST_CASE("invalid UTF-8 reads as U+FFFD, one for each maximal part", "[tokenizer]") {
  for (const std::string& form : forms) {
    const Tokenizer t = Golden(form).tokenizer;
    for (const auto& [broken, mended] : {std::pair("a\xFFz", "a\uFFFDz"),
                                         {"\xE2\x82", "\uFFFD"},
                                         {"\xE2\x82x\xC0\xAF", "\uFFFDx\uFFFD\uFFFD"},
                                         {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
                                         {"\xF0\x9F\x98 \x80", "\uFFFD \uFFFD"},
                                         {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}}) {
      CHECK(t.encode(broken) == t.encode(mended));
    }
  }
}

TEST_CASE("streamed text is the decoded text, whatever the ids", "[tokenizer]") {
  for (const std::string& form : forms) {
    const Tokenizer t = Golden(form).tokenizer;
    uint32_t random = 1;
    for (int trial = 0; trial < 300; ++trial) {
      Ids ids;
      for (int i = 0; i < trial % 23; ++i) {
        random = random * 1664525 + 1013904223;
        ids.push_back(static_cast<int32_t>((random >> 8) % t.vocab_size()));
      }
      for (const bool skip : {false, true}) CHECK(stream(t, ids, skip) == t.decode(ids, skip));
    }
  }
}

TEST_CASE("tokenizers may be used from several threads", "[tokenizer]") {
  const Golden golden("legacy");
  std::vector<std::string> wrong(4);
  std::vector<std::thread> threads;
  for (std::string& w : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3; ++i) {
        for (const Json& row : golden.json.at("cases")) w += complaint(golden.tokenizer, row.at("text"), row, false);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& w : wrong) CHECK(w == "");
}

TEST_CASE("merges across words are found", "[tokenizer]") {
  // Without such merges, text that comes in one piece is merged and cached word by word.
  const auto ids = [](const std::vector<std::string>& merges, const std::string& text) {
    Json json = Json::parse(R"({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}})");
    json["model"] = {
        {"type", "BPE"},
        {"merges", merges},
        {"vocab",
         {{"\u2581", 0}, {"a", 1}, {"b", 2}, {"\u2581b", 3}, {"a\u2581b", 4}, {"a\u2581", 5}, {"\u2581\u2581", 6}}}};
    return Tokenizer::parse(json.dump(), "x").encode(text);
  };
  CHECK(ids({}, "a b") == Ids{1, 0, 2});
  CHECK(ids({"\u2581 b"}, "a b  b b") == Ids{1, 3, 0, 3, 3});
  CHECK(ids({"\u2581 b", "a \u2581b"}, "a b b") == Ids{4, 3});
  CHECK(ids({"a \u2581", "\u2581 b"}, "a b b") == Ids{5, 2, 3});
  CHECK(ids({"\u2581 \u2581", "\u2581 b"}, "a   b") == Ids{1, 6, 3});
  CHECK(ids({"\u2581 b", "a \u2581b"}, "a ba b") == Ids{4, 4});
}

TEST_CASE("any merges of any text are those of the definition", "[tokenizer]") {
  uint32_t random = 3;
  const auto below = [&](size_t n) { return ((random = random * 1664525 + 1013904223) >> 8) % n; };
  const std::vector<std::string> alphabet = {"\u2581", "a", "b", ",", "\u00E9", "\u4E2D"};
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<std::string> tokens = alphabet;
    std::vector<std::array<size_t, 3>> merges;  // left, right, both
    Json json = Json::parse(R"({"model": {"type": "BPE"}})");
    json["model"]["merges"] = Json::array();
    for (size_t n = below(12); n > 0; --n) {
      const size_t left = below(tokens.size()), right = below(tokens.size());
      const std::string both = tokens[left] + tokens[right];
      if (std::find(tokens.begin(), tokens.end(), both) != tokens.end()) continue;
      json["model"]["merges"].push_back(Json::array({tokens[left], tokens[right]}));
      merges.push_back({left, right, tokens.size()});
      tokens.push_back(both);
    }
    for (size_t i = 0; i < tokens.size(); ++i) json["model"]["vocab"][tokens[i]] = i;
    std::string text;
    std::vector<size_t> expected;
    for (size_t n = below(trial % 4 ? 12 : 80); n > 0; --n) {
      const size_t i = below(alphabet.size() + 1);
      text += i < alphabet.size() ? alphabet[i] : "?";  // not in the vocabulary: left out
      if (i < alphabet.size()) expected.push_back(i);
    }
    for (size_t best = 0; best < merges.size();) {  // the lowest that there is, leftmost, again and again
      const auto [left, right, both] = merges[best];
      size_t i = 0;
      while (i + 1 < expected.size() && !(expected[i] == left && expected[i + 1] == right)) ++i;
      if (i + 1 >= expected.size()) {
        ++best;
        continue;
      }
      expected[i] = both;
      expected.erase(expected.begin() + static_cast<ptrdiff_t>(i) + 1);
      best = 0;
    }
    CAPTURE(json.dump(), text);
    CHECK(Tokenizer::parse(json.dump(), "x").encode(text) == Ids(expected.begin(), expected.end()));
  }
}

TEST_CASE("the scanner finds the words of its patterns", "[tokenizer]") {
  CHECK_FALSE(WordScanner::known(gpt2_words + "|x"));
  const std::vector<std::string> units = {"'",   "s",       "LL",     "re",     "ve",     "T",      "a",      "Zz",
                                          " ",   "  ",      "\n",     "\r\n",   "\t",     "\v",     "\f",     "7",
                                          "123", "!",       "_(",     "\0"s,    "\x1C",   "\x7F",   "\u017F", "\u212A",
                                          "é",   "e\u0301", "中",     "\u00A0", "\u0085", "\u3000", "\u180E", "\u2028",
                                          "½",   "٣",       "\u200D", "😀",      "\uFFFD", "—",      "\u0378"};
  uint32_t random = 7;
  const auto below = [&](size_t n) { return ((random = random * 1664525 + 1013904223) >> 8) % n; };
  for (const std::string& pattern : {gpt2_words, llama3_words, qwen_words}) {
    const auto words = WordScanner::known(pattern);
    REQUIRE(words);
    const Regex regex(pattern);
    for (int trial = 0; trial < 20'000; ++trial) {
      // Mostly ASCII, or anything; few different units, so that runs come about.
      std::string text;
      const size_t kinds = trial % 2 ? 20 : units.size(), first = below(kinds), some = 1 + below(kinds);
      for (size_t n = below(14); n > 0; --n) text += units[(first + below(some)) % kinds];
      Match match{};
      for (size_t at = 0; at < text.size(); at = match.end) {
        REQUIRE(regex.find(text, at, match));
        if (match.begin != at || match.end != words->end(text, at)) {
          FAIL(pattern << ": '" << text << "' at " << at << ": " << words->end(text, at) << ", not " << match.end);
        }
      }
    }
  }
}

TEST_CASE("long texts of one word take linear time", "[tokenizer]") {
  for (const std::string& form : forms) {
    const Tokenizer t = Golden(form).tokenizer;
    for (const std::string unit :
         {"a", " ", "\n", "\xE2\x96\x81", "ab ", "1", "!", "\xF0\x9F\xA6\x8A", "<s>", "<left>", "\xCC\x81"}) {
      std::string text;
      while (text.size() < 200'000) text += unit;
      CHECK(t.encode(text, false).size() <= text.size() * 3);
    }
  }
}

TEST_CASE("a tokenizer.json that lies is refused in one line", "[tokenizer]") {
  CHECK(refusal(minimal()) == "");
  const auto with = [](const char* pointer, const Json& value) {
    Json json = minimal();
    json[Json::json_pointer(pointer)] = value;
    return json;
  };
  const auto without = [](const char* key) {
    Json json = minimal();
    json["model"].erase(key);
    return json;
  };
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const auto with_regex = [&](const std::string& regex) {
    Json s = split;
    s["pattern"]["Regex"] = regex;
    return with("/pre_tokenizer", s);
  };
  const Json bpe = {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}};
  const auto with_bpe = [&](const char* pointer, const Json& value) {
    Json m = bpe;
    m[Json::json_pointer(pointer)] = value;
    Json json = with("/model", m);
    json["added_tokens"] = Json::array();
    return json;
  };
  CHECK(refusal(with_bpe("/fuse_unk", false)) == "");
  const Json token = {{"id", 5}, {"content", "<x>"}, {"special", true}};
  const auto with_tokens = [&](std::vector<std::pair<std::string, Json>> changes) {
    Json json = minimal();
    for (const auto& [key, value] : changes) {
      Json t = token;
      t[key] = value;
      json["added_tokens"].push_back(t);
    }
    return json;
  };
  CHECK(refusal(with_tokens({{"id", 5}})) == "");
  const Json cls = {{"SpecialToken", {{"id", "C"}, {"type_id", 0}}}}, a = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
             b = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  const auto with_template = [&](Json single, Json ids) {
    return with("/post_processor", {{"type", "TemplateProcessing"},
                                    {"single", single},
                                    {"pair", {a, b}},
                                    {"special_tokens", {{"C", {{"id", "C"}, {"ids", ids}}}}}});
  };
  CHECK(refusal(with_template({cls, a}, {0})) == "");

  const std::vector<std::pair<Json, std::string>> lies = {
      {Json::array(), "object"},
      {Json::object(), "model"},
      {without("vocab"), "vocab"},
      {with("/model/vocab", Json::array({1, 2})), "vocab"},
      {with("/model/vocab/a", -1), "id of 'a'"},
      {with("/model/vocab/a", 1.5), "id of 'a'"},
      {with("/model/vocab/a", "1"), "id of 'a'"},
      {with("/model/vocab/a", 4294967297), "id of 'a'"},
      {with("/model/vocab/a", uint64_t{18446744073709551615u}), "id of 'a'"},
      {with("/model/vocab/a", 2), "same id"},
      {with("/model/vocab", {{std::string(5000, 'x'), 0}}), "5000 bytes"},
      {with("/model/unk_token", "[XXX]"), "unk_token"},
      {with("/model/max_input_chars_per_word", -1), "max_input_chars_per_word"},
      {with("/model/max_input_chars_per_word", 1e300), "max_input_chars_per_word"},
      {with("/model/continuing_subword_prefix", 7), "continuing_subword_prefix"},
      {with("/model/type", "Unigram"), "Unigram"},
      {with("/pre_tokenizer/type", "Oracle"), "Oracle"},
      {with("/pre_tokenizer", 3), "object"},
      {with("/pre_tokenizer", {{"type", "ByteLevel"}}), "ByteLevel"},
      {with("/normalizer", {{"type", "Precompiled"}}), "Precompiled"},
      {with("/normalizer", {{"type", "Sequence"}}), "normalizers"},
      {with("/normalizer", {{"type", "Sequence"}, {"normalizers", std::vector<Json>(65, {{"type", "NFC"}})}}),
       "at most 64"},
      {with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}), "empty"},
      {with("/decoder", {{"type", "CTC"}}), "CTC"},
      {with("/decoder", {{"type", "Strip"}, {"content", "ab"}, {"start", 0}, {"stop", 0}}), "one character"},
      {with("/decoder", {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}}), "start"},
      {with_regex("(("), "regular expression"},
      {with_regex("\\C"), "regular expression"},
      {with_regex("[a[b]]"), "sets"},
      {with_regex("((a{1000}){1000}){1000}"), "regular expression"},
      {with_regex(std::string(20000, 'a')), "too long"},
      {with_bpe("/merges", nullptr), "merges"},
      {with_bpe("/merges", {"a c"}), "vocabulary"},
      {with_bpe("/merges", {"b a"}), "vocabulary"},
      {with_bpe("/merges", {"a b c"}), "pairs"},
      {with_bpe("/merges", {"ab"}), "pairs"},
      {with_bpe("/merges", {{"a"}}), "pairs"},
      {with_bpe("/merges", Json::array({Json::array({"", "a"})})), "pairs"},
      {with_bpe("/merges", Json::array({Json::array({1, 2})})), "pairs"},
      {with_bpe("/unk_token", "?"), "unk_token"},
      {with_bpe("/dropout", 0.1), "dropout"},
      {with_bpe("/end_of_word_suffix", "</w>"), "end_of_word_suffix"},
      {with("/added_tokens", 1), "added_tokens"},
      {with_tokens({{"id", 7}}), "renumber"},
      {with_tokens({{"id", -1}}), "'id'"},
      {with_tokens({{"content", ""}}), "0 bytes"},
      {with_tokens({{"content", std::string(2000, 'x')}}), "2000 bytes"},
      {with_tokens({{"id", 5}, {"id", 5}}), "occurs twice"},
      {with_tokens({{"lstrip", 1}}), "lstrip"},
      {with_template({cls, a}, {999}), "999"},
      {with_template({cls, a}, {-1}), "ids"},
      {with_template({cls, b}, {0}), "sequence 'B'"},
      {with_template({{{"SpecialToken", {{"id", "D"}, {"type_id", 0}}}}}, {0}), "'D'"},
      {with_template(std::vector<Json>(65, a), {0}), "64"},
      {with("/post_processor", {{"type", "BertProcessing"}, {"cls", {"c", 0}}}), "sep"},
  };
  for (const auto& [json, expected] : lies) {
    const std::string message = refusal(json);
    CAPTURE(expected, message);
    CHECK(message.starts_with("x.json"));
    CHECK(message.find(expected) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.size() < 500);
  }
  CHECK_THROWS_AS(Tokenizer::parse("", "x"), Error);
  CHECK_THROWS_AS(Tokenizer::parse(std::string(100, '['), "x"), Error);
  CHECK_THROWS_AS(Tokenizer::load("/nonexistent"), Error);
}

TEST_CASE("a tokenizer.json that explodes fails instead", "[tokenizer]") {
  Json json = minimal();
  const Json doubling = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<Json>(64, doubling)}};
  CHECK_THROWS_AS(Tokenizer::parse(json.dump(), "x").encode("a"), Error);

  json = minimal();
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}};
  const Tokenizer bomb = Tokenizer::parse(json.dump(), "x");
  CHECK(bomb.encode("aaa") == Ids{1, 4, 4});
  CHECK_THROWS_AS(bomb.encode(std::string(40, 'a') + "!"), Error);
}

// ------------------------------------------------------------------------------------------------------------- shared

TEST_CASE("tokenizers: golden sets", "[tokenizer][shared]") {
  const fs::path root = shared() / "golden/tokenizers";
  if (!fs::exists(root)) return skip("no " + root.string());
  const auto corpus = read_lines(root / "corpus.jsonl.gz");
  for (const auto& folder : fs::directory_iterator(root)) {
    if (!folder.is_directory()) continue;
    const std::string name = folder.path().filename();
    const char* minilm =
        std::getenv("T2L_MINILM");  // the directory of the real all-MiniLM-L6-v2, which holds its tokenizer.json
    const fs::path from = name == "minilm" ? fs::path(minilm ? minilm : "") : folder.path();
    if (!fs::exists(from / "tokenizer.json")) {
      skip(name + " (set T2L_MINILM to its directory)");
      continue;
    }
    const Tokenizer t = Tokenizer::load(from.string());
    const auto expected = read_lines(folder.path() / "ids.jsonl.gz");
    REQUIRE(expected.size() == corpus.size());
    size_t wrong = 0, unassigned = 0;
    std::string first;
    for (size_t i = 0; i < corpus.size(); ++i) {
      const std::string c = complaint(t, corpus[i].at("text"), expected[i], true);
      if (c.empty()) continue;
      ++(corpus[i].at("kind") == "unassigned" ? unassigned : wrong);
      if (corpus[i].at("kind") != "unassigned" && first.empty()) first = c;
    }
    if (unassigned) WARN(fmt::format("{}: {} of the lines with unassigned code points differ", name, unassigned));
    CAPTURE(name, first);
    CHECK(wrong == 0);
    for (const Json& row : read_lines(folder.path() / "decode.jsonl.gz")) {
      const Ids ids = row.at("ids");
      CHECK(t.decode(ids, true) == row.at("decoded").get<std::string>());
      CHECK(t.decode(ids, false) == row.at("decoded_all").get<std::string>());
      CHECK(stream(t, ids, false) == row.at("decoded_all").get<std::string>());
    }
    for (const Json& row : read_lines(folder.path() / "pairs.jsonl.gz")) check_pairs(t, row);
  }
}

TEST_CASE("tokenizers: pairs are truncated as in the official training code", "[tokenizer][shared]") {
  const fs::path folder = shared() / "golden/tokenizers/llama_legacy";
  if (!fs::exists(folder)) return skip("no " + folder.string());
  const Tokenizer t = Tokenizer::load(folder.string());
  for (const Json& row : read_lines(folder / "truncation.jsonl.gz")) {
    Ids expected = row.at("ids");
    if (!row.at("is_intx_model").get<bool>()) expected = Ids(expected.begin() + 1, expected.end() - 1);
    const Truncation cut{row.at("inp_max_len").get<size_t>(), true};
    CHECK(t.encode_pair(row.at("prompt").get<std::string>(), row.at("response").get<std::string>(), false, cut).ids ==
          expected);
  }
}

TEST_CASE("tokenizers: ids handed in", "[tokenizer][expected]") {
  const char* path = std::getenv("T2L_EXPECTED_IDS");
  if (!path) return skip("tools/check_tokenizer.py sets T2L_EXPECTED_IDS");
  const auto rows = read_lines(path);
  REQUIRE(rows.size() > 1);
  const Tokenizer t = Tokenizer::load(rows[0].at("tokenizer").get<std::string>());
  size_t wrong = 0;
  std::string first;
  for (size_t i = 1; i < rows.size(); ++i) {
    const std::string c = complaint(t, rows[i].at("text"), rows[i], false);
    if (!c.empty() && wrong++ == 0) first = c;
  }
  CAPTURE(first);
  CHECK(wrong == 0);
}

TEST_CASE("tokenizers: speed", "[.speed]") {
  const char *folder = std::getenv("T2L_SPEED_TOKENIZER"), *path = std::getenv("T2L_SPEED_TEXT");
  if (!folder || !path) return skip("tools/check_tokenizer.py sets T2L_SPEED_TOKENIZER and T2L_SPEED_TEXT");
  const Tokenizer t = Tokenizer::load(folder);
  const std::string text = read_text_file(path);
  double best = 1e9;
  size_t tokens = 0;
  for (int run = 0; run < 7; ++run) {
    const auto start = std::chrono::steady_clock::now();
    tokens = t.encode(text).size();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  WARN(fmt::format("{} tokens, {:.1f} MiB/s", tokens, static_cast<double>(text.size()) / best / (1 << 20)));
  CHECK(tokens > 0);
}

}  // namespace t2l
