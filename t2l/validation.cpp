#include "t2l/validation.h"

#include <numeric>

namespace t2l {
namespace {

using Rows = std::vector<Example> Task::*;

struct Builder {
  const TrainConfig& config;
  const TaskSet& set;
  const std::shared_ptr<const EmbeddingTable>& table;
  const EmbedTexts& embed;
  std::vector<ValidationSplit> splits = {};

  bool reconstructs() const { return config.verb == Verb::Reconstruct; }
  bool per_sample() const { return uses_hypernet(config.verb) && !config.use_per_task_emb; }

  // of: the descriptions of a task; null: those that training reads, embedded already.
  void add(const std::string& name, const std::vector<Task>& from, Rows rows,
           const std::function<std::vector<std::string>(const Task&)>& of, bool training_sampler = false) {
    std::vector<const Task*> tasks;
    std::vector<int32_t> entry;
    std::vector<std::string> names;
    std::vector<std::vector<std::string>> texts;
    std::vector<TaskSize> sizes;
    for (size_t i = 0; i < from.size(); ++i) {
      const Task& t = from[i];
      if (rows && (t.*rows).empty()) continue;
      std::vector<std::string> descriptions = of && table ? of(t) : std::vector<std::string>();
      if (of && table && descriptions.empty()) continue;
      tasks.push_back(&t);
      names.push_back(t.name);
      entry.push_back(of ? int32_t(entry.size()) : int32_t(i));
      sizes.push_back({t.name, rows ? int64_t((t.*rows).size()) : 0, int64_t(descriptions.size())});
      texts.push_back(std::move(descriptions));
    }
    if (tasks.empty()) return;
    std::shared_ptr<const EmbeddingTable> descriptions = table;
    if (of && table) descriptions = embed(names, texts);
    if (table && !descriptions) return;
    if (descriptions)
      for (size_t i = 0; i < sizes.size(); ++i) sizes[i].descriptions = descriptions->size(entry[i]);
    Sampler sampler(training_sampler ? sampler_options(config) : validation_options(config), std::move(sizes));
    splits.push_back({name, std::move(tasks), rows, descriptions, std::move(entry), std::move(sampler)});
  }
};

}  // namespace

Tensor ValidationSplit::embeddings(Batch batch) const {
  for (Sample& s : batch) s.task = entry[size_t(s.task)];
  return table->gather(batch);
}

int64_t batches_of(const std::vector<ValidationSplit>& splits) {
  int64_t n = 0;
  for (const ValidationSplit& s : splits) n += s.sampler.batches_per_epoch();
  return n;
}

std::vector<std::string> texts_of(const TrainConfig& config, const Task& task, Rows rows) {
  if (config.use_per_task_emb) return task.descriptions;
  std::vector<std::string> texts;
  for (const Example& e : task.*rows) texts.push_back(e.text);
  return texts;
}

std::vector<ValidationSplit> validation_splits(const TrainConfig& config, const TaskSet& set,
                                               const std::shared_ptr<const EmbeddingTable>& table,
                                               const EmbedTexts& embed) {
  if (config.skip_eval) return {};
  Builder b{config, set, table, embed};
  const Rows rows = b.reconstructs() ? nullptr : &Task::valid;
  if (!config.use_one_hot_task_emb) {
    b.add("unseen_tasks", set.unseen, rows, [&](const Task& t) { return texts_of(config, t, rows); });
    if (table && !b.per_sample())
      b.add("unseen_descriptions", set.tasks, rows, [](const Task& t) { return t.unseen_descriptions; });
  }
  if (!b.reconstructs()) {
    if (b.per_sample())
      b.add("seen", set.tasks, rows, [&](const Task& t) { return texts_of(config, t, rows); });
    else
      b.add("seen", set.tasks, rows, nullptr);
  }
  if (table && !b.per_sample() && !config.use_one_hot_task_emb && !config.additional_eval_descs.empty())
    b.add("additional_descriptions", set.unseen.empty() ? set.tasks : set.unseen, rows,
          [&](const Task&) { return config.additional_eval_descs; });
  if (config.also_val_on_train) b.add("train", set.tasks, rows ? &Task::train : nullptr, nullptr, true);
  return b.splits;
}

}  // namespace t2l
