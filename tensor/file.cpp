#include "tensor/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

namespace t2l {
namespace fs = std::filesystem;

std::string printable(std::string_view s) {
  constexpr size_t kMost = 80;
  std::string out;
  const bool utf8 = valid_utf8(s);
  size_t i = 0;
  for (; i < s.size() && out.size() < kMost; ++i) {
    const auto c = static_cast<unsigned char>(s[i]);
    if (c < 0x20 || c == 0x7f || (c >= 0x80 && !utf8))
      out += fmt::format("\\x{:02x}", c);
    else
      out += s[i];
  }
  while (utf8 && i < s.size() && (static_cast<unsigned char>(s[i]) & 0xC0) == 0x80) out += s[i++];
  return i < s.size() ? out + "..." : out;
}

bool valid_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto c = static_cast<unsigned char>(s[i]);
    const int more = c < 0x80                ? 0
                     : c >= 0xC2 && c < 0xE0 ? 1
                     : c >= 0xE0 && c < 0xF0 ? 2
                     : c >= 0xF0 && c < 0xF5 ? 3
                                             : -1;
    if (more < 0 || s.size() - i <= size_t(more)) return false;
    uint32_t code = more == 0 ? c : c & (0x3F >> more);
    for (int k = 1; k <= more; ++k) {
      const auto d = static_cast<unsigned char>(s[i + size_t(k)]);
      if ((d & 0xC0) != 0x80) return false;
      code = code << 6 | (d & 0x3F);
    }
    if ((more == 2 && (code < 0x800 || (code >= 0xD800 && code < 0xE000))) ||
        (more == 3 && (code < 0x10000 || code > 0x10FFFF)))
      return false;
    i += size_t(more) + 1;
  }
  return true;
}

