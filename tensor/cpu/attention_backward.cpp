// Backward of flash attention, P = exp(S - LSE) made again: five products per tile of queries and keys, in one pass
// over the pairs of a sample's tiles for one query head. S = Q K^T and dP = dO V^T lie in panels of keys, at once the
// right factors of dV^T = dO^T P and dK^T = Q^T dS; only for dQ = dS K is dS repacked. The dK and dV of the heads that
// read one key head are added afterwards, in order: all sums depend on the sample alone. The mathematics stands in
// autograd/attention.cpp.
#include <limits>

#include "tensor/cpu/attention_tiles.h"

namespace t2l::cpu {
namespace {

// D = sum of do o
template <class T>
float dot(const T* a, const T* b, int64_t n) {
  F8 sum = all8(0);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) sum = _mm256_fmadd_ps(load8(a + i), load8(b + i), sum);
  float lane[8], rest = 0;
  store8(lane, sum);
  for (; i < n; ++i) rest += float(a[i]) * float(b[i]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])) + rest;
}

// A query: what turns its row of scores into P and dS.
struct Query {
  F8 lse, d;
  __m256i first, last;

  Query(float l, float dot, int32_t from, int32_t to)
      : lse(all8(std::max(l, kLowest))),  // -inf, of a query that sees nothing, would give NaN
        d(all8(dot)),
        first(_mm256_set1_epi32(from)),
        last(_mm256_set1_epi32(to)) {}
};

// 8 scores and dP of one query and the keys from `key` on become P and dS.
template <bool kSoftcap>
void differentiate8(F8& s, F8& dp, const Query& query, __m256i key, const AttentionSpans& spans) {
  F8 x, slope = all8(spans.scale);
  if constexpr (kSoftcap) {
    const F8 y = tanh8(_mm256_mul_ps(s, all8(spans.scale / spans.softcap)));
    x = _mm256_fmsub_ps(all8(spans.softcap), y, query.lse);
    slope = _mm256_mul_ps(slope, _mm256_fnmadd_ps(y, y, all8(1)));
  } else {
    x = _mm256_fmsub_ps(s, slope, query.lse);
  }
  const __m256i hidden = _mm256_or_si256(_mm256_cmpgt_epi32(query.first, key), _mm256_cmpgt_epi32(key, query.last));
  const F8 p = exp8(x), ds = _mm256_mul_ps(_mm256_mul_ps(p, slope), _mm256_sub_ps(dp, query.d));
  s = _mm256_andnot_ps(_mm256_castsi256_ps(hidden), p);
  dp = _mm256_andnot_ps(_mm256_castsi256_ps(hidden), ds);
}

struct Task {
  int64_t sample, head, work;
};

// Scores and dP of a tile's queries and of the keys key .. of one panel, of which those from keys_end on do not exist;
// computed for the queries begin .. end of the tile, the others see none of the keys.
struct Panel {
  float *scores, *dp;
  int64_t query, queries, begin, end, key, keys_end;
};

template <class T>
class Backward {
 public:
  Backward(Tensor* dq, Tensor* dk, Tensor* dv, const Tensor& dout, const Tensor& o, const Tensor& lse, const Tensor& q,
           const Tensor& k, const Tensor& v, const AttentionSpans& spans)
      : n_(q, k, spans),
        spans_(spans),
        tiles_(q.dtype()),
        first_(spans.first.data<int32_t>()),
        last_(spans.last.data<int32_t>()),
        offset_(spans.q_offsets.data<int32_t>()),
        k_begin_(spans.k_begin.data<int32_t>()),
        k_len_(spans.k_len.data<int32_t>()),
        q_(q.data<T>()),
        k_(k.data<T>()),
        v_(v.data<T>()),
        do_(dout.data<T>()),
        o_(o.data<T>()),
        lse_(lse.data<float>()),
        d_(Tensor::empty(lse.shape())),
        dq_(dq),
        dk_(dk),
        dv_(dv) {}

