#include "t2l/torch_archive.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <unordered_set>

#include "t2l/crc32.h"

namespace t2l {
namespace {

constexpr size_t kMaxPickle = size_t(4) << 20;  // some 15,000 tensors
constexpr int kMaxProtocol = 5;

// ---- the zip file: PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 - 16 (its end)
// -----

struct Entry {
  std::string name;
  Bytes data;
  uint32_t crc;
  uint64_t begin;  // of its local header
};

class Zip {
 public:
  explicit Zip(const MappedFile& file) : path_(file.path()), all_(file.bytes()) { read(); }
  std::vector<Entry> entries;

 private:
  [[noreturn]] void damaged(const char* what) const {
    fail("{}: {}; it is no complete PyTorch checkpoint, get or save the file again", path_, what);
  }
  template <class T>
  T at(uint64_t position) const {
    if (position > all_.size() || all_.size() - position < sizeof(T)) damaged("the zip file ends too early");
    T x;
    std::memcpy(&x, all_.data() + position, sizeof x);
    return x;
  }
  std::string_view text(uint64_t position, uint64_t n) const {
    if (position > all_.size() || all_.size() - position < n) damaged("the zip file ends too early");
    return as_text(all_.subspan(position, n));
  }
  void read();
  uint64_t read_entry(uint64_t p, uint64_t directory);

  const std::string& path_;
  Bytes all_;
};

void Zip::read() {
  constexpr uint64_t kEnd = 22, kLocator = 20, kEnd64 = 56;
  if (all_.size() < kEnd || at<uint32_t>(0) != 0x04034b50) damaged("it does not begin as a zip file does");
  const uint64_t end = all_.size() - kEnd;  // torch writes no comment
  if (at<uint32_t>(end) != 0x06054b50 || at<uint16_t>(end + 20) != 0)
    damaged("the end of the zip directory is not at the file's end");
  if (at<uint32_t>(end + 4) != 0) damaged("the zip file is one of several parts");
  uint64_t count = at<uint16_t>(end + 10), size = at<uint32_t>(end + 12), start = at<uint32_t>(end + 16), stop = end;
  if (at<uint16_t>(end + 8) != count) damaged("the zip directory contradicts itself");
  if (end >= kLocator + kEnd64 && at<uint32_t>(end - kLocator) == 0x07064b50) {
    stop = end - kLocator - kEnd64;
    if (at<uint32_t>(end - kLocator + 4) != 0 || at<uint64_t>(end - kLocator + 8) != stop ||
        at<uint32_t>(end - kLocator + 16) != 1 || at<uint32_t>(stop) != 0x06064b50 ||
        at<uint64_t>(stop + 4) != kEnd64 - 12 || at<uint64_t>(stop + 16) != 0 ||
        at<uint64_t>(stop + 24) != at<uint64_t>(stop + 32))
      damaged("the zip64 end of directory is wrong");
    const uint64_t count64 = at<uint64_t>(stop + 32), size64 = at<uint64_t>(stop + 40),
                   start64 = at<uint64_t>(stop + 48);
    if ((count != count64 && count != 0xffff) || (size != size64 && size != 0xffffffff) ||
        (start != start64 && start != 0xffffffff))
      damaged("the zip directory contradicts itself");
    count = count64, size = size64, start = start64;
  }
  if (start > stop || stop - start != size) damaged("the zip directory is not where it should be");
  uint64_t p = start;
  for (uint64_t i = 0; i < count; ++i) p = read_entry(p, start);
  if (p != stop) damaged("the zip directory has another size than it says");

  std::vector<const Entry*> order;
  std::unordered_set<std::string_view> names;
  for (const Entry& e : entries) {
    order.push_back(&e);
    if (!names.insert(e.name).second) fail("{}: the entry '{}' occurs twice in the zip file", path_, printable(e.name));
  }
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->begin < b->begin; });
  const std::byte* last = all_.data();
  for (const Entry* e : order) {
    if (all_.data() + e->begin < last) damaged("entries of the zip file overlap");
    last = e->data.data() + e->data.size();
  }
}

