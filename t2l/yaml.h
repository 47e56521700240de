// YAML, as far as configs use it: mappings, lists and scalars that mean what they mean to PyYAML, read into the same
// values as JSON. Aliases are expanded within a limit; tags, merge keys and several documents are refused.
#pragma once
#include "tensor/json.h"

namespace t2l {

// Plain scalars: null, booleans, decimal integers and floats with a point as PyYAML resolves them; an integer of more
// than 64 bits becomes a double; all else is a string (1e-5 too, which Object::get_float reads). Error, with the line,
// for what is no such YAML, a repeated key, more than 4 MiB, or a nesting deeper than 64.
Json parse_yaml(std::string_view text, const std::string& file);
Json read_yaml(const std::string& path);

}  // namespace t2l
