#include "tensor/check.h"

namespace t2l {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw std::logic_error(fmt::format("{}:{}: {} [{}]", file, line, message, condition));
}

}  // namespace t2l
