#include "t2l/embedding_table.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <unordered_map>

#include "t2l/crc32.h"
#include "tensor/safetensors.h"

namespace t2l {
namespace fs = std::filesystem;

namespace {

// FNV-1a: names the file; what it holds is told by its metadata.
uint64_t hash(std::string_view text, uint64_t h = 0xcbf29ce484222325) {
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& t : texts) all += fmt::format("{}:", t.size()) + t;
  return all;
}

// One task's distinct texts.
Tensor embed(const std::vector<std::string>& texts, const CachedEncoder& encoder,
             const std::function<void(size_t)>& progress) {
  const std::string all = joined(texts);
  const std::map<std::string, std::string> contents = {
      {"encoder", encoder.identity}, {"texts", fmt::format("{} {:08x}", all.size(), crc32(as_bytes(all)))}};
  const std::string file =
      encoder.directory.empty()
          ? ""
          : fmt::format("{}/embeddings/{:016x}.safetensors", encoder.directory, hash(all, hash(encoder.identity)));
  if (!file.empty() && fs::exists(file)) try {
      const SafeTensors kept = SafeTensors::open(file);
      const Tensor x = kept.get("embedding");
      if (kept.metadata() == contents && x.rank() == 2 && x.dim(0) == int64_t(texts.size()) && all_finite(x)) {
        progress(texts.size());
        return x;
      }
    } catch (const Error&) {
      // Damaged: made anew.
    }

  constexpr size_t kChunk = 256;  // texts between two calls of progress()
  Tensor out;
  for (size_t from = 0; from < texts.size(); from += kChunk) {
    const size_t to = std::min(texts.size(), from + kChunk);
    const Tensor some =
        encoder.embed_raw({texts.begin() + ptrdiff_t(from), texts.begin() + ptrdiff_t(to)}).to(Device::CPU);
    T2L_CHECK(some.rank() == 2 && some.dim(0) == int64_t(to - from), "{} texts gave {}", to - from, some.shape().str());
    if (!all_finite(some))
      fail("an embedding is not finite; is the encoder's checkpoint whole, and its dtype wide enough?");
    if (!out) out = Tensor::empty({int64_t(texts.size()), some.dim(1)});
    out.slice(int64_t(from), int64_t(to)).copy_from(some);
    progress(to - from);
  }
  if (!file.empty()) try {
      fs::create_directories(fs::path(file).parent_path());
      write_safetensors(file, {{"embedding", out}}, {}, contents);
    } catch (const std::exception&) {
      // Only slower next time.
    }
  return out;
}

}  // namespace

std::string cache_directory(const std::string& given) {
  const auto environment = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (!given.empty()) return given;
  if (const std::string s = environment("T2L_CACHE"); !s.empty()) return s;
  if (const std::string s = environment("XDG_CACHE_HOME"); !s.empty()) return s + "/t2l";
  const std::string home = environment("HOME");
  return home.empty() ? "" : home + "/.cache/t2l";
}

std::string encoder_identity(const std::string& dir, const EncoderSpec& spec, const EncoderOptions& options) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(dir, error))
    if (const std::string kind = entry.path().extension().string();
        entry.is_regular_file() && (kind == ".json" || kind == ".safetensors" || kind == ".txt" || kind == ".jinja"))
      files.push_back(fs::relative(entry.path(), dir).string());
  if (error) fail("{}: {}; name the encoder's folder", dir, error.message());
  std::sort(files.begin(), files.end());
  std::string out = fmt::format("layer {}, pooling '{}{}', prefix '{}', suffix '{}', {} on {}\n", spec.layer,
                                spec.pooling, options.pooling ? fmt::format(" {}", int(*options.pooling)) : "",
                                spec.prefix, spec.suffix, name_of(options.dtype), name_of(options.device));
  for (const std::string& f : files) {
    const MappedFile file = MappedFile::open(dir + "/" + f);
    out += fmt::format("{} {} {:08x}\n", f, file.size(), crc32(file.bytes()));
  }
  return out;
}

