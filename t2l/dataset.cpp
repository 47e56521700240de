#include "t2l/dataset.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <optional>

namespace t2l {
namespace fs = std::filesystem;

std::vector<int32_t> Example::labels() const {
  std::vector<int32_t> out = ids;
  std::fill_n(out.begin(), prompt, -100);
  return out;
}

// ---- conversations to ids -------------------------------------------------------------------------------------------

SampleEncoder::SampleEncoder(Tokenizer tokenizer, std::optional<ChatTemplate> chat, bool official_template,
                             const OrderedJson& tokens, bool completion, int64_t max_length)
    : tokenizer_(std::move(tokenizer)),
      chat_(std::move(chat)),
      completion_(completion),
      max_length_(size_t(max_length)) {
  T2L_CHECK(max_length >= 2, "samples of {} tokens", max_length);
  if (!chat_) {
    const auto id = [&](const char* name) -> std::optional<int32_t> {
      const auto it = tokens.find(name);
      return it == tokens.end() ? std::nullopt : tokenizer_.id(it->get<std::string>());
    };
    bos_ = id("bos_token");
    eos_ = id("eos_token");
    if (!eos_) fail("the base model has neither a chat template nor an eos_token in tokenizer_config.json; add one");
    return;
  }
  if (official_template) return;
  // A template may know no system turn, and one that is empty can be left out.
  const Conversation probe{"", "a question", "an answer", ""};
  try {
    chat_->render(turns(probe), false);
  } catch (const Error&) {
    system_turn_ = false;
  }
  OrderedJson messages = turns(probe);
  const std::string prompt = chat_->render(messages, false);
  messages.push_back({{"role", "assistant"}, {"content", probe.assistant}});
  response_alone_ = !chat_->render(messages, false).starts_with(prompt);
}

SampleEncoder SampleEncoder::load(const std::string& dir, const std::string& name, bool completion,
                                  int64_t max_length) {
  const OrderedJson tokens = ChatTemplate::special_tokens(dir);
  const std::string official = fmt::format("chat_templates/{}/chat_template.jinja", name);
  std::optional<ChatTemplate> chat;
  const bool is_official = fs::exists(official);
  if (is_official) {
    chat = ChatTemplate::parse(ChatTemplate::strip(read_text_file(official)), official, tokens);
  } else {
    const auto has_template = [&](const char* file) {
      const std::string path = dir + "/" + file;
      if (!fs::exists(path)) return false;
      return std::string_view(file).ends_with(".jinja") || Object(read_json(path), path).has("chat_template");
    };
    if (has_template("tokenizer_config.json") || has_template("chat_template.jinja") ||
        has_template("chat_template.json"))
      chat = ChatTemplate::load(dir);
  }
  try {
    return {Tokenizer::load(dir), std::move(chat), is_official, tokens, completion, max_length};
  } catch (const Error& e) {
    fail("{}: {}", dir, e.what());
  }
}

OrderedJson SampleEncoder::turns(const Conversation& c) const {
  OrderedJson messages = OrderedJson::array();
  if (system_turn_ || !c.system.empty()) messages.push_back({{"role", "system"}, {"content", c.system}});
  for (const Conversation::Turn& t : c.earlier) {
    messages.push_back({{"role", "user"}, {"content", t.user}});
    messages.push_back({{"role", "assistant"}, {"content", t.assistant}});
  }
  messages.push_back({{"role", "user"}, {"content", c.user}});
  return messages;
}

std::pair<std::string, std::string> SampleEncoder::render(const Conversation& c) const {
  if (!chat_) {
    std::string examples;
    for (const Conversation::Turn& t : c.earlier) examples += t.user + t.assistant + "\n\n";
    return {examples + c.user, c.response};
  }
  OrderedJson messages = turns(c);
  std::string prompt = chat_->render(messages, false);
  const OrderedJson answer = {{"role", "assistant"}, {"content", c.assistant}};
  if (response_alone_) return {std::move(prompt), chat_->render(OrderedJson::array({answer}), false)};
  messages.push_back(answer);
  const std::string all = chat_->render(messages, false);
  if (!all.starts_with(prompt)) fail("the chat template changes the prompt once there is an answer; use another");
  return {prompt, all.substr(prompt.size())};
}

Example SampleEncoder::encode(const Conversation& c) const {
  const auto [prompt, response] = render(c);
  return encode(prompt, response);
}

Example SampleEncoder::encode_question(const Conversation& c) const {
  T2L_CHECK(completion_, "questions of whole conversations");
  auto [prompt, response] = render(c);
  if (chat_) {
    const std::string opened = chat_->render(turns(c), true);
    if (opened.starts_with(prompt))
      if (const std::string opening = opened.substr(prompt.size()); response.starts_with(opening)) {
        prompt = opened;
        response.erase(0, opening.size());
      }
  }
  return encode(prompt, response);
}

Example SampleEncoder::encode(const std::string& prompt, const std::string& response) const {
  Example out;
  const Truncation cut{.max_length = max_length_, .left = true};
  if (!completion_) {
    out.ids = tokenizer_.encode(prompt + response, !chat_, cut);
  } else {
    Encoding pair = tokenizer_.encode_pair(prompt, response, false, cut);
    out.ids = std::move(pair.ids);
    out.prompt = int32_t(std::count(pair.type_ids.begin(), pair.type_ids.end(), 0));
    if (!chat_ && bos_) out.ids.insert(out.ids.begin(), *bos_), ++out.prompt;
    if (!chat_) out.ids.push_back(*eos_);
  }
  // Position 0 is predicted by nothing.
  if (out.ids.size() < 2 || size_t(out.prompt) >= out.ids.size())
    fail("leaves no token to learn; its response is empty");
  return out;
}

// ---- tasks ----------------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t kUnseenRows = 500;  // data.py: valid[:500], and of BENCHMARK_TASK_INFO

// Lines of a file that are not blank, with their numbers.
struct Lines {
  MappedFile file;
  std::vector<std::pair<std::string_view, int64_t>> rows;

