#include "transformer/tokenizer_parts.h"

#include <algorithm>

#include "transformer/tokenizer_regex.h"
#include "transformer/tokenizer_unicode.h"
#include "transformer/tokenizer_words.h"

namespace t2l {

std::vector<Object> objects(const Object& json, const char* key) {
  const Json* list = json.find(key);
  if (!list || !list->is_array()) fail("{}: '{}' must be a list", json.where(), key);
  std::vector<Object> out;
  for (const Json& item : *list) out.emplace_back(item, fmt::format("{}: {}[{}]", json.where(), key, out.size()));
  return out;
}

namespace {

// Appends the parts that `json` stands for, Sequences opened; their lists are called `list`.
void flatten(const Object& json, const char* list, std::vector<Object>& out) {
  if (json.get_string("type") == "Sequence") {
    for (const Object& item : objects(json, list)) flatten(item, list, out);
  } else {
    if (out.size() == max_parts) fail("{}: one part too many, at most {} are supported", json.where(), max_parts);
    out.push_back(json);
  }
}

template <class Part, class Make>
std::vector<Part> make_all(const Object& json, const char* key, const char* list, Make make) {
  std::vector<Object> parts;
  if (json.has(key)) flatten(json.get_object(key), list, parts);
  std::vector<Part> out;
  for (const Object& part : parts) out.push_back(make(part));
  return out;
}

[[noreturn]] void unsupported(const Object& json, const std::string& what) {
  fail("{}: '{}' is not supported", json.where(), printable(what));
}

std::string one_character(const Object& json, const char* key) {
  const std::string s = json.get_string(key);
  if (code_points(s) != 1) fail("{}: '{}' must be one character, not '{}'", json.where(), key, printable(s));
  return s;
}

// --------------------------------------------------------------------------------------------- patterns and splitting

// Finds the first match at or behind `from`.
using Pattern = std::function<bool(std::string_view text, size_t from, Match& match)>;

// What f says of each ASCII character.
template <class F>
auto ascii_table(F&& f) {
  std::array<decltype(f(U'a')), 128> out{};
  for (char32_t c = 0; c < out.size(); ++c) out[c] = f(c);
  return out;
}

Pattern match_code_point(bool (*property)(char32_t)) {
  return [property, ascii = ascii_table(property)](std::string_view text, size_t from, Match& match) {
    while (from < text.size()) {
      match.begin = from;
      const char32_t c = next_code_point(text, from);
      if (c < ascii.size() ? ascii[c] : property(c)) return match.end = from, true;
    }
    return false;
  };
}

Pattern match_string(const std::string& needle) {
  return [needle](std::string_view text, size_t from, Match& match) {
    match.begin = needle.size() == 1 ? text.find(needle[0], from) : text.find(needle, from);
    match.end = match.begin + needle.size();
    return match.begin != std::string_view::npos;
  };
}

Pattern match_regex(const std::string& pattern) {
  return [regex = Regex(pattern)](std::string_view text, size_t from, Match& match) {
    return regex.find(text, from, match);
  };
}

// {"String": "..."} or {"Regex": "..."}
Pattern make_pattern(const Object& json) {
  if (!json.has("Regex")) {
    const std::string literal = json.get_string("String");
    if (literal.empty()) fail("{}: 'String' must not be empty", json.where());
    return match_string(literal);
  }
  try {
    return match_regex(json.get_string("Regex"));
  } catch (const Error& e) {
    fail("{}: {}", json.where(), e.what());
  }
}

// Calls f(begin, end, matched) for the stretches of `text`, in order: matches and what lies between them. An empty
// match right behind another one is none: the search goes on a character further (as Oniguruma's iterator does).
template <class F>
void for_stretches(std::string_view text, const Pattern& pattern, F&& f) {
  size_t done = 0;
  bool matched = false;
  Match match;
  for (size_t from = 0; from <= text.size() && pattern(text, from, match);) {
    if (match.begin == match.end && matched && match.end == done) {
      if (from == text.size()) break;
      next_code_point(text, from);
      continue;
    }
    if (match.begin > done) f(done, match.begin, false);
    f(match.begin, match.end, true);
    done = from = match.end;
    matched = true;
  }
  if (done < text.size()) f(done, text.size(), false);
}

enum class Behavior { Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous };

// Hands on the stretches of a piece, matches treated as `behavior` says ("a--b" at each "-"):
// Removed a b; Isolated a - - b; MergedWithPrevious a- - b; MergedWithNext a - -b; Contiguous a -- b.
void split(Piece piece, const Pattern& pattern, Behavior behavior, bool invert, Sink sink) {
  const auto emit = [&](size_t begin, size_t end) {
    sink({piece.text.substr(begin, end - begin), piece.first && begin == 0});
  };
  if (behavior == Behavior::Removed || behavior == Behavior::Isolated) {
    return for_stretches(piece.text, pattern, [&](size_t begin, size_t end, bool matched) {
      if (behavior == Behavior::Isolated || matched == invert) emit(begin, end);
    });
  }
  size_t held = 0, held_end = 0;  // a stretch that the next one may join
  bool previous = false;          // whether the last one matched
  for_stretches(piece.text, pattern, [&](size_t begin, size_t end, bool matched) {
    matched = matched != invert;
    const bool join = behavior == Behavior::Contiguous           ? matched == previous
                      : behavior == Behavior::MergedWithPrevious ? matched && !previous
                                                                 : !matched && previous;
    if (!join) {
      emit(held, held_end);
      held = begin;
    }
    held_end = end;
    previous = matched;
  });
  emit(held, held_end);
}

Behavior behavior_of(const Object& json) {
  const std::string name = json.get_string("behavior");
  static constexpr const char* names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) unsupported(json, name);
  return static_cast<Behavior>(found - std::begin(names));
}

void replace_all(std::string& text, const Pattern& pattern, const std::string& content) {
  std::string out;
  for_stretches(text, pattern, [&](size_t begin, size_t end, bool matched) {
    const std::string_view part =
        matched ? std::string_view(content) : std::string_view(text).substr(begin, end - begin);
    if (out.size() + part.size() > max_text_bytes)
      fail("tokenizer: Replace makes a text longer than {} bytes", max_text_bytes);
    out += part;
  });
  text = std::move(out);
}

// -------------------------------------------------------------------------------------------------------- normalizers

void strip(std::string& text, bool left, bool right) {
  size_t begin = 0, end = 0;  // of what stays
  bool seen = !left;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (is_space(next_code_point(text, at))) continue;
    if (!seen) begin = here;
    seen = true;
    end = at;
  }
  if (!right) end = text.size();
  text = seen && begin < end ? text.substr(begin, end - begin) : std::string();
}