// Reads the directory's entry at p and the local header it points to; returns where the next one begins.
uint64_t Zip::read_entry(uint64_t p, uint64_t directory) {
  constexpr uint64_t kCentral = 46, kLocal = 30;
  if (at<uint32_t>(p) != 0x02014b50) damaged("the zip directory is damaged");
  const uint16_t flags = at<uint16_t>(p + 8), method = at<uint16_t>(p + 10);
  const uint32_t crc = at<uint32_t>(p + 16);
  uint64_t packed = at<uint32_t>(p + 20), size = at<uint32_t>(p + 24), begin = at<uint32_t>(p + 42);
  const uint64_t name_size = at<uint16_t>(p + 28), extra_size = at<uint16_t>(p + 30),
                 comment_size = at<uint16_t>(p + 32);
  const std::string_view name = text(p + kCentral, name_size);
  const uint64_t next = p + kCentral + name_size + extra_size + comment_size;
  text(p, next - p);
  if (at<uint16_t>(p + 34) != 0) damaged("the zip file is one of several parts");

  // Zip64 replaces, in this order, those fields that are all ones.
  for (uint64_t q = p + kCentral + name_size, stop = q + extra_size; stop - q >= 4;) {
    const uint64_t id = at<uint16_t>(q), n = at<uint16_t>(q + 2);
    if (n > stop - q - 4) damaged("an extra field of the zip directory is damaged");
    if (id == 1) {
      uint64_t r = q + 4;
      for (uint64_t* field : {&size, &packed, &begin})
        if (*field == 0xffffffff) {
          if (r + 8 > q + 4 + n) damaged("a zip64 field is damaged");
          *field = at<uint64_t>(r);
          r += 8;
        }
    }
    q += 4 + n;
  }
  const std::string shown = printable(name);
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  const bool control = std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (name.empty() || name[0] == '/' || has("..") || has("\\") || control)
    fail("{}: refuses the zip entry name '{}'", path_, shown);
  if (flags & 0x2041) fail("{}: the zip entry '{}' is encrypted; save the checkpoint with torch.save", path_, shown);
  if (method != 0) fail("{}: the zip entry '{}' is compressed; save the checkpoint with torch.save", path_, shown);
  if (packed != size) damaged("an entry of the zip directory contradicts itself");

  if (begin > directory || at<uint32_t>(begin) != 0x04034b50 || at<uint16_t>(begin + 6) != flags ||
      at<uint16_t>(begin + 8) != method || text(begin + kLocal, at<uint16_t>(begin + 26)) != name)
    damaged("an entry of the zip file contradicts the directory");
  // Flag 3: what was not known when the header was written follows the data and stands in the directory.
  const auto agrees = [&](uint32_t local, uint64_t central) {
    return local == central || local == 0xffffffff || (local == 0 && flags & 8);
  };
  if (!agrees(at<uint32_t>(begin + 14), crc) || !agrees(at<uint32_t>(begin + 18), size) ||
      !agrees(at<uint32_t>(begin + 22), size))
    damaged("an entry of the zip file contradicts the directory");
  const uint64_t data = begin + kLocal + name_size + at<uint16_t>(begin + 28);
  if (data > directory || size > directory - data)
    damaged("an entry of the zip file does not lie before the directory");
  entries.push_back({std::string(name), all_.subspan(data, size), crc, begin});
  return next;
}

// ---- the pickle: Python's pickletools.py describes its instructions
// ---------------------------------------------------

enum class Global : uint8_t { OrderedDict, RebuildTensor, RebuildParameter, Size, FirstStorage };

constexpr std::pair<std::string_view, Stored> kStorages[] = {
    {"FloatStorage", Stored::F32},  {"HalfStorage", Stored::F16}, {"BFloat16Storage", Stored::BF16},
    {"DoubleStorage", Stored::F64}, {"LongStorage", Stored::I64}, {"IntStorage", Stored::I32},
    {"ShortStorage", Stored::I16},  {"CharStorage", Stored::I8},  {"ByteStorage", Stored::U8},
    {"BoolStorage", Stored::Bool}};

