// Files. Reading maps them; writing is all or nothing: what is written lies under a temporary name beside its target
// and is renamed when complete, so that neither a full disk nor an exception leaves half a result or spoils an old one.
// Documented limit: a mapped file that someone else shortens meanwhile ends the program with SIGBUS.
#pragma once
#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/check.h"

namespace t2l {

using Bytes = std::span<const std::byte>;
inline Bytes as_bytes(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }
inline std::string_view as_text(Bytes b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

// For names out of files in messages: one line of at most 80 characters, everything unprintable escaped.
std::string printable(std::string_view s);
bool valid_utf8(std::string_view s);

// Calls f(line, number) for each line of a text, without its end, counted from 1.
template <class F>
void for_lines(std::string_view text, F&& f) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    f(text.substr(0, end), number);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// A file's bytes, read-only; copies share the mapping.
class MappedFile {
 public:
  static MappedFile open(const std::string& path);               // Error if it is not a readable regular file
  static MappedFile view(Bytes bytes, const std::string& name);  // stands for a file; the caller keeps bytes alive

  const std::string& path() const { return path_; }
  Bytes bytes() const { return {memory_.get(), size_}; }
  size_t size() const { return size_; }
  const std::shared_ptr<const std::byte>& memory() const { return memory_; }

 private:
  std::string path_;
  std::shared_ptr<const std::byte> memory_;
  size_t size_ = 0;
};

// The whole of a file that should be small. Error if it has more than max_bytes.
std::string read_text_file(const std::string& path, size_t max_bytes = size_t(64) << 20);

// Writes `path` through `path.tmp-<pid>`, which is removed unless commit() is reached.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(Bytes bytes) { write(std::span<const Bytes>(&bytes, 1)); }
  void write(std::string_view text) { write(as_bytes(text)); }
  void write(std::span<const Bytes> pieces);  // one system call for up to a thousand pieces
  void commit();                              // closes and renames; Error if the disk did not take it all

 private:
  std::string path_, temporary_;
  int fd_ = -1;
};

void write_text_file(const std::string& path, std::string_view text);  // atomic

// A directory of results, built as `path.tmp-<pid>` beside its place, or as `path/.tmp-<pid>` if the place is a
// directory already, and put there by commit().
//
// Error if the path exists and is anything but an empty directory. With force, a directory with files in it is taken
// too: files of the same names are replaced, each atomically, and all others stay. Missing parents are created, and
// removed again if nothing is committed.
class OutputDirectory {
 public:
  OutputDirectory(const std::string& path, bool force);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  const std::string& path() const { return temporary_; }  // where to write meanwhile
  std::string file(std::string_view name) const { return temporary_ + "/" + std::string(name); }
  void commit();

 private:
  std::string path_, temporary_;
  std::vector<std::string> parents_;  // the directories created above it, outermost first
};

}  // namespace t2l