Normalizer keep_if_not(bool (*property)(char32_t)) {
  return [property](std::string& text) {
    std::string out;
    for_code_points(text, [&](char32_t c) {
      if (!property(c)) append_code_point(out, c);
    });
    text = std::move(out);
  };
}

// Control characters out, white space to ' ', spaces around Chinese characters, accents off, lower case.
Normalizer bert_normalizer(const Object& json) {
  const bool clean = json.get_bool_or("clean_text", true), chinese = json.get_bool_or("handle_chinese_chars", true);
  const bool lower = json.get_bool_or("lowercase", true), strip_accents = json.get_bool_or("strip_accents", lower);
  constexpr char elsewhere = -1;
  const auto of_ascii = ascii_table([=](char32_t c) {
    const bool space = is_space(c), upper = c >= 'A' && c <= 'Z';
    if (clean && is_bert_control(c) && c != '\t' && c != '\n' && c != '\r') return elsewhere;
    return static_cast<char>(clean && space ? ' ' : lower && upper ? c + 32 : c);
  });
  // Only marks that stand side by side affect each other: a stretch of what is not ASCII, or to be dropped, is
  // normalized by itself.
  const auto beyond_ascii = [=, drop_accents = keep_if_not(is_bert_accent)](std::string_view text) {
    std::string out;
    for_code_points(text, [&](char32_t c) {
      if (clean && (c == 0xFFFD || is_bert_control(c))) return;
      if (clean && is_space(c)) c = ' ';
      if (chinese && is_chinese(c)) {
        out += ' ';
        append_code_point(out, c);
        c = ' ';
      }
      append_code_point(out, c);
    });
    if (strip_accents) {
      normalize(out, NormalForm::D);
      drop_accents(out);
    }
    if (lower) lowercase(out);
    return out;
  };
  return [=](std::string& text) {
    std::string out;
    out.reserve(text.size());
    const auto ascii = [&](size_t at) { return text[at] < 0 ? elsewhere : of_ascii[static_cast<uint8_t>(text[at])]; };
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      while (at < text.size() && ascii(at) == elsewhere) ++at;
      if (begin < at) out += beyond_ascii(std::string_view(text).substr(begin, at - begin));
      for (char c; at < text.size() && (c = ascii(at)) != elsewhere; ++at) out += c;
    }
    text = std::move(out);
  };
}

