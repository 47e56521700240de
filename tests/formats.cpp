// The file formats: what is written is read back the same, and what is no such file (cut off, lying, oversized, damaged
// bit by bit, or made to do harm) is refused with one line that names it.
#include <immintrin.h>
#include <sys/resource.h>
#include <unistd.h>
#include <zlib.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "t2l/crc32.h"
#include "t2l/torch_archive.h"
#include "t2l/yaml.h"
#include "tensor/json.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

struct Scratch {
  fs::path path = fs::temp_directory_path() / fmt::format("t2l-formats-{}", ::getpid());
  Scratch() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Scratch() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  size_t entries() const { return size_t(std::distance(fs::directory_iterator(path), fs::directory_iterator())); }
};

// The message of the Error that f must throw: one line.
std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    const std::string message = e.what();
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.size() < 500);
    return message;
  }
  return "(accepted)";
}
void check_refused(const std::function<void()>& f, const std::string& part, const std::string& where = "FILE") {
  const std::string message = refusal(f);
  INFO(message);
  CHECK(message.find(part) != std::string::npos);
  CHECK(message.find(where) != std::string::npos);
}

MappedFile image(std::string_view bytes) { return MappedFile::view(as_bytes(bytes), "FILE"); }
SafeTensors parse_st(std::string_view bytes) { return SafeTensors::parse(image(bytes)); }
TorchArchive parse_pt(std::string_view bytes) { return TorchArchive::parse(image(bytes)); }
std::string slurp(const std::string& path) { return read_text_file(path); }

template <class T>
std::string raw(T x) {
  return {reinterpret_cast<const char*>(&x), sizeof x};
}

Tensor random_tensor(std::mt19937& g, Shape shape, DType dtype) {
  std::normal_distribution<float> normal;
  const auto n = size_t(shape.elements());
  std::vector<float> f(n);
  std::vector<bf16> b(n);
  std::vector<int32_t> i(n);
  for (size_t k = 0; k < n; ++k) f[k] = normal(g), b[k] = f[k], i[k] = int32_t(g());
  if (dtype == DType::F32) return Tensor::from(std::span<const float>(f), shape);
  if (dtype == DType::BF16) return Tensor::from(std::span<const bf16>(b), shape);
  return Tensor::from(std::span<const int32_t>(i), shape);
}

bool same(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.size() == 0 || !std::memcmp(a.raw(), b.raw(), a.bytes()));
}

NamedTensors some_tensors(std::mt19937& g) {
  return {
      {"z.weight", random_tensor(g, {3, 5}, DType::F32)}, {"a.bias", random_tensor(g, {7}, DType::BF16)},
      {"ids", random_tensor(g, {2, 1, 3}, DType::I32)},   {"scalar", random_tensor(g, {}, DType::F32)},
      {"none", random_tensor(g, {0, 4}, DType::F32)},     {"\"quoted\" \xc3\xa9", random_tensor(g, {17}, DType::F32)},
      {"wide", random_tensor(g, {2, 1031}, DType::BF16)}};
}

// ---- files
// ------------------------------------------------------------------------------------------------------------

TEST_CASE("a file is replaced whole or not at all", "[formats]") {
  const Scratch dir;
  write_text_file(dir / "a", "old");
  {
    AtomicFile abandoned(dir / "a");
    abandoned.write("half of the new");
  }
  CHECK(slurp(dir / "a") == "old");
  CHECK(dir.entries() == 1);
  {
    AtomicFile file(dir / "a");
    std::vector<std::string> texts;
    for (int i = 0; i < 3000; ++i) texts.push_back(std::to_string(i) + (i % 7 ? "" : std::string(size_t(i), 'x')));
    std::vector<Bytes> pieces;
    std::string all;
    for (const auto& t : texts) pieces.push_back(as_bytes(t)), pieces.push_back({}), all += t;
    file.write(pieces);
    file.commit();
    CHECK(slurp(dir / "a") == all);
  }
  CHECK(dir.entries() == 1);
  check_refused([&] { write_text_file(dir / "missing/b", "x"); }, "cannot create", "missing/b");
  check_refused([&] { read_text_file(dir / "a", 100); }, "more than 100 bytes", "a");
  check_refused([&] { MappedFile::open(dir / "b"); }, "cannot open", "/b");
  check_refused([&] { MappedFile::open(dir.path.string()); }, "is a directory", dir.path.string());
  check_refused([&] { MappedFile::open("/dev/null"); }, "not a regular file", "/dev/null");
}

TEST_CASE("a full disk is an error and the old file stays", "[formats]") {
  // A limit on file size acts as a disk that fills: a short write, then an error.
  const Scratch dir;
  write_text_file(dir / "a", "old");
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{100'000, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string message = refusal([&] { write_text_file(dir / "a", std::string(300'000, 'x')); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(message.find("cannot write") != std::string::npos);
  CHECK(slurp(dir / "a") == "old");
  CHECK(dir.entries() == 1);
}

TEST_CASE("an output directory appears complete", "[formats]") {
  const Scratch dir;
  const std::string out = dir / "x/y/out/";
  { const OutputDirectory abandoned(out, false); }
  CHECK(dir.entries() == 0);
  {
    OutputDirectory made(out, false);
    write_text_file(made.file("a"), "1");
    fs::create_directory(made.file("sub"));
    write_text_file(made.file("sub/b"), "2");
    CHECK(!fs::exists(dir / "x/y/out"));
    made.commit();
  }
  CHECK(slurp(out + "sub/b") == "2");
  check_refused([&] { OutputDirectory(out, false); }, "--force", "x/y/out");
  check_refused([&] { OutputDirectory(out + "a", true); }, "not a directory", "x/y/out");
  {
    OutputDirectory forced(out, true);
    write_text_file(forced.file("a"), "3");
    fs::create_directories(forced.file("sub/deeper"));
    write_text_file(forced.file("sub/deeper/c"), "4");
    forced.commit();
  }
  CHECK(slurp(out + "a") == "3");
  CHECK(slurp(out + "sub/b") == "2");
  CHECK(slurp(out + "sub/deeper/c") == "4");
  CHECK(std::distance(fs::directory_iterator(dir / "x/y"), fs::directory_iterator()) == 1);
  fs::create_directory(dir / "empty");
  OutputDirectory into(dir / "empty", false);
  write_text_file(into.file("a"), "5");
  into.commit();
  CHECK(slurp(dir / "empty/a") == "5");
}

