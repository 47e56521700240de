// Who may see whom in packed sequences, for attention(): AttentionSpans (tensor/ops.h) made from host offsets.
#pragma once
#include <span>

#include "tensor/ops.h"

namespace t2l {

// offsets: [samples + 1], from 0, not decreasing; sample s has the rows offsets[s] .. offsets[s + 1] of queries and
// keys alike. scale multiplies q k, as a rule by 1 / sqrt(head dimension).

// Every token sees its whole sample.
AttentionSpans full_spans(std::span<const int32_t> offsets, float scale, Device device);
// A token sees itself and those before it; with window > 0, itself and the window - 1 before it.
AttentionSpans causal_spans(std::span<const int32_t> offsets, float scale, int32_t window, Device device);
// The same behind a cache: the keys of sample s begin at row k_begin[s], and past[s] of them came before its queries.
// Queries behind position gist[s] of sample s see nothing before it either, which 0 does not restrict.
// queries: rows of all the queries, rising, of which alone spans are made; none: of all.
// k_begin, past: [samples]  gist: [samples], or none
AttentionSpans cached_spans(std::span<const int32_t> offsets, std::span<const int32_t> k_begin,
                            std::span<const int32_t> past, float scale, int32_t window, Device device,
                            std::span<const int32_t> gist = {}, std::span<const int32_t> queries = {});

}  // namespace t2l
