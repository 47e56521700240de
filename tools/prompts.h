// Prompts as users give them: one on the command line, or many as JSON Lines.
#pragma once
#include <string>
#include <vector>

#include "tensor/json.h"

namespace t2l {

struct Prompt {
  enum class Kind : uint8_t { Text, Ids, Chat } kind = Kind::Text;
  std::string text;
  std::vector<int32_t> ids;
  OrderedJson messages;
  bool add_generation_prompt = true;

  // Adapters of its own that add up, each with its strength; not given: those of the command line.
  bool has_adapters = false;
  std::vector<std::pair<std::string, float>> adapters;

  std::string where, error;  // file and line; what is wrong with it, if anything is
};

// A line each: {"text"}, {"ids"} or {"messages", "add_generation_prompt"}, each optionally with "adapter" and
// "strength" (one, or a list of them). Blank lines are skipped. A line that is none of these becomes a prompt with an
// error. Error if there is no line at all.
std::vector<Prompt> parse_prompts(std::string_view text, const std::string& file);

std::vector<int32_t> parse_ids(const std::string& list);  // 1,2,3

}  // namespace t2l