TEST_CASE("names in messages stay on one short line", "[formats]") {
  CHECK(printable("a\n\x1b[31mb") == "a\\x0a\\x1b[31mb");
  CHECK(printable("\xc3\xa9") == "\xc3\xa9");
  CHECK(printable("\xc3") == "\\xc3");
  CHECK(printable(std::string(1000, 'x')).size() == 83);
  CHECK(valid_utf8(printable(std::string(79, 'x') + "\xf0\x9f\x98\x80" + "yy")));
  for (const char* bad : {"\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\xff"})
    CHECK(!valid_utf8(bad));
  for (const char* good : {"", "a", "\xc2\x80", "\xed\x9f\xbf", "\xef\xbf\xbf", "\xf4\x8f\xbf\xbf"})
    CHECK(valid_utf8(good));
}

TEST_CASE("half precision converts as the hardware does", "[formats]") {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = f16_to_f32(uint16_t(h));
    const float expected = _cvtsh_ss(uint16_t(h));
    if (std::isnan(expected))
      CHECK(std::isnan(f));
    else if (std::bit_cast<uint32_t>(f) != std::bit_cast<uint32_t>(expected) || f32_to_f16(f) != h)
      FAIL_CHECK(h);
  }
  std::mt19937 g(1);
  for (int i = 0; i < 1'000'000; ++i) {
    // Half of them in f16's own range, where rounding matters.
    const uint32_t u = i % 2 ? uint32_t(g()) : (uint32_t(g()) & 0x80ffffff) | (96 + g() % 50) << 23;
    const float f = std::bit_cast<float>(u);
    if (!std::isnan(f) && f32_to_f16(f) != _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)) FAIL_CHECK(u);
  }
}

TEST_CASE("CRC-32 agrees with zlib", "[formats]") {
  std::mt19937 g(2);
  std::string data(1 << 16, 0);
  for (char& c : data) c = char(g());
  const auto agrees = [&](size_t from, size_t n) {
    return crc32(as_bytes(data).subspan(from, n)) ==
           ::crc32(0, reinterpret_cast<const Bytef*>(data.data()) + from, uInt(n));
  };
  for (size_t n = 0; n < 2100; ++n)
    if (!agrees(n % 67, n)) FAIL_CHECK(n);
  for (int i = 0; i < 200; ++i) {
    const size_t from = g() % data.size(), n = g() % (data.size() - from);
    CHECK(agrees(from, n));
  }
}

// ---- safetensors
// ------------------------------------------------------------------------------------------------------

std::string st(std::string_view header, std::string_view data) {
  return raw(uint64_t(header.size())) + std::string(header) + std::string(data);
}

TEST_CASE("safetensors round trip", "[formats]") {
  const Scratch dir;
  std::mt19937 g(3);
  const NamedTensors tensors = some_tensors(g);
  const std::string path = dir / "t.safetensors";
  write_safetensors(path, tensors, {}, {{"format", "pt"}, {"note", "\"\\\n"}});
  const auto file = SafeTensors::open(path);
  CHECK(file.names().size() == tensors.size());
  CHECK(file.metadata().at("note") == "\"\\\n");
  for (const auto& [name, t] : tensors) {
    CHECK(same(file.get(name), t));
    if (t.size() > 1) CHECK(file.get(name).raw() == file.info(name).bytes.data());  // a view of the mapping
  }
  check_refused([&] { file.get("absent"); }, "no tensor 'absent'", path);
  // The official layout: data at a multiple of 8, by falling element size and then name.
  uint64_t n;
  const std::string bytes = slurp(path);
  std::memcpy(&n, bytes.data(), sizeof n);
  CHECK(n % 8 == 0);
  CHECK(file.info("ids").bytes.data() > file.info("z.weight").bytes.data());
  CHECK(file.info("a.bias").bytes.data() > file.info("ids").bytes.data());
  CHECK(file.info("z.weight").bytes.data() > file.info("scalar").bytes.data());

  Tensor kept;
  {
    const auto temporary = SafeTensors::open(path);
    kept = temporary.get("z.weight");
  }
  CHECK(same(kept, tensors[0].second));

  for (const Stored as : {Stored::F32, Stored::BF16, Stored::F16}) {
    write_safetensors(path, tensors, as);
    const auto converted = SafeTensors::open(path);
    CHECK(same(converted.get("ids"), tensors[2].second));
    const Tensor w = converted.get("z.weight");
    CHECK(w.dtype() == (as == Stored::BF16 ? DType::BF16 : DType::F32));
    for (int64_t i = 0; i < w.size(); ++i) {
      const float x = tensors[0].second.data<float>()[i];
      const float y = as == Stored::BF16 ? float(w.data<bf16>()[i]) : w.data<float>()[i];
      CHECK(y == (as == Stored::F32 ? x : as == Stored::BF16 ? float(bf16(x)) : f16_to_f32(f32_to_f16(x))));
    }
  }
}

TEST_CASE("safetensors converts what it must and refuses what it cannot", "[formats]") {
  const std::string data =
      raw(uint16_t(0x3e00)) + raw(1.25f) + raw(int64_t(-7)) + raw(int64_t(1) << 31) + raw(2.5) + "\1\0";
  const std::string file = st(
      R"({"h":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"f":{"dtype":"F32","shape":[],"data_offsets":[2,6]},)"
      R"("l":{"dtype":"I64","shape":[1],"data_offsets":[6,14]},"big":{"dtype":"I64","shape":[1],"data_offsets":[14,22]},)"
      R"("d":{"dtype":"F64","shape":[1],"data_offsets":[22,30]},"u":{"dtype":"U8","shape":[1],"data_offsets":[30,31]},)"
      R"("seven":{"dtype":"I64","shape":[1,1,1,1,1,0,1],"data_offsets":[31,31]}})",
      data.substr(0, 31));
  const auto t = parse_st(file);
  CHECK(t.get("h").host<float>()[0] == 1.5f);
  CHECK(t.get("f").host<float>()[0] == 1.25f);  // at an odd address
  CHECK(t.get("l").host<int32_t>()[0] == -7);
  CHECK(t.get("d").host<float>()[0] == 2.5f);
  CHECK(t.info("u").type == Stored::U8);
  check_refused([&] { t.get("big"); }, "2147483648");
  check_refused([&] { t.get("u"); }, "U8");
  check_refused([&] { t.get("seven"); }, "dimensions");
}

