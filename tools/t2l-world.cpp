// Makes a small world to learn in: folders of tasks, and the base model's config and tokenizer (tools/demo/world.h).
#include <algorithm>

#include "tools/cli.h"
#include "tools/demo/world.h"

using namespace t2l;
namespace po = boost::program_options;

namespace {

int run(int argc, char** argv) {
  CommandLine cli("t2l-world", "Makes the small world: tasks with descriptions, and a tokenizer.",
                  "t2l-world --out DIR [--seed N] [--tasks N] [--rows N] [--descriptions N]");
  const world::Options defaults;
  const world::BaseShape shape;
  const auto number = [&](const char* name, int value, const char* what) {
    cli.add()(name, po::value<int64_t>(), fmt::format("{} (default: {})", what, value).c_str());
  };
  cli.add()("out", po::value<std::string>(), "where to write it");
  cli.add()("force", "into a folder that is not empty");
  cli.add()("quick", "half of the tasks, half of the rows");
  number("tasks", defaults.tasks, "tasks to train on");
  number("rows", defaults.rows, "training rows of a task");
  number("test-rows", defaults.test_rows, "test rows of a task that is reported");
  number("descriptions", defaults.descriptions, "training descriptions of a task");
  number("hidden", shape.hidden, "width of the base model");
  number("layers", shape.layers, "layers of the base model");
  number("intermediate", shape.intermediate, "width of its MLPs");
  cli.parse(argc, argv);
  if (!cli.has("out")) throw UsageError("--out is needed; see t2l-world --help");

  const auto get = [&](const char* name, int value, int least, int most) {
    const int64_t x = cli.get_int(name, value);
    if (x < least || x > most) throw UsageError(fmt::format("--{} {}: must be from {} to {}", name, x, least, most));
    return int(x);
  };
  const bool quick = cli.has("quick");
  world::Options o;
  o.seed = cli.seed;
  o.tasks = get("tasks", defaults.tasks / (quick ? 2 : 1), 1, 9999);
  o.rows = get("rows", defaults.rows / (quick ? 2 : 1), 1, 100000);
  o.test_rows = get("test-rows", defaults.test_rows / (quick ? 4 : 1), 1, 10000);
  o.descriptions = get("descriptions", defaults.descriptions, 1, 1000);
  world::BaseShape base;
  base.hidden = get("hidden", shape.hidden, shape.head_dim, 1024);
  base.layers = get("layers", shape.layers, 1, 64);
  base.intermediate = get("intermediate", 3 * base.hidden, 1, 4096);
  if (base.hidden % base.head_dim) throw UsageError(fmt::format("--hidden must be a multiple of {}", base.head_dim));

  OutputDirectory out(cli.get("out"), cli.has("force"));
  const world::World made = world::make_world(o);
  world::write_world(made, base, out.path());
  out.commit();
  const auto revealed = [](const std::vector<world::Task>& tasks) {
    return std::count_if(tasks.begin(), tasks.end(), [](const world::Task& t) { return t.revealed; });
  };
  if (!cli.quiet)
    log_line(fmt::format(
        "{}: {} training tasks ({} revealed by their inputs), {} to choose settings by, {} new compositions and "
        "{} new parameter values to report; {} words",
        cli.get("out"), made.train.size(), revealed(made.train), made.valid.size(), made.compositions.size(),
        made.parameters.size(), made.words.size()));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] { return run(argc, argv); });
}