Normalizer make_normalizer(const Object& json) {
  const std::string type = json.get_string("type");
  const auto unicode = [](NormalForm form) { return [form](std::string& text) { normalize(text, form); }; };
  if (type == "BertNormalizer") return bert_normalizer(json);
  if (type == "NFC") return unicode(NormalForm::C);
  if (type == "NFD") return unicode(NormalForm::D);
  if (type == "NFKC") return unicode(NormalForm::KC);
  if (type == "NFKD") return unicode(NormalForm::KD);
  if (type == "Lowercase") return lowercase;
  if (type == "StripAccents") return keep_if_not(is_mark);
  if (type == "Strip") {
    return [left = json.get_bool_or("strip_left", true),
            right = json.get_bool_or("strip_right", true)](std::string& text) { strip(text, left, right); };
  }
  if (type == "Prepend") {
    return [prefix = json.get_string("prepend")](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    };
  }
  if (type == "Replace") {
    return [pattern = make_pattern(json.get_object("pattern")),
            content = json.get_string("content")](std::string& text) { replace_all(text, pattern, content); };
  }
  unsupported(json, type);
}

// ----------------------------------------------------------------------------------------------------- pre-tokenizers

PreTokenizer splitter(Pattern pattern, Behavior behavior, bool invert = false) {
  return [=](Piece piece, Sink sink) { split(piece, pattern, behavior, invert, sink); };
}

PreTokenizer word_splitter(const WordScanner& words) {
  return [words](Piece piece, Sink sink) {
    for (size_t at = 0, end; at < piece.text.size(); at = end) {
      end = words.end(piece.text, at);
      sink({piece.text.substr(at, end - at), piece.first && at == 0});
    }
  };
}

PreTokenizer split_part(const Object& json) {
  const Behavior behavior = behavior_of(json);
  const Object pattern = json.get_object("pattern");
  if (behavior == Behavior::Isolated && pattern.has("Regex")) {
    if (const auto words = WordScanner::known(pattern.get_string("Regex"))) return word_splitter(*words);
  }
  return splitter(make_pattern(pattern), behavior, json.get_bool_or("invert", false));
}

// White space out, punctuation by itself.
void bert_words(Piece piece, Sink sink) {
  enum Kind : uint8_t { Word, Space, Punctuation };
  const auto kind = [](char32_t c) { return is_space(c) ? Space : is_bert_punctuation(c) ? Punctuation : Word; };
  static const auto ascii = ascii_table(kind);
  size_t begin = 0;  // of the word that `at` is in
  const auto emit = [&](size_t end) {
    if (begin < end) sink({piece.text.substr(begin, end - begin), piece.first && begin == 0});
    begin = end;
  };
  for (size_t at = 0; at < piece.text.size();) {
    const size_t here = at;
    const char32_t c = next_code_point(piece.text, at);
    const Kind k = c < ascii.size() ? ascii[c] : kind(c);
    if (k == Word) continue;
    emit(here);
    if (k == Punctuation) emit(at);
    begin = at;
  }
  emit(piece.text.size());
}

