// How good a model is at tasks: whether greedy decoding would give exactly the answer, and the share of its tokens that
// are the most likely ones given those before. Both need one forward pass and no decoding:
//   exact = every answer token, its end token included, is the arg-max behind the prompt and the answer so far
// Many adapters go through the model together, each on its own samples.
#pragma once
#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "t2l/dataset.h"

namespace t2l {

// ---- scores of single answers

struct Question {
  const Example* example;
  int32_t adapter = 0;  // of the batch, where there is one
};

struct AnswerScore {
  int32_t tokens = 0, right = 0;
  bool exact() const { return right == tokens; }
};

struct ScoreOptions {
  // Through the model at once; a single sample may have more. A small model's activations then stay in the cache.
  int64_t batch_tokens = 2048;
  std::function<void(int64_t tokens)> progress = {};  // after each batch, how many went through in it; may throw
};

// In the order of the questions.
std::vector<AnswerScore> score_answers(const Decoder& decoder, const std::vector<Question>& questions,
                                       const AdapterBatch* adapters, const ScoreOptions& options = {});

// ---- tasks

struct EvalOptions {
  std::string split = "test";
  size_t examples = 0;             // of each task, its first; 0: all
  size_t shots = 0;                // training rows before each question, drawn anew for each, never the question itself
  size_t descriptions = 0;         // of each task, its first, or fewer if it has not as many; 0: none is read
  bool description_first = false;  // in the prompt: the system message, or what the prompt begins with where the model
                                   // knows none; with a full stop
  // Own; that of another task of the folder, drawn for each task; the words of all the folder's descriptions, shuffled,
  // cut to strings of as many words as the descriptions have; or each question's own prompt (Hyperdecoders), as
  // training with use_inp_as_desc reads it.
  enum class Describe : uint8_t { Own, Other, Random, Input } describe = Describe::Own;
  bool chat_descriptions = true;  // such prompts are read as the chat template renders them, else the user's turn alone
  uint64_t seed = 0;
};

// A task is measured once for each of its descriptions, or once if none is read: these are its variants. Where prompts
// are the descriptions, each variant has one question.
struct EvalTask {
  std::string name;
  int level = 0;
  bool revealed = false;
  bool own_prompts = false;  // each question's prompt is its description
  std::vector<std::string> descriptions;
  std::string of;                               // whose descriptions these are
  std::vector<std::vector<Example>> questions;  // of each variant, or of all: where no description is in the prompt

  size_t variants() const { return std::max<size_t>(1, descriptions.size()); }
  const std::vector<Example>& questions_of(size_t variant) const {
    return questions[questions.size() == 1 ? 0 : variant];
  }
};

// Tasks of a folder as dataset.h has them. eos: ids behind which an answer has ended. Error, naming file and line, for
// the first thing wrong.
std::vector<EvalTask> load_eval_tasks(const std::string& folder, const std::vector<std::string>& names,
                                      const SampleEncoder& encoder, const std::vector<int32_t>& eos,
                                      const EvalOptions& options);

// The adapters of all variants, counted through the tasks; none: the model as it is.
struct VariantAdapters {
  std::function<AdapterBatch(size_t begin, size_t end)> make = {};  // of variants begin .. end, one each or one for all
  size_t at_once = size_t(1) << 20;                                 // end - begin at most, for the memory's sake
};
VariantAdapters common_adapter(const Adapter& adapter, const Decoder& decoder);
// FOLDER/TASK is the adapter of each task. Error if one is missing.
VariantAdapters adapters_by_task(const std::string& folder, const std::vector<EvalTask>& tasks, const Decoder& decoder);
// embeddings: f32 [variants, task_dim] on the hypernetwork's device, which must outlive the result.
VariantAdapters generated_adapters(const TrainedHypernet& trained, const Tensor& embeddings, const Decoder& decoder);

struct TaskScore {
  size_t examples = 0;
  // Of each variant: the share of answers that are exact, and of right tokens in all answers.
  std::vector<double> exact_match, token_accuracy;
};

std::vector<TaskScore> evaluate(const Decoder& decoder, const std::vector<EvalTask>& tasks,
                                const VariantAdapters& adapters, const ScoreOptions& options = {});
int64_t tokens_of(const std::vector<EvalTask>& tasks);  // that evaluate() puts through the model

}  // namespace t2l
