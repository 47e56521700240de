// Any bytes as the prompts of t2l-run: a prompt, or one with an error, for each line, or an Error.
#include <cstdlib>

#include "tools/prompts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  try {
    for (const Prompt& p : parse_prompts({reinterpret_cast<const char*>(data), size}, "fuzz")) {
      if (p.where.empty()) std::abort();
      for (const int32_t id : p.ids)
        if (id < 0) std::abort();
    }
  } catch (const Error&) {}
  return 0;
}
