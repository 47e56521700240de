#include "transformer/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "transformer/tokenizer_parts.h"
#include "transformer/tokenizer_unicode.h"

namespace t2l {
namespace {

struct AddedToken {
  int32_t id;
  bool left_strip, right_strip, single_word;
};

// One item of a post-processor's template: a special token or the place of a text.
struct TemplateItem {
  int text = -1;             // 0, 1: the ids of this text
  std::vector<int32_t> ids;  // text < 0: these
  int32_t type_id = 0;
};
using Template = std::vector<TemplateItem>;

Template read_template(const Object& json, const char* key, int texts) {
  const auto items = objects(json, key);
  if (items.size() > max_parts) fail("{}: '{}' has more than {} items", json.where(), key, max_parts);
  Template out;
  for (const Object& item : items) {
    const bool special = item.has("SpecialToken");
    const Object token = item.get_object(special ? "SpecialToken" : "Sequence");
    TemplateItem& to = out.emplace_back();
    to.type_id = static_cast<int32_t>(token.get_int("type_id", 0, max_token_id));
    const std::string id = token.get_string("id");
    if (special) {
      const Object tokens = json.get_object("special_tokens").get_object(id.c_str());
      const Json* ids = tokens.find("ids");
      if (!ids || !ids->is_array() || ids->size() > max_parts) fail("{}: 'ids' must be a short list", tokens.where());
      for (const Json& x : *ids) {
        if (!x.is_number_unsigned() || x.get<uint64_t>() > max_token_id)
          fail("{}: 'ids' must hold token ids", tokens.where());
        to.ids.push_back(x.get<int32_t>());
      }
    } else {
      to.text = id == "A" ? 0 : 1;
      if ((id != "A" && id != "B") || to.text >= texts) {
        fail("{}: '{}' has no sequence '{}'", json.where(), key, printable(id));
      }
    }
  }
  return out;
}

// ["[SEP]", 102]
int32_t read_token_pair(const Object& json, const char* key) {
  const Json* pair = json.find(key);
  if (!pair || !pair->is_array() || pair->size() != 2 || !(*pair)[1].is_number_unsigned() ||
      (*pair)[1] > max_token_id) {
    fail("{}: '{}' must be a token and its id", json.where(), key);
  }
  return (*pair)[1].get<int32_t>();
}

// What special tokens go around one text, and around two.
struct PostProcessor {
  Template single{{0, {}, 0}}, pair{{0, {}, 0}, {1, {}, 1}};
  bool is_template = false;

  void read(const Object& json) {
    const std::string type = json.get_string("type");
    if (type == "Sequence") {
      for (const Object& item : objects(json, "processors")) read(item);
      return;
    }
    if (type == "ByteLevel") return;  // changes offsets only
    if (is_template) fail("{}: a second template is not supported", json.where());
    is_template = true;
    if (type == "TemplateProcessing") {
      single = read_template(json, "single", 1);
      pair = read_template(json, "pair", 2);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      const std::vector<int32_t> cls{read_token_pair(json, "cls")}, sep{read_token_pair(json, "sep")};
      single = {{-1, cls, 0}, {0, {}, 0}, {-1, sep, 0}};
      pair = single;
      const bool bert = type == "BertProcessing";
      if (!bert) pair.push_back({-1, sep, 0});
      pair.insert(pair.end(), {{1, {}, bert}, {-1, sep, bert}});
    } else {
      fail("{}: '{}' is not supported", json.where(), printable(type));
    }
  }
};

Encoding fill(const Template& pieces, bool add_special_tokens, std::initializer_list<std::span<const int32_t>> texts) {
  Encoding out;
  for (const TemplateItem& item : pieces) {
    if (item.text < 0 && !add_special_tokens) continue;
    const std::span<const int32_t> ids = item.text < 0 ? std::span<const int32_t>(item.ids) : texts.begin()[item.text];
    out.ids.insert(out.ids.end(), ids.begin(), ids.end());
    out.type_ids.resize(out.ids.size(), item.type_id);
  }
  return out;
}

size_t special_tokens(const Template& pieces) {
  size_t n = 0;
  for (const TemplateItem& item : pieces) n += item.ids.size();
  return n;
}

// How many tokens the texts may have.
size_t room(const Template& pieces, bool add_special_tokens, Truncation truncation) {
  const size_t special = add_special_tokens ? special_tokens(pieces) : 0;
  if (truncation.max_length < special) {
    fail("tokenizer: {} tokens at most leave no room for the {} special ones", truncation.max_length, special);
  }
  return truncation.max_length - special;
}

std::span<const int32_t> cut(std::span<const int32_t> ids, size_t length, bool left) {
  length = std::min(length, ids.size());
  return left ? ids.last(length) : ids.first(length);
}

// The white space that ends at, or begins at, a place of a text. Remembers the last run, so that a file whose added
// tokens are white space costs linear time.
class SpaceRuns {
 public:
  explicit SpaceRuns(std::string_view text) : text_(text) {}

