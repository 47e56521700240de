// Any bytes as a PyTorch checkpoint. An odd first byte: the rest is a pickle, in a zip file made around it whose CRC is
// right and whose storages 0 and 1 have 64 bytes each; an even one: the rest is the zip file.
#include "t2l/torch_archive.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace t2l;
  if (size == 0) return 0;
  const Bytes rest = std::as_bytes(std::span(data, size)).subspan(1);
  std::vector<std::byte> zip;
  if (data[0] & 1) {
    static constexpr std::byte kStorage[64] = {};
    const std::pair<std::string, Bytes> entries[] = {
        {"a/data.pkl", rest}, {"a/data/0", kStorage}, {"a/data/1", kStorage}};
    for (const ZipImage image = make_zip(entries); const Bytes piece : image.pieces)
      zip.insert(zip.end(), piece.begin(), piece.end());
  }
  try {
    const auto file = TorchArchive::parse(MappedFile::view(data[0] & 1 ? Bytes(zip) : rest, "fuzz"));
    unsigned sum = 0;
    for (const std::string& name : file.names()) try {
        const Tensor t = file.get(name);
        for (size_t i = 0; i < t.bytes(); ++i) sum += t.data<unsigned char>()[i];
      } catch (const Error&) {}
    [[maybe_unused]] volatile unsigned keep = sum;
    file.verify();
  } catch (const Error&) {}
  return 0;
}