TEST_CASE("safetensors refuses every cut and every lie", "[formats]") {
  const Scratch dir;
  std::mt19937 g(4);
  write_safetensors(dir / "t", some_tensors(g));
  const std::string good = slurp(dir / "t");
  for (size_t n = 0; n < good.size(); ++n)
    if (refusal([&] { parse_st(std::string_view(good).substr(0, n)); }) == "(accepted)") FAIL_CHECK(n);
  check_refused([&] { parse_st(good + '\0'); }, "bytes of data");

  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})", data(8, '\0');
  CHECK(parse_st(st("{" + a + "}", data)).names().size() == 1);
  CHECK(parse_st(st("{}", "")).names().empty());
  const std::pair<std::string, const char*> lies[] = {
      {"", "does not begin"},
      {" {}", "does not begin"},
      {"{} x", "not valid JSON"},
      {"{" + a + "," + a + "}", "twice"},
      {"{" + a + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "overlaps"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "gap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "bytes of data"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "need 12"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "within the file"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "within the file"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,8]}})", "more elements"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", "more elements"},
      {R"({"a":{"dtype":"F32","shape":[2305843009213693954],"data_offsets":[0,8]}})", "more elements"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,8]}})", "bytes, but"},
      {R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", "unknown dtype"},
      {R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", "unknown dtype"},
      {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", "non-negative"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "must have"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", "must have"},
      {R"({"a":[1]})", "must have"},
      {R"({"__metadata__":{"a":1},)" + a + "}", "no string"},
      {R"({"__metadata__":[],)" + a + "}", "no object"},
      {R"({"a":{"dtype":[[1]],"shape":[2],"data_offsets":[0,8]}})", "nested"},
      {"{\"\xff\":1}", "not valid JSON"},
  };
  for (const auto& [header, part] : lies) {
    INFO(header);
    check_refused([&, &h = header] { parse_st(st(h, data)); }, part);
  }
  check_refused([&] { parse_st(raw(uint64_t(100'000'001)) + "{}"); }, "100000001");
  check_refused([&] { parse_st(raw(~uint64_t(0)) + "{}"); }, "claims a header");
}

TEST_CASE("flipped bits of a safetensors file never crash", "[formats]") {
  const Scratch dir;
  std::mt19937 g(5);
  write_safetensors(dir / "t", some_tensors(g));
  std::string bytes = slurp(dir / "t");
  for (size_t bit = 0; bit < 8 * bytes.size(); bit += bit < 8000 ? 1 : 101) {
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
    try {
      const auto t = parse_st(bytes);
      for (const auto& name : t.names()) t.get(name);
    } catch (const Error&) {}
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
  }
  SUCCEED();
}

TEST_CASE("random damage never crashes", "[formats]") {
  const Scratch dir;
  std::mt19937 g(10);
  write_safetensors(dir / "t", some_tensors(g));
  write_torch_archive(dir / "m.pt", some_tensors(g));
  const std::string good[] = {slurp(dir / "t"), slurp(dir / "m.pt")};
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good[i % 2];
    for (int k = int(g() % 8); k >= 0; --k) bytes[g() % (k % 2 ? bytes.size() : 400)] = char(g());
    try {
      const MappedFile file = MappedFile::view(as_bytes(bytes), "FILE");
      if (i % 2) {
        const auto t = TorchArchive::parse(file);
        for (const auto& name : t.names()) t.get(name);
      } else {
        const auto t = SafeTensors::parse(file);
        for (const auto& name : t.names()) t.get(name);
      }
    } catch (const Error&) {}
  }
  SUCCEED();
}

TEST_CASE("a sharded model is its shards together", "[formats]") {
  const Scratch dir;
  std::mt19937 g(6);
  const NamedTensors all = some_tensors(g);
  write_safetensors(dir / "m-1.safetensors", {all[0], all[1]});
  write_safetensors(dir / "m-2.safetensors", {all[2]});
  const auto index = [&](const std::string& map) {
    write_text_file(dir / "model.safetensors.index.json", R"({"metadata":{"total_size":1},"weight_map":)" + map + "}");
  };
  index(R"({"z.weight":"m-1.safetensors","a.bias":"m-1.safetensors","ids":"m-2.safetensors"})");
  const auto file = SafeTensors::open(dir.path.string());
  CHECK(file.names() == std::vector<std::string>{"a.bias", "ids", "z.weight"});
  for (int i = 0; i < 3; ++i) CHECK(same(file.get(all[size_t(i)].first), all[size_t(i)].second));

  const std::pair<const char*, const char*> lies[] = {
      {R"({"z.weight":"m-1.safetensors","a.bias":"m-1.safetensors","ids":"m-1.safetensors"})", "is not in"},
      {R"({"z.weight":"m-1.safetensors","ids":"m-2.safetensors"})", "not listed"},
      {R"({"z.weight":"../m-1.safetensors"})", "plain file name"},
      {R"({"z.weight":".."})", "plain file name"},
      {R"({"z.weight":""})", "plain file name"},
      {R"({"z.weight":"/etc/passwd"})", "plain file name"},
      {R"({"z.weight":"m-1.safetensors\u0000"})", "plain file name"},
      {R"({"z.weight":"m-3.safetensors"})", "cannot open"},
      {R"({"z.weight":3})", "no file name"},
      {R"([])", "weight_map"},
  };
  for (const auto& [map, part] : lies) {
    INFO(map);
    index(map);
    check_refused([&] { SafeTensors::open(dir.path.string()); }, part, dir.path.string());
  }
  fs::remove(dir / "model.safetensors.index.json");
  check_refused([&] { SafeTensors::open(dir.path.string()); }, "has neither", dir.path.string());
}

// ---- PyTorch checkpoints
// ----------------------------------------------------------------------------------------------