  static Lines read(const std::string& path) {
    Lines out{MappedFile::open(path), {}};
    for_lines(as_text(out.file.bytes()), [&](std::string_view line, int64_t number) {
      if (line.find_first_not_of(" \t\r\v\f") != std::string_view::npos) out.rows.emplace_back(line, number);
    });
    if (out.rows.empty()) fail("{}: holds no row; a task needs at least one", path);
    return out;
  }
};

std::string file_of(const TaskSource& source, const std::string& split) {
  const std::string name = split == "validation" ? "valid" : split;
  return fmt::format("{}/{}.jsonl", source.path, name);
}

// Rows begin..end of a split of `all` instances: eight tenths to train on, a tenth each to validate and to test.
std::pair<size_t, size_t> share(size_t all, int from, int to) {
  return {all * size_t(from) / 10, all * size_t(to) / 10};
}

}  // namespace

void each_in_parallel(size_t begin, size_t end, const std::function<void(size_t)>& f) {
  std::atomic<size_t> first_bad{end};
  std::string message;
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic, 8)
  for (size_t i = begin; i < end; ++i) {
    if (i > first_bad) continue;
    try {
      f(i);
    } catch (const std::exception& e) {
      const std::lock_guard lock(mutex);
      if (i >= first_bad) continue;
      first_bad = i;
      message = e.what();
    }
  }
  if (first_bad < end) throw Error(message);
}

TaskSource TaskSource::open(const std::string& folder, const std::string& name, const std::string& origin) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
    fail("{}: '{}' is no name of a task", origin, printable(name));
  TaskSource out;
  out.name = name;
  out.path = folder + "/" + name;
  const std::string metadata = out.path + "/metadata.yaml", json = out.path + ".json";
  if (fs::exists(metadata)) {
    out.format = TaskFormat::parse(read_yaml(metadata), name, metadata);
  } else if (fs::exists(json)) {
    out.path = json;
    // Such a file has up to 6,500 instances, and 50 MB.
    out.instructions = std::make_shared<const Json>(read_json(json, {.bytes = size_t(256) << 20}));
    out.format = TaskFormat::of_instructions(*out.instructions, json);
    if (out.instructions->at("Instances").empty()) fail("{}: 'Instances' is empty; a task needs at least one", json);
  } else {
    fail("{}: task '{}' has neither {} nor {}; add it or remove its name", origin, name, metadata, json);
  }
  return out;
}

std::vector<std::string> tasks_in(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (fs::exists(entry.path() / "metadata.yaml")) names.push_back(entry.path().filename().string());
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  }
  if (error) fail("{}: {}; name the folder of tasks with --data", folder, error.message());
  if (names.empty()) fail("{}: has no task, neither NAME/metadata.yaml nor NAME.json", folder);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<Conversation> TaskSource::read(const std::string& split, size_t most) const {
  Lines lines;
  size_t begin = 0, end = 0;
  if (instructions) {
    end = instructions->at("Instances").size();
    if (end >= 10)
      std::tie(begin, end) = split == "train"   ? share(end, 0, 8)
                             : split == "valid" ? share(end, 8, 9)
                                                : share(end, 9, 10);
    else if (split != "train")
      end = 0;
  } else {
    const std::string file = file_of(*this, split == "train" ? format.rows.split : split);
    if (!fs::exists(file)) fail("{}: is missing; task '{}' needs it for its {} rows", file, name, split);
    lines = Lines::read(file);
    end = lines.rows.size();
    if (split == "train") {
      const auto rows = int64_t(end);
      begin = size_t(format.rows.begin.row(rows)), end = size_t(format.rows.end.row(rows));
    }
  }
  if (begin >= end) fail("{}: task '{}' has no {} rows; choose another split or other tasks", path, name, split);
  if (most) end = std::min(end, begin + most);
  std::vector<Conversation> out(end - begin);
  each_in_parallel(begin, end, [&](size_t i) {
    const std::string place = instructions ? fmt::format("{}: Instances[{}]", path, i)
                                           : fmt::format("{}:{}", lines.file.path(), lines.rows[i].second);
    Json row = instructions ? TaskFormat::instance(*instructions, i, path) : parse_json(lines.rows[i].first, place);
    try {
      out[i - begin] = format.format(std::move(row));
    } catch (const Error& e) {
      fail("{}: {}", place, e.what());
    }
  });
  return out;
}

