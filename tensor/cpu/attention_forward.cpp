// Flash attention (Dao, "FlashAttention-2", 2023): tiles of scores live in the cache, and forward saves only each
// query's LSE = log(sum exp(score)). A tile of keys, which begins a multiple of kTile after the sample's first, gives
// each query a maximum m, a sum l = sum p of p = exp(score - m), and p V; these are merged in the order of the tiles:
//   M' = max(M, m),  O' = O exp(M - M') + p V exp(m - M'),  L' likewise;  finally o = O / L, LSE = M + log L.
// So what a query gets depends on its span and its sample's keys alone. It is computed in one of two ways with the same
// bits: many queries lie side by side in the columns of S^T = K Q^T, whose panels are at once the right factor of
// O^T = V^T P^T; a few (of a decoding step) are rows, and then the tiles of keys are shared out to the threads.
#include <cmath>
#include <limits>

#include "tensor/cpu/attention_tiles.h"

namespace t2l::cpu {
namespace {

constexpr int64_t kFewQueries = 8;
constexpr int64_t kPanels = 4;  // of queries that share the packing of a tile of keys

// The spans of up to 32 queries, heads of them, in the lanes of a panel of scores.
struct Lanes {
  alignas(32) int32_t first[32], last[32];
  int64_t count = 0;

  void add(int32_t f, int32_t l) { first[count] = f, last[count] = l, ++count; }
  void fill() {
    for (int64_t i = count; i < 32; ++i) first[i] = first[count - 1], last[i] = last[count - 1];
  }
};

struct Running {
  alignas(32) float max[32], sum[32];
};

// Scores [keys, lanes], ld floats from key to key, the first of the key `key`, become probabilities with the tile's
// maxima and sums; pairs of rows become units of bf16 if `pairs`. There is room for one row more.
void softmax(float* s, int64_t ld, int64_t keys, int64_t key, const Lanes& seen, const AttentionSpans& spans,
             bool pairs, Running& tile) {
  const int64_t lanes = round_up(seen.count, 8);
  float scale = spans.scale;
  if (spans.softcap != 0 || scale <= 0) {
    const bool capped = spans.softcap != 0;
    const F8 cap = all8(spans.softcap), factor = all8(capped ? scale / spans.softcap : scale);
    for (int64_t i = 0; i < keys; ++i)
      for (int64_t g = 0; g < lanes; g += 8) {
        const F8 x = _mm256_mul_ps(load8(s + i * ld + g), factor);
        store8(s + i * ld + g, capped ? _mm256_mul_ps(cap, tanh8(x)) : x);
      }
    scale = 1;
  }
  const bool all_seen = seen.first[seen.count - 1] <= key && seen.last[0] >= key + keys - 1;
  if (pairs && keys % 2 == 1) std::fill_n(s + keys * ld, lanes, -kInfinity);
  for (int64_t g = 0; g < lanes; g += 8, s += 8) {
    if (!all_seen) {
      const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(seen.first + g));
      const __m256i last = _mm256_load_si256(reinterpret_cast<const __m256i*>(seen.last + g));
      for (int64_t i = 0; i < keys; ++i) {
        const __m256i k = _mm256_set1_epi32(int32_t(key + i));
        const __m256i hidden = _mm256_or_si256(_mm256_cmpgt_epi32(first, k), _mm256_cmpgt_epi32(k, last));
        store8(s + i * ld, _mm256_blendv_ps(load8(s + i * ld), all8(-kInfinity), _mm256_castsi256_ps(hidden)));
      }
    }
    F8 highest[4] = {all8(-kInfinity), all8(-kInfinity), all8(-kInfinity), all8(-kInfinity)};
    int64_t i = 0;
    for (; i + 4 <= keys; i += 4)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) highest[j] = _mm256_max_ps(load8(s + (i + j) * ld), highest[j]);
    for (; i < keys; ++i) highest[0] = _mm256_max_ps(load8(s + i * ld), highest[0]);
    F8 max = _mm256_max_ps(_mm256_max_ps(highest[0], highest[1]), _mm256_max_ps(highest[2], highest[3]));
    max = _mm256_max_ps(_mm256_mul_ps(max, all8(scale)), all8(kLowest));  // of a query that sees none of these
    F8 sum = all8(0);
    const auto p = [&](int64_t row) { return exp8(_mm256_fmsub_ps(load8(s + row * ld), all8(scale), max)); };
    if (pairs)
      for (i = 0; i < keys; i += 2) {
        const F8 even = p(i), odd = p(i + 1);
        sum = _mm256_add_ps(_mm256_add_ps(sum, even), odd);
        store8(s + i / 2 * ld, pair8(even, odd));
      }
    else
      for (i = 0; i < keys; ++i) {
        const F8 x = p(i);
        sum = _mm256_add_ps(sum, x);
        store8(s + i * ld, x);
      }
    store8(tile.max + g, max);
    store8(tile.sum + g, sum);
  }
}