std::string zip_of(const std::vector<std::pair<std::string, std::string>>& files) {
  std::vector<std::pair<std::string, Bytes>> entries;
  for (const auto& [name, data] : files) entries.emplace_back(name, as_bytes(data));
  std::string out;
  for (const ZipImage zip = make_zip(entries); const Bytes piece : zip.pieces) out += as_text(piece);
  return out;
}
// A checkpoint with this pickle and the storage 0 of 64 bytes, elements 0, 1, 2 ... as f32.
std::string pt(const std::string& pickle) {
  std::string storage;
  for (int i = 0; i < 16; ++i) storage += raw(float(i));
  return zip_of({{"m/data.pkl", pickle}, {"m/data/0", storage}, {"m/version", "3\n"}});
}
std::string text(const std::string& s) { return "X" + raw(uint32_t(s.size())) + s; }
std::string number(int64_t x) { return "\x8a\x08" + raw(x); }
std::string numbers(std::initializer_list<int64_t> xs) {
  std::string s = "(";
  for (int64_t x : xs) s += number(x);
  return s + "t";
}
std::string storage(const std::string& type = "FloatStorage", int64_t elements = 16, const std::string& key = "0") {
  return "(" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cuda:0") + number(elements) + "tQ";
}
const std::string kDict = "ccollections\nOrderedDict\n)R";
std::string tensor(const std::string& of, int64_t offset, std::initializer_list<int64_t> size,
                   std::initializer_list<int64_t> stride) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + of + number(offset) + numbers(size) + numbers(stride) + "\x89" +
         kDict + "tR";
}
std::string dict_of(const std::string& items) { return "\x80\x02" + kDict + "(" + items + "u."; }

TEST_CASE("PyTorch checkpoint round trip", "[formats]") {
  const Scratch dir;
  std::mt19937 g(7);
  const NamedTensors tensors = some_tensors(g);
  write_torch_archive(dir / "hypermod.pt", tensors);
  const auto file = TorchArchive::open(dir / "hypermod.pt");
  file.verify();
  REQUIRE(file.names().size() == tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    CHECK(file.names()[i] == tensors[i].first);
    const Tensor t = file.get(tensors[i].first);
    CHECK(same(t, tensors[i].second));
    CHECK(t.raw() == file.info(tensors[i].first).bytes.data());  // a view of the mapping
  }
  check_refused([&] { file.get("absent"); }, "no tensor 'absent'", "hypermod.pt");
}

TEST_CASE("a checkpoint's tensors may be views and parameters", "[formats]") {
  const std::string bytes = pt(dict_of(text("t") + tensor(storage(), 1, {3, 2}, {1, 4}) + text("view") +
                                       tensor(storage(), 4, {2, 3}, {3, 1}) + text("p") +
                                       "ctorch._utils\n_rebuild_parameter\n(" + tensor(storage(), 0, {}, {}) + "\x88" +
                                       kDict + "tR" + text("l") + tensor(storage("LongStorage", 8), 0, {0}, {1}) +
                                       text("h") + tensor(storage("HalfStorage", 32), 30, {2}, {1})));
  const auto file = parse_pt(bytes);
  file.verify();
  CHECK(file.names() == std::vector<std::string>{"t", "view", "p", "l", "h"});
  CHECK(file.get("t").to_vector<float>() == std::vector<float>{1, 5, 2, 6, 3, 7});
  CHECK(file.get("view").to_vector<float>() == std::vector<float>{4, 5, 6, 7, 8, 9});
  CHECK(file.get("p").rank() == 0);
  CHECK(file.get("l").size() == 0);
  CHECK(file.get("h").to_vector<float>() == std::vector<float>{0, f16_to_f32(0x4170)});
  // What generic pickling produces besides: dicts and attributes that are dropped, an empty state dict.
  CHECK(parse_pt(pt("\x80\x02" + kDict + "(u}" + text("_metadata") + kDict + "sb.")).names().empty());
}

