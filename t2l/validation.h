// What a run is judged by while it learns: rows that it does not train on, descriptions that it has not read, tasks
// that it does not know. The official trainer's val/seen and val/unseen, and more.
#pragma once
#include "t2l/dataset.h"
#include "t2l/embedding_table.h"

namespace t2l {

struct ValidationSplit {
  std::string name;
  std::vector<const Task*> tasks;
  std::vector<Example> Task::*rows = nullptr;   // null for reconstruction
  std::shared_ptr<const EmbeddingTable> table;  // null: nothing is generated from descriptions
  std::vector<int32_t> entry;                   // [tasks] -> task of the table
  Sampler sampler;                              // an epoch of it is all there is to look at

  const Example& example(const Sample& s) const { return (tasks[size_t(s.task)]->*rows)[size_t(s.row)]; }
  Tensor embeddings(Batch batch) const;  // f32 [samples, dim] on the CPU
};

// Embeddings of the descriptions of each of some tasks, where there is more to embed than the table that training has.
using EmbedTexts = std::function<std::shared_ptr<const EmbeddingTable>(
    const std::vector<std::string>& tasks, const std::vector<std::vector<std::string>>& texts)>;

// As the config asks for, of what the data has, the one that decides first:
//   unseen_tasks             tasks that are in eval_ds_info only, with their own descriptions
//   unseen_descriptions      training tasks, held-out rows, with the descriptions of eval_ds_info
//   seen                     training tasks, held-out rows, with descriptions that training reads
//   additional_descriptions  unseen tasks or, where there are none, seen ones, with additional_eval_descs
//   train                    an epoch of the training data itself
// table: of the training tasks; null where no hypernetwork is trained. Descriptions go round, row i has description i
// modulo their number. For reconstruction, rows are the descriptions themselves. The set must outlive the splits.
std::vector<ValidationSplit> validation_splits(const TrainConfig& config, const TaskSet& set,
                                               const std::shared_ptr<const EmbeddingTable>& table,
                                               const EmbedTexts& embed);

int64_t batches_of(const std::vector<ValidationSplit>& splits);

// What describes a task's rows to the hypernetwork: its descriptions, or what each row has of its own.
std::vector<std::string> texts_of(const TrainConfig& config, const Task& task, std::vector<Example> Task::*rows);

}  // namespace t2l
