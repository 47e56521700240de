// Chat templates: from a conversation to the text a model reads, by the Jinja template that comes with the model.
// Renders as transformers' apply_chat_template does, byte for byte; a template can neither touch anything but its
// variables nor run away (transformer/jinja_value.h has the limits).
#pragma once
#include <memory>
#include <string>

#include "tensor/json.h"

namespace t2l {

namespace jinja {
struct Syntax;
}

class ChatTemplate {
 public:
  // From a model's folder: `chat_template` of tokenizer_config.json (a string, or the one named "default" of a list),
  // else chat_template.jinja or chat_template.json beside it. Its special tokens (bos_token, eos_token ...) are
  // variables. Error that says where it was looked for, if there is none.
  static ChatTemplate load(const std::string& model_dir);

  // `where` is named in errors; `variables` is an object whose values the template sees by their keys.
  static ChatTemplate parse(std::string source, const std::string& where, const OrderedJson& variables = {});

  // The special tokens of a model's folder by their names (bos_token, eos_token ...), as templates see them: from
  // tokenizer_config.json, else from special_tokens_map.json.
  static OrderedJson special_tokens(const std::string& model_dir);

  // What the official Text-to-LoRA code does to its own template files before it compiles them: drops runs of four
  // spaces and all line breaks.
  static std::string strip(std::string source);

  // messages: an array of objects {"role", "content", ...}, whose keys keep their order. `variables` are further ones
  // (tools, documents, date_string ...), before those of parse().
  // Error, as "where:line: what", where the template fails, and so wherever it calls raise_exception(). Thread-safe.
  std::string render(const OrderedJson& messages, bool add_generation_prompt, const OrderedJson& variables = {}) const;

 private:
  std::shared_ptr<const jinja::Syntax> syntax_;
  std::string where_;
  OrderedJson variables_;
};

}  // namespace t2l