TEST_CASE("a checkpoint can build tensors and nothing else", "[formats]") {
  const std::string one = text("a") + tensor(storage(), 0, {16}, {1});
  CHECK(parse_pt(pt(dict_of(one))).names().size() == 1);
  const std::pair<std::string, const char*> pickles[] = {
      {"cposix\nsystem\n" + text("echo") + "\x85R.", "refuses 'posix.system'"},
      {"cos\nsystem\n(S'echo'\ntR.", "refuses 'os.system'"},
      {"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04"
       "echo\x85R.",
       "refuses 'posix.system'"},
      {"(S'echo'\nios\nsystem\n.", "refuses the pickle instruction 0x53"},
      {"(ios\nsystem\n.", "refuses 'os.system'"},
      {"cbuiltins\neval\n" + text("1") + "\x85R.", "refuses 'builtins.eval'"},
      {"ctorch\nload\n)R.", "refuses 'torch.load'"},
      {"ctorch.FloatStorage\n\n)R.", "refuses 'torch.FloatStorage.'"},
      {"cos\nsys\x1b[2Jtem\n.", "refuses 'os.sys\\x1b[2Jtem'"},
      {"c" + std::string(100'000, 'x') + "\ny\n.", "xxx..."},
      {"\x82\x01.", "instruction 0x82"},  // EXT1
      {"I1\n.", "instruction 0x49"},
      {"P0\n.", "instruction 0x50"},
      {"\x80\x06.", "protocol 6"},
      {"", "ends too early"},
      {".", "empty stack"},
      {"N.", "dict"},
      {"].", "dict"},
      {"NN.", "goes on after its end"},
      {"(N.", "goes on after its end"},
      {"N(.", "empty stack"},
      {"}.}", "goes on after its end"},
      {"t.", "no mark"},
      {"u.", "no mark"},
      {"}(Nu.", "no such container"},
      {"](NNu.", "no such container"},
      {"}Na.", "no such container"},
      {"(\x85.", "empty stack"},
      {"h\x03.", "did not keep"},
      {"j\xff\xff\xff\xff.", "did not keep"},
      {"q\x01.", "empty stack"},
      {"X\xff\xff\xff\xff.", "ends too early"},
      {"X\x05\0\0\0abc."s, "ends too early"},
      {"\x8a\xff.", "ends too early"},
      {"\x8a\x09"
       "123456789.",
       "9 bytes"},
      {"cos", "ends too early"},
      {"K\x01)R.", "no function"},
      {"ctorch\nFloatStorage\n)R.", "calls a storage"},
      {"ccollections\nOrderedDict\nN\x85R.", "arguments"},
      {"ccollections\nOrderedDict\nNR.", "no function"},
      {"ctorch._utils\n_rebuild_tensor_v2\n)R.", "wrong arguments"},
      {"ctorch._utils\n_rebuild_parameter\n(NtR.", "no tensor"},
      {"ctorch\nSize\n)R.", "no tuple"},
      {"NQ.", "no storage"},
      {")Q.", "no storage"},
      {"N}b.", "no dict"},
      {dict_of(one + one), "'a' occurs twice"},
      {dict_of("K\x01" + tensor(storage(), 0, {16}, {1})), "no string"},
      {dict_of(text("\xff") + tensor(storage(), 0, {16}, {1})), "no string"},
      {dict_of(text("a") + "K\x01"), "'a' is no tensor"},
      {dict_of(text("a") + "}"), "'a' is no tensor"},
      {dict_of(text("a") + storage()), "'a' is no tensor"},
      {dict_of(text("a") + tensor(storage("FloatStorage", 16, "1"), 0, {16}, {1})), "'1' is missing"},
      {dict_of(text("a") + tensor(storage("FloatStorage", 16, "../0"), 0, {16}, {1})), "'../0' is missing"},
      {dict_of(text("a") + tensor(storage("FloatStorage", 17), 0, {16}, {1})), "64 bytes, not 17"},
      {dict_of(text("a") + tensor(storage("FloatStorage", -1), 0, {16}, {1})), "64 bytes, not -1"},
      {dict_of(text("a") + tensor(storage("FloatStorage", int64_t(1) << 62), 0, {16}, {1})), "64 bytes, not"},
      {dict_of(text("a") + tensor(storage("DoubleStorage", 16), 0, {16}, {1})), "64 bytes, not 16"},
      {dict_of(text("a") + tensor(storage(), 0, {17}, {1})), "larger than its storage"},
      {dict_of(text("a") + tensor(storage(), 1, {16}, {1})), "beyond its storage"},
      {dict_of(text("a") + tensor(storage(), -1, {16}, {1})), "wrong arguments"},
      {dict_of(text("a") + tensor(storage(), 17, {0}, {1})), "larger than its storage"},
      {dict_of(text("a") + tensor(storage(), 0, {-1}, {1})), "non-negative"},
      {dict_of(text("a") + tensor(storage(), 0, {2}, {-1})), "non-negative"},
      {dict_of(text("a") + tensor(storage(), 0, {2}, {16})), "beyond its storage"},
      {dict_of(text("a") + tensor(storage(), 0, {2, 2}, {INT64_MAX, INT64_MAX})), "overflow"},
      {dict_of(text("a") + tensor(storage(), 0, {3}, {INT64_MAX})), "overflow"},
      {dict_of(text("a") + tensor(storage(), 0, {INT64_MAX, INT64_MAX}, {1, 1})), "larger than its storage"},
      {dict_of(text("a") + tensor(storage(), 0, {int64_t(1) << 40}, {0})), "larger than its storage"},
      {dict_of(text("a") + tensor(storage(), 0, {2, 2}, {1})), "larger than its storage"},
      {dict_of(text("a") + tensor(storage(), 0, {1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1})), "7 dimensions"},
  };
  for (const auto& [pickle, part] : pickles) {
    INFO(printable(pickle));
    check_refused([&, &p = pickle] { parse_pt(pt(p)); }, part);
  }
}

TEST_CASE("a pickle cannot exhaust memory or the stack", "[formats]") {
  // Nested a million deep; doubling through the memo; a tensor shared until it unpacks to far more than the file.
  std::string deep = "\x80\x02)";
  deep.append(1'000'000, '\x85');
  check_refused([&] { parse_pt(pt(deep + ".")); }, "dict");
  std::string marks(1'000'000, '(');
  check_refused([&] { parse_pt(pt(marks + ".")); }, "empty stack");
  std::string bomb = "\x80\x02Nq\x01";
  for (int i = 0; i < 100'000; ++i) bomb += "h\x01h\x01\x86q\x01";
  check_refused([&] { parse_pt(pt(bomb + ".")); }, "goes on after its end");
  const std::string big(1 << 16, 'x');
  std::string shared = text("a") + tensor(storage("FloatStorage", 1 << 14), 0, {128, 128}, {1, 128}) + "q\x01";
  for (int i = 0; i < 1000; ++i) shared += text(std::to_string(i)) + "h\x01";
  check_refused([&] { parse_pt(zip_of({{"m/data.pkl", dict_of(shared)}, {"m/data/0", big}})); }, "share storage");
  check_refused([&] { parse_pt(pt(std::string(9 << 20, 'N'))); }, "its pickle has");
}

TEST_CASE("a checkpoint refuses every cut, every lie of its zip file, and other files", "[formats]") {
  const std::string good = pt(dict_of(text("a") + tensor(storage(), 0, {16}, {1})));
  for (size_t n = 0; n < good.size(); ++n)
    if (refusal([&] { parse_pt(std::string_view(good).substr(0, n)); }) == "(accepted)") FAIL_CHECK(n);
  check_refused([&] { parse_pt(good + '\0'); }, "end of the zip directory");
  check_refused([&] { parse_pt("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."); }, "before 1.6");
  check_refused([&] { parse_pt(std::string(100, 'x')); }, "does not begin as a zip");

  const std::string p = dict_of("");
  check_refused([&] { parse_pt(zip_of({{"m/data.pkl", p}, {"m/data.pkl", p}})); }, "occurs twice");
  check_refused([&] { parse_pt(zip_of({{"m/data.pkl", p}, {"n/data.pkl", p}})); }, "two pickles");
  check_refused([&] { parse_pt(zip_of({{"m/data.pk", p}})); }, "no data.pkl");
  check_refused([&] { parse_pt(zip_of({{"m/data.pkl", p}, {"m/../x", p}})); }, "refuses the zip entry name");
  check_refused([&] { parse_pt(zip_of({{"/data.pkl", p}})); }, "refuses the zip entry name");
  check_refused([&] { parse_pt(zip_of({{"m/data.pkl", p}, {"m/byteorder", "big"}})); }, "little-endian");

  // Each field of the directory's second entry, and of its local header, made wrong.
  const size_t directory = good.find("PK\1\2"), second = good.find("PK\1\2", directory + 1), end = good.find("PK\5\6");
  const size_t local = good.find("PK\3\4", 4);
  struct Lie {
    size_t at;
    std::string bytes;
    const char* part;
  };
  const Lie lies[] = {
      {second, "PK\1\1", "directory is damaged"},
      {second + 8, raw(uint16_t(0x801)), "encrypted"},
      {second + 10, raw(uint16_t(8)), "compressed"},
      {second + 16, raw(uint32_t(1)), "contradicts"},           // CRC
      {second + 20, raw(uint32_t(65)), "contradicts"},          // packed size
      {second + 24, raw(uint32_t(0xffffffff)), "contradicts"},  // zip64 size without a zip64 field
      {second + 28, raw(uint16_t(0xffff)), "ends too early"},   // name
      {second + 30, raw(uint16_t(0xffff)), "ends too early"},   // extra field
      {second + 34, raw(uint16_t(1)), "several parts"},
      {second + 42, raw(uint32_t(0)), "contradicts"},  // where: at the first entry
      {second + 42, raw(uint32_t(0xfffffff0)), "contradicts"},
      {second + 46, "x", "contradicts"},
      {local + 6, raw(uint16_t(0)), "contradicts"},
      {local + 14, raw(uint32_t(1)), "contradicts"},
      {local + 18, raw(uint32_t(65)), "contradicts"},
      {local + 26, raw(uint16_t(0xffff)), ""},
      {local + 28, raw(uint16_t(0xffff)), "before the directory"},
      {end + 4, raw(uint32_t(1)), "several parts"},
      {end + 8, raw(uint16_t(9)), "contradicts itself"},
      {end + 8, raw(uint16_t(9)) + raw(uint16_t(9)), "directory"},
      {end + 12, raw(uint32_t(1)), "not where it should be"},
      {end + 16, raw(uint32_t(0xfffffff0)), "not where it should be"},
      {end + 20, raw(uint16_t(1)), "end of the zip directory"},
  };
  for (const Lie& lie : lies) {
    INFO(lie.part << " at " << lie.at);
    std::string bytes = good;
    bytes.replace(lie.at, lie.bytes.size(), lie.bytes);
    check_refused([&] { parse_pt(bytes); }, lie.part);
  }
  // An entry within another's data, as overlapping zip bombs have it.
  const std::string alone = zip_of({{"m/data/1", "same"}}), inner = alone.substr(0, alone.find("PK\1\2"));
  std::string overlap = zip_of({{"m/data.pkl", p}, {"m/data/0", inner}, {"m/data/1", "same"}});
  parse_pt(overlap).verify();
  const auto place = uint32_t(overlap.find(inner));
  overlap.replace(overlap.rfind("PK\1\2") + 42, 4, raw(place));
  check_refused([&] { parse_pt(overlap); }, "overlap");
}

TEST_CASE("zip64 and deferred checksums, as torch.save writes them", "[formats]") {
  std::string zip = pt(dict_of(text("a") + tensor(storage(), 0, {16}, {1})));
  const auto put = [&](size_t at, const std::string& bytes) { zip.replace(at, bytes.size(), bytes); };
  // Bit 3: checksum and sizes only in the directory.
  for (size_t at = zip.find("PK\3\4"); at != std::string::npos; at = zip.find("PK\3\4", at + 1)) {
    put(at + 6, raw(uint16_t(0x808)));
    put(at + 14, std::string(12, '\0'));
  }
  for (size_t at = zip.find("PK\1\2"); at != std::string::npos; at = zip.find("PK\1\2", at + 1))
    put(at + 8, raw(uint16_t(0x808)));
  parse_pt(zip).verify();
  // The first entry's size and place in a zip64 field, and a zip64 end of directory.
  const size_t first = zip.find("PK\1\2"), end = zip.find("PK\5\6");
  uint32_t size, directory_size;
  std::memcpy(&size, &zip[first + 24], 4);
  std::memcpy(&directory_size, &zip[end + 12], 4);
  const std::string extra =
      raw(uint16_t(1)) + raw(uint16_t(24)) + raw(uint64_t(size)) + raw(uint64_t(size)) + raw(uint64_t(0));
  const std::string tail = zip.substr(end);
  const uint64_t total = directory_size + extra.size(), place = first + total;
  zip.resize(end);
  put(first + 20, raw(~uint64_t(0)));
  put(first + 30, raw(uint16_t(extra.size())));
  put(first + 42, raw(~uint32_t(0)));
  zip.insert(first + 46 + std::strlen("m/data.pkl"), extra);
  zip += raw(uint32_t(0x06064b50)) + raw(uint64_t(44)) + raw(uint32_t(0)) + raw(uint64_t(0)) + raw(uint64_t(3)) +
         raw(uint64_t(3)) + raw(total) + raw(uint64_t(first));
  zip += raw(uint32_t(0x07064b50)) + raw(uint32_t(0)) + raw(place) + raw(uint32_t(1)) + tail;
  put(zip.size() - 22 + 12, raw(~uint64_t(0)));
  const auto file = parse_pt(zip);
  file.verify();
  CHECK(file.get("a").to_vector<float>()[15] == 15);
  for (const size_t at : {place + 4, place + 16, place + 24, place + 32, place + 40, place + 48, place + 56 + 4,
                          place + 56 + 8, place + 56 + 16}) {
    std::string bytes = zip;
    bytes[at] = char(bytes[at] ^ 1);
    if (refusal([&] { parse_pt(bytes); }) == "(accepted)") FAIL_CHECK(at - place);
  }
}

TEST_CASE("a flipped bit of a checkpoint is refused, or changes nothing", "[formats]") {
  const Scratch dir;
  std::mt19937 g(8);
  const NamedTensors tensors = {{"b", random_tensor(g, {3, 5}, DType::F32)}, {"a", random_tensor(g, {7}, DType::BF16)}};
  write_torch_archive(dir / "m.pt", tensors);
  std::string bytes = slurp(dir / "m.pt");
  size_t refused = 0;
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
    try {
      const auto t = parse_pt(bytes);
      t.verify();
      if (t.names() != std::vector<std::string>{"b", "a"}) FAIL_CHECK(bit);
      for (const auto& [name, x] : tensors)
        if (!same(t.get(name), x)) FAIL_CHECK(bit);
    } catch (const Error&) {
      ++refused;
    }
    bytes[bit / 8] = char(bytes[bit / 8] ^ (1 << bit % 8));
  }
  CHECK(refused > 8 * bytes.size() / 3);  // all but padding, times and other fields nobody reads
}

TEST_CASE("official checkpoints load with their order of keys", "[formats]") {
  const char* shared = std::getenv("T2L_SHARED");
  const fs::path golden = fs::path(shared ? shared : "../shared") / "golden/hypernet";
  if (!fs::exists(golden)) {
    WARN("skipped: no " << golden << "; set T2L_SHARED");
    return;
  }
  int files = 0;
  for (const auto& entry : fs::directory_iterator(golden)) {
    const std::string path = (entry.path() / "hypermod.pt").string();
    if (!fs::exists(path)) continue;
    ++files;
    const auto file = TorchArchive::open(path);
    file.verify();
    const auto mapped = MappedFile::open(path);
    size_t at = 0;
    for (const std::string& name : file.names()) {
      at = as_text(mapped.bytes()).find(raw(uint32_t(name.size())) + name, at);
      CHECK(at != std::string_view::npos);
      CHECK(file.get(name).raw() == file.info(name).bytes.data());
    }
    CHECK(file.names().size() > 10);
    const Json args = read_yaml((entry.path() / "args.yaml").string());
    CHECK(Object(args, path).get_float("lr") > 0);
  }
  CHECK(files > 0);
}

TEST_CASE("PyTorch and we read each other's files", "[formats]") {
  const char* python = std::getenv("T2L_PYTHON");
  if (!python) {
    WARN("skipped: set T2L_PYTHON to a Python that has torch and safetensors");
    return;
  }
  const Scratch dir;
  std::mt19937 g(9);
  write_torch_archive(dir / "ours.pt", some_tensors(g));
  g.seed(9);
  write_safetensors(dir / "ours.safetensors", some_tensors(g));
  write_text_file(dir / "check.py", R"(
import sys, torch, safetensors.torch as st
d = sys.argv[1]
a = torch.load(d + '/ours.pt', weights_only=True); b = st.load_file(d + '/ours.safetensors')
assert list(a)[:3] == ['z.weight', 'a.bias', 'ids'] and set(a) == set(b), (list(a), list(b))
for k in a: assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k
st.save_file(b, d + '/theirs.safetensors', {'format': 'pt'})
assert open(d + '/theirs.safetensors', 'rb').read() == open(d + '/ours.safetensors', 'rb').read()
m = torch.nn.Linear(5, 3)
x = torch.randn(6, 4)
t = {'w': m.weight, 'x': x, 'xt': x.t(), 'row': x[2], 'col': x[1:, 1::2], 'half': x.half(), 'double': x.double(), 'bf16': x.bfloat16(),
     'long': torch.arange(-3, 9).view(3, 4), 'int': torch.arange(5, dtype=torch.int32), 'zero': torch.zeros(0, 3), 'scalar': torch.tensor(3.5)}
torch.save(t, d + '/theirs.pt')
def plain(v):
    v = v.detach().contiguous()
    return v.float() if v.dtype in (torch.float16, torch.float64) else v.int() if v.dtype == torch.int64 else v
st.save_file({k: plain(v).clone() for k, v in t.items()}, d + '/plain.safetensors')
)");
  REQUIRE(std::system(fmt::format("'{}' '{}' '{}'", python, dir / "check.py", dir.path.string()).c_str()) == 0);
  const auto theirs = TorchArchive::open(dir / "theirs.pt");
  const auto plain = SafeTensors::open(dir / "plain.safetensors");
  theirs.verify();
  CHECK(theirs.names()[2] == "xt");
  CHECK(theirs.names().size() == plain.names().size());
  for (const std::string& name : plain.names()) {
    INFO(name);
    CHECK(same(theirs.get(name), plain.get(name)));
  }
}

// ---- JSON and YAML
// ----------------------------------------------------------------------------------------------------

TEST_CASE("JSON: values, and where it is wrong", "[formats]") {
  const auto json = [](std::string_view s) { return parse_json(s, "FILE"); };
  const Json v = json(R"({"a":[1,-2,{"b":null}],"f":2.5,"s":"\u00e9\n","t":true,"big":9007199254740993,"e":[]})");
  CHECK(v["a"][1] == -2);
  CHECK(v["a"][2]["b"].is_null());
  CHECK(v["big"].get<int64_t>() == 9007199254740993);
  CHECK(v["s"] == "\xc3\xa9\n");
  CHECK(v["e"].is_array());
  const std::string good = v.dump();
  for (size_t n = 0; n < good.size(); ++n)
    if (refusal([&] { json(std::string_view(good).substr(0, n)); }) == "(accepted)") FAIL_CHECK(n);
  check_refused([&] { json("{\n \"a\": 1,\n \"b\": x}"); }, "FILE:3:7: ");
  check_refused([&] { json("{} {}"); }, "FILE:1:4: ");
  check_refused([&] { json("[1,"); }, "ends too early");
  check_refused([&] { json("[1e999]"); }, "too large for a double");
  check_refused([&] { json(R"({"a":1,"b":{"a":2},"a":3})"); }, "'a' occurs twice");
  check_refused([&] { json("[NaN]"); }, "not valid");
  check_refused([&] { json("[\"\xff\"]"); }, "not valid");
  check_refused([&] { json("[\"\n\"]"); }, "not valid");
  check_refused([&] { json(std::string(65, '[') + std::string(65, ']')); }, "deeper than 64");
  CHECK(json(std::string(64, '[') + std::string(64, ']')).is_array());
  check_refused([&] { json(std::string(1'000'000, '[')); }, "deeper than 64");
  check_refused([&] { parse_json("[1, 2]", "FILE", {.bytes = 5}); }, "more than the 5");
}

TEST_CASE("objects are read by name and say what is wrong", "[formats]") {
  const Json v = parse_json(
      R"({"i":5,"f":0.5,"s":"x","n":null,"sci":"1e-5","t":true,"l":["a","b"],"o":{"i":6},"huge":1e300,"u":18446744073709551615,"m":["a",1]})",
      "f");
  const Object o(v, "FILE");
  CHECK(o.get_int("i") == 5);
  CHECK(o.get_int_or("n", 7) == 7);
  CHECK(o.get_int_or("absent", 7) == 7);
  CHECK(o.get_float("i") == 5.0);
  CHECK(o.get_float("sci") == 1e-5);
  CHECK(o.get_bool("t"));
  CHECK(o.get_string_or("absent", "d") == "d");
  CHECK(o.get_strings("l") == std::vector<std::string>{"a", "b"});
  CHECK(o.get_object("o").get_int("i") == 6);
  CHECK(!o.has("n"));
  check_refused([&] { o.get_int("absent"); }, "'absent' is missing");
  check_refused([&] { o.get_int("n"); }, "'n' is missing");
  check_refused([&] { o.get_int("i", 6); }, "'i' must be an integer of at least 6, not 5");
  check_refused([&] { o.get_int_or("i", 1, 1, 4); }, "from 1 to 4, not 5");
  for (const char* key : {"f", "s", "t", "l", "o", "huge", "u"})
    check_refused([&] { o.get_int(key); }, "must be an integer");
  for (const char* key : {"s", "t", "l"}) check_refused([&] { o.get_float(key); }, "must be a number");
  check_refused([&] { o.get_bool("i"); }, "must be true or false, not 5");
  check_refused([&] { o.get_string("i"); }, "must be a string");
  check_refused([&] { o.get_strings("s"); }, "must be a list of strings");
  check_refused([&] { o.get_strings("m"); }, "must be a list of strings");
  check_refused([&] { o.get_object("i"); }, "FILE: i");
  check_refused([&] { Object(v["l"], "FILE"); }, "array");
}

TEST_CASE("YAML means what it means to PyYAML", "[formats]") {
  const Json v = parse_yaml(
      "a: 1\nb: -2\nn: ~\nnull_too: null\nempty:\nyes_: yes\nno_: No\nq: 'yes'\nf: 2.5e-05\ng: 1.0e-05\nh: 1e-5\nd: "
      ".5\ni: -.inf\n"
      "save_freq: 1" +
          std::string(100, '0') +
          "\nv: 0.1.2\noct: 010\nlist:\n- x\n- [1, {k: v}]\ntext: |\n  one\n  two\nplus: +3\n"
          "dash: '-'\nmax: 9223372036854775807\nfold: a\n  b\nx: &x [1]\ny: *x\ncolon: 'a: b'\nemptymap: "
          "{}\nemptylist: []\nv2: '1'\n",
      "FILE");
  const Object o(v, "FILE");
  CHECK(o.get_int("a") == 1);
  CHECK(o.get_int("b") == -2);
  CHECK(o.get_int("plus") == 3);
  CHECK(o.get_int("max") == INT64_MAX);
  for (const char* key : {"n", "null_too", "empty"}) CHECK((v.contains(key) && !o.has(key)));
  CHECK(o.get_bool("yes_"));
  CHECK(!o.get_bool("no_"));
  CHECK(o.get_string("q") == "yes");
  CHECK(o.get_float("f") == 2.5e-05);
  CHECK(o.get_float("g") == 1e-05);
  CHECK(v["h"] == "1e-5");
  CHECK(o.get_float("h") == 1e-5);
  CHECK(o.get_float("d") == 0.5);
  CHECK(v["i"].get<double>() == -INFINITY);
  CHECK(o.get_float("save_freq") == 1e100);
  check_refused([&] { o.get_int("save_freq"); }, "'save_freq' must be an integer");
  CHECK(v["v"] == "0.1.2");
  CHECK(v["oct"] == "010");
  CHECK(v["v2"] == "1");
  CHECK(v["list"][1][1]["k"] == "v");
  CHECK(v["text"] == "one\ntwo\n");
  CHECK(v["fold"] == "a b");
  CHECK(v["y"] == v["x"]);
  CHECK(v["emptymap"].is_object());
  CHECK(v["emptylist"].is_array());
  CHECK(parse_yaml("", "FILE").is_null());
  CHECK(parse_yaml("a: |\n  x", "FILE")["a"] == "x");
  CHECK(parse_yaml("a: |+\n  x\n\n", "FILE")["a"] == "x\n\n");
  CHECK(parse_yaml("--- [1]\n...\n", "FILE")[0] == 1);
  CHECK(parse_yaml("# nothing\n", "FILE").is_null());
}

TEST_CASE("YAML refuses what it should not follow", "[formats]") {
  const auto yaml = [](std::string_view s) { return parse_yaml(s, "FILE"); };
  check_refused([&] { yaml("a: 1\nb: 2\na: 3\n"); }, "FILE:3: the key 'a' occurs twice");
  check_refused([&] { yaml("a: [1, 2\nb: 3\n"); }, "FILE:");
  check_refused([&] { yaml("a: !!python/object/apply:os.system ['ls']\n"); }, "FILE:1: refuses the tag");
  check_refused([&] { yaml("a: !!python/name:os.system\n"); }, "refuses the tag");
  check_refused([&] { yaml("b: {x: 1}\na:\n  <<: 3\n"); }, "FILE:3: merge keys");
  check_refused([&] { yaml("? [1]\n: 2\n"); }, "key must be");
  check_refused([&] { yaml("a: &a [*a]\n"); }, "contains it");
  check_refused([&] { yaml("a: *b\n"); }, "FILE:1:");
  check_refused([&] { yaml("a: 1\n---\nb: 2\n"); }, "several documents");
  check_refused([&] { yaml("a: \x01\n"); }, "FILE:1: has a control");
  check_refused([&] { yaml("a: \xff\n"); }, "not UTF-8");
  check_refused([&] { yaml("a: \"\\q\"\n"); }, "FILE:1:");
  for (const char* end : {"", " ", "\n", "\n\n", "\n ", "\n \t", "\r\n", "\r", "\n# x\n", "\t"})
    for (const char* quote : {"'", "\""})
      check_refused([&] { yaml(std::string("a: ") + quote + "open" + end); }, "FILE:");
  check_refused([&] { yaml("a:\n\t- b\n"); }, "FILE:");
  check_refused([&] { yaml(std::string(100, '[') + std::string(100, ']')); }, "deeper than 64");
  check_refused([&] { yaml(std::string(100'000, '[')); }, "FILE:");
  check_refused([&] { yaml(std::string(100'000, '{')); }, "FILE:");
  std::string nested;
  for (int i = 0; i < 200; ++i) nested += std::string(size_t(i), ' ') + "a:\n";
  check_refused([&] { yaml(nested); }, "deeper than 64");
  std::string dashes;
  for (int i = 0; i < 2000; ++i) dashes += "- ";
  check_refused([&] { yaml(dashes + "a"); }, "deeper than 64");
  check_refused([&] { yaml(std::string((4 << 20) + 1, 'a')); }, "more than the");
  std::string bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n";
  for (int i = 1; i < 12; ++i) {
    bomb += fmt::format("a{0}: &a{0} [", i);
    for (int k = 0; k < 9; ++k) bomb += fmt::format("{}*a{}", k ? ", " : "", i - 1);
    bomb += "]\n";
  }
  check_refused([&] { yaml(bomb); }, "aliases unfold");
  // A truncated file may be a shorter valid one; it must only not crash.
  const std::string good = "a: [1, 'x', {b: \"\\u00e9\"}]\nc: |\n  text\nd: &x\n- y\ne: *x\n";
  for (size_t n = 0; n <= good.size(); ++n) refusal([&] { yaml(std::string_view(good).substr(0, n)); });
}

}  // namespace
}  // namespace t2l
