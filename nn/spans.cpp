#include "nn/spans.h"

#include <algorithm>

namespace t2l {
namespace {

// Of the queries whose rows `queries` has, in rising order; of all where it has none.
// seen(s, i, n) = the first and the last key, counted in sample s of n keys, that its query at position i sees
template <class Seen>
AttentionSpans make_spans(std::span<const int32_t> offsets, std::span<const int32_t> k_begin,
                          std::span<const int32_t> past, float scale, Device device, std::span<const int32_t> queries,
                          Seen&& seen) {
  T2L_CHECK(!offsets.empty() && offsets[0] == 0 && std::is_sorted(offsets.begin(), offsets.end()),
            "spans of {} offsets: they begin at 0 and do not decrease", offsets.size());
  T2L_CHECK(k_begin.size() == offsets.size() - 1 && past.size() == k_begin.size(), "keys of {} and {} samples for {}",
            k_begin.size(), past.size(), offsets.size() - 1);
  std::vector<int32_t> q_offsets = {0}, lengths, first, last;
  int32_t row = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int32_t n = past[s] + offsets[s + 1] - offsets[s];
    lengths.push_back(n);
    for (int32_t i = past[s]; i < n; ++i, ++row) {
      if (!queries.empty() && (first.size() == queries.size() || queries[first.size()] != row)) continue;
      const auto [from, to] = seen(s, i, n);
      first.push_back(k_begin[s] + from);
      last.push_back(k_begin[s] + to);
    }
    q_offsets.push_back(int32_t(first.size()));
  }
  const auto on_device = [&](std::span<const int32_t> v) { return Tensor::from(v, {int64_t(v.size())}, device); };
  return {on_device(q_offsets), on_device(k_begin), on_device(lengths), on_device(first), on_device(last), scale};
}

}  // namespace

AttentionSpans full_spans(std::span<const int32_t> offsets, float scale, Device device) {
  const std::vector<int32_t> none(std::max<size_t>(offsets.size(), 1) - 1, 0);
  return make_spans(offsets, offsets.first(none.size()), none, scale, device, {},
                    [](size_t, int32_t, int32_t n) { return std::pair(0, n - 1); });
}

AttentionSpans causal_spans(std::span<const int32_t> offsets, float scale, int32_t window, Device device) {
  const std::vector<int32_t> none(std::max<size_t>(offsets.size(), 1) - 1, 0);
  return cached_spans(offsets, offsets.first(none.size()), none, scale, window, device);
}

AttentionSpans cached_spans(std::span<const int32_t> offsets, std::span<const int32_t> k_begin,
                            std::span<const int32_t> past, float scale, int32_t window, Device device,
                            std::span<const int32_t> gist, std::span<const int32_t> queries) {
  T2L_CHECK(window >= 0, "a window of {} tokens", window);
  T2L_CHECK(gist.empty() || gist.size() == k_begin.size(), "gists of {} samples for {}", gist.size(), k_begin.size());
  return make_spans(offsets, k_begin, past, scale, device, queries, [=](size_t s, int32_t i, int32_t) {
    const int32_t near = window > 0 ? std::max(0, i - window + 1) : 0;
    return std::pair(gist.empty() || i <= gist[s] ? near : std::max(near, gist[s]), i);
  });
}

}  // namespace t2l