  size_t begin_of_run_before(size_t at) {
    move_to(at);
    while (begin_ > 0) {
      size_t previous = begin_ - 1;
      while ((static_cast<uint8_t>(text_[previous]) & 0xC0) == 0x80) --previous;
      size_t next = previous;
      if (!is_space(next_code_point(text_, next))) break;
      begin_ = previous;
    }
    return begin_;
  }
  size_t end_of_run_behind(size_t at) {
    move_to(at);
    grow(text_.size());
    return end_;
  }

 private:
  void grow(size_t limit) {
    for (size_t next = end_; end_ < limit && is_space(next_code_point(text_, next));) end_ = next;
  }
  void move_to(size_t at) {
    grow(at);
    if (at < begin_ || at > end_) begin_ = end_ = at;
  }

  std::string_view text_;
  size_t begin_ = 0, end_ = 0;  // white space throughout
};

}  // namespace

struct Tokenizer::Parts {
  Vocabulary vocabulary;                   // with the added tokens
  std::vector<const std::string*> tokens;  // by id; null: none
  std::vector<bool> special;               // by id
  std::vector<AddedToken> added;
  Trie raw, normalized;  // the texts of added tokens, with indices into `added`: found before and after the normalizer
  std::vector<Normalizer> normalizers;
  PreTokenizers pre_tokenizers;
  std::unique_ptr<TokenizerModel> model;
  PostProcessor post_processor;
  std::vector<Decoder> decoders;

  explicit Parts(const Object& json);
  void read_vocabulary(const Object& model);
  void read_added_tokens(const Object& json);
  void add(const std::string& token, int32_t id);
  void normalize(std::string& text) const;
  std::vector<int32_t> encode(std::string_view text) const;
  template <class OnText, class OnToken>
  void cut_out(std::string_view text, const Trie& found, OnText on_text, OnToken on_token) const;
};

Tokenizer::Parts::Parts(const Object& json) {
  const Object model_json = json.get_object("model");
  read_vocabulary(model_json);
  normalizers = make_normalizers(json);
  pre_tokenizers = make_pre_tokenizers(json);
  model = make_model(model_json, vocabulary, pre_tokenizers.byte_level);
  decoders = make_decoders(json);
  read_added_tokens(json);
  if (json.has("post_processor")) post_processor.read(json.get_object("post_processor"));
  for (const Template* pieces : {&post_processor.single, &post_processor.pair}) {
    for (const TemplateItem& item : *pieces) {
      for (const int32_t id : item.ids) {
        if (static_cast<size_t>(id) >= tokens.size() || !tokens[id]) {
          fail("{}: the post-processor adds token {}, which there is none of", json.where(), id);
        }
      }
    }
  }
}

void Tokenizer::Parts::add(const std::string& token, int32_t id) {
  const auto added_here = vocabulary.emplace(token, id).first;
  if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
  tokens[id] = &added_here->first;
}

void Tokenizer::Parts::read_vocabulary(const Object& json) {
  const Json* vocab = json.find("vocab");
  if (!vocab || !vocab->is_object()) fail("{}: 'vocab' must be an object", json.where());
  vocabulary.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    if (token.size() > max_token_bytes) fail("{}: 'vocab' has a token of {} bytes", json.where(), token.size());
    if (!id.is_number_unsigned() || id.get<uint64_t>() > max_token_id) {
      fail("{}: 'vocab': the id of '{}' must be an integer from 0 to {}", json.where(), printable(token), max_token_id);
    }
    const auto value = id.get<int32_t>();
    if (static_cast<size_t>(value) < tokens.size() && tokens[value]) {
      fail("{}: 'vocab': '{}' and '{}' have the same id", json.where(), printable(*tokens[value]), printable(token));
    }
    add(token, value);
  }
}