// Puts `prefix` before a piece unless it begins with it.
PreTokenizer prefixer(const std::string& prefix) {
  return [prefix](Piece piece, Sink sink) {
    if (piece.text.substr(0, prefix.size()) == prefix) return sink(piece);
    sink({prefix + std::string(piece.text), piece.first});
  };
}

void add_metaspace(const Object& json, std::vector<PreTokenizer>& stages) {
  const std::string mark = one_character(json, "replacement");
  // Files before prepend_scheme say add_prefix_space.
  const std::string scheme =
      json.get_string_or("prepend_scheme", json.get_bool_or("add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") unsupported(json, scheme);
  stages.push_back([=, space = match_string(" "), prefix = prefixer(mark)](Piece piece, Sink sink) {
    std::string text(piece.text);
    replace_all(text, space, mark);
    const Piece replaced{text, piece.first};
    scheme == "always" || (scheme == "first" && piece.first) ? prefix(replaced, sink) : sink(replaced);
  });
  if (json.get_bool_or("split", true)) stages.push_back(splitter(match_string(mark), Behavior::MergedWithNext));
}

void add_pre_tokenizer(const Object& json, PreTokenizers& out) {
  const std::string type = json.get_string("type");
  if (out.byte_level) fail("{}: follows ByteLevel, which must be the last", json.where());
  if (type == "BertPreTokenizer") {
    out.stages.push_back(bert_words);
  } else if (type == "ByteLevel") {
    if (json.get_bool_or("add_prefix_space", true)) out.stages.push_back(prefixer(" "));
    if (json.get_bool_or("use_regex", true)) out.stages.push_back(word_splitter(*WordScanner::known(gpt2_words)));
    out.byte_level = true;
  } else if (type == "Split") {
    out.stages.push_back(split_part(json));
  } else if (type == "Digits") {
    out.stages.push_back(splitter(match_code_point(is_numeric), json.get_bool_or("individual_digits", false)
                                                                    ? Behavior::Isolated
                                                                    : Behavior::Contiguous));
  } else if (type == "Metaspace") {
    add_metaspace(json, out.stages);
  } else {
    unsupported(json, type);
  }
}

// ----------------------------------------------------------------------------------------------------------- decoders

// Bytes to text, each maximal invalid part one U+FFFD.
std::string lossy(std::string bytes) {
  std::string storage;
  return to_valid_utf8(bytes, storage).data() == bytes.data() ? bytes : storage;
}

void decode_byte_level(std::vector<std::string>& tokens) {
  std::string text, bytes;
  for (const std::string& token : tokens) text += byte_level_bytes(token, bytes) ? bytes : token;
  tokens = {lossy(std::move(text))};
}

// A run of byte tokens becomes the text they spell or, if that is not UTF-8, a U+FFFD for each.
void decode_byte_fallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  for (size_t i = 0; i < tokens.size();) {
    std::string bytes, storage;
    size_t end = i;
    for (int b; end < tokens.size() && (b = byte_fallback_byte(tokens[end])) >= 0; ++end) bytes += static_cast<char>(b);
    if (end == i) {
      out.push_back(std::move(tokens[i++]));
    } else if (to_valid_utf8(bytes, storage).data() == bytes.data()) {
      out.push_back(std::move(bytes));
    } else {
      out.insert(out.end(), end - i, "\xEF\xBF\xBD");
    }
    i = std::max(i, end);
  }
  tokens = std::move(out);
}

void decode_fuse(std::vector<std::string>& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  tokens = {std::move(text)};
}

Decoder strip_decoder(const Object& json) {
  const std::string mark = one_character(json, "content");
  const auto start = json.get_int("start", 0, max_text_bytes), stop = json.get_int("stop", 0, max_text_bytes);
  return [=](std::vector<std::string>& tokens) {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (int64_t i = 0; i < start && rest.substr(0, mark.size()) == mark; ++i) rest.remove_prefix(mark.size());
      for (int64_t i = 0; i < stop && rest.size() >= mark.size() && rest.substr(rest.size() - mark.size()) == mark;
           ++i) {
        rest.remove_suffix(mark.size());
      }
      token = std::string(rest);
    }
  };
}

