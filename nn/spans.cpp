#include "nn/spans.h"

#include <algorithm>

namespace t2l {
namespace {

// seen(query, begin, end) = the first and the last key that a query of the sample begin .. end sees
template <class Seen>
AttentionSpans make_spans(std::span<const int32_t> offsets, float scale, Device device, Seen&& seen) {
  T2L_CHECK(!offsets.empty() && offsets[0] == 0 && std::is_sorted(offsets.begin(), offsets.end()),
            "spans of {} offsets: they begin at 0 and do not decrease", offsets.size());
  std::vector<int32_t> lengths, first, last;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    lengths.push_back(offsets[s + 1] - offsets[s]);
    for (int32_t i = offsets[s]; i < offsets[s + 1]; ++i) {
      const auto [from, to] = seen(i, offsets[s], offsets[s + 1]);
      first.push_back(from);
      last.push_back(to);
    }
  }
  const auto on_device = [&](std::span<const int32_t> v) { return Tensor::from(v, {int64_t(v.size())}, device); };
  return {on_device(offsets), on_device(offsets.first(offsets.size() - 1)),
          on_device(lengths), on_device(first),
          on_device(last),    scale};
}

}  // namespace

AttentionSpans full_spans(std::span<const int32_t> offsets, float scale, Device device) {
  return make_spans(offsets, scale, device,
                    [](int32_t, int32_t begin, int32_t end) { return std::pair(begin, end - 1); });
}

AttentionSpans causal_spans(std::span<const int32_t> offsets, float scale, int32_t window, Device device) {
  T2L_CHECK(window >= 0, "a window of {} tokens", window);
  return make_spans(offsets, scale, device, [window](int32_t i, int32_t begin, int32_t) {
    return std::pair(window > 0 ? std::max(begin, i - window + 1) : begin, i);
  });
}

}  // namespace t2l
