// What all programs share: options, the way they end, and progress on the terminal.
#pragma once
#include <boost/program_options.hpp>
#include <chrono>
#include <functional>
#include <string>

#include "tensor/backend.h"
#include "tensor/json.h"

namespace t2l {

// The options every program has, and its own; parse() ends the program for --help and --version.
class CommandLine {
 public:
  CommandLine(std::string program, std::string summary, std::string usage);

  // For the program's own options: add()("task", value<std::string>(), "...").
  boost::program_options::options_description_easy_init add() { return own_.add_options(); }
  // Parsed all the same, but not listed: values of options that are not built yet are refused by the program itself.
  void parse(int argc, char** argv);

  bool has(const std::string& option) const { return values_.count(option) > 0; }
  std::string get(const std::string& option, const std::string& fallback = "") const {
    return has(option) ? values_[option].as<std::string>() : fallback;
  }
  int64_t get_int(const std::string& option, int64_t fallback) const {
    return has(option) ? values_[option].as<int64_t>() : fallback;
  }

  double get_number(const std::string& option, double fallback) const {
    return has(option) ? values_[option].as<double>() : fallback;
  }
  // Of an option that may be given several times.
  std::vector<std::string> get_all(const std::string& option) const {
    return has(option) ? values_[option].as<std::vector<std::string>>() : std::vector<std::string>{};
  }

  // --dtype, or what a base model's weights have where the device is fast in it, else f32.
  DType base_dtype(const std::string& model_dir) const;

  bool quiet = false, json = false;
  uint64_t seed = 0;
  Device device = Device::CPU;
  DType dtype = DType::F32;
  bool dtype_given = false;

 private:
  std::string program_, summary_, usage_;
  boost::program_options::options_description own_, common_;
  boost::program_options::variables_map values_;
};

// cpu, cuda or cuda:N; empty: cuda if a GPU answers, else cpu. UsageError for anything else, Error if there is none.
Device select_device(const std::string& name);

// Thrown where a program sees that it was asked to stop.
struct Interrupted : Error {
  using Error::Error;
};
// Throws if Ctrl-C, SIGTERM or SIGHUP came; a second one ends the program at once.
void stop_if_interrupted(const char* message = "interrupted; nothing was written");

// The text of `file` or, for "-", of standard input. Error beyond `most` bytes.
std::string read_input(const std::string& file, size_t most);

// One line on stderr, whatever became of it.
void log_line(const std::string& text);

// Runs a program: an Error becomes one line on stderr and exit status 1; a UsageError gives 2, Interrupted 130. What
// was printed must have reached stdout, or the status is 1.
int run_program(const std::function<int()>& body);

// A bar on a terminal, for work of more than two seconds; elsewhere a line every ten seconds. On stderr.
class Progress {
 public:
  Progress(std::string what, int64_t total, bool quiet);
  ~Progress();
  void update(int64_t done);
  void note(std::string text) { note_ = std::move(text); }  // stands after the numbers
  void update(int64_t done, int64_t total) { total_ = total, update(done); }

 private:
  void line(int64_t done, bool last);
  using Clock = std::chrono::steady_clock;
  std::string what_, note_;
  int64_t total_, done_ = 0;
  bool quiet_, terminal_, shown_ = false;
  Clock::time_point begin_ = Clock::now(), last_ = begin_;
};

// The most memory this process has had resident so far, in bytes (VmHWM).
double peak_resident_bytes();

// Seconds since the last call, or since construction.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace t2l
