// Task descriptions as users give them: on the command line, a line each, or as JSON Lines.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace t2l {

struct NamedTask {
  std::string name;         // also the adapter's folder: [A-Za-z0-9._-]+
  std::string description;  // not blank
};

// `file` or, for "-", standard input: {"name", "description"} a line, or a description a line, named 0000, 0001, ..
// Blank lines are skipped. Error, naming file and line, for a name that is no plain folder name, one that occurs twice,
// a blank description, invalid UTF-8, or no task at all.
std::vector<NamedTask> read_tasks(const std::string& file);
std::vector<NamedTask> parse_tasks(std::string_view text, const std::string& file);

}  // namespace t2l