// The library numbers added tokens itself: a token in the vocabulary keeps its id, any other gets the next one. A file
// that says otherwise was not written by it, and whoever wrote it expects embeddings in other rows: refused.
void Tokenizer::Parts::read_added_tokens(const Object& json) {
  const auto vocabulary_size = static_cast<int32_t>(vocabulary.size());
  int32_t largest = -1;
  std::vector<bool> seen;  // by id
  for (const Object& item : json.has("added_tokens") ? objects(json, "added_tokens") : std::vector<Object>()) {
    const std::string content = item.get_string("content");
    if (content.empty() || content.size() > max_token_bytes)
      fail("{}: 'content' has {} bytes", item.where(), content.size());
    const auto known = vocabulary.find(content);
    const int32_t id = known != vocabulary.end()    ? known->second
                       : largest >= vocabulary_size ? largest + 1
                                                    : vocabulary_size;
    if (item.get_int("id", 0, max_token_id) != id) {
      fail("{}: '{}' has the id {} but would get {}; renumber the added tokens", item.where(), printable(content),
           item.get_int("id"), id);
    }
    largest = std::max(largest, id);
    if (known == vocabulary.end() && static_cast<size_t>(id) < tokens.size() && tokens[id]) {
      fail("{}: '{}' has the id of '{}'", item.where(), printable(content), printable(*tokens[id]));
    }
    add(content, id);
    seen.resize(tokens.size());
    special.resize(tokens.size());
    if (seen[id]) fail("{}: '{}' occurs twice", item.where(), printable(content));
    seen[id] = true;
    special[id] = item.get_bool_or("special", false);
    std::string text = content;
    const bool is_normalized = item.get_bool_or("normalized", !special[id]);
    if (is_normalized) normalize(text);
    if (text.size() > max_token_bytes) fail("{}: 'content' has {} bytes when normalized", item.where(), text.size());
    (is_normalized ? normalized : raw).insert(text, static_cast<int32_t>(added.size()));
    added.push_back({id, item.get_bool_or("lstrip", false), item.get_bool_or("rstrip", false),
                     item.get_bool_or("single_word", false)});
  }
  special.resize(tokens.size());
}

void Tokenizer::Parts::normalize(std::string& text) const {
  for (const Normalizer& normalizer : normalizers) {
    normalizer(text);
    if (text.size() > max_text_bytes) fail("tokenizer: normalized, the text is longer than {} bytes", max_text_bytes);
  }
}

// Calls on_token(id) for the added tokens in `text`, leftmost first and the longest there, and on_text(begin, end) for
// what lies between. White space a token strips is nobody's text; a token found inside it still counts, as in the
// library.
template <class OnText, class OnToken>
void Tokenizer::Parts::cut_out(std::string_view text, const Trie& found, OnText on_text, OnToken on_token) const {
  size_t done = 0;
  SpaceRuns spaces(text);
  const auto word_before = [&](size_t at) {
    while (at > 0 && (static_cast<uint8_t>(text[--at]) & 0xC0) == 0x80) continue;
    return is_word(next_code_point(text, at));
  };
  for (size_t at = 0; !found.empty() && at < text.size();) {
    const Trie::Hit hit = found.may_start(text[at]) ? found.longest(text.substr(at)) : Trie::Hit{};
    if (hit.length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at += hit.length;
    const AddedToken& token = added[hit.value];
    if (token.single_word) {
      size_t behind = end;
      if (begin > 0 && word_before(begin)) continue;
      if (end < text.size() && is_word(next_code_point(text, behind))) continue;
    }
    if (token.left_strip) begin = std::max(spaces.begin_of_run_before(begin), done);
    if (token.right_strip) end = spaces.end_of_run_behind(end);
    if (done < begin) on_text(done, begin);
    on_token(token.id);
    done = end;
  }
  if (done < text.size()) on_text(done, text.size());
}

std::vector<int32_t> Tokenizer::Parts::encode(std::string_view text) const {
  if (text.size() > max_text_bytes) fail("tokenizer: a text of {} bytes is too long", text.size());
  std::string storage;
  text = to_valid_utf8(text, storage);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 16);
  const auto on_token = [&](int32_t id) { ids.push_back(id); };
  cut_out(
      text, raw,
      [&](size_t begin, size_t end) {
        std::string copy;
        std::string_view segment = text.substr(begin, end - begin);
        if (!normalizers.empty()) {
          copy = segment;
          normalize(copy);
          segment = copy;
        }
        cut_out(
            segment, normalized,
            [&](size_t b, size_t e) {
              pre_tokenizers.run({segment.substr(b, e - b), begin == 0 && b == 0},
                                 [&](Piece piece) { model->encode(piece.text, ids); });
            },
            on_token);
      },
      on_token);
  return ids;
}

