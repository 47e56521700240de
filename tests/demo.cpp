// What `make demo` runs: on a small world with random weights, made here and shipped by ship.py, what it prints and
// what it refuses; on the weights in the repository, where they are, that they work.
#include <catch2/catch.hpp>
#include <filesystem>

#include "t2l/checkpoint.h"
#include "tests/support.h"
#include "tools/demo/world.h"
#include "transformer/decoder.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

const std::string kShipped = "tools/demo/weights";

// A world as t2l-world makes it, a base model and a hypernetwork with random weights, and what ship.py makes of them.
struct Weights {
  Scratch scratch;
  std::string world = scratch / "world", base = scratch / "world/base", net = scratch / "net",
              shipped = scratch / "out/weights";

  Weights() {
    world::Options o;
    o.tasks = 512;
    o.rows = 8;
    o.test_rows = 30;
    o.descriptions = 8;
    world::write_world(world::make_world(o), {}, world);
    const DecoderConfig config = DecoderConfig::load(base);
    Decoder decoder(config, DecoderOptions{});
    decoder.initialise(1);
    NamedTensors tensors;
    for (const Decoder::Parameter& p : decoder.parameters()) tensors.emplace_back(p.name, p.value->value);
    write_safetensors(base + "/model.safetensors", tensors);
    scratch.write("world/base/metrics.jsonl", "{}\n");

    HypernetConfig c;
    c.layers = config.layers;
    c.task_dim = config.hidden;
    c.latent = c.head_in = 16;
    c.rank = 4;
    c.modules = {{"q_proj", config.hidden, config.hidden}, {"v_proj", config.hidden, config.hidden}};
    TrainedHypernet trained{Hypernet(c), {base, 4, 8, false, 0, {"q_proj", "v_proj"}}, {}, false, {}, "", "", "", 0, {},
                            {}};
    trained.net.parameters().initialise(2);
    trained.encoder = {base, -2, "last_token", "", " <sep>", true, config.hidden};
    fs::create_directories(net);
    save_hypernet(trained, net);
  }

  std::pair<int, std::string> ship(const std::string& more = "") const {
    const int status = std::system(fmt::format("python3 tools/demo/ship.py --base {} --hypernet {} --world {} --out {} "
                                               "{} >{} 2>&1",
                                               base, net, world, shipped, more, scratch / "ship.txt")
                                       .c_str());
    return {WEXITSTATUS(status), read_text_file(scratch / "ship.txt")};
  }
  Run run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--weights", shipped});
    return run_program(scratch, "demo", arguments);
  }
};

const Weights& weights() {
  static const Weights w;
  static const auto [status, text] = w.ship();
  INFO(text);
  REQUIRE(status == 0);
  return w;
}

Json json_of(const Run& r) {
  INFO(r.err);
  REQUIRE(r.status == 0);
  return parse_json(r.out, "the demonstration");
}

}  // namespace

TEST_CASE("what is shipped is what the programs read, and of the tasks the first of each kind") {
  const Weights& w = weights();
  CHECK(fs::exists(w.shipped + "/base/tokenizer.json"));
  CHECK_FALSE(fs::exists(w.shipped + "/base/metrics.jsonl"));
  const Json net = read_json(w.shipped + "/hypernet/hypernet.json"), index = read_json(w.world + "/world.json");
  CHECK(net.at("adapter").at("base_model") == w.shipped + "/base");
  CHECK(net.at("encoder").at("model") == "");
  std::map<std::pair<std::string, bool>, size_t> want = {
      {{"compositions", false}, 4}, {{"parameters", false}, 2}, {{"compositions", true}, 1}, {{"parameters", true}, 1}};
  size_t tasks = 0;
  for (auto& [kind, count] : want)
    for (const Json& task : index.at("test").at(kind.first)) {
      if (task.at("revealed") != kind.second || count == 0) continue;
      --count, ++tasks;
      const std::string folder = w.shipped + "/tasks/" + task.at("name").get<std::string>();
      INFO(folder);
      CHECK(json_lines(read_text_file(folder + "/test.jsonl"), folder).size() == 25);
      CHECK(read_text_file(folder + "/metadata.yaml").find("kind: " + kind.first + "\n") != std::string::npos);
      CHECK_FALSE(fs::exists(folder + "/train.jsonl"));
    }
  CHECK(tasks == 8);
  CHECK(std::distance(fs::directory_iterator(w.shipped + "/tasks"), {}) == 8);

  CHECK(w.ship().second.find("--force replaces it") != std::string::npos);
  CHECK(w.ship("--force").first == 0);
}