namespace {

// Rows that become examples.
struct Job {
  const TaskSource* source;
  Task* task;
  std::vector<Example> Task::*split;
  Lines lines;  // empty for instructions
  size_t begin, end;
};

class Loader {
 public:
  Loader(const TrainConfig& config, const SampleEncoder* encoder, bool chat_descriptions,
         const TaskSet::Progress& progress)
      : config_(config), encoder_(encoder), chat_descriptions_(chat_descriptions), progress_(progress) {}

  TaskSet load(bool test) {
    std::vector<std::string> names = config_.train_ds_names;
    const std::string origin = names.empty() ? config_.data : "train_ds_names";
    if (names.empty()) names = tasks_in(config_.data);
    if (config_.n_train_ds > 0 && size_t(config_.n_train_ds) < names.size()) names.resize(size_t(config_.n_train_ds));
    if (config_.verb == Verb::Lora && !config_.per_task && names.size() != 1)
      fail("{}: has {} tasks, but lora trains on one; name it in train_ds_names, or set per_task", origin,
           names.size());
    std::vector<std::string> unseen;
    for (const auto& [name, info] : config_.eval_ds_info.items())
      if ((encoder_ ? config_.verb != Verb::Lora : fs::exists(config_.oracle_dir + "/" + name)) &&
          !is_held_out_benchmark(name) && std::find(names.begin(), names.end(), name) == names.end())
        unseen.push_back(name);

    TaskSet out;
    out.tasks.reserve(names.size()), out.unseen.reserve(unseen.size());  // jobs point into them
    sources_.reserve(names.size() + unseen.size());
    for (const std::string& name : names) {
      const TaskSource& source = add(name, origin, out.tasks);
      if (encoder_) add_training(source, out.tasks.back(), test);
    }
    for (const std::string& name : unseen) {
      const TaskSource& source = add(name, "eval_ds_info", out.unseen);
      if (encoder_) add_unseen(source, out.unseen.back());
    }
    read_all();
    return out;
  }

 private:
  // The official code evaluates on these only after training.
  static bool is_held_out_benchmark(const std::string& name) {
    return name == "gsm8k" || name == "humaneval" || name == "mbpp";
  }

  const TaskSource& add(const std::string& name, const std::string& origin, std::vector<Task>& tasks) {
    const TaskSource& source = sources_.emplace_back(TaskSource::open(config_.data, name, origin));
    Task& task = tasks.emplace_back();
    task.name = name;
    task.level = source.format.level;
    task.revealed = source.format.revealed;
    task.descriptions = source.format.descriptions;
    if (config_.n_descs_per_ds > 0 && size_t(config_.n_descs_per_ds) < task.descriptions.size())
      task.descriptions.resize(size_t(config_.n_descs_per_ds));
    if (config_.use_per_task_emb && !config_.use_one_hot_task_emb && task.descriptions.empty())
      fail("{}: task '{}' has no descriptions; add some to its metadata.yaml", source.path, name);
    if (const auto info = config_.eval_ds_info.find(name); info != config_.eval_ds_info.end() && info->is_object())
      if (const Object o(*info, "eval_ds_info: " + name); o.has("descriptions"))
        task.unseen_descriptions = o.get_strings("descriptions");
    return source;
  }

