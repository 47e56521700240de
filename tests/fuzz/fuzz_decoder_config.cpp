// Any bytes as a decoder's config.json and as its generation_config.json: sizes that no later arithmetic overflows and
// finite numbers, or an Error.
#include <cmath>
#include <cstdlib>

#include "transformer/decoder_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  try {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    try {
      GenerationConfig g;
      g.take_generation(json, "fuzz");
      if (!(g.temperature >= 0) || !(g.top_p > 0 && g.top_p <= 1) || g.top_k < 0) std::abort();
      for (const int32_t id : g.eos)
        if (id < 0) std::abort();
    } catch (const Error&) {}
    const DecoderConfig c = DecoderConfig::parse(json, "fuzz");
    if (c.head_dim % 2 || c.head_dim > 256 || c.heads % c.kv_heads || !(c.eps > 0)) std::abort();
    if (int64_t(c.windows.size()) != c.layers || !std::isfinite(c.attention_scale)) std::abort();
    for (const float f : c.rope.frequencies(c.head_dim))
      if (!(f >= 0 && std::isfinite(f))) std::abort();
    for (size_t i = 0; i < kProjections; ++i)
      if (const auto [in, out] = c.linear(Projection(i)); Shape{out, in}.elements() <= 0) std::abort();
  } catch (const Error&) {}
  return 0;
}
