// Any bytes as the index of a sharded model whose two shards are in order: all their tensors, or an Error.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tensor/safetensors.h"

namespace {

// A folder with two shards, made once.
const std::string& folder() {
  static const struct Folder {
    std::string path = (std::filesystem::temp_directory_path() / ("t2l-fuzz-" + std::to_string(::getpid()))).string();
    Folder() {
      std::filesystem::create_directories(path);
      const t2l::Tensor x = t2l::Tensor::zeros({3});
      t2l::write_safetensors(path + "/1.safetensors", {{"a", x}, {"b", x}});
      t2l::write_safetensors(path + "/2.safetensors", {{"c", x}});
    }
    ~Folder() { std::filesystem::remove_all(path); }
  } made;
  return made.path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  const std::string path = folder() + "/model.safetensors.index.json";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), std::streamsize(size));
  try {
    const SafeTensors file = SafeTensors::open(path);
    for (const std::string& name : file.names())
      if (file.get(name).size() != 3) std::abort();
  } catch (const Error&) {}
  return 0;
}
