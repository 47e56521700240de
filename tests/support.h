// What tests of whole models share: devices, relative errors, scratch folders, refusals.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tensor/backend.h"
#include "tensor/json.h"

namespace t2l::test {

using Values = std::vector<float>;

inline void skip(const std::string& why) { WARN("skipped: " + why); }

inline std::vector<Device> devices() {
  std::vector<Device> all = {Device::CPU};
  if (has_cuda()) all.push_back(Device::CUDA);
  return all;
}

inline Values values(const Tensor& x) { return x.to(DType::F32).to_vector<float>(); }

// |got - want| / |want|
inline double relative(const Values& got, const Values& want) {
  REQUIRE(got.size() == want.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(double(got[i]) - double(want[i]), 2);
    size += std::pow(double(want[i]), 2);
  }
  return std::sqrt(difference / size);
}

inline void check_near(const Tensor& got, const Values& want, double tolerance) {
  const double error = relative(values(got), want);
  INFO("relative L2 " << error);
  CHECK(error <= tolerance);
}

// A folder that is gone when the test ends.
struct Scratch {
  std::filesystem::path path;
  Scratch() {
    static int count = 0;
    path = std::filesystem::temp_directory_path() / fmt::format("t2l-test-{}-{}", ::getpid(), count++);
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  Scratch(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
};

inline std::string quoted(const std::string& s) {  // for the shell
  std::string q = "'";
  for (char c : s) c == '\'' ? q += "'\\''" : q += c;
  return q + "'";
}

// A program of T2L_BIN as a user runs it, on the CPU.
struct Run {
  int status = 0;
  std::string out, err;
};
inline Run run_program(const Scratch& scratch, const std::string& program, const std::vector<std::string>& arguments,
                       const std::string& input = "") {
  const char* bin = std::getenv("T2L_BIN");
  std::string command = fmt::format("{}/{}", bin ? bin : "build/bin", program);
  for (const std::string& a : arguments) command += " " + quoted(a);
  write_text_file(scratch / "stdin", input);
  const int status = std::system(
      fmt::format("{} --device cpu <{} >{} 2>{}", command, scratch / "stdin", scratch / "stdout", scratch / "stderr")
          .c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text_file(scratch / "stdout"),
          read_text_file(scratch / "stderr")};
}

// The values of JSON Lines, every line complete.
inline std::vector<Json> json_lines(const std::string& text, const std::string& name) {
  REQUIRE((text.empty() || text.back() == '\n'));
  std::vector<Json> rows;
  for_lines(text, [&](std::string_view line, int64_t) { rows.push_back(parse_json(line, name)); });
  return rows;
}

// tokenizer.json of a byte-level tokenizer without merges: letters and some signs from id 3, the space 59, and these.
inline Json letters_tokenizer(const std::vector<std::pair<int, const char*>>& special, const Json& post_processor) {
  Json vocab = Json::object(), added = Json::array();
  const std::string letters = "abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ";  // 56
  for (size_t i = 0; i < letters.size(); ++i) vocab[letters.substr(i, 1)] = i + 3;
  vocab["\xc4\xa0"] = 59;  // how ByteLevel writes the space
  for (const auto& [id, name] : special) {
    vocab[name] = id;
    added.push_back({{"id", id},
                     {"content", name},
                     {"special", true},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false}});
  }
  const Json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", bytes},
          {"post_processor", post_processor},
          {"decoder", bytes},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
}

// f fails with one line that contains all of `parts`.
template <class F>
void check_refused(F&& f, const std::vector<std::string>& parts) {
  std::string message = "(accepted)";
  try {
    f();
  } catch (const Error& e) {
    message = e.what();
  }
  INFO(message);
  CHECK(message.find('\n') == std::string::npos);
  for (const std::string& part : parts) {
    INFO("expected: " << part);
    CHECK(message.find(part) != std::string::npos);
  }
}

}  // namespace t2l::test
