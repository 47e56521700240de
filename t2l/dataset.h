// Tasks as a trainer wants them: descriptions, and samples as token ids.
//
//   DIR/NAME/metadata.yaml + train.jsonl, valid.jsonl, test.jsonl   or   DIR/NAME.json (Super-NaturalInstructions)
//   row -> conversation (task_format.h) -> prompt and response (chat template) -> ids, cut to inp_max_len on the left
//
// as the official code does it (data.py, preprocessing.py, utils.py: get_inp_tokenize_fn), id for id.
#pragma once
#include <functional>

#include "t2l/task_format.h"
#include "t2l/train_config.h"
#include "transformer/chat_template.h"
#include "transformer/tokenizer.h"

namespace t2l {

struct Example {
  std::vector<int32_t> ids;  // [tokens]: prompt and response
  int32_t prompt = 0;        // tokens of the prompt, which have no loss
  std::string text;          // what its own description is made of, where samples have their own; else empty

  // ids, and -100 on the prompt: what position i is to be predicted as, by position i - 1.
  std::vector<int32_t> labels() const;
};

// Turns conversations into samples. All functions may be called from several threads.
class SampleEncoder {
 public:
  // Of the base model in folder `dir`, which the user calls `name`. The chat template is
  // chat_templates/NAME/chat_template.jinja below the working directory, stripped as the official code does it; where
  // there is none, the model's own; a model without one reads plain text between bos and eos.
  static SampleEncoder load(const std::string& dir, const std::string& name, bool completion, int64_t max_length);
  // tokens: bos_token and eos_token, as ChatTemplate::special_tokens() gives them.
  SampleEncoder(Tokenizer tokenizer, std::optional<ChatTemplate> chat, bool official_template,
                const OrderedJson& tokens, bool completion, int64_t max_length);

  bool is_chat() const { return chat_.has_value(); }
  bool takes_system() const { return is_chat() && system_turn_; }
  // The two texts of a sample.
  std::pair<std::string, std::string> render(const Conversation& c) const;
  Example encode(const Conversation& c) const;
  // The same for who generates: the prompt ends where the answer begins, behind what the template opens a turn with
  // (<|im_start|>assistant). Of completions only.
  Example encode_question(const Conversation& c) const;
  Example encode(const std::string& prompt, const std::string& response) const;

 private:
  OrderedJson turns(const Conversation& c) const;

  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_;
  // Official templates give the assistant's turn alone. Others may put a system message before it, so there a response
  // is what the whole conversation has beyond its prompt.
  bool response_alone_ = true, system_turn_ = true;
  std::optional<int32_t> bos_, eos_;
  bool completion_;
  size_t max_length_;
};

// A task as it lies on disk, before its rows are read.
struct TaskSource {
  std::string name, path;  // of its folder or its JSON file
  TaskFormat format;
  std::shared_ptr<const Json> instructions;  // of a Super-NaturalInstructions file

  // Task `name` of a folder of tasks, as `origin` has it. Error if there is none, or no metadata.
  static TaskSource open(const std::string& folder, const std::string& name, const std::string& origin);
  // train, valid or test: the first `most` rows, or all where it is 0. Instructions are divided as TaskSet does it.
  // Error, naming file and line, for the first row that is wrong, and where there is no row.
  std::vector<Conversation> read(const std::string& split, size_t most = 0) const;
};

// The names of all tasks in a folder, sorted. Error if there is none.
std::vector<std::string> tasks_in(const std::string& folder);

// f(i) for each i of begin .. end, on several threads; then throws, as an Error, what the first i threw, if any did.
void each_in_parallel(size_t begin, size_t end, const std::function<void(size_t)>& f);

struct Task {
  std::string name;
  int level = 0;  // as TaskFormat has them
  bool revealed = false;
  std::vector<std::string> descriptions;         // at most n_descs_per_ds, to train with
  std::vector<std::string> unseen_descriptions;  // of eval_ds_info
  std::vector<Example> train, valid, test;
  std::vector<Conversation> conversations;  // of `train`, for pretraining, which renders them with what it draws
};

struct TaskSet {
  using Progress = std::function<void(int64_t rows, int64_t all)>;

  std::vector<Task> tasks;   // to train on, in the order of train_ds_names
  std::vector<Task> unseen;  // of eval_ds_info, to validate on only

  // As config.{data, train_ds_names, n_train_ds, n_descs_per_ds, eval_ds_info, use_*_desc} say. A training task that is
  // in eval_ds_info keeps its last tenth for validation, others their valid.jsonl; a task of eval_ds_info alone has the
  // first 500 rows of its valid.jsonl. Without `encoder`, names and descriptions only, and of eval_ds_info the tasks
  // that have an adapter in oracle_dir. chat_descriptions: where a prompt is its own description, it is read as a
  // conversation, as a base model as encoder does; else as plain text. Error, naming file and line or row, for the
  // first thing wrong. progress() is called on this thread.
  static TaskSet load(const TrainConfig& config, const SampleEncoder* encoder, bool chat_descriptions = false,
                      bool test = false, const Progress& progress = {});
};

}  // namespace t2l
