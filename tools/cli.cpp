#include "tools/cli.h"

#include <omp.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "transformer/decoder_config.h"

namespace po = boost::program_options;

namespace t2l {
namespace {

volatile std::sig_atomic_t interrupted = 0;

struct Done {};  // --help or --version was answered

}  // namespace

void stop_if_interrupted(const char* message) {
  if (interrupted) throw Interrupted(message);
}

std::string read_input(const std::string& file, size_t most) {
  if (file != "-") return read_text_file(file, most);
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
    stop_if_interrupted();
    if (n < 0) fail("standard input: cannot be read: {}", std::strerror(errno));
    if (n == 0) return text;
    text.append(buffer, size_t(n));
    if (text.size() > most) fail("standard input: more than {} MiB", most >> 20);
  }
}

void log_line(const std::string& text) { std::fputs((text + "\n").c_str(), stderr); }

CommandLine::CommandLine(std::string program, std::string summary, std::string usage)
    : program_(std::move(program)),
      summary_(std::move(summary)),
      usage_(std::move(usage)),
      own_("Options", 110),
      common_("Common", 110) {
  common_.add_options()("help", "this text")("version", "the version")(
      "device", po::value<std::string>(), "cpu or cuda[:N] (default: cuda if a GPU answers, else cpu)")(
      "dtype", po::value<std::string>(), "f32 or bf16, the arithmetic of base model and encoder")(
      "threads", po::value<int64_t>(), "CPU threads (default: all cores)")(
      "seed", po::value<int64_t>(), "seed of all random numbers")("quiet", "no progress on stderr")(
      "json", "the result as one JSON document on stdout");
}

void CommandLine::parse(int argc, char** argv) {
  po::options_description all;
  all.add(own_).add(common_);
  try {
    namespace style = po::command_line_style;
    const auto parsed = po::command_line_parser(argc, argv)
                            .options(all)
                            .positional({})
                            .style(style::unix_style & ~style::allow_guessing & ~style::allow_short)
                            .run();
    po::store(parsed, values_);
    po::notify(values_);
  } catch (const po::error& e) {
    throw UsageError(fmt::format("{}; see {} --help", e.what(), program_));
  }
  if (has("help")) {
    std::ostringstream text;
    text << summary_ << "\n\nUsage: " << usage_ << "\n\n" << own_ << "\n" << common_;
    fmt::print("{}", text.str());
    throw Done();
  }
  if (has("version")) {
    fmt::print("{} {}\n", program_, T2L_VERSION);
    throw Done();
  }
  for (const auto& [option, value] : values_)
    if (const auto* text = boost::any_cast<std::string>(&value.value());
        text && text->empty() && all.find(option, false).semantic()->max_tokens() > 0)
      throw UsageError(fmt::format("--{} is empty; give it a value", option));
  quiet = has("quiet");
  json = has("json");
  seed = uint64_t(get_int("seed", 0));
  if (const int64_t threads = get_int("threads", 0); has("threads")) {
    if (threads < 1 || threads > 4096) throw UsageError(fmt::format("--threads {}: must be from 1 to 4096", threads));
    omp_set_num_threads(int(threads));
  }
  if (has("dtype")) {
    dtype_given = true;
    const std::string name = get("dtype");
    if (name != "f32" && name != "bf16") throw UsageError(fmt::format("--dtype {}: must be f32 or bf16", name));
    dtype = name == "f32" ? DType::F32 : DType::BF16;
  }
  device = select_device(get("device"));
}

DType CommandLine::base_dtype(const std::string& model_dir) const {
  if (dtype_given) return dtype;
  const std::string config = model_dir + "/config.json";
  const Json read = std::filesystem::exists(config) ? read_json(config) : Json::object();
  const DType stored = checkpoint_dtype(Object(read, config));
  return is_fast(device, stored) ? stored : DType::F32;
}

Device select_device(const std::string& name) {
  if (name.empty()) return has_cuda() ? Device::CUDA : Device::CPU;
  if (name == "cpu") return Device::CPU;
  const bool numbered = name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
                        name.find_first_not_of("0123456789", 5) == std::string::npos;
  if (name != "cuda" && !numbered) throw UsageError(fmt::format("--device {}: must be cpu, cuda or cuda:N", name));
  if (numbered) select_cuda(std::stoi(name.substr(5)));
  backend(Device::CUDA);  // fails here, with the reason, if there is none
  return Device::CUDA;
}

int run_program(const std::function<int()>& body) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::fputs("error: this CPU has no AVX2 and FMA, which the program was built for; use a CPU from 2013 or later\n",
               stderr);
    return 1;
  }
  const auto report = [](const char* what) {
    std::string line = what;
    for (char& c : line)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';  // one line, and nothing that drives a terminal
    log_line("error: " + line);
  };
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = SA_RESETHAND;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of the write
  try {
    int status = 0;
    try {
      status = body();
    } catch (const Done&) {}
    if (std::fflush(stdout) || std::ferror(stdout))
      throw Error("standard output: cannot be written; is the disk full?");
    return status;
  } catch (const UsageError& e) {
    report(e.what());
    return 2;
  } catch (const Interrupted& e) {
    report(e.what());
    return 130;
  } catch (const std::bad_alloc&) {
    report("out of memory; use fewer descriptions at once or a smaller model");
  } catch (const std::exception& e) {
    report(e.what());
  }
  return 1;
}

double peak_resident_bytes() {
  // Not getrusage: its figure includes what the parent had before this program was executed.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) * 1024;
  return 0;
}

Progress::Progress(std::string what, int64_t total, bool quiet)
    : what_(std::move(what)), total_(total), quiet_(quiet), terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (!shown_) return;
  line(done_, true);
}

void Progress::update(int64_t done) {
  done_ = done;
  const auto now = Clock::now();
  if (quiet_ || now - begin_ < std::chrono::seconds(2)) return;
  if (shown_ && now - last_ < (terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000))) return;
  last_ = now;
  shown_ = true;
  line(done, false);
}

void Progress::line(int64_t done, bool last) {
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  const double left = done ? seconds * double(total_ - done) / double(done) : 0;
  if (!terminal_) {
    log_line(fmt::format("{}: {} of {}, {:.0f} s{}{}", what_, done, total_, seconds, note_.empty() ? "" : ", ", note_));
    return;
  }
  constexpr int kWidth = 32;
  const int filled = total_ ? int(kWidth * done / total_) : kWidth;
  const std::string bar = fmt::format("\r{} [{:#<{}}{:.<{}}] {}/{}  {:.0f} s left  {}\x1b[K{}", what_, "", filled, "",
                                      kWidth - filled, done, total_, left, note_, last ? "\n" : "");
  std::fputs(bar.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace t2l