// Merges the statistics of 8 lanes. Returns what the sums so far and those of the tile are to be multiplied by.
struct Shares {
  F8 before, tile;
};
Shares merge8(float* max, float* sum, const float* tile_max, const float* tile_sum) {
  const F8 m = load8(max), t = load8(tile_max), higher = _mm256_max_ps(t, m);
  const F8 a = exp8(_mm256_sub_ps(m, higher)), b = exp8(_mm256_sub_ps(t, higher));
  store8(max, higher);
  store8(sum, _mm256_fmadd_ps(load8(sum), a, _mm256_mul_ps(load8(tile_sum), b)));
  return {a, b};
}
void merge_product(float* o, const float* tile, const Shares& by) {
  store8(o, _mm256_fmadd_ps(load8(o), by.before, _mm256_mul_ps(load8(tile), by.tile)));
}

float inverse(float sum) { return sum == 0 ? 0 : 1 / sum; }
float lse_of(float max, float sum) { return sum == 0 ? -kInfinity : max + std::log(sum); }

template <class T>
class Forward {
 public:
  Forward(Tensor& o, Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans)
      : n_(q, k, spans),
        spans_(spans),
        tiles_(q.dtype()),
        first_(spans.first.data<int32_t>()),
        last_(spans.last.data<int32_t>()),
        q_(q.data<T>()),
        k_(k.data<T>()),
        v_(v.data<T>()),
        o_(o.data<T>()),
        lse_(lse.data<float>()) {}

  void run() {
    const int32_t *offset = spans_.q_offsets.data<int32_t>(), *k_begin = spans_.k_begin.data<int32_t>();
    const int64_t block = tiles_.nr() * std::max<int64_t>(1, kPanels / n_.group);
    for (int64_t s = 0; s < n_.samples; ++s) {
      const int64_t begin = offset[s], end = offset[s + 1];
      if (begin == end) continue;
      if (end - begin <= kFewQueries) {
        add_few(begin, end, k_begin[s]);
        continue;
      }
      for (int64_t h = 0; h < n_.kv_heads; ++h)
        for (int64_t i = begin; i < end; i += block) {
          const int64_t to = std::min(i + block, end), key = first_tile(i, to, k_begin[s]);
          many_.push_back({h, i, to, key, (last_[to - 1] + 1 - key) * (to - i)});
        }
    }
    for_tasks(many_, many_floats(block), [&](const Many& task, float* scratch) { compute(task, scratch); });
    run_few();
  }

 private:
  // The first key of the first tile that one of the queries begin .. end sees something of.
  int64_t first_tile(int64_t begin, int64_t end, int64_t k_begin) const {
    const int64_t seen = std::max(std::min<int64_t>(first_[begin], last_[end - 1] + 1), k_begin);
    return seen - (seen - k_begin) % kTile;
  }

  // ---- many queries: a block of them, of all heads that read one key head

  struct Many {
    int64_t h_kv, begin, end, key, work;  // queries begin .. end; key: where the first tile begins
  };

  int64_t many_floats(int64_t block) const {
    const int64_t nr = tiles_.nr(), panels = n_.group * ceil_div(block, nr);
    return tiles_.left_size(kTile, n_.dim) + tiles_.left_size(n_.dim, kTile) + (kTile + 1) * nr + n_.dim * nr +
           panels * (tiles_.right_panel(n_.dim) + n_.dim * nr + 32) +
           panels * int64_t(sizeof(Lanes) + sizeof(Running)) / 4 + 16 * 8;
  }

