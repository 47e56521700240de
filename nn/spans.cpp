#include "nn/spans.h"

#include <algorithm>

namespace t2l {
namespace {

// seen(s, i, n) = the first and the last key, counted in sample s of n keys, that its query at position i sees
template <class Seen>
AttentionSpans make_spans(std::span<const int32_t> offsets, std::span<const int32_t> k_begin,
                          std::span<const int32_t> past, float scale, Device device, Seen&& seen) {
  T2L_CHECK(!offsets.empty() && offsets[0] == 0 && std::is_sorted(offsets.begin(), offsets.end()),
            "spans of {} offsets: they begin at 0 and do not decrease", offsets.size());
  T2L_CHECK(k_begin.size() == offsets.size() - 1 && past.size() == k_begin.size(), "keys of {} and {} samples for {}",
            k_begin.size(), past.size(), offsets.size() - 1);
  std::vector<int32_t> lengths, first, last;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int32_t n = past[s] + offsets[s + 1] - offsets[s];
    lengths.push_back(n);
    for (int32_t i = past[s]; i < n; ++i) {
      const auto [from, to] = seen(s, i, n);
      first.push_back(k_begin[s] + from);
      last.push_back(k_begin[s] + to);
    }
  }
  const auto on_device = [&](std::span<const int32_t> v) { return Tensor::from(v, {int64_t(v.size())}, device); };
  return {on_device(offsets), on_device(k_begin), on_device(lengths), on_device(first), on_device(last), scale};
}

}  // namespace

AttentionSpans full_spans(std::span<const int32_t> offsets, float scale, Device device) {
  const std::vector<int32_t> none(std::max<size_t>(offsets.size(), 1) - 1, 0);
  return make_spans(offsets, offsets.first(none.size()), none, scale, device,
                    [](size_t, int32_t, int32_t n) { return std::pair(0, n - 1); });
}

AttentionSpans causal_spans(std::span<const int32_t> offsets, float scale, int32_t window, Device device) {
  const std::vector<int32_t> none(std::max<size_t>(offsets.size(), 1) - 1, 0);
  return cached_spans(offsets, offsets.first(none.size()), none, scale, window, device);
}

AttentionSpans cached_spans(std::span<const int32_t> offsets, std::span<const int32_t> k_begin,
                            std::span<const int32_t> past, float scale, int32_t window, Device device,
                            std::span<const int32_t> gist) {
  T2L_CHECK(window >= 0, "a window of {} tokens", window);
  T2L_CHECK(gist.empty() || gist.size() == k_begin.size(), "gists of {} samples for {}", gist.size(), k_begin.size());
  return make_spans(offsets, k_begin, past, scale, device, [=](size_t s, int32_t i, int32_t) {
    const int32_t near = window > 0 ? std::max(0, i - window + 1) : 0;
    return std::pair(gist.empty() || i <= gist[s] ? near : std::max(near, gist[s]), i);
  });
}

AttentionSpans spans_of_queries(const AttentionSpans& all, std::span<const int32_t> queries) {
  const auto first = all.first.to_vector<int32_t>(), last = all.last.to_vector<int32_t>();
  std::vector<int32_t> offsets = all.q_offsets.to_vector<int32_t>(), some_first, some_last;
  for (int32_t& end : offsets) end = int32_t(std::lower_bound(queries.begin(), queries.end(), end) - queries.begin());
  for (const int32_t i : queries) {
    some_first.push_back(first.at(size_t(i)));
    some_last.push_back(last.at(size_t(i)));
  }
  const Device on = all.first.device();
  AttentionSpans some = all;
  some.q_offsets = Tensor::from(offsets, on);
  some.first = Tensor::from(some_first, on);
  some.last = Tensor::from(some_last, on);
  return some;
}

}  // namespace t2l
