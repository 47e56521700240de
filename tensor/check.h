// Errors. An Error carries one line for whoever runs the program: what is wrong, where, and the remedy.
// T2L_CHECK states what a function demands of its caller; fail() reports what is wrong with a user's input.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace t2l {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A wrong command line: exit status 2 instead of 1.
struct UsageError : Error {
  using Error::Error;
};

template <class... A>
[[noreturn]] void fail(fmt::format_string<A...> format, A&&... args) {
  throw Error(fmt::format(format, std::forward<A>(args)...));
}

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace t2l

// T2L_CHECK(a.dim(0) == n, "linear: {} rows for {} samples", a.dim(0), n);
#define T2L_CHECK(condition, ...)                                                                      \
  do {                                                                                                 \
    if (!(condition)) ::t2l::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
  } while (0)
