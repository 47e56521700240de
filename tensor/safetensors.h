// safetensors (github.com/huggingface/safetensors): u64 N, little endian; N bytes of JSON that describe each tensor;
// the data, one tensor after another without a gap. Files are mapped and tensors are views of the mapping. Everything
// the format demands is checked on opening: a file is accepted whole or refused.
#pragma once
#include <map>
#include <optional>
#include <utility>

#include "tensor/stored.h"

namespace t2l {

class SafeTensors {
 public:
  struct Info {
    Stored type;
    std::vector<int64_t> shape;
    Bytes bytes;
    std::shared_ptr<const std::byte> owner;
    std::string file;
  };

  // A .safetensors file, a sharded model's index (model.safetensors.index.json), or a directory that has
  // model.safetensors or that index.
  static SafeTensors open(const std::string& path);
  static SafeTensors parse(const MappedFile& file);

  const std::string& path() const { return path_; }
  const std::vector<std::string>& names() const { return names_; }  // sorted
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  const Info& info(const std::string& name) const;  // Error if there is none
  Tensor get(const std::string& name) const;  // as stored.h converts; Error for a type the engine has no place for
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  static SafeTensors open_index(const std::string& path);

  std::string path_;
  std::vector<std::string> names_;
  std::map<std::string, Info> tensors_;
  std::map<std::string, std::string> metadata_;
};

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// Writes atomically, in the official library's layout: by falling element size, then by name. With `as`, f32 and bf16
// tensors are stored as that (F32, BF16 or F16). Tensors on a device are downloaded.
void write_safetensors(const std::string& path, const NamedTensors& tensors, std::optional<Stored> as = {},
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace t2l
