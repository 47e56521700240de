// Any bytes as an encoder's config.json: sizes that no later arithmetic overflows and finite frequencies, or an Error.
#include <cmath>
#include <cstdlib>

#include "transformer/encoder_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  try {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    const EncoderConfig c = EncoderConfig::parse(json, "fuzz");
    if (c.hidden != c.heads * c.head_dim() || c.head_dim() > 256 || !(c.eps > 0)) std::abort();
    for (const double f : c.rope_frequencies())
      if (!(f > 0 && std::isfinite(f))) std::abort();
    for (const auto& [rows, columns] : {std::pair(c.vocab, c.hidden), std::pair(c.positions, c.hidden),
                                        std::pair(c.types, c.hidden), std::pair(2 * c.intermediate, c.hidden)})
      if (Shape{rows, columns}.elements() < 0) std::abort();
  } catch (const Error&) {}
  return 0;
}
