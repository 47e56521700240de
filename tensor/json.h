// JSON, and objects read by name. Both the JSON and the YAML reader give the same values, so that a config is read
// alike from either; an Object knows which file it is from and names it, and the key, in whatever it has to say.
#pragma once
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/file.h"

namespace t2l {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // whose objects keep the order of their keys

struct JsonLimits {
  size_t bytes = size_t(64) << 20;
  int depth = 64;
};

// Error, with line and column, for anything that is not one JSON value in UTF-8, for a repeated key, and beyond limits.
Json parse_json(std::string_view text, const std::string& file, JsonLimits limits = {});
OrderedJson parse_ordered_json(std::string_view text, const std::string& file, JsonLimits limits = {});
Json read_json(const std::string& path, JsonLimits limits = {});

// A view of an object, which must outlive it. A key that is absent or null is missing: the getters with a fallback
// return that, the others fail.
class Object {
 public:
  Object(const Json& value, std::string where);  // Error if value is no object

  const Json* find(const char* key) const;  // null if missing
  bool has(const char* key) const { return find(key) != nullptr; }
  const std::string& where() const { return where_; }

  static constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();
  int64_t get_int(const char* key, int64_t least = kMin, int64_t most = kMax) const;
  int64_t get_int_or(const char* key, int64_t fallback, int64_t least = kMin, int64_t most = kMax) const;
  // Finite. A string that spells a number is one: PyYAML reads 1e-5, without a point, as a string.
  double get_float(const char* key) const;
  double get_float_or(const char* key, double fallback) const;
  bool get_bool(const char* key) const;
  bool get_bool_or(const char* key, bool fallback) const;
  std::string get_string(const char* key) const;
  std::string get_string_or(const char* key, const std::string& fallback) const;
  std::vector<std::string> get_strings(const char* key) const;  // an array of strings
  Object get_object(const char* key) const;

 private:
  const Json& need(const char* key) const;
  [[noreturn]] void wrong(const char* key, const std::string& expected) const;

  const Json* value_;
  std::string where_;
};

}  // namespace t2l