// Everything a pickle can make here. Containers are indices into the machine's lists, so that values neither own nor
// recurse; strings are views of the pickle.
struct Value {
  enum Kind : uint8_t { None, Bool, Int, Float, String, Tuple, List, Dict, Global, Storage, Tensor };
  Kind kind = None;
  int64_t number = 0;  // Bool, Int; Global: which; Tuple, List, Dict, Storage, Tensor: index
  double real = 0;
  std::string_view text;
};

struct Storage {
  Stored type;
  Bytes bytes;
  int64_t elements;
};

class Machine {
 public:
  Machine(const std::string& where, Bytes pickle, const std::unordered_map<std::string_view, Bytes>& storages)
      : where_(where), code_(as_text(pickle)), storages_(storages) {}

  Value run();
  const std::vector<Value>& items(const Value& v) const { return lists_[size_t(v.number)]; }
  const TorchArchive::Info& tensor(const Value& v) const { return tensors_[size_t(v.number)]; }

 private:
  template <class... A>
  [[noreturn]] void bad(fmt::format_string<A...> format, A&&... args) const {
    fail("{}: {} (byte {} of its pickle)", where_, fmt::format(format, std::forward<A>(args)...), position_);
  }
  std::string_view take(uint64_t n) {
    if (n > code_.size() - position_) bad("the pickle ends too early");
    const auto s = code_.substr(position_, n);
    position_ += n;
    return s;
  }
  template <class T>
  T number() {
    T x;
    std::memcpy(&x, take(sizeof x).data(), sizeof x);
    return x;
  }
  std::string_view line() {
    const size_t end = code_.find('\n', position_);
    if (end == std::string_view::npos) bad("the pickle ends too early");
    const auto s = take(end - position_);
    ++position_;
    return s;
  }

  void push(Value v) { stack_.push_back(v); }
  void push_int(int64_t x) { push({Value::Int, x, 0, {}}); }
  void push_string(std::string_view s) { push({Value::String, 0, 0, s}); }
  void push_list(Value::Kind kind, std::vector<Value> items) {
    lists_.push_back(std::move(items));
    push({kind, int64_t(lists_.size() - 1), 0, {}});
  }
  Value& top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) bad("the pickle takes from an empty stack");
    return stack_.back();
  }
  Value pop() {
    const Value v = top();
    stack_.pop_back();
    return v;
  }
  std::vector<Value> pop_to_mark() {
    if (marks_.empty()) bad("the pickle has no mark to go back to");
    const auto from = stack_.begin() + ptrdiff_t(marks_.back());
    std::vector<Value> items(from, stack_.end());
    stack_.erase(from, stack_.end());
    marks_.pop_back();
    return items;
  }
  std::vector<Value> pop_tuple(size_t n) {
    std::vector<Value> items(n);
    for (size_t i = n; i-- > 0;) items[i] = pop();
    return items;
  }
  void append(Value::Kind kind, const std::vector<Value>& more) {
    const Value& container = top();
    if (container.kind != kind || (kind == Value::Dict && more.size() % 2))
      bad("the pickle adds to what is no such container");
    auto& list = lists_[size_t(container.number)];
    list.insert(list.end(), more.begin(), more.end());
  }
  void memoize(uint32_t index) { memo_[index] = top(); }
  void recall(uint32_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) bad("the pickle recalls what it did not keep");
    push(it->second);
  }

  void global(std::string_view module, std::string_view name);
  void persistent(const Value& id);
  void call();
  void rebuild_tensor(const std::vector<Value>& args);
  std::vector<int64_t> integers(const Value& v) const;

  const std::string& where_;
  std::string_view code_;
  size_t position_ = 0;
  const std::unordered_map<std::string_view, Bytes>& storages_;
  std::vector<Value> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, Value> memo_;
  std::deque<std::vector<Value>> lists_;  // a dict is its keys and values in turn
  std::vector<Storage> used_;
  std::vector<TorchArchive::Info> tensors_;
};