namespace {

[[noreturn]] void fail_errno(const std::string& path, const char* doing, const char* remedy) {
  fail("{}: cannot {}: {}; {}", path, doing, std::strerror(errno), remedy);
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a fifo must not wait for a writer.
  const Descriptor d{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (d.fd < 0) fail_errno(path, "open", "check the path and its permissions");
  struct stat info {};
  if (::fstat(d.fd, &info) != 0) fail_errno(path, "examine", "check the file system");
  if (S_ISDIR(info.st_mode)) fail("{}: is a directory; name a file in it", path);
  if (!S_ISREG(info.st_mode)) fail("{}: is not a regular file; copy its contents to one first", path);

  const auto size = size_t(info.st_size);
  if (size == 0) return view({}, path);
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, d.fd, 0);
  if (p == MAP_FAILED) fail_errno(path, "map", "free some memory or move it to a local disk");
  MappedFile file;
  file.path_ = path;
  file.size_ = size;
  file.memory_ = {static_cast<const std::byte*>(p),
                  [size](const std::byte* q) { ::munmap(const_cast<std::byte*>(q), size); }};
  return file;
}

MappedFile MappedFile::view(Bytes bytes, const std::string& name) {
  static constexpr std::byte kNothing{};
  MappedFile file;
  file.path_ = name;
  file.size_ = bytes.size();
  file.memory_ = {bytes.empty() ? &kNothing : bytes.data(), [](const std::byte*) {}};
  return file;
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  const Descriptor d{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (d.fd < 0) fail_errno(path, "open", "check the path and its permissions");
  std::string text;
  struct stat info {};
  if (::fstat(d.fd, &info) == 0 && S_ISREG(info.st_mode)) text.reserve(std::min(size_t(info.st_size), max_bytes) + 1);
  for (char buffer[1 << 16];;) {
    const ssize_t n = ::read(d.fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path, "read", "name a readable file");
    if (n == 0) return text;
    text.append(buffer, size_t(n));
    if (text.size() > max_bytes)
      fail("{}: has more than {} bytes, the limit for such a file; is it the right one?", path, max_bytes);
  }
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(fmt::format("{}.tmp-{}", path_, ::getpid())) {
  // A process of the same number may have died here; O_EXCL after unlink never follows a link someone left.
  ::unlink(temporary_.c_str());
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_errno(path_, "create", "check that its directory exists and is writable");
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const Bytes> pieces) {
  T2L_CHECK(fd_ >= 0, "{}: written after commit", path_);
  constexpr size_t kMost = 1024;  // IOV_MAX
  std::vector<iovec> pending;
  size_t next = 0;
  while (next < pieces.size() || !pending.empty()) {
    for (; next < pieces.size() && pending.size() < kMost; ++next)
      if (!pieces[next].empty()) pending.push_back({const_cast<std::byte*>(pieces[next].data()), pieces[next].size()});
    if (pending.empty()) break;
    const ssize_t n = ::writev(fd_, pending.data(), int(pending.size()));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path_, "write", "free some space or write elsewhere");
    auto left = size_t(n);
    size_t done = 0;
    for (; done < pending.size() && left >= pending[done].iov_len; ++done) left -= pending[done].iov_len;
    pending.erase(pending.begin(), pending.begin() + ptrdiff_t(done));
    if (left) {
      pending[0].iov_base = static_cast<char*>(pending[0].iov_base) + left;
      pending[0].iov_len -= left;
    }
  }
}

void AtomicFile::commit() {
  T2L_CHECK(fd_ >= 0, "{}: committed twice", path_);
  if (::close(std::exchange(fd_, -1)) != 0) fail_errno(path_, "write", "free some space or write elsewhere");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_errno(path_, "replace", "check what is there");
  temporary_.clear();
}

void write_text_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

OutputDirectory::OutputDirectory(const std::string& path, bool force) try {
  fs::path place = fs::weakly_canonical(fs::absolute(path));
  if (!place.has_filename()) place = place.parent_path();
  if (!place.has_filename()) fail("'{}' cannot be an output directory; name another", path);
  path_ = place.string();
  if (fs::exists(fs::symlink_status(place))) {
    if (!fs::is_directory(place)) fail("{}: exists and is not a directory; choose another output directory", path);
    if (!force && !fs::is_empty(place))
      fail("{}: exists and is not empty; choose another output directory or give --force", path);
  }
  for (fs::path p = place.parent_path(); !fs::exists(p); p = p.parent_path()) parents_.insert(parents_.begin(), p);
  fs::create_directories(place.parent_path());
  // Within a directory that is there: what is beside it may be another file system, or not ours to write.
  const std::string name = fmt::format("{}{}tmp-{}", path_, fs::exists(place) ? "/." : ".", ::getpid());
  fs::remove_all(name);  // a process of the same number may have died here
  fs::create_directory(name);
  temporary_ = name;
} catch (const fs::filesystem_error& e) {
  fail("{}: cannot create the output directory: {}; check its parent and permissions", path, e.code().message());
}

OutputDirectory::~OutputDirectory() {
  if (temporary_.empty()) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  for (auto p = parents_.rbegin(); p != parents_.rend(); ++p) fs::remove(*p, ignored);
}

void OutputDirectory::commit() try {
  if (!fs::exists(path_)) {
    fs::rename(temporary_, path_);
  } else {
    // Into a directory that is there (an empty one too: it may be somebody's working directory) file by file, once it
    // is known that each has its place.
    for (const auto& entry : fs::recursive_directory_iterator(temporary_)) {
      const fs::path target = path_ / fs::relative(entry.path(), temporary_);
      if (fs::exists(target) && fs::is_directory(target) != entry.is_directory())
        fail("{}: is in the way of a {}; remove it or choose another output directory", target.string(),
             entry.is_directory() ? "directory" : "file");
    }
    for (const auto& entry : fs::recursive_directory_iterator(temporary_)) {
      const fs::path target = path_ / fs::relative(entry.path(), temporary_);
      if (entry.is_directory())
        fs::create_directories(target);
      else
        fs::rename(entry.path(), target);
    }
    fs::remove_all(temporary_);
  }
  temporary_.clear();
} catch (const fs::filesystem_error& e) {
  fail("{}: cannot put the results there: {}; check what is in it", path_, e.code().message());
}

}  // namespace t2l