  void add_training(const TaskSource& source, Task& task, bool test) {
    const bool held_out = config_.eval_ds_info.contains(source.name);
    if (source.instructions) {
      const size_t all = source.instructions->at("Instances").size();
      const auto job = [&](std::vector<Example> Task::*split, int from, int to) {
        const auto [begin, end] = share(all, from, to);
        if (begin < end) jobs_.push_back({&source, &task, split, {}, begin, end});
      };
      if (all < 10) return jobs_.push_back({&source, &task, &Task::train, {}, 0, all});
      job(&Task::train, 0, 8);
      job(&Task::valid, 8, 9);
      if (test) job(&Task::test, 9, 10);
      return;
    }
    Lines lines = Lines::read(file_of(source, source.format.rows.split));
    const auto rows = int64_t(lines.rows.size());
    int64_t begin = source.format.rows.begin.row(rows), end = source.format.rows.end.row(rows);
    const std::string valid = file_of(source, "valid");
    if (held_out) {  // data.py: train[:90%] and train[90%:]
      begin = 0, end = RowRange::Bound{90, true}.row(rows);
      if (end < rows) jobs_.push_back({&source, &task, &Task::valid, lines, size_t(end), size_t(rows)});
    } else if (fs::exists(valid) && source.format.rows.split == "train") {
      add_file(source, task, &Task::valid, valid, kUnseenRows);
    }
    if (const std::string path = file_of(source, "test");
        test && source.format.rows.split != "test" && fs::exists(path))
      add_file(source, task, &Task::test, path, -1);
    if (begin >= end) fail("{}: leaves task '{}' no row to train on; it has {}", lines.file.path(), task.name, rows);
    jobs_.push_back({&source, &task, &Task::train, std::move(lines), size_t(begin), size_t(end)});
  }

  void add_unseen(const TaskSource& source, Task& task) {
    if (source.instructions) {
      const size_t all = source.instructions->at("Instances").size();
      return jobs_.push_back({&source, &task, &Task::valid, {}, 0, std::min(all, size_t(kUnseenRows))});
    }
    std::string path = file_of(source, "valid");
    if (!fs::exists(path)) path = file_of(source, source.format.rows.split);
    add_file(source, task, &Task::valid, path, kUnseenRows);
  }

  void add_file(const TaskSource& source, Task& task, std::vector<Example> Task::*split, const std::string& path,
                int64_t most) {
    Lines lines = Lines::read(path);
    const size_t rows = lines.rows.size();
    jobs_.push_back({&source, &task, split, std::move(lines), 0, most < 0 ? rows : std::min(rows, size_t(most))});
  }

  std::string place(const Job& job, size_t row) const {
    if (job.source->instructions) return fmt::format("{}: Instances[{}]", job.source->path, row);
    return fmt::format("{}:{}", job.lines.file.path(), job.lines.rows[row].second);
  }

  // conversation: where the row's is kept; null: nowhere.
  Example read(const Job& job, size_t row, Conversation* conversation) const {
    const TaskSource& source = *job.source;
    Json json = source.instructions ? TaskFormat::instance(*source.instructions, row, source.path)
                                    : parse_json(job.lines.rows[row].first, place(job, row));
    try {
      std::string context;
      if (config_.use_per_sample_desc) {
        for (const char* field : {"context", "input"})
          if (const auto it = json.find(field); context.empty() && it != json.end() && it->is_string())
            context = it->get<std::string>();
        if (context.empty()) fail("has no field 'context', which use_per_sample_desc makes its description");
      }
      Conversation c = source.format.format(std::move(json));
      Example out = encoder_->encode(c);
      if (config_.use_per_sample_desc) out.text = std::move(context);
      if (config_.use_inp_as_desc) out.text = chat_descriptions_ ? encoder_->render(c).first : c.user;
      if (config_.use_default_desc) out.text = c.user.substr(0, c.user.find("\n\n"));
      if (conversation) *conversation = std::move(c);
      return out;
    } catch (const Error& e) {
      fail("{}: {}", place(job, row), e.what());
    }
  }

  void read_all() {
    int64_t all = 0, done = 0;
    for (const Job& job : jobs_) all += int64_t(job.end - job.begin);
    for (Job& job : jobs_) {
      std::vector<Example>& out = job.task->*job.split;
      out.resize(job.end - job.begin);
      const bool keeps = config_.verb == Verb::Pretrain && job.split == &Task::train;
      if (keeps) job.task->conversations.resize(out.size());
      constexpr size_t kChunk = 4096;  // rows between two calls of progress()
      for (size_t from = job.begin; from < job.end; from += kChunk) {
        const size_t to = std::min(job.end, from + kChunk);
        each_in_parallel(from, to, [&](size_t row) {
          out[row - job.begin] = read(job, row, keeps ? &job.task->conversations[row - job.begin] : nullptr);
        });
        done += int64_t(to - from);
        if (progress_) progress_(done, all);
      }
      job.lines = {};  // closes the file
    }
  }

  const TrainConfig& config_;
  const SampleEncoder* encoder_;
  bool chat_descriptions_;
  const TaskSet::Progress& progress_;
  std::vector<TaskSource> sources_;
  std::vector<Job> jobs_;
};

}  // namespace

TaskSet TaskSet::load(const TrainConfig& config, const SampleEncoder* encoder, bool chat_descriptions, bool test,
                      const Progress& progress) {
  if (config.data.empty()) fail("no data; name the folder of tasks with --data");
  return Loader(config, encoder, chat_descriptions, progress).load(test);
}

}  // namespace t2l