void Machine::global(std::string_view module, std::string_view name) {
  const auto push_global = [&](int64_t which) { push({Value::Global, which, 0, {}}); };
  if (module == "collections" && name == "OrderedDict") return push_global(int64_t(Global::OrderedDict));
  if (module == "torch._utils" && name == "_rebuild_tensor_v2") return push_global(int64_t(Global::RebuildTensor));
  if (module == "torch._utils" && name == "_rebuild_parameter") return push_global(int64_t(Global::RebuildParameter));
  if (module == "torch" && name == "Size") return push_global(int64_t(Global::Size));
  for (size_t i = 0; i < std::size(kStorages); ++i)
    if (module == "torch" && name == kStorages[i].first) return push_global(int64_t(Global::FirstStorage) + int64_t(i));
  fail("{}: refuses '{}.{}': only tensors can be loaded; save the state_dict() alone", where_, printable(module),
       printable(name));
}

// ('storage', torch.FloatStorage, key, location, elements)
void Machine::persistent(const Value& id) {
  constexpr auto kFirst = int64_t(Global::FirstStorage);
  if (id.kind != Value::Tuple) bad("the pickle refers to what is no storage");
  const auto& t = items(id);
  if (t.size() != 5 || t[0].text != "storage" || t[1].kind != Value::Global || t[1].number < kFirst ||
      t[2].kind != Value::String || t[3].kind != Value::String || t[4].kind != Value::Int)
    bad("the pickle refers to what is no storage");
  const auto it = storages_.find(t[2].text);
  if (it == storages_.end()) bad("the storage '{}' is missing", printable(t[2].text));
  const Stored type = kStorages[t[1].number - kFirst].second;
  if (t[4].number < 0 || it->second.size() % size_of(type) ||
      it->second.size() / size_of(type) != uint64_t(t[4].number))
    bad("the storage '{}' has {} bytes, not {} elements", printable(t[2].text), it->second.size(), t[4].number);
  used_.push_back({type, it->second, t[4].number});
  push({Value::Storage, int64_t(used_.size() - 1), 0, {}});
}

std::vector<int64_t> Machine::integers(const Value& v) const {
  if (v.kind != Value::Tuple) bad("a tensor's shape is no tuple");
  if (items(v).size() > Shape::kMaxRank)
    bad("a tensor has {} dimensions, more than {}", items(v).size(), Shape::kMaxRank);
  std::vector<int64_t> out;
  for (const Value& x : items(v)) {
    if (x.kind != Value::Int || x.number < 0) bad("a tensor's shape or stride is no non-negative integer");
    out.push_back(x.number);
  }
  return out;
}

// (storage, offset, size, stride, requires_grad, hooks)
void Machine::rebuild_tensor(const std::vector<Value>& args) {
  if (args.size() < 6 || args.size() > 7 || args[0].kind != Value::Storage || args[1].kind != Value::Int ||
      args[1].number < 0)
    bad("the pickle rebuilds a tensor with wrong arguments");
  const Storage& s = used_[size_t(args[0].number)];
  TorchArchive::Info info{s.type, integers(args[2]), integers(args[3]), {}};
  const int64_t offset = args[1].number;
  const auto n = count(info.shape);
  if (info.strides.size() != info.shape.size() || !n || *n > s.elements || offset > s.elements)
    bad("a tensor is larger than its storage of {} elements", s.elements);
  int64_t last = offset;  // the place of its last element
  for (size_t k = 0; k < info.shape.size() && *n > 0; ++k) {
    int64_t span;
    if (__builtin_mul_overflow(info.shape[k] - 1, info.strides[k], &span) || __builtin_add_overflow(last, span, &last))
      bad("a tensor's strides overflow");
  }
  if (*n > 0 && last >= s.elements) bad("a tensor reaches beyond its storage of {} elements", s.elements);
  info.bytes = s.bytes.subspan(size_t(offset) * size_of(s.type));
  tensors_.push_back(std::move(info));
  push({Value::Tensor, int64_t(tensors_.size() - 1), 0, {}});
}