  void compute(const Many& task, float* scratch) const {
    const int64_t nr = tiles_.nr(), dim = n_.dim, per_head = ceil_div(task.end - task.begin, nr);
    const int64_t panels = n_.group * per_head, keys_end = last_[task.end - 1] + 1, kv_at = task.h_kv * dim;
    float *left_k = take(scratch, tiles_.left_size(kTile, dim)), *left_v = take(scratch, tiles_.left_size(dim, kTile)),
          *scores = take(scratch, (kTile + 1) * nr), *product = take(scratch, dim * nr),
          *right_q = take(scratch, panels * tiles_.right_panel(dim)), *sums = take(scratch, panels * dim * nr);
    auto* lanes = reinterpret_cast<Lanes*>(take(scratch, panels * int64_t(sizeof(Lanes)) / 4));
    auto* running = reinterpret_cast<Running*>(take(scratch, panels * int64_t(sizeof(Running)) / 4));

    std::fill_n(sums, panels * dim * nr, 0.f);
    const auto head_of = [&](int64_t p) { return task.h_kv * n_.group + p / per_head; };
    const auto query_of = [&](int64_t p) { return task.begin + p % per_head * nr; };
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t query = query_of(p), count = std::min(nr, task.end - query);
      float* to = right_q + p * tiles_.right_panel(dim);
      if (count < nr) std::fill_n(to, tiles_.right_panel(dim), 0.f);
      tiles_.pack_right(to, q_ + query * n_.ld + head_of(p) * dim, n_.ld, false, count, dim);
      lanes[p].count = 0;
      for (int64_t i = 0; i < count; ++i) lanes[p].add(first_[query + i], last_[query + i]);
      lanes[p].fill();
      std::fill_n(running[p].max, 32, kLowest);
      std::fill_n(running[p].sum, 32, 0.f);
    }

    for (int64_t key = task.key; key < keys_end; key += kTile) {
      const int64_t tile_keys = std::min(kTile, keys_end - key), at = key * n_.kv_ld + kv_at;
      const Factor k = tiles_.pack_left(left_k, k_ + at, n_.kv_ld, false, tile_keys, dim);
      const Factor v = tiles_.pack_left(left_v, v_ + at, n_.kv_ld, true, dim, tile_keys, n_.kv_ld - kv_at);
      for (int64_t p = 0; p < panels; ++p) {
        const Lanes& seen = lanes[p];
        const int64_t keys = std::min<int64_t>(tile_keys, seen.last[seen.count - 1] + 1 - key);
        if (keys <= 0 || seen.first[0] >= key + keys) continue;
        const Factor q{right_q + p * tiles_.right_panel(dim), 0, nr};
        tiles_.multiply(scores, 0, nr, k, 0, keys, q, nr, dim, false);
        Running tile;
        softmax(scores, nr, keys, key, seen, spans_, tiles_.pairs(), tile);
        tiles_.multiply(product, 0, nr, v, 0, dim, {scores, 0, nr}, nr, keys, false);
        for (int64_t l = 0; l < round_up(seen.count, 8); l += 8) {
          const Shares by = merge8(running[p].max + l, running[p].sum + l, tile.max + l, tile.sum + l);
          float* o = sums + p * dim * nr + l;
          for (int64_t i = 0; i < dim; ++i) merge_product(o + i * nr, product + i * nr + l, by);
        }
      }
    }

