#include "t2l/sampler.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "tensor/json.h"

namespace t2l {
namespace {

enum Purpose : uint64_t { Order, Rows, Descriptions };

// Streams of random numbers that no parameter or dropout mask has: those are hashes, or count from small numbers.
constexpr uint64_t kStream = 0x5a3d'9e21'0000'0000;

// Fisher & Yates: the first `count` of a random order of 0..n-1, for the key.
std::vector<int64_t> shuffled(RandomKey key, uint64_t counter, int64_t n, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < std::min(count, n - 1); ++i)
    std::swap(order[size_t(i)], order[size_t(i) + draw_below(key, counter + uint64_t(i), uint64_t(n - i))]);
  order.resize(size_t(count));
  return order;
}

}  // namespace

// The high half of a product; what the quotient's remainder favours is below 2^-64 times `below`.
uint64_t draw_below(RandomKey key, uint64_t counter, uint64_t below) {
  const Random4 r = philox(key, counter);
  const uint64_t bits = uint64_t(r.v[0]) << 32 | r.v[1];
  __extension__ using Wide = unsigned __int128;
  return uint64_t(Wide(bits) * below >> 64);
}

SamplerOptions sampler_options(const TrainConfig& c) {
  using Kind = SamplerOptions::Kind;
  using Source = SamplerOptions::Descriptions;
  SamplerOptions o;
  o.kind = c.verb == Verb::Reconstruct  ? Kind::Reconstruct
           : c.use_hierarchical_sampler ? Kind::Hierarchical
                                        : Kind::Plain;
  o.descriptions = !uses_hypernet(c.verb) || c.use_one_hot_task_emb ? Source::None
                   : c.use_per_task_emb                             ? Source::OfTask
                                                                    : Source::OfSample;
  o.tasks_per_batch = c.n_tasks_per_batch;
  o.points_per_task = c.n_points_per_task;
  o.batch_size = c.batch_size;
  o.descriptions_per_task = c.n_embs_per_sampled_task;
  o.shuffle = c.shuffle;
  o.seed = uint64_t(c.seed);
  return o;
}

SamplerOptions validation_options(const TrainConfig& c) {
  SamplerOptions o = sampler_options(c);
  if (o.kind != SamplerOptions::Kind::Reconstruct) o.kind = SamplerOptions::Kind::Plain;
  o.batch_size = c.val_batch_size;
  o.descriptions_per_task = 0;
  o.shuffle = false;
  return o;
}

Sampler::Sampler(SamplerOptions options, std::vector<TaskSize> tasks) : options_(options), tasks_(std::move(tasks)) {
  const bool has_rows = options_.kind != SamplerOptions::Kind::Reconstruct;
  if (tasks_.empty()) fail("there is no task to sample from");
  for (const TaskSize& t : tasks_) {
    if (has_rows && t.rows <= 0) fail("task '{}' has no row to train on", t.name);
    if (options_.descriptions == SamplerOptions::Descriptions::OfTask && t.descriptions <= 0)
      fail("task '{}' has no description; add some to its metadata.yaml", t.name);
    T2L_CHECK(t.rows <= INT32_MAX && t.descriptions <= INT32_MAX, "task {} has {} rows", t.name, t.rows);
    row_ends_.push_back((row_ends_.empty() ? 0 : row_ends_.back()) + t.rows);
  }
}

int64_t Sampler::batches_per_epoch() const {
  const auto tasks = int64_t(tasks_.size());
  const auto chunks = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  switch (options_.kind) {
    case SamplerOptions::Kind::Hierarchical:
      if (tasks < options_.tasks_per_batch)
        fail("a batch takes {} tasks but there are {}; set n_tasks_per_batch to at most that", options_.tasks_per_batch,
             tasks);
      return tasks / options_.tasks_per_batch;
    case SamplerOptions::Kind::Plain: return chunks(row_ends_.back(), options_.batch_size);
    case SamplerOptions::Kind::Reconstruct: return chunks(tasks, std::min(tasks, options_.tasks_per_batch));
  }
  return 0;
}

uint64_t Sampler::draw(uint64_t purpose, int64_t iteration, int64_t slot, uint64_t below) const {
  return draw_below({options_.seed, kStream + (purpose << 48) + uint64_t(iteration)}, uint64_t(slot), below);
}

void Sampler::enter(int64_t epoch) const {
  if (epoch == epoch_) return;
  const int64_t n = options_.kind == SamplerOptions::Kind::Plain ? row_ends_.back() : int64_t(tasks_.size());
  if (options_.shuffle) {
    order_ = shuffled({options_.seed, kStream + (uint64_t(Order) << 48) + uint64_t(epoch)}, 0, n, n);
  } else {
    order_.resize(size_t(n));
    std::iota(order_.begin(), order_.end(), 0);
  }
  epoch_ = epoch;
}

int32_t Sampler::description_of(int64_t task, int64_t row, int64_t iteration, int64_t slot) const {
  switch (options_.descriptions) {
    case SamplerOptions::Descriptions::None: return -1;
    case SamplerOptions::Descriptions::OfSample: return int32_t(row);
    case SamplerOptions::Descriptions::OfTask: break;
  }
  const auto n = uint64_t(tasks_[size_t(task)].descriptions);
  return int32_t(options_.shuffle ? draw(Descriptions, iteration, slot, n) : uint64_t(row) % n);
}

