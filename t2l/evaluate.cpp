#include "t2l/evaluate.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>

#include "nn/parameters.h"

namespace t2l {

// ---- scores of single answers ---------------------------------------------------------------------------------------

std::vector<AnswerScore> score_answers(const Decoder& decoder, const std::vector<Question>& questions,
                                       const AdapterBatch* adapters, const ScoreOptions& options) {
  const NoGrad no_grad;
  std::vector<AnswerScore> scores(questions.size());
  std::vector<size_t> order(questions.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return questions[a].adapter < questions[b].adapter; });
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    TokenBatch batch;
    int64_t tokens = 0;
    for (; end < order.size(); ++end) {
      const Question& q = questions[order[end]];
      const std::vector<int32_t>& ids = q.example->ids;
      const auto n = int64_t(ids.size()) - 1;  // the last token predicts nothing
      if (end > begin && tokens + n > options.batch_tokens) break;
      batch.ids.emplace_back(ids.begin(), ids.end() - 1);
      if (adapters) batch.adapters.push_back(q.adapter);
      for (int64_t i = std::max(q.example->prompt, 1); i <= n; ++i) batch.rows.push_back(int32_t(tokens + i - 1));
      tokens += n;
    }
    std::vector<int32_t> likely;  // behind the rows that predict an answer token; none asked for would mean all
    if (!batch.rows.empty()) likely = decoder.most_likely(decoder.hidden(batch, adapters).value);
    for (size_t i = begin, row = 0; i < end; ++i) {
      const Example& e = *questions[order[i]].example;
      AnswerScore& score = scores[order[i]];
      for (auto t = size_t(std::max(e.prompt, 1)); t < e.ids.size(); ++t, ++score.tokens)
        score.right += likely[row++] == e.ids[t];
    }
    if (options.progress) options.progress(tokens);
  }
  return scores;
}

// ---- tasks ----------------------------------------------------------------------------------------------------------

namespace {

// Whole numbers below n, in an order that the seed and a name fix.
class Draws {
 public:
  Draws(uint64_t seed, const std::string& name) : key_{seed, stream_of("evaluate " + name)} {}
  size_t below(size_t n) { return size_t(uint64_t(random_bits(key_, next_++)) * n >> 32); }