  void run() {
    float* d = d_.data<float>();
    parallel(d_.size(), kGrain / std::max<int64_t>(n_.dim, 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) d[i] = dot(do_ + i * n_.dim, o_ + i * n_.dim, n_.dim);
    });
    for (Tensor* t : {dk_, dv_})
      if (t) t->zero();  // for keys of no sample
    if (n_.group > 1) {
      const Shape per_head{dk_ ? dk_->dim(0) : dv_ ? dv_->dim(0) : 0, n_.heads, n_.dim};
      if (dk_) dk_of_ = Tensor::empty(per_head);
      if (dv_) dv_of_ = Tensor::empty(per_head);
    }
    std::vector<Task> tasks;
    int64_t most = 0;
    for (int64_t s = 0; s < n_.samples; ++s) {
      int64_t pairs = 0;
      for (int64_t i = offset_[s]; i < offset_[s + 1]; ++i) pairs += std::max(last_[i] + 1 - first_[i], 0);
      most = std::max<int64_t>(most, offset_[s + 1] - offset_[s]);
      for (int64_t h = 0; h < n_.heads; ++h) tasks.push_back({s, h, pairs});
    }
    for_tasks(tasks, floats(most), [&](const Task& task, float* scratch) { compute(task, scratch); });
    if (n_.group > 1) {
      if (dk_) add_heads(*dk_, dk_of_);
      if (dv_) add_heads(*dv_, dv_of_);
    }
  }

 private:
  int64_t cols(int64_t n) const { return round_up(n, tiles_.nr()); }

  int64_t floats(int64_t queries) const {
    const int64_t dim = n_.dim, left = tiles_.left_size(kTile, dim), turned = tiles_.left_size(dim, kTile);
    return 2 * left + 2 * turned + 2 * tiles_.right_size(kTile, dim) + tiles_.right_size(dim, kTile) +
           2 * (kTile + 2) * cols(kTile) + tiles_.left_size(kTile, kTile) + kTile * kTile + 2 * dim * cols(kTile) +
           round_up(queries, kTile) * cols(dim) + ceil_div(queries, kTile) + 16 * 16;
  }

  void compute(const Task& task, float* scratch) const {
    const int64_t dim = n_.dim, nr = tiles_.nr(), h = task.head, h_kv = h / n_.group;
    const int64_t offset = offset_[task.sample], q_end = offset_[task.sample + 1];
    const int64_t k_begin = k_begin_[task.sample], k_end = k_begin + k_len_[task.sample];
    const int64_t left = tiles_.left_size(kTile, dim), turned = tiles_.left_size(dim, kTile);
    float *left_q = take(scratch, left), *left_do = take(scratch, left), *turned_q = take(scratch, turned),
          *turned_do = take(scratch, turned), *right_k = take(scratch, tiles_.right_size(kTile, dim)),
          *right_v = take(scratch, tiles_.right_size(kTile, dim)),
          *rows_k = take(scratch, tiles_.right_size(dim, kTile)), *scores = take(scratch, (kTile + 2) * cols(kTile)),
          *dscores = take(scratch, (kTile + 2) * cols(kTile)), *left_ds = take(scratch, tiles_.left_size(kTile, kTile)),
          *sum_k = take(scratch, dim * cols(kTile)), *sum_v = take(scratch, dim * cols(kTile)),
          *sum_q = take(scratch, round_up(q_end - offset, kTile) * cols(dim));
    auto* ds16 = reinterpret_cast<bf16*>(take(scratch, kTile * kTile));
    float* const any_q = take(scratch, ceil_div(q_end - offset, kTile));  // whether the tile's dq holds something
    std::fill_n(any_q, ceil_div(q_end - offset, kTile), 0.f);

    for (int64_t key = k_begin; key < k_end; key += kTile) {
      const int64_t keys = std::min(kTile, k_end - key), at = key * n_.kv_ld + h_kv * dim;
      // The queries that see one of the keys: those before have last < key, those after first >= key + keys.
      const int64_t from = std::lower_bound(last_ + offset, last_ + q_end, key) - last_;
      const int64_t to = std::lower_bound(first_ + offset, first_ + q_end, key + keys) - first_;
      const Factor k = tiles_.pack_right(right_k, k_ + at, n_.kv_ld, false, keys, dim);
      const Factor v = tiles_.pack_right(right_v, v_ + at, n_.kv_ld, false, keys, dim);
      const Factor k_rows = dq_ ? tiles_.pack_right(rows_k, k_ + at, n_.kv_ld, true, dim, keys) : Factor{};
      bool any[kTile] = {};  // whether the panel's dk and dv hold something

      for (int64_t t = (from - offset) / kTile; offset + t * kTile < to; ++t) {
        const int64_t query = offset + t * kTile, queries = std::min(kTile, q_end - query);
        const int64_t q_at = query * n_.ld + h * dim, there = n_.ld - h * dim;
        const Factor q = tiles_.pack_left(left_q, q_ + q_at, n_.ld, false, queries, dim);
        const Factor dout = tiles_.pack_left(left_do, do_ + q_at, n_.ld, false, queries, dim);
        const Factor q_t = tiles_.pack_left(turned_q, q_ + q_at, n_.ld, true, dim, queries, there);
        const Factor do_t = tiles_.pack_left(turned_do, do_ + q_at, n_.ld, true, dim, queries, there);
        Factor ds{left_ds, tiles_.left_panel(kTile), tiles_.height(queries)};
        for (int64_t j = 0; j < keys; j += nr) {
          Panel panel{scores + j * (kTile + 2), dscores + j * (kTile + 2), query, queries, 0, 0, key + j, key + keys};
          const int32_t *first = first_ + query, *last = last_ + query;
          panel.begin = std::lower_bound(last, last + queries, panel.key) - last;
          panel.begin -= panel.begin % q.height;
          panel.end = std::lower_bound(first, first + queries, std::min(panel.key + nr, panel.keys_end)) - first;
          const int64_t begin = panel.begin, end = panel.end;
          if (begin < end) {
            tiles_.multiply(panel.scores, 0, nr, q, begin, end, k.from_panel(j / nr), nr, dim, false);
            tiles_.multiply(panel.dp, 0, nr, dout, begin, end, v.from_panel(j / nr), nr, dim, false);
            spans_.softcap != 0 ? differentiate<true>(panel, h, ds16 + j) : differentiate<false>(panel, h, ds16 + j);
            const auto add = [&](float* sum, Factor f, float* right) {
              f.p += tiles_.units(begin) * tiles_.pitch();
              right += tiles_.units(begin) * nr;
              tiles_.multiply(sum + j * dim, 0, nr, f, 0, dim, {right, 0, nr}, nr, end - begin, any[j / nr]);
            };
            if (dv_) add(sum_v, do_t, panel.scores);
            if (dk_) add(sum_k, q_t, panel.dp);
            any[j / nr] = true;
          }
          if (dq_) repack(panel, ds16 + j, left_ds + j * tiles_.pitch(), ds.height);
        }
        if (!dq_) continue;
        if (tiles_.pairs()) ds = tiles_.pack_left(left_ds, ds16, kTile, false, queries, keys);
        tiles_.multiply(sum_q + t * kTile * cols(dim), queries * nr, nr, ds, 0, queries, k_rows, dim, keys,
                        any_q[t] != 0);
        any_q[t] = 1;
      }

      for (int64_t j = 0; j < keys; j += nr) {
        if (dk_) write_keys(*dk_, dk_of_, sum_k + j * dim, key + j, std::min(nr, keys - j), h, any[j / nr]);
        if (dv_) write_keys(*dv_, dv_of_, sum_v + j * dim, key + j, std::min(nr, keys - j), h, any[j / nr]);
      }
    }

    if (!dq_) return;
    for (int64_t t = 0; offset + t * kTile < q_end; ++t) {
      const int64_t query = offset + t * kTile, queries = std::min(kTile, q_end - query);
      const float* from = sum_q + t * kTile * cols(dim);
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t d = 0; d < dim; d += 8) {
          const F8 x = any_q[t] != 0 ? load8(from + d / nr * queries * nr + i * nr + d % nr) : all8(0);
          store_some(dq_->data<T>() + (query + i) * n_.ld + h * dim + d, x, dim - d);
        }
    }
  }

  // The panel's scores and dP become the right factors P and dS; where these hold pairs, dS also goes into ds16
  // [query, kTile].
  template <bool kSoftcap>
  void differentiate(const Panel& p, int64_t h, bf16* ds16) const {
    const int64_t nr = tiles_.nr();
    const __m256i step = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const auto load = [&](int64_t i) {
      const int64_t at = (p.query + i) * n_.heads + h;
      return Query(lse_[at], d_.data<float>()[at], first_[p.query + i],
                   std::min(last_[p.query + i], int32_t(p.keys_end - 1)));
    };
    const auto keys_at = [&](int64_t g) { return _mm256_add_epi32(_mm256_set1_epi32(int32_t(p.key + g)), step); };
    if (!tiles_.pairs()) {
      for (int64_t i = p.begin; i < p.end; ++i) {
        const Query query = load(i);
        for (int64_t g = 0, at = i * nr; g < nr; g += 8, at += 8) {
          F8 s = load8(p.scores + at), dp = load8(p.dp + at);
          differentiate8<kSoftcap>(s, dp, query, keys_at(g), spans_);
          store8(p.scores + at, s);
          store8(p.dp + at, dp);
        }
      }
      return;
    }
    for (int64_t i = p.begin; i < p.end; i += 2) {
      const bool both = i + 1 < p.end;
      const Query even = load(i), odd = load(both ? i + 1 : i);
      for (int64_t g = 0, at = i * nr; g < nr; g += 8, at += 8) {
        F8 s0 = load8(p.scores + at), dp0 = load8(p.dp + at), s1 = all8(0), dp1 = all8(0);
        differentiate8<kSoftcap>(s0, dp0, even, keys_at(g), spans_);
        store8(ds16 + i * kTile + g, dp0);
        if (both) {
          s1 = load8(p.scores + at + nr), dp1 = load8(p.dp + at + nr);
          differentiate8<kSoftcap>(s1, dp1, odd, keys_at(g), spans_);
          store8(ds16 + (i + 1) * kTile + g, dp1);
        }
        store8(p.scores + i / 2 * nr + g, pair8(s0, s1));
        store8(p.dp + i / 2 * nr + g, pair8(dp0, dp1));
      }
    }
  }

  // The panel's dS as columns of a left factor, 0 for the queries that see none of its keys; pairs are packed later,
  // from ds16.
  void repack(const Panel& p, bf16* ds16, float* left_ds, int64_t height) const {
    const int64_t nr = tiles_.nr();
    for (int64_t i = 0; i < p.queries; ++i)
      if (i < p.begin || i >= p.end) {
        std::fill_n(ds16 + i * kTile, nr, bf16());
        if (!tiles_.pairs()) std::fill_n(p.dp + i * nr, nr, 0.f);
      }
    if (tiles_.pairs()) return;
    for (int64_t i = 0; i < p.queries; i += height, left_ds += tiles_.left_panel(kTile))
      tiles_.pack_left(left_ds, p.dp + i * nr, nr, false, std::min(height, p.queries - i), nr);
  }

  // The dK or dV of one panel's keys, from its transpose, into the gradient or, if its heads are yet to be added,
  // theirs.
  void write_keys(const Tensor& dx, const Tensor& of_heads, const float* from, int64_t key, int64_t keys, int64_t h,
                  bool any) const {
    float factor[32];
    std::fill_n(factor, 32, any ? 1.f : 0.f);
    const int64_t at = (key * n_.heads + h) * n_.dim, nr = tiles_.nr();
    n_.group > 1 ? write_transposed(of_heads.data<float>() + at, n_.ld, from, nr, n_.dim, keys, factor)
                 : write_transposed(dx.data<T>() + at, n_.ld, from, nr, n_.dim, keys, factor);
  }

  void add_heads(const Tensor& dx, const Tensor& of_heads) const {
    T* to = dx.data<T>();
    const float* from = of_heads.data<float>();
    const int64_t parts = omp_get_max_threads();  // of every sample, in one parallel region
    parallel(parts, 1, [&](int64_t part, int64_t end) {
      for (int64_t s = 0; s < n_.samples; ++s) {
        const int64_t begin = k_begin_[s] * n_.kv_heads, rows = k_len_[s] * n_.kv_heads;
        for (int64_t i = begin + rows * part / parts; i < begin + rows * end / parts; ++i)
          for (int64_t d = 0; d < n_.dim; ++d) {
            float sum = 0;
            for (int64_t g = 0; g < n_.group; ++g) sum += from[(i * n_.group + g) * n_.dim + d];
            to[i * n_.dim + d] = T(sum);
          }
      }
    });
  }

  const AttentionSizes n_;
  const AttentionSpans& spans_;
  const Tiles tiles_;
  const int32_t *first_, *last_, *offset_, *k_begin_, *k_len_;
  const T *q_, *k_, *v_, *do_, *o_;
  const float* lse_;
  const Tensor d_;  // [queries, heads]
  Tensor *dq_, *dk_, *dv_;
  Tensor dk_of_, dv_of_;  // [keys, heads, dim], where several heads share a key head
};

}  // namespace

void Cpu::attention_backward(Tensor* dq, Tensor* dk, Tensor* dv, const Tensor& dout, const Tensor& o, const Tensor& lse,
                             const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSpans& spans) {
  with_type(q.dtype(), [&]<class T>(T*) { Backward<T>(dq, dk, dv, dout, o, lse, q, k, v, spans).run(); });
}

}  // namespace t2l::cpu
