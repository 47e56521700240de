// Checkpoints as torch.save writes them: a zip file of stored (uncompressed) entries, one of them a pickle, the others
// the tensors' memory. A pickle is a program, and Python's loader runs whatever it calls. The one here knows how to
// rebuild tensors and the dict of them, refuses everything else by its name, and has nothing it could run.
// Layout: github.com/pytorch/pytorch, torch/serialization.py, torch/_weights_only_unpickler.py.
#pragma once
#include <deque>
#include <unordered_map>

#include "tensor/safetensors.h"

namespace t2l {

class TorchArchive {
 public:
  struct Info {
    Stored type;
    std::vector<int64_t> shape, strides;  // strides in elements
    Bytes bytes;                          // from the first element to the end of its storage
  };

  // A state dict. Error if the file is anything else, is damaged in its structure or its pickle, or would do anything
  // but rebuild tensors.
  static TorchArchive open(const std::string& path) { return parse(MappedFile::open(path)); }
  static TorchArchive parse(const MappedFile& file);

  const std::string& path() const { return file_.path(); }
  const std::vector<std::string>& names() const { return names_; }  // in the order of the state dict
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  const Info& info(const std::string& name) const;  // Error if there is none
  Tensor get(const std::string& name) const;        // a view of the mapping where stored.h allows it

  // Compares every entry with its CRC-32; Error if one differs. Apart from open(), so that a thread can do it while the
  // tensors are used; nothing made of them should be kept before it returns.
  void verify() const;

 private:
  MappedFile file_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Info> tensors_;
  struct Checksum {
    std::string name;
    Bytes bytes;
    uint32_t crc;
  };
  std::vector<Checksum> checksums_;
};

// Writes atomically what torch.load(weights_only=True) reads as an OrderedDict of these tensors, in this order.
void write_torch_archive(const std::string& path, const NamedTensors& tensors);

// A zip file of stored entries, each entry's data at a multiple of 64 bytes, as pieces to be written in turn.
struct ZipImage {
  std::deque<std::string> headers;
  std::vector<Bytes> pieces;  // views of headers and of the entries' data
};
ZipImage make_zip(std::span<const std::pair<std::string, Bytes>> entries);

}  // namespace t2l
