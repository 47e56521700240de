// adapter_config.json, a zero byte, and adapter_model.safetensors: an adapter whose parts fit each other, or an Error.
#include <cmath>
#include <cstdlib>

#include "t2l/adapter.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = all.find('\0');
  if (end == std::string_view::npos) return 0;
  try {
    const MappedFile file = MappedFile::view(as_bytes(all.substr(end + 1)), "fuzz.safetensors");
    const Adapter a = parse_adapter(parse_json(all.substr(0, end), "fuzz.json"), "fuzz.json", SafeTensors::parse(file));
    if (a.weights.empty() || a.spec.rank < 1) std::abort();
    for (const LoraWeights& w : a.weights)
      if (w.a.dim(0) != a.spec.rank || w.b.dim(1) != a.spec.rank || w.layer < 0) std::abort();
  } catch (const Error&) {}
  return 0;
}