Batch Sampler::batch(int64_t iteration) const {
  T2L_CHECK(iteration >= 0, "batch {}", iteration);
  if (!recording_.empty()) {
    if (iteration >= recorded())
      fail("{}: holds {} batches, but the run takes more; lower epochs or steps", recording_, recorded());
    return recorded_[size_t(iteration)];
  }
  const int64_t each = batches_per_epoch(), epoch = iteration / each, first = iteration % each;
  enter(epoch);
  switch (options_.kind) {
    case SamplerOptions::Kind::Hierarchical: return hierarchical(epoch, iteration, first * options_.tasks_per_batch);
    case SamplerOptions::Kind::Plain: return plain(epoch, iteration, first * options_.batch_size);
    case SamplerOptions::Kind::Reconstruct: return reconstruct(epoch, iteration, first * options_.tasks_per_batch);
  }
  return {};
}

Batch Sampler::hierarchical(int64_t epoch, int64_t iteration, int64_t first) const {
  Batch out;
  for (int64_t i = 0; i < options_.tasks_per_batch; ++i) {
    const int64_t task = order_[size_t(first + i)], rows = tasks_[size_t(task)].rows;
    for (int64_t point = 0; point < options_.points_per_task; ++point) {
      const auto slot = int64_t(out.size());
      const int64_t row = options_.shuffle ? int64_t(draw(Rows, iteration, slot, uint64_t(rows)))
                                           : (epoch % rows * options_.points_per_task + point) % rows;
      out.push_back({int32_t(task), int32_t(row), description_of(task, row, iteration, slot)});
    }
  }
  return out;
}

Batch Sampler::plain(int64_t, int64_t iteration, int64_t first) const {
  Batch out;
  const auto end = std::min(first + options_.batch_size, int64_t(order_.size()));
  for (int64_t i = first; i < end; ++i) {
    const int64_t at = order_[size_t(i)];
    const int64_t task = std::upper_bound(row_ends_.begin(), row_ends_.end(), at) - row_ends_.begin();
    const int64_t row = at - (row_ends_[size_t(task)] - tasks_[size_t(task)].rows);
    out.push_back({int32_t(task), int32_t(row), description_of(task, row, iteration, i - first)});
  }
  return out;
}

Batch Sampler::reconstruct(int64_t epoch, int64_t iteration, int64_t first) const {
  Batch out;
  const auto end = std::min(first + options_.tasks_per_batch, int64_t(order_.size()));
  for (int64_t i = first; i < end; ++i) {
    const int64_t task = order_[size_t(i)], all = std::max(tasks_[size_t(task)].descriptions, int64_t(1));
    const int64_t wanted = options_.descriptions_per_task, count = wanted > 0 ? std::min(wanted, all) : all;
    std::vector<int64_t> chosen(static_cast<size_t>(count));
    if (options_.shuffle)
      chosen = shuffled({options_.seed, kStream + (uint64_t(Descriptions) << 48) + uint64_t(iteration)},
                        uint64_t(i - first) << 32, all, count);
    else
      for (int64_t k = 0; k < count; ++k) chosen[size_t(k)] = (epoch % all * count + k) % all;
    const bool used = options_.descriptions == SamplerOptions::Descriptions::OfTask;
    for (const int64_t d : chosen) out.push_back({int32_t(task), -1, used ? int32_t(d) : -1});
  }
  return out;
}

void Sampler::replay(const std::string& path) { replay(as_text(MappedFile::open(path).bytes()), path); }

void Sampler::replay(std::string_view text, const std::string& path) {
  std::map<std::string, int32_t> index;
  for (const TaskSize& t : tasks_) index.emplace(t.name, int32_t(index.size()));
  const bool has_rows = options_.kind != SamplerOptions::Kind::Reconstruct;
  const bool of_task = options_.descriptions == SamplerOptions::Descriptions::OfTask;

  std::vector<Batch> batches;
  for_lines(text, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const std::string where = fmt::format("{}:{}", path, number);
    const Json json = parse_json(line, where);
    const char* form = has_rows ? "[[task, row, description], ...]" : "[[task, description], ...]";
    if (!json.is_array() || json.empty()) fail("{}: must be a list like {}", where, form);

    Batch batch;
    for (const Json& s : json) {
      const size_t parts = has_rows ? 3 : 2;
      if (!s.is_array() || s.size() != parts || !s[0].is_string()) fail("{}: must be a list like {}", where, form);
      const auto found = index.find(s[0].get<std::string>());
      if (found == index.end())
        fail("{}: '{}' is no task of this run; check train_ds_names and n_train_ds", where,
             printable(s[0].get_ref<const std::string&>()));
      const TaskSize& task = tasks_[size_t(found->second)];
      const auto number_of = [&](const Json& x, const char* what, int64_t all) {
        if (!x.is_number_integer() || x < 0 || x >= all)
          fail("{}: {} {} of task '{}' does not exist; it has {}", where, what,
               printable(x.dump(-1, ' ', false, Json::error_handler_t::replace)), task.name, all);
        return x.get<int32_t>();
      };
      Sample sample{found->second, has_rows ? number_of(s[1], "row", task.rows) : -1, -1};
      if (of_task) sample.description = number_of(s[parts - 1], "description", task.descriptions);
      if (options_.descriptions == SamplerOptions::Descriptions::OfSample) sample.description = sample.row;
      batch.push_back(sample);
    }
    batches.push_back(std::move(batch));
  });
  if (batches.empty()) fail("{}: holds no batch", path);
  recorded_ = std::move(batches);
  recording_ = path;
}

}  // namespace t2l