void Machine::call() {
  const Value args = pop(), function = pop();
  if (function.kind != Value::Global || args.kind != Value::Tuple) bad("the pickle calls what is no function");
  const std::vector<Value>& a = items(args);
  switch (Global(function.number)) {
    case Global::OrderedDict:
      if (!a.empty()) bad("an OrderedDict with arguments is not supported");
      return push_list(Value::Dict, {});
    case Global::RebuildTensor: return rebuild_tensor(a);
    case Global::RebuildParameter:
      if (a.empty() || a[0].kind != Value::Tensor) bad("a parameter is made of what is no tensor");
      return push(a[0]);
    case Global::Size:
      if (a.size() != 1 || a[0].kind != Value::Tuple) bad("a torch.Size is made of what is no tuple");
      return push(a[0]);
    default: bad("the pickle calls a storage class");
  }
}

Value Machine::run() {
  for (;;) {
    const auto op = number<uint8_t>();
    switch (op) {
      case 0x80:  // PROTO
        if (const int version = number<uint8_t>(); version > kMaxProtocol)
          bad("pickle protocol {} is not known", version);
        break;
      case 0x95: number<uint64_t>(); break;  // FRAME
      case '(': marks_.push_back(stack_.size()); break;
      case 'N': push({}); break;
      case 0x88: push({Value::Bool, 1, 0, {}}); break;
      case 0x89: push({Value::Bool, 0, 0, {}}); break;
      case 'J': push_int(number<int32_t>()); break;
      case 'K': push_int(number<uint8_t>()); break;
      case 'M': push_int(number<uint16_t>()); break;
      case 0x8a: {  // LONG1: two's complement, least byte first
        const auto digits = take(number<uint8_t>());
        if (digits.size() > 8) bad("an integer of {} bytes", digits.size());
        uint64_t x = !digits.empty() && digits.back() < 0 ? ~uint64_t(0) : 0;
        for (size_t i = digits.size(); i-- > 0;) x = x << 8 | uint8_t(digits[i]);
        push_int(int64_t(x));
        break;
      }
      case 'G': push({Value::Float, 0, std::bit_cast<double>(__builtin_bswap64(number<uint64_t>())), {}}); break;
      case 'X': push_string(take(number<uint32_t>())); break;  // BINUNICODE
      case 'U':
      case 0x8c: push_string(take(number<uint8_t>())); break;  // SHORT_BINSTRING, SHORT_BINUNICODE
      case ')': push_list(Value::Tuple, {}); break;
      case 't': push_list(Value::Tuple, pop_to_mark()); break;
      case 0x85:
      case 0x86:
      case 0x87: push_list(Value::Tuple, pop_tuple(op - 0x84u)); break;
      case ']':
      case 0x8f: push_list(Value::List, {}); break;  // EMPTY_LIST, EMPTY_SET
      case '}': push_list(Value::Dict, {}); break;
      case 'a': append(Value::List, pop_tuple(1)); break;
      case 's': append(Value::Dict, pop_tuple(2)); break;
      case 'e':
      case 0x90: append(Value::List, pop_to_mark()); break;  // APPENDS, ADDITEMS
      case 'u': append(Value::Dict, pop_to_mark()); break;
      case 'q': memoize(number<uint8_t>()); break;
      case 'r': memoize(number<uint32_t>()); break;
      case 0x94: memoize(uint32_t(memo_.size())); break;  // MEMOIZE
      case 'h': recall(number<uint8_t>()); break;
      case 'j': recall(number<uint32_t>()); break;
      case 'c':
      case 'i': {  // GLOBAL, INST
        const auto module = line();
        global(module, line());
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const auto names = pop_tuple(2);
        global(names[0].text, names[1].text);
        break;
      }
      case 'Q': persistent(pop()); break;
      case 'R':
      case 0x81: call(); break;  // REDUCE, NEWOBJ
      case 'b':                  // BUILD sets attributes: of the state dict _metadata, which nothing here needs
        pop();
        if (top().kind != Value::Dict) bad("the pickle sets attributes of what is no dict");
        break;
      case '.': {
        const Value result = pop();
        if (position_ != code_.size() || !stack_.empty() || !marks_.empty()) bad("the pickle goes on after its end");
        return result;
      }
      default: bad("refuses the pickle instruction 0x{:02x}: only tensors can be loaded", op);
    }
  }
}

}  // namespace