Tokenizer Tokenizer::load(const std::string& dir_or_file) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const std::string path =
      fs::is_directory(dir_or_file, ignored) ? (fs::path(dir_or_file) / "tokenizer.json").string() : dir_or_file;
  return parse(read_text_file(path), path);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
  const Json value = parse_json(json, name);
  return Tokenizer(std::make_shared<const Parts>(Object(value, name)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens, Truncation truncation) const {
  const Template& pieces = parts_->post_processor.single;
  const size_t most = room(pieces, add_special_tokens, truncation);
  const std::vector<int32_t> ids = parts_->encode(text);
  return fill(pieces, add_special_tokens, {cut(ids, most, truncation.left)}).ids;
}

Encoding Tokenizer::encode_pair(std::string_view a, std::string_view b, bool add_special_tokens,
                                Truncation truncation) const {
  const Template& pieces = parts_->post_processor.pair;
  const size_t most = room(pieces, add_special_tokens, truncation);
  const std::vector<int32_t> ids[2] = {parts_->encode(a), parts_->encode(b)};
  size_t length[2] = {ids[0].size(), ids[1].size()};
  if (length[0] + length[1] > most) {
    const int longer = length[0] > length[1] ? 0 : 1;
    size_t& shorter_length = length[1 - longer];
    shorter_length = std::min(shorter_length, most / 2);
    length[longer] = most - shorter_length;
  }
  return fill(pieces, add_special_tokens,
              {cut(ids[0], length[0], truncation.left), cut(ids[1], length[1], truncation.left)});
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  const Parts& p = *parts_;
  std::vector<std::string> tokens;
  for (const int32_t id : ids) {
    const std::string* text = token(id);
    if (text && !(skip_special_tokens && is_special(id))) tokens.push_back(*text);
  }
  for (const Decoder& decoder : p.decoders) decoder(tokens);
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && p.decoders.empty()) out += ' ';
    out += tokens[i];
  }
  return out;
}

std::optional<int32_t> Tokenizer::id(const std::string& token) const {
  const auto found = parts_->vocabulary.find(token);
  return found == parts_->vocabulary.end() ? std::nullopt : std::optional(found->second);
}

const std::string* Tokenizer::token(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < parts_->tokens.size() ? parts_->tokens[id] : nullptr;
}

bool Tokenizer::is_special(int32_t id) const { return token(id) && parts_->special[id]; }

size_t Tokenizer::vocab_size() const { return parts_->tokens.size(); }

// Decoding the tokens held back together with those before them tells what they add in context (a space before a word,
// nothing stripped). It is certain unless it ends in U+FFFD, perhaps half a character, or in a byte token: the run of
// such tokens is text only if all of it is valid.
std::string StreamDecoder::feed(int32_t id) {
  const std::string* token = tokenizer_.token(id);
  if (!token || (skip_special_tokens_ && tokenizer_.is_special(id))) return {};
  ids_.push_back(id);
  if (byte_fallback_byte(*token) >= 0) return {};
  const std::string text = tokenizer_.decode(ids_, skip_special_tokens_);
  if (text.ends_with("\xEF\xBF\xBD")) return {};
  const size_t before = tokenizer_.decode(std::span(ids_).first(emitted_), skip_special_tokens_).size();
  if (text.size() <= before) return {};
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<ptrdiff_t>(emitted_));
  emitted_ = ids_.size();
  return text.substr(before);
}

std::string StreamDecoder::finish() {
  const std::string text = tokenizer_.decode(ids_, skip_special_tokens_);
  const size_t before = tokenizer_.decode(std::span(ids_).first(emitted_), skip_special_tokens_).size();
  ids_.clear();
  emitted_ = 0;
  return text.substr(std::min(before, text.size()));
}

}  // namespace t2l