TEST_CASE("the demonstration shows both models on every task") {
  const Weights& w = weights();
  const Json all = json_of(w.run({"--json"}));
  REQUIRE(all.at("tasks").size() == 8);
  double base = 0, adapted = 0;
  size_t revealed = 0;
  for (const Json& task : all.at("tasks")) {
    CHECK(task.at("examples") == 25);
    CHECK(task.at("rows").size() == 3);
    for (const Json& row : task.at("rows"))
      CHECK(row.at("base_right").get<bool>() == (row.at("base") == row.at("right")));
    for (const char* stage : {"embedding", "hypernet", "answering"}) CHECK(task.at("seconds").at(stage) > 0);
    base += task.at("base").get<double>() / 8;
    adapted += task.at("adapted").get<double>() / 8;
    revealed += task.at("revealed").get<bool>();
  }
  CHECK(all.at("mean").at("base").get<double>() == Approx(base));
  CHECK(all.at("mean").at("adapted").get<double>() == Approx(adapted));
  CHECK(revealed == 2);
  CHECK(all.at("revealed").at("true").at("tasks") == 2);
  CHECK(json_of(w.run({"--json", "--tasks", "3"})).at("tasks").size() == 3);

  const Run text = w.run({});
  CHECK(text.status == 0);
  CHECK(text.out.find('\x1b') == std::string::npos);
  for (const Json& task : all.at("tasks"))
    CHECK(text.out.find(task.at("description").get<std::string>()) != std::string::npos);
  CHECK(text.out.find("make demo TASK=") != std::string::npos);
}

TEST_CASE("a description of one's own is answered, with a warning where its words are not the world's") {
  const Weights& w = weights();
  // One that was trained on, so that no measure can find it strange.
  const std::string known = read_json(w.shipped + "/descriptions.json").at("trained")[5];
  const Json own = json_of(w.run({"--json", "--task", known}));
  CHECK(own.at("rows").size() == 6);
  CHECK(own.at("warnings").empty());
  CHECK(own.at("words").at("unknown").empty());
  CHECK(own.at("nearest").at("cosine") > 0.9999);
  CHECK(own.at("nearest").at("description") == known);
  CHECK(own.at("description") == known);
  CHECK(json_of(w.run({"--json", "--task", known})).at("rows") == own.at("rows"));
  CHECK(json_of(w.run({"--json", "--task", known, "--seed", "1"})).at("rows") != own.at("rows"));

  const Json strange = json_of(w.run({"--json", "--task", "Translate the sentence to Welsh, politely"}));
  CHECK(strange.at("words").at("all") == 6);
  CHECK(strange.at("words").at("unknown").size() >= 3);
  CHECK_FALSE(strange.at("warnings").empty());
  const Run text = w.run({"--task", "Translate the sentence to Welsh, politely"});
  CHECK(text.status == 0);
  CHECK(text.out.find("warning: ") < text.out.find("base model "));
  CHECK(text.out.find("Welsh") != std::string::npos);
  CHECK(w.run({"--task", known}).out.find("warning") == std::string::npos);
  // Letters that no token has, and no letters at all.
  CHECK(json_of(w.run({"--json", "--task", "\xd0\xbf\xd0\xb5\xd1\x80"})).at("words").at("unknown").size() == 1);
  CHECK(w.run({"--task", "\x1b[31m \xff"}).out.find('\x1b') == std::string::npos);
}

TEST_CASE("the demonstration says in one line what is missing") {
  const Weights& w = weights();
  const auto refused = [&](const std::vector<std::string>& arguments, int status, const std::string& why) {
    const Run r = run_program(w.scratch, "demo", arguments);
    INFO(r.err);
    CHECK(r.status == status);
    CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
    CHECK(r.err.find(why) != std::string::npos);
    CHECK(r.out.empty());
  };
  refused({"--weights", "/nowhere"}, 1, "make reproduce");
  refused({"--weights", w.shipped, "--tasks", "0"}, 2, "--tasks 0");
  refused({"--weights", w.shipped, "--tasks", "2", "--task", "x"}, 2, "at most one");
  refused({"--weights", w.shipped, "--task", " "}, 1, "description");
}

TEST_CASE("the weights in the repository answer tasks that nothing was trained on") {
  if (!fs::exists(kShipped + "/base/model.safetensors")) return skip(kShipped + " is not there; `make reproduce`");
  const Scratch scratch;
  const Json all = json_of(run_program(scratch, "demo", {"--json"}));
  const Json& hidden = all.at("revealed").at("false");
  CHECK(hidden.at("tasks") >= 6);
  // That they work; how well is told by the table of `make reproduce`, over many more tasks.
  CHECK(hidden.at("adapted").get<double>() >= hidden.at("base").get<double>() + 0.6);
  const auto warnings = [&](const std::string& text) {
    return json_of(run_program(scratch, "demo", {"--json", "--task", text})).at("warnings").size();
  };
  for (const Json& task : all.at("tasks")) CHECK(warnings(task.at("description")) == 0);
  CHECK(warnings("Translate the sentence to Welsh, politely") > 0);
}
