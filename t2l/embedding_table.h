// What the hypernetwork reads: the embedding of each description of each task, or of each sample that has its own.
// Raw encoder outputs come from a file or from an encoder, whose work is kept on disk by content; they are normalised
// to length sqrt(dim) when a batch takes them (task_embedding.h).
#pragma once
#include <functional>

#include "t2l/sampler.h"
#include "t2l/task_embedding.h"

namespace t2l {

// Where embeddings are kept: `given`, else T2L_CACHE, XDG_CACHE_HOME/t2l or ~/.cache/t2l; empty if there is none.
std::string cache_directory(const std::string& given);

// All that determines an encoder's output: sizes and checksums of the files in its folder, the settings, the dtype.
std::string encoder_identity(const std::string& dir, const EncoderSpec& spec, const EncoderOptions& options);

struct CachedEncoder {
  std::string identity;
  std::string directory;  // for the cache; empty: none
  // f32 [texts, dim], not normalised. Called only for what is not in the cache, so that an encoder may be loaded there.
  std::function<Tensor(const std::vector<std::string>&)> embed_raw;
};

class EmbeddingTable {
 public:
  using Progress = std::function<void(int64_t texts, int64_t all)>;

  // A safetensors file with a tensor [descriptions, dim] for each of `tasks`, of which the first `most` count (0: all).
  // Error, naming the tensor, for one that is missing, empty, not finite, or of another width than the others.
  static EmbeddingTable load(const std::string& file, const std::vector<std::string>& tasks, int64_t most);
  // A row of the identity for each task, not normalised.
  static EmbeddingTable one_hot(int64_t tasks);
  // texts[task]: its descriptions or, one for each row, those of its samples; equal ones are embedded once. A cache
  // that cannot be written, or is damaged, is done without.
  static EmbeddingTable encode(const std::vector<std::vector<std::string>>& texts, const CachedEncoder& encoder,
                               bool normalise = true, const Progress& progress = {});

  int64_t dim() const { return dim_; }
  int64_t tasks() const { return int64_t(entries_.size()); }
  int64_t size(int64_t task) const;  // descriptions of a task
  // f32 [samples, dim] on the CPU, as Hypernet::predict() takes it.
  Tensor gather(const Batch& batch) const;

 private:
  struct Entry {
    Tensor raw;                  // f32 [distinct texts, dim]
    std::vector<int32_t> index;  // [texts] -> row of raw; empty: text i is row i
  };
  std::vector<Entry> entries_;
  int64_t dim_ = 0;
  bool normalise_ = true, one_hot_ = false;
};

}  // namespace t2l