EmbeddingTable EmbeddingTable::load(const std::string& file, const std::vector<std::string>& tasks, int64_t most) {
  const SafeTensors all = SafeTensors::open(file);
  EmbeddingTable out;
  for (const std::string& task : tasks) {
    if (!all.contains(task)) fail("{}: has no tensor '{}'; embed that task's descriptions too", file, task);
    Tensor x = all.get(task);
    if (x.dtype() == DType::I32) fail("{}: '{}' holds integers, not embeddings", file, task);
    x = x.to(DType::F32);
    if (x.rank() != 2 || x.dim(0) == 0 || x.dim(1) == 0)
      fail("{}: '{}' is {}, not [descriptions, dim]", file, task, x.shape().str());
    if (out.dim_ != 0 && x.dim(1) != out.dim_)
      fail("{}: '{}' has width {}, but '{}' has {}", file, task, x.dim(1), tasks[0], out.dim_);
    if (!all_finite(x)) fail("{}: '{}' has a value that is not finite", file, task);
    out.dim_ = x.dim(1);
    if (most > 0 && most < x.dim(0)) x = x.slice(0, most);
    out.entries_.push_back({x, {}});
  }
  return out;
}

EmbeddingTable EmbeddingTable::one_hot(int64_t tasks) {
  EmbeddingTable out;
  out.entries_.resize(size_t(tasks));
  out.dim_ = tasks;
  out.normalise_ = false;
  out.one_hot_ = true;
  return out;
}

EmbeddingTable EmbeddingTable::encode(const std::vector<std::vector<std::string>>& texts, const CachedEncoder& encoder,
                                      bool normalise, const Progress& progress) {
  int64_t all = 0, done = 0;
  for (const auto& of_task : texts) all += int64_t(of_task.size());
  EmbeddingTable out;
  out.normalise_ = normalise;
  for (const auto& of_task : texts) {
    Entry& entry = out.entries_.emplace_back();
    std::vector<std::string> distinct;
    std::unordered_map<std::string_view, int32_t> seen;
    for (const std::string& text : of_task) {
      const auto [it, fresh] = seen.emplace(text, int32_t(distinct.size()));
      if (fresh) distinct.push_back(text);
      entry.index.push_back(it->second);
    }
    const int64_t before = done;
    if (!distinct.empty())
      entry.raw = embed(distinct, encoder, [&](size_t n) {
        done += int64_t(n);
        if (progress) progress(done, all);
      });
    done = before + int64_t(of_task.size());
    if (progress) progress(done, all);
    if (!entry.raw) continue;
    T2L_CHECK(out.dim_ == 0 || out.dim_ == entry.raw.dim(1), "embeddings of width {} and {}", out.dim_,
              entry.raw.dim(1));
    out.dim_ = entry.raw.dim(1);
  }
  return out;
}

int64_t EmbeddingTable::size(int64_t task) const {
  const Entry& e = entries_.at(size_t(task));
  if (one_hot_) return 1;
  return !e.raw ? 0 : e.index.empty() ? e.raw.dim(0) : int64_t(e.index.size());
}

Tensor EmbeddingTable::gather(const Batch& batch) const {
  Tensor out = Tensor::zeros({int64_t(batch.size()), dim_});
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto [task, row, description] = batch[i];
    float* to = out.data<float>() + int64_t(i) * dim_;
    if (one_hot_) {
      to[task] = 1;
      continue;
    }
    T2L_CHECK(description >= 0 && description < size(task), "description {} of task {}", description, task);
    const Entry& e = entries_[size_t(task)];
    const int64_t at = e.index.empty() ? description : e.index[size_t(description)];
    std::copy_n(e.raw.data<float>() + at * dim_, dim_, to);
  }
  return normalise_ ? normalise_embedding(out) : out;
}

}  // namespace t2l
