// Any bytes as a task: metadata.yaml up to a line of "---", then a row a line; or, beginning with '{', a
// Super-NaturalInstructions file. Each row gives a conversation or an Error of one line.
#include <cstdlib>
#include <string>

#include "t2l/task_format.h"
#include "t2l/train_config.h"

namespace {

using namespace t2l;

void check(const Conversation& c) {
  if (c.assistant.find(c.response) == std::string::npos) std::abort();
}

template <class F>
void attempt(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    if (std::string_view(e.what()).find('\n') != std::string_view::npos) std::abort();
  }
}

void run(std::string_view text) {
  if (text.starts_with('{')) {
    const Json task = parse_json(text, "fuzz");
    const TaskFormat format = TaskFormat::of_instructions(task, "fuzz");
    for (size_t i = 0; i < task.at("Instances").size(); ++i)
      attempt([&] { check(format.format(TaskFormat::instance(task, i, "fuzz"))); });
    return;
  }
  // The first line names the family.
  const size_t name_end = std::min(text.find('\n'), text.size());
  const std::string name(text.substr(0, name_end));
  text.remove_prefix(name_end);
  const size_t end = std::min(text.find("\n---\n"), text.size());
  const Json metadata = parse_yaml(text.substr(0, end), "fuzz");
  attempt([&] {
    const TrainConfig config = TrainConfig::parse(Verb::Sft, text.substr(0, end), "fuzz");
    if (!TrainConfig::parse(Verb::Sft, config.yaml(), "fuzz").changed_key(config).empty()) std::abort();
  });
  const TaskFormat format = TaskFormat::parse(metadata, name, "fuzz");
  text.remove_prefix(std::min(end + 5, text.size()));
  for (const int64_t rows : {int64_t(0), int64_t(1), int64_t(1) << 40})
    if (format.rows.begin.row(rows) > rows || format.rows.end.row(rows) < 0) std::abort();
  while (!text.empty()) {
    const size_t line = std::min(text.find('\n'), text.size());
    attempt([&] { check(format.format(parse_json(text.substr(0, line), "fuzz"))); });
    text.remove_prefix(std::min(line + 1, text.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attempt([&] { run({reinterpret_cast<const char*>(data), size}); });
  return 0;
}