Decoder metaspace_decoder(const Object& json) {
  const std::string mark = one_character(json, "replacement");
  const bool prepended =
      json.get_string_or("prepend_scheme", json.get_bool_or("add_prefix_space", true) ? "always" : "never") != "never";
  return [=, pattern = match_string(mark)](std::vector<std::string>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], pattern, i == 0 && prepended ? "" : " ");
  };
}

Decoder word_piece_decoder(const Object& json) {
  using Replacement = std::pair<Pattern, std::string>;
  std::vector<Replacement> cleanup;
  if (json.get_bool_or("cleanup", true)) {
    for (const auto& [from, to] : {std::pair(" .", "."),
                                   {" ?", "?"},
                                   {" !", "!"},
                                   {" ,", ","},
                                   {" ' ", "'"},
                                   {" n't", "n't"},
                                   {" 'm", "'m"},
                                   {" do not", " don't"},
                                   {" 's", "'s"},
                                   {" 've", "'ve"},
                                   {" 're", "'re"}}) {
      cleanup.emplace_back(match_string(from), to);
    }
  }
  return [cleanup, prefix = json.get_string_or("prefix", "##")](std::vector<std::string>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string& token = tokens[i];
      if (i > 0) token = token.rfind(prefix, 0) == 0 ? token.substr(prefix.size()) : " " + token;
      for (const auto& [pattern, content] : cleanup) replace_all(token, pattern, content);
    }
  };
}

Decoder make_decoder(const Object& json) {
  const std::string type = json.get_string("type");
  if (type == "ByteLevel") return decode_byte_level;
  if (type == "ByteFallback") return decode_byte_fallback;
  if (type == "Fuse") return decode_fuse;
  if (type == "Strip") return strip_decoder(json);
  if (type == "Metaspace") return metaspace_decoder(json);
  if (type == "WordPiece") return word_piece_decoder(json);
  if (type == "Replace") {
    return [pattern = make_pattern(json.get_object("pattern")),
            content = json.get_string("content")](std::vector<std::string>& tokens) {
      for (std::string& token : tokens) replace_all(token, pattern, content);
    };
  }
  unsupported(json, type);
}

}  // namespace

std::vector<Normalizer> make_normalizers(const Object& json) {
  return make_all<Normalizer>(json, "normalizer", "normalizers", make_normalizer);
}

PreTokenizers make_pre_tokenizers(const Object& json) {
  PreTokenizers out;
  make_all<bool>(json, "pre_tokenizer", "pretokenizers", [&](const Object& part) {
    add_pre_tokenizer(part, out);
    return true;
  });
  return out;
}

std::vector<Decoder> make_decoders(const Object& json) {
  return make_all<Decoder>(json, "decoder", "decoders", make_decoder);
}

// ------------------------------------------------------------------------------------------------ bytes inside tokens

const std::array<char32_t, 256> byte_level_alphabet = [] {
  std::array<char32_t, 256> out{};
  char32_t next = 256;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    out[b] = printable ? b : next++;
  }
  return out;
}();

bool byte_level_bytes(std::string_view token, std::string& bytes) {
  static const std::vector<int16_t> byte_of = [] {
    std::vector<int16_t> out(512, -1);
    for (size_t b = 0; b < 256; ++b) out[byte_level_alphabet[b]] = static_cast<int16_t>(b);
    return out;
  }();
  bytes.clear();
  for (size_t at = 0; at < token.size();) {
    const char32_t c = next_code_point(token, at);
    if (c >= byte_of.size() || byte_of[c] < 0) return false;
    bytes += static_cast<char>(byte_of[c]);
  }
  return true;
}

int byte_fallback_byte(std::string_view token) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
  };
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace t2l