 private:
  RandomKey key_;
  uint64_t next_ = 0;
};

std::vector<std::string_view> words_of(std::string_view text) {
  constexpr const char* kSpace = " \t\r\n\v\f";
  std::vector<std::string_view> words;
  for (;;) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (text.empty()) return words;
    const size_t end = std::min(text.find_first_of(kSpace), text.size());
    words.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

// Who is described as what: the tasks' descriptions, in the order of `names`.
class Descriptions {
 public:
  Descriptions(const std::string& folder, const EvalOptions& options) : options_(options) {
    if (options.describe == EvalOptions::Describe::Own || options.describe == EvalOptions::Describe::Input) return;
    for (const std::string& name : tasks_in(folder))
      all_.emplace_back(name, TaskSource::open(folder, name, folder).format.descriptions);
    if (options.describe == EvalOptions::Describe::Other) {
      std::erase_if(all_, [](const auto& task) { return task.second.empty(); });
      if (all_.size() < 2) fail("{}: has no two tasks with descriptions, so that one could get the other's", folder);
      return;
    }
    std::vector<std::string_view> pool;
    const auto before = all_;
    for (const auto& task : before)
      for (const std::string& d : task.second)
        for (const std::string_view word : words_of(d)) pool.push_back(word);
    Draws draws(options.seed, "words");
    for (size_t i = pool.size(); i > 1; --i) std::swap(pool[i - 1], pool[draws.below(i)]);
    size_t next = 0;
    for (auto& task : all_)
      for (std::string& d : task.second) {
        const size_t n = words_of(d).size();
        d = fmt::format("{}", fmt::join(pool.begin() + ptrdiff_t(next), pool.begin() + ptrdiff_t(next + n), " "));
        next += n;
      }
  }

  void choose(EvalTask& task, const TaskSource& source) const {
    const auto self =
        std::find_if(all_.begin(), all_.end(), [&](const auto& other) { return other.first == task.name; });
    task.descriptions = source.format.descriptions;
    if (options_.describe == EvalOptions::Describe::Random) task.descriptions = self->second;
    if (options_.describe == EvalOptions::Describe::Other) {
      const auto place = size_t(self - all_.begin());  // the end, if it has no descriptions of its own
      const bool among = self != all_.end();
      size_t other = Draws(options_.seed, task.name).below(all_.size() - among);
      other += among && other >= place;
      task.descriptions = all_[other].second;
    }
    if (task.descriptions.empty())
      fail("{}: task '{}' has no descriptions, which this asks for; add some to its metadata.yaml", source.path,
           task.name);
    task.descriptions.resize(std::min(task.descriptions.size(), options_.descriptions));
  }

 private:
  const EvalOptions& options_;
  std::vector<std::pair<std::string, std::vector<std::string>>> all_;
};

// Puts rows of `train` before each question, other rows for each.
void add_shots(std::vector<Conversation>& questions, const TaskSource& source, bool chat, const EvalOptions& options) {
  const std::vector<Conversation> train = source.read("train");
  Draws draws(options.seed, "shots " + source.name);
  for (Conversation& q : questions) {
    std::set<std::string> seen = {q.user};
    // Rows repeat, so some draws are in vain; beyond this many there are hardly enough different rows.
    for (size_t tries = 0; q.earlier.size() < options.shots; ++tries) {
      if (tries > 20 * options.shots + 100 || train.size() < options.shots)
        fail("{}: task '{}' has {} training rows, too few different ones for {} shots; lower --shots", source.path,
             source.name, train.size(), options.shots);
      const Conversation& row = train[draws.below(train.size())];
      if (seen.insert(row.user).second) q.earlier.push_back({row.user, chat ? row.assistant : row.response});
    }
  }
}

// The conversation with a description before all else.
Conversation described(Conversation c, const std::string& description, bool system_message) {
  const std::string text = add_full_stop(description);
  std::string& first = system_message ? c.system : c.earlier.empty() ? c.user : c.earlier[0].user;
  first = first.empty() ? text : text + "\n\n" + first;
  return c;
}

Example question_of(const Conversation& c, const SampleEncoder& encoder, const std::vector<int32_t>& eos) {
  Example e = encoder.encode_question(c);
  const auto end = std::find_first_of(e.ids.begin() + e.prompt, e.ids.end(), eos.begin(), eos.end());
  if (end != e.ids.end()) e.ids.erase(end + 1, e.ids.end());  // a template may go on with a line break
  return e;
}

}  // namespace

std::vector<EvalTask> load_eval_tasks(const std::string& folder, const std::vector<std::string>& names,
                                      const SampleEncoder& encoder, const std::vector<int32_t>& eos,
                                      const EvalOptions& options) {
  const Descriptions descriptions(folder, options);
  std::vector<EvalTask> tasks;
  for (const std::string& name : names) {
    const TaskSource source = TaskSource::open(folder, name, folder);
    EvalTask& task = tasks.emplace_back();
    task.name = name;
    task.level = source.format.level;
    task.revealed = source.format.revealed;
    if (options.descriptions) descriptions.choose(task, source);
    std::vector<Conversation> rows = source.read(options.split, options.examples);
    if (options.shots) add_shots(rows, source, encoder.is_chat(), options);
    task.questions.resize(options.description_first ? task.descriptions.size() : 1);
    for (size_t v = 0; v < task.questions.size(); ++v) {
      std::vector<Example>& out = task.questions[v];
      out.resize(rows.size());
      each_in_parallel(0, rows.size(), [&](size_t i) {
        try {
          out[i] = question_of(
              options.description_first ? described(rows[i], task.descriptions[v], encoder.takes_system()) : rows[i],
              encoder, eos);
        } catch (const Error& e) {
          fail("{}: row {} of {}: {}", source.path, i + 1, options.split, e.what());
        }
      });
    }
    if (options.describe == EvalOptions::Describe::Input) {
      task.own_prompts = true;
      const std::vector<Example> all = std::move(task.questions[0]);
      task.questions.clear();
      for (size_t i = 0; i < rows.size(); ++i) {
        task.descriptions.push_back(options.chat_descriptions && encoder.is_chat() ? encoder.render(rows[i]).first
                                                                                   : rows[i].user);
        task.questions.push_back({all[i]});
      }
    }
  }
  return tasks;
}

// ---- adapters of the variants ---------------------------------------------------------------------------------------

namespace {

constexpr size_t kAdapterBytes = size_t(256) << 20;  // of adapters at once

struct Variant {
  size_t task, index;  // of the task's variants
};
std::vector<Variant> variants_of(const std::vector<EvalTask>& tasks) {
  std::vector<Variant> out;
  for (size_t t = 0; t < tasks.size(); ++t)
    for (size_t i = 0; i < tasks[t].variants(); ++i) out.push_back({t, i});
  return out;
}

size_t at_once(size_t adapter_bytes) {
  return std::clamp<size_t>(kAdapterBytes / std::max<size_t>(adapter_bytes, 1), 1, 512);
}

}  // namespace

VariantAdapters common_adapter(const Adapter& adapter, const Decoder& decoder) {
  const AdapterBatch batch = stack_adapters({{{&adapter}}}, decoder.config(), decoder.options());
  return {[batch](size_t, size_t) { return batch; }};
}

VariantAdapters adapters_by_task(const std::string& folder, const std::vector<EvalTask>& tasks,
                                 const Decoder& decoder) {
  std::vector<std::string> paths;
  for (const Variant& v : variants_of(tasks)) paths.push_back(folder + "/" + tasks[v.task].name);
  size_t bytes = 0;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::exists(path + "/adapter_config.json"))
      fail("{}: has no adapter_config.json; put the task's adapter there, or choose other tasks with --tasks", path);
    bytes = std::max(bytes, size_t(std::filesystem::file_size(path + "/adapter_model.safetensors", error)));
    if (error) fail("{}/adapter_model.safetensors: {}; put the task's adapter there", path, error.message());
  }
  return {[paths, &decoder](size_t begin, size_t end) {
            std::vector<Adapter> adapters;
            for (size_t i = begin; i < end; ++i) adapters.push_back(load_adapter(paths[i]));
            std::vector<AdapterSum> sums;
            for (const Adapter& a : adapters) sums.push_back({{&a}});
            return stack_adapters(sums, decoder.config(), decoder.options());
          },
          at_once(3 * bytes)};
}