TorchArchive TorchArchive::parse(const MappedFile& file) {
  const std::string& path = file.path();
  if (file.size() > 1 && file.bytes()[0] == std::byte{0x80})
    fail("{}: is a bare pickle, as PyTorch before 1.6 saved; load it there and save it again with a newer torch.save",
         path);
  const Zip zip(file);

  TorchArchive out;
  out.file_ = file;
  const Entry* pickle = nullptr;
  for (const Entry& e : zip.entries) {
    out.checksums_.push_back({e.name, e.data, e.crc});
    if (!e.name.ends_with("/data.pkl")) continue;
    if (pickle)
      fail("{}: has two pickles, '{}' and '{}'; it is no PyTorch checkpoint", path, printable(pickle->name),
           printable(e.name));
    pickle = &e;
  }
  if (!pickle) fail("{}: has no data.pkl; it is no PyTorch checkpoint", path);
  const std::string root = pickle->name.substr(0, pickle->name.size() - strlen("data.pkl")), data = root + "data/";
  std::unordered_map<std::string_view, Bytes> storages;
  for (const Entry& e : zip.entries) {
    if (e.name == root + "byteorder" && as_text(e.data) != "little")
      fail("{}: is not little-endian; save it on such a machine", path);
    if (e.name.starts_with(data)) storages.emplace(std::string_view(e.name).substr(data.size()), e.data);
  }
  if (pickle->data.size() > kMaxPickle)
    fail("{}: its pickle has {} bytes, more than the {} supported", path, pickle->data.size(), kMaxPickle);
  if (crc32(pickle->data) != pickle->crc)
    fail("{}: the entry '{}' is damaged (wrong CRC-32); get the file again", path, printable(pickle->name));

  Machine machine(path, pickle->data, storages);
  const Value root_value = machine.run();
  if (root_value.kind != Value::Dict) fail("{}: does not hold a dict of tensors; save the state_dict() alone", path);
  const auto& items = machine.items(root_value);
  size_t total = 0;
  for (size_t i = 0; i < items.size(); i += 2) {
    const Value &key = items[i], &value = items[i + 1];
    if (key.kind != Value::String || !valid_utf8(key.text)) fail("{}: a key of the state dict is no string", path);
    if (value.kind != Value::Tensor)
      fail("{}: '{}' is no tensor; save the state_dict() alone", path, printable(key.text));
    const Info& info = machine.tensor(value);
    const auto [it, fresh] = out.tensors_.emplace(key.text, info);
    if (!fresh) fail("{}: '{}' occurs twice in the state dict", path, printable(key.text));
    out.names_.emplace_back(key.text);
    // Tensors may share storage, as tied weights do, but must not unpack to far more than the file.
    total += size_t(*count(info.shape)) * size_of(info.type);
    if (total / 16 > file.size())
      fail("{}: its tensors share storage beyond all use; save the state_dict() of clones", path);
  }
  return out;
}

const TorchArchive::Info& TorchArchive::info(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail("{}: has no tensor '{}'", path(), printable(name));
  return it->second;
}

Tensor TorchArchive::get(const std::string& name) const {
  const Info& i = info(name);
  return to_tensor(i.type, i.shape, i.strides, i.bytes, file_.memory(),
                   fmt::format("{}: tensor '{}'", path(), printable(name)));
}

void TorchArchive::verify() const {
  for (const Checksum& c : checksums_)
    if (crc32(c.bytes) != c.crc)
      fail("{}: the entry '{}' is damaged (wrong CRC-32); get the file again", path(), printable(c.name));
}

// ---- writing
// ----------------------------------------------------------------------------------------------------------

namespace {

template <class T>
void put(std::string& s, T x) {
  s.append(reinterpret_cast<const char*>(&x), sizeof x);
}
void put16(std::string& s, std::initializer_list<uint16_t> xs) {
  for (uint16_t x : xs) put(s, x);
}
void put32(std::string& s, std::initializer_list<uint32_t> xs) {
  for (uint32_t x : xs) put(s, x);
}

void put_string(std::string& s, std::string_view text) {
  s += 'X';
  put(s, uint32_t(text.size()));
  s += text;
}
void put_int(std::string& s, int64_t x) {
  if (x <= INT32_MAX) {
    s += 'J';
    put(s, int32_t(x));
  } else {
    s += "\x8a\x08";
    put(s, x);
  }
}

constexpr uint16_t kUtf8 = 0x800;  // flag 11: names are UTF-8

}  // namespace