    for (int64_t p = 0; p < panels; ++p) {
      const int64_t query = query_of(p), h = head_of(p), count = lanes[p].count;
      for (int64_t i = 0; i < count; ++i)
        lse_[(query + i) * n_.heads + h] = lse_of(running[p].max[i], running[p].sum[i]);
      for (int64_t i = 0; i < count; ++i) running[p].sum[i] = inverse(running[p].sum[i]);
      write_transposed(o_ + query * n_.ld + h * dim, n_.ld, sums + p * dim * nr, nr, dim, count, running[p].sum);
    }
  }

  // ---- few queries of a sample: per key head the rows (query, head) that read it

  struct Few {
    int64_t begin, end, key, tiles;  // queries begin .. end; key: where the first of the tiles begins
    int64_t product, stats;  // where these begin in products_ [tile, key head, row, padded_dim()] and in stats_ [tile,
                             // key head, maximum and sum, padded row]
  };
  struct Chunk {
    size_t few;
    int64_t h_begin, h_end, begin, end, work;  // key heads, tiles
  };

  int64_t rows(const Few& f) const { return (f.end - f.begin) * n_.group; }
  int64_t padded_dim() const { return round_up(n_.dim, tiles_.nr()); }
  float* product_of(const Few& f, int64_t t, int64_t h_kv) const {
    return products_ + f.product + (t * n_.kv_heads + h_kv) * rows(f) * padded_dim();
  }
  float* stats_of(const Few& f, int64_t t, int64_t h_kv) const {
    return stats_ + f.stats + (t * n_.kv_heads + h_kv) * 2 * round_up(rows(f), 32);
  }

  void add_few(int64_t begin, int64_t end, int64_t k_begin) {
    const int64_t key = first_tile(begin, end, k_begin), keys = std::max<int64_t>(last_[end - 1] + 1 - key, 0);
    few_.push_back({begin, end, key, ceil_div(keys, kTile), products_size_, stats_size_});
    const Few& f = few_.back();
    products_size_ += f.tiles * n_.kv_heads * rows(f) * padded_dim();
    stats_size_ += f.tiles * n_.kv_heads * 2 * round_up(rows(f), 32);
    few_rows_ = std::max(few_rows_, rows(f));
  }

  void run_few() {
    if (few_.empty()) return;
    const Tensor products = Tensor::empty({std::max<int64_t>(products_size_, 1)});
    const Tensor stats = Tensor::empty({std::max<int64_t>(stats_size_, 1)});
    products_ = products.data<float>(), stats_ = stats.data<float>();
    int64_t tiles = 0;
    for (const Few& f : few_) tiles += f.tiles;
    // One task reads all heads of its keys, unless that leaves threads without work.
    const int64_t threads = omp_get_max_threads(), heads = tiles < 4 * threads ? 1 : n_.kv_heads;
    const int64_t share = std::max<int64_t>(1, tiles / (8 * threads));
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < few_.size(); ++i)
      for (int64_t t = 0; t < few_[i].tiles; t += share)
        for (int64_t h = 0, n = std::min(share, few_[i].tiles - t); h < n_.kv_heads; h += heads)
          chunks.push_back({i, h, h + heads, t, t + n, n});
    for_tasks(chunks, few_floats(heads), [&](const Chunk& chunk, float* scratch) { compute(chunk, scratch); });
    const int64_t merges = int64_t(few_.size()) * n_.kv_heads;
    parallel(merges, 1 + kGrain / (few_rows_ * padded_dim()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) merge(few_[size_t(i / n_.kv_heads)], i % n_.kv_heads);
    });
  }

  int64_t few_floats(int64_t heads) const {
    return few_rows_ * n_.dim + heads * tiles_.left_size(few_rows_, n_.dim) + tiles_.right_size(kTile, n_.dim) +
           tiles_.right_size(n_.dim, kTile) + tiles_.mr() * kTile + (kTile + 8) * tiles_.pitch() + 16 * 8;
  }

  void compute(const Chunk& chunk, float* scratch) const {
    const Few& f = few_[chunk.few];
    const int64_t dim = n_.dim, rows = this->rows(f), nr = tiles_.nr(), pitch = tiles_.pitch();
    const int64_t keys_end = last_[f.end - 1] + 1, left_size = tiles_.left_size(rows, dim);
    T* gathered = reinterpret_cast<T*>(take(scratch, rows * dim));
    float *left_q = take(scratch, (chunk.h_end - chunk.h_begin) * left_size),
          *right_k = take(scratch, tiles_.right_size(kTile, dim)),
          *right_v = take(scratch, tiles_.right_size(dim, kTile)), *scores = take(scratch, tiles_.mr() * kTile),
          *turned = take(scratch, (kTile + 8) * pitch);
    Factor q{};
    for (int64_t h = chunk.h_begin; h < chunk.h_end; ++h) {
      for (int64_t i = f.begin; i < f.end; ++i)
        std::copy_n(q_ + i * n_.ld + h * n_.group * dim, n_.group * dim, gathered + (i - f.begin) * n_.group * dim);
      q = tiles_.pack_left(left_q + (h - chunk.h_begin) * left_size, gathered, dim, false, rows, dim);
    }

    for (int64_t t = chunk.begin; t < chunk.end; ++t)
      for (int64_t h = chunk.h_begin; h < chunk.h_end; ++h) {
        const int64_t key = f.key + t * kTile, keys = std::min(kTile, keys_end - key), at = key * n_.kv_ld + h * dim;
        const Factor k = tiles_.pack_right(right_k, k_ + at, n_.kv_ld, false, keys, dim);
        const Factor v = tiles_.pack_right(right_v, v_ + at, n_.kv_ld, true, dim, keys);
        // The two products fetch the lines of what comes next, as many as they have units: twice as fast from memory.
        // The next head before the next tile, as rows at a distance of a power of two compete for the same cache sets.
        const bool same_tile = h + 1 < chunk.h_end, more = same_tile || t + 1 < chunk.end;
        const int64_t next = same_tile ? at + dim : more ? (key + kTile) * n_.kv_ld + chunk.h_begin * dim : at;
        Ahead ahead{reinterpret_cast<const char*>(k_ + next), reinterpret_cast<const char*>(v_ + next),
                    n_.kv_ld * int64_t(sizeof(T)), int(std::bit_width(uint64_t(dim * int64_t(sizeof(T)) - 1) / 64))};
        q.p = left_q + (h - chunk.h_begin) * left_size;
        for (int64_t row = 0; row < rows; row += q.height, q.p += q.panel) {
          const int64_t height = std::min(q.height, rows - row);
          Ahead* const fetched = row == 0 && more ? &ahead : nullptr;
          tiles_.multiply(scores, height * nr, nr, q, 0, height, k, keys, dim, false, fetched);
          Lanes seen;
          for (int64_t i = row; i < row + height; ++i)
            seen.add(first_[f.begin + i / n_.group], last_[f.begin + i / n_.group]);
          seen.fill();
          for (int64_t j = 0; j < keys; j += nr)
            tiles_.pack_left(turned + j * pitch, scores + j * height, nr, false, height,
                             std::min(nr, round_up(keys - j, 8)));
          Running tile;
          softmax(turned, pitch, keys, key, seen, spans_, tiles_.pairs(), tile);
          tiles_.multiply(product_of(f, t, h) + row * padded_dim(), nr, padded_dim(), {turned, 0, q.height}, 0, height,
                          v, dim, keys, false, fetched);
          std::copy_n(tile.max, height, stats_of(f, t, h) + row);
          std::copy_n(tile.sum, height, stats_of(f, t, h) + round_up(rows, 32) + row);
        }
      }
  }

  void merge(const Few& f, int64_t h_kv) const {
    const int64_t dim = n_.dim, rows = this->rows(f);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t query = f.begin + row / n_.group, h = h_kv * n_.group + row % n_.group;
      float sums[256] = {}, max[8], sum[8] = {}, tile_max[8], tile_sum[8];
      std::fill_n(max, 8, kLowest);
      for (int64_t t = 0; t < f.tiles; ++t) {
        const float *stats = stats_of(f, t, h_kv), *product = product_of(f, t, h_kv) + row * padded_dim();
        std::fill_n(tile_max, 8, stats[row]);
        std::fill_n(tile_sum, 8, stats[round_up(rows, 32) + row]);
        const Shares by = merge8(max, sum, tile_max, tile_sum);
        for (int64_t d = 0; d < dim; d += 8) merge_product(sums + d, product + d, by);
      }
      lse_[query * n_.heads + h] = lse_of(max[0], sum[0]);
      const float factor = inverse(sum[0]);
      T* to = o_ + query * n_.ld + h * dim;
      for (int64_t d = 0; d < dim; d += 8)
        store_some(to + d, factor == 0 ? all8(0) : _mm256_mul_ps(load8(sums + d), all8(factor)), dim - d);
    }
  }

  const AttentionSizes n_;
  const AttentionSpans& spans_;
  const Tiles tiles_;
  const int32_t *first_, *last_;
  const T *q_, *k_, *v_;
  T* o_;
  float* lse_;

  std::vector<Many> many_;
  std::vector<Few> few_;
  int64_t products_size_ = 0, stats_size_ = 0, few_rows_ = 0;
  float *products_ = nullptr, *stats_ = nullptr;
};

}  // namespace

void Cpu::attention_forward(Tensor& o, Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttentionSpans& spans) {
  with_type(q.dtype(), [&]<class T>(T*) { Forward<T>(o, lse, q, k, v, spans).run(); });
}

}  // namespace t2l::cpu
