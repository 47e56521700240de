// Runs every OpTest of tests/cases/ through the harness, and proves that none of ops.inc was left out.
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include "tests/harness.h"

using namespace t2l;

TEST_CASE("every operation") {
  for (const test::OpTest& t : test::all_tests()) {
    DYNAMIC_SECTION(t.name) { CHECK_NOTHROW(test::check(t)); }
  }
}

TEST_CASE("no operation without a test") {
  // Runs what the sections above did, so that this case can also be run alone.
  for (const Device device : test::devices()) {
    if (test::not_covered(device).size() == std::size(kOpNames))
      for (const test::OpTest& t : test::all_tests()) test::check(t);
    const auto missing = test::not_covered(device);
    INFO(fmt::format("{}: {}", name_of(device), fmt::join(missing, ", ")));
    CHECK(missing.empty());
  }
}

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--perf") {
    for (const Device device : test::devices()) test::perf(argc > 2 ? argv[2] : "", device);
    return 0;
  }
  return Catch::Session().run(argc, argv);
}
