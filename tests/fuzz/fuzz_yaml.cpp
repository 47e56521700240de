// Any bytes as YAML: a value or an Error, nothing else.
#include "t2l/yaml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const t2l::Json value = t2l::parse_yaml({reinterpret_cast<const char*>(data), size}, "fuzz");
    const t2l::Object object(value, "fuzz");
    object.get_float_or("a", 0);
    object.get_int_or("a", 0, 0, 10);
  } catch (const t2l::Error&) {}
  return 0;
}