VariantAdapters generated_adapters(const TrainedHypernet& trained, const Tensor& embeddings, const Decoder& decoder) {
  const HypernetConfig& c = trained.net.config();
  size_t bytes = 0;
  for (const AdaptedModule& m : c.modules) bytes += size_t(c.layers * c.rank * (m.in + m.out)) * sizeof(float);
  return {[&trained, &decoder, embeddings](size_t begin, size_t end) {
            const NoGrad no_grad;
            return adapters_of(trained.net.generate(embeddings.slice(int64_t(begin), int64_t(end))),
                               trained.net.config(), float(trained.adapter.scaling()), decoder.options().dtype);
          },
          at_once(3 * bytes)};
}

// ---- all of it ------------------------------------------------------------------------------------------------------

std::vector<TaskScore> evaluate(const Decoder& decoder, const std::vector<EvalTask>& tasks,
                                const VariantAdapters& adapters, const ScoreOptions& options) {
  const std::vector<Variant> variants = variants_of(tasks);
  std::vector<TaskScore> scores(tasks.size());
  for (size_t begin = 0, end = 0; begin < variants.size(); begin = end) {
    end = std::min(variants.size(), begin + adapters.at_once);
    AdapterBatch batch;
    if (adapters.make) batch = adapters.make(begin, end);
    std::vector<Question> questions;
    for (size_t v = begin; v < end; ++v)
      for (const Example& e : tasks[variants[v].task].questions_of(variants[v].index))
        questions.push_back({&e, batch.count > 1 ? int32_t(v - begin) : 0});
    const std::vector<AnswerScore> answers =
        score_answers(decoder, questions, adapters.make ? &batch : nullptr, options);

    auto answer = answers.begin();
    for (size_t v = begin; v < end; ++v) {
      TaskScore& score = scores[variants[v].task];
      score.examples = tasks[variants[v].task].questions_of(variants[v].index).size();
      int64_t exact = 0, tokens = 0, right = 0;
      for (size_t i = 0; i < score.examples; ++i, ++answer) {
        exact += answer->exact();
        tokens += answer->tokens;
        right += answer->right;
      }
      score.exact_match.push_back(double(exact) / double(score.examples));
      score.token_accuracy.push_back(double(right) / double(tokens));
    }
  }
  for (size_t t = 0; t < tasks.size(); ++t)
    if (tasks[t].own_prompts) scores[t].examples = tasks[t].variants();
  return scores;
}

int64_t tokens_of(const std::vector<EvalTask>& tasks) {
  int64_t tokens = 0;
  for (const EvalTask& t : tasks)
    for (size_t v = 0; v < t.variants(); ++v)
      for (const Example& e : t.questions_of(v)) tokens += int64_t(e.ids.size()) - 1;
  return tokens;
}

}  // namespace t2l
