// Any bytes as a safetensors file: every tensor of a file that is accepted can be had or is refused, and lies within
// it.
#include "tensor/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  try {
    const auto file = SafeTensors::parse(MappedFile::view(std::as_bytes(std::span(data, size)), "fuzz"));
    unsigned sum = 0;
    for (const std::string& name : file.names()) try {
        const Tensor t = file.get(name);
        for (size_t i = 0; i < t.bytes(); ++i) sum += t.data<unsigned char>()[i];
      } catch (const Error&) {}
    [[maybe_unused]] volatile unsigned keep = sum;
  } catch (const Error&) {}
  return 0;
}
