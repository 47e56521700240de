#include "tools/tasks.h"

#include <set>

#include "tensor/json.h"
#include "tools/cli.h"

namespace t2l {
namespace {

constexpr size_t kMostBytes = size_t(256) << 20;

bool blank(std::string_view s) { return s.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

void check_name(const std::string& name, const std::string& where) {
  constexpr const char* kAllowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  if (name.empty() || name.size() > 200 || name == "." || name == ".." ||
      name.find_first_not_of(kAllowed) != std::string::npos)
    fail("{}: the name '{}' cannot be a folder's; use letters, digits, '.', '_' and '-'", where, printable(name));
}

}  // namespace

std::vector<NamedTask> parse_tasks(std::string_view text, const std::string& file) {
  std::vector<NamedTask> tasks;
  std::set<std::string> names;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
  bool json = false;
  for_lines(text, [&](std::string_view line, int64_t number) {
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const std::string where = fmt::format("{}:{}", file, number);
    if (blank(line)) return;
    if (!valid_utf8(line)) fail("{}: is not UTF-8; save the file as UTF-8", where);
    if (tasks.empty()) json = line[line.find_first_not_of(" \t")] == '{';
    NamedTask task;
    if (json) {
      const Json value = parse_json(line, where);
      const Object o(value, where);
      task = {o.get_string("name"), o.get_string("description")};
      if (blank(task.description)) fail("{}: the description of '{}' is blank", where, printable(task.name));
    } else {
      task = {fmt::format("{:04}", tasks.size()), std::string(line)};
    }
    check_name(task.name, where);
    if (!names.insert(task.name).second) fail("{}: the name '{}' occurs twice; names must differ", where, task.name);
    tasks.push_back(std::move(task));
  });
  if (tasks.empty()) fail("{}: holds no task description", file);
  return tasks;
}

std::vector<NamedTask> read_tasks(const std::string& file) {
  return parse_tasks(read_input(file, kMostBytes), file == "-" ? "standard input" : file);
}

}  // namespace t2l
