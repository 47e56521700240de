#include "tensor/safetensors.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <filesystem>
#include <set>

#include "tensor/json.h"

namespace t2l {
namespace {

constexpr size_t kMaxHeader = 100'000'000;  // the official library's limit
constexpr const char* kModel = "model.safetensors";

// Bits an element takes in each of the format's types.
const std::map<std::string, int, std::less<>> kBits = {
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}};

Stored stored_type(const std::string& name) {
  for (Stored t : {Stored::F64, Stored::F32, Stored::F16, Stored::BF16, Stored::I64, Stored::I32, Stored::I16,
                   Stored::I8, Stored::U8, Stored::Bool})
    if (name == name_of(t)) return t;
  return Stored::Other;
}

// Non-negative integers that fit.
std::optional<std::vector<int64_t>> naturals(const Json& array) {
  if (!array.is_array()) return {};
  std::vector<int64_t> out;
  for (const Json& x : array) {
    if (!x.is_number_unsigned() || x.get<uint64_t>() > uint64_t(INT64_MAX)) return {};
    out.push_back(x.get<int64_t>());
  }
  return out;
}

}  // namespace

SafeTensors SafeTensors::parse(const MappedFile& file) {
  const std::string& path = file.path();
  const Bytes all = file.bytes();
  uint64_t n = 0;
  if (all.size() < sizeof n)
    fail("{}: has {} bytes, too few for a safetensors file; is it complete?", path, all.size());
  std::memcpy(&n, all.data(), sizeof n);
  if (n > kMaxHeader) fail("{}: claims a header of {} bytes; it is no safetensors file, or damaged", path, n);
  if (n > all.size() - sizeof n) fail("{}: ends within its header; get the complete file", path);
  const Bytes header = all.subspan(sizeof n, n), data = all.subspan(sizeof n + n);
  if (n == 0 || as_text(header)[0] != '{')
    fail("{}: its header does not begin with '{{'; it is no safetensors file", path);

  SafeTensors out;
  out.path_ = path;
  struct Range {
    int64_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  const Json json = parse_json(as_text(header), path + " (header)", {.bytes = kMaxHeader, .depth = 3});
  for (const auto& [name, x] : json.items()) {
    if (name == "__metadata__") {
      if (!x.is_object()) fail("{}: its __metadata__ is no object", path);
      for (const auto& [key, value] : x.items()) {
        if (!value.is_string()) fail("{}: its __metadata__ has a value that is no string, '{}'", path, printable(key));
        out.metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    const std::string what = fmt::format("{}: tensor '{}'", path, printable(name));
    if (!x.is_object() || x.size() != 3 || !x.contains("dtype") || !x.contains("shape") || !x.contains("data_offsets"))
      fail("{} must have a dtype, a shape and data_offsets, nothing else; the file is damaged", what);
    const Json& type = x["dtype"];
    const auto bits = type.is_string() ? kBits.find(type.get_ref<const std::string&>()) : kBits.end();
    if (bits == kBits.end()) fail("{} has the unknown dtype {}", what, printable(type.dump(-1, ' ', true)));
    const auto shape = naturals(x["shape"]), offsets = naturals(x["data_offsets"]);
    if (!shape || !offsets || offsets->size() != 2)
      fail("{}: its shape or its offsets are not non-negative integers", what);
    const int64_t begin = (*offsets)[0], end = (*offsets)[1];
    const auto elements = count(*shape);
    if (!elements || *elements > INT64_MAX / 64) fail("{} has more elements than a file can hold", what);
    if (begin > end || end > int64_t(data.size())) fail("{} does not lie within the file; get the complete file", what);
    const int64_t total = *elements * bits->second;
    if (total % 8 || total / 8 != end - begin)
      fail("{} has {} bytes, but its shape and dtype need {}", what, end - begin, total / 8);
    const auto it = out.tensors_
                        .emplace(name, Info{stored_type(bits->first), *shape,
                                            data.subspan(size_t(begin), size_t(end - begin)), file.memory(), path})
                        .first;
    ranges.push_back({begin, end, &it->first});
    out.names_.push_back(name);
  }

  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  int64_t at = 0;
  for (const Range& r : ranges) {
    if (r.begin != at)
      fail("{}: tensor '{}' leaves a gap after, or overlaps, the one before it", path, printable(*r.name));
    at = r.end;
  }
  if (at != int64_t(data.size()))
    fail("{}: has {} bytes of data, but its tensors take {}; it is damaged", path, data.size(), at);
  return out;
}

SafeTensors SafeTensors::open_index(const std::string& path) {
  const Json json = read_json(path, {.bytes = kMaxHeader, .depth = 4});
  const Object index(json, path);
  const Json* map = index.find("weight_map");
  if (!map || !map->is_object())
    fail("{}: has no weight_map that says where tensors are; it is no safetensors index", path);

  std::map<std::string, SafeTensors> shards;
  SafeTensors out;
  out.path_ = path;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) fail("{}: the shard of '{}' is no file name", path, printable(name));
    const auto& shard_name = file.get_ref<const std::string&>();
    if (shard_name.empty() || shard_name == "." || shard_name == ".." ||
        shard_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      fail("{}: the shard '{}' is not a plain file name", path, printable(shard_name));
    auto it = shards.find(shard_name);
    if (it == shards.end())
      it = shards
               .emplace(shard_name,
                        parse(MappedFile::open((std::filesystem::path(path).parent_path() / shard_name).string())))
               .first;
    if (!it->second.contains(name)) fail("{}: tensor '{}' is not in {}", path, printable(name), it->second.path());
    out.tensors_.emplace(name, it->second.info(name));
    out.names_.push_back(name);
  }
  for (const auto& [file, shard] : shards) {
    out.metadata_.insert(shard.metadata_.begin(), shard.metadata_.end());
    for (const std::string& name : shard.names_) {
      const auto it = map->find(name);
      if (it == map->end() || it->get_ref<const std::string&>() != file)
        fail("{}: tensor '{}' of {} is not listed for that shard", path, printable(name), shard.path_);
    }
  }
  return out;
}

SafeTensors SafeTensors::open(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    const std::string one = (fs::path(path) / kModel).string(), index = one + ".index.json";
    if (fs::exists(one, ignored)) return open(one);
    if (fs::exists(index, ignored)) return open(index);
    fail("{}: has neither {} nor {}.index.json", path, kModel, kModel);
  }
  return fs::path(path).extension() == ".json" ? open_index(path) : parse(MappedFile::open(path));
}

const SafeTensors::Info& SafeTensors::info(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail("{}: has no tensor '{}'", path_, printable(name));
  return it->second;
}

Tensor SafeTensors::get(const std::string& name) const {
  const Info& i = info(name);
  return to_tensor(i.type, i.shape, {}, i.bytes, i.owner, fmt::format("{}: tensor '{}'", i.file, printable(name)));
}

void write_safetensors(const std::string& path, const NamedTensors& tensors, std::optional<Stored> as,
                       const std::map<std::string, std::string>& metadata) {
  struct Item {
    const std::string* name;
    const Tensor* tensor;
    Stored type;
  };
  std::vector<Item> items;
  std::set<std::string_view> seen;
  for (const auto& [name, t] : tensors) {
    T2L_CHECK(t && valid_utf8(name) && name != "__metadata__" && seen.insert(name).second, "tensor '{}'",
              printable(name));
    items.push_back({&name, &t, as && t.dtype() != DType::I32 ? *as : stored_as(t.dtype())});
  }
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return std::tuple(int(a.type), std::string_view(*a.name)) < std::tuple(int(b.type), std::string_view(*b.name));
  });

  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
  size_t end = 0;
  for (const Item& i : items) {
    const size_t begin = end;
    end += size_t(i.tensor->size()) * size_of(i.type);
    const Json shape = std::vector<int64_t>(i.tensor->shape().begin(), i.tensor->shape().end());
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}", text.size() > 1 ? "," : "",
                        Json(*i.name).dump(), name_of(i.type), shape.dump(), begin, end);
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t n = text.size();

  // Many small tensors go out in one system call; converted and downloaded ones are held only until then.
  constexpr size_t kBatch = size_t(64) << 20;
  AtomicFile file(path);
  std::vector<Bytes> pieces = {std::as_bytes(std::span(&n, 1)), as_bytes(text)};
  std::deque<std::vector<std::byte>> converted;
  std::vector<Tensor> downloaded;
  size_t pending = 0;
  for (const Item& i : items) {
    const Tensor t = downloaded.emplace_back(i.tensor->to(Device::CPU));
    if (i.type == stored_as(t.dtype()))
      pieces.push_back({static_cast<const std::byte*>(t.raw()), t.bytes()});
    else
      pieces.push_back(converted.emplace_back(to_stored(t, i.type)));
    if ((pending += pieces.back().size()) < kBatch) continue;
    file.write(pieces);
    pieces.clear(), converted.clear(), downloaded.clear();
    pending = 0;
  }
  file.write(pieces);
  file.commit();
}

}  // namespace t2l