ZipImage make_zip(std::span<const std::pair<std::string, Bytes>> entries) {
  constexpr uint64_t kAlign = 64, kLocal = 30;
  ZipImage zip;
  std::string directory;
  uint64_t at = 0;
  const auto add = [&](Bytes piece) {
    zip.pieces.push_back(piece);
    at += piece.size();
  };
  for (const auto& [name, data] : entries) {
    if (at + data.size() > 0xfffff000u) fail("a checkpoint of more than 4 GiB cannot be written");
    const uint64_t unpadded = at + kLocal + name.size() + 4, padding = (kAlign - unpadded % kAlign) % kAlign;
    const uint32_t crc = crc32(data), size = uint32_t(data.size());
    std::string& h = zip.headers.emplace_back();
    put32(h, {0x04034b50});
    put16(h, {0, kUtf8, 0, 0, 0});  // version, flags, method, time, date
    put32(h, {crc, size, size});
    put16(h, {uint16_t(name.size()), uint16_t(4 + padding)});
    h += name + "FB";
    put16(h, {uint16_t(padding)});
    h.append(padding, 'Z');

    put32(directory, {0x02014b50});
    put16(directory, {0, 0, kUtf8, 0, 0, 0});
    put32(directory, {crc, size, size});
    put16(directory, {uint16_t(name.size()), 0, 0, 0, 0});  // extra, comment, disk, internal attributes
    put32(directory, {0, uint32_t(at)});
    directory += name;
    add(as_bytes(h));
    add(data);
  }
  const auto size = uint32_t(directory.size());
  if (entries.size() >= 0xffff) fail("a checkpoint of {} tensors cannot be written", entries.size());
  const auto count = uint16_t(entries.size());
  put32(directory, {0x06054b50});
  put16(directory, {0, 0, count, count});
  put32(directory, {size, uint32_t(at)});
  put16(directory, {0});
  add(as_bytes(zip.headers.emplace_back(std::move(directory))));
  return zip;
}

void write_torch_archive(const std::string& path, const NamedTensors& tensors) {
  const std::string root = std::filesystem::path(path).stem().string() + "/";
  const std::string_view ordered_dict = "ccollections\nOrderedDict\n)R";
  std::string pickle = "\x80\x02";
  pickle += ordered_dict;
  pickle += '(';
  std::vector<Tensor> host;
  std::vector<std::pair<std::string, Bytes>> entries = {{root + "data.pkl", {}},
                                                        {root + "byteorder", as_bytes("little")}};
  for (const auto& [name, tensor] : tensors) {
    const Tensor& t = host.emplace_back(tensor.to(Device::CPU));
    const std::string key = std::to_string(host.size() - 1);
    const auto storage = std::find_if(std::begin(kStorages), std::end(kStorages),
                                      [&](auto& s) { return s.second == stored_as(t.dtype()); });
    put_string(pickle, name);
    pickle += "ctorch._utils\n_rebuild_tensor_v2\n((";
    put_string(pickle, "storage");
    pickle += fmt::format("ctorch\n{}\n", storage->first);
    put_string(pickle, key);
    put_string(pickle, "cpu");
    put_int(pickle, t.size());
    pickle += "tQ";
    put_int(pickle, 0);
    pickle += '(';
    for (int64_t d : t.shape()) put_int(pickle, d);
    pickle += "t(";
    int64_t stride = t.size();
    for (int64_t d : t.shape()) put_int(pickle, stride = d ? stride / d : 0);
    pickle += "t\x89";  // requires_grad: False
    pickle += ordered_dict;
    pickle += "tR";
    entries.emplace_back(root + "data/" + key, Bytes(static_cast<const std::byte*>(t.raw()), t.bytes()));
  }
  pickle += "u.";
  entries[0].second = as_bytes(pickle);
  entries.emplace_back(root + "version", as_bytes("3\n"));
  AtomicFile file(path);
  file.write(make_zip(entries).pieces);
  file.commit();
}

}  // namespace t2l
