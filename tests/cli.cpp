// t2l-gen as a user runs it: what it writes, its exit status, and that bad input gives one line and nothing on disk.
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "t2l/checkpoint.h"
#include "t2l/torch_archive.h"
#include "tensor/json.h"
#include "tests/golden_files.h"
#include "tests/support.h"

using namespace t2l;
namespace fs = std::filesystem;

namespace {

using namespace test;

Run gen(const Scratch& folder, const std::vector<std::string>& arguments, const std::string& input = "") {
  return run_program(folder, "t2l-gen", arguments, input);
}

const std::string kGolden = "tests/golden/hypernet/";
const std::string kEmbedding = "/embedding.safetensors";

// Exit 1 (or 2), exactly one line that begins with "error: " and names what is expected, nothing left on disk.
void refused(const Scratch& folder, std::vector<std::string> arguments, const std::string& names, int status = 1,
             const std::string& input = "") {
  arguments.insert(arguments.end(), {"--out", folder / "out"});
  const Run run = gen(folder, arguments, input);
  INFO(run.err);
  CHECK(run.status == status);
  CHECK(run.out.empty());
  CHECK(run.err.starts_with("error: "));
  CHECK(std::count(run.err.begin(), run.err.end(), '\n') == 1);
  CHECK(run.err.find(names) != std::string::npos);
  CHECK_FALSE(fs::exists(folder / "out"));
  for (auto& entry : fs::directory_iterator(folder.path.string()))
    CHECK(entry.path().string().find(".tmp-") == std::string::npos);
}

std::string copy_of(const Scratch& folder, const std::string& golden) {
  fs::remove_all(folder / "hypernet");
  fs::copy(kGolden + golden, folder / "hypernet", fs::copy_options::recursive);
  return folder / "hypernet";
}

void edit(const std::string& file, const std::string& from, const std::string& to) {
  std::string text = read_text_file(file);
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  write_text_file(file, text.replace(at, from.size(), to));
}

}  // namespace

TEST_CASE("adapters as PEFT writes them") {
  const Scratch folder;
  const std::string net = kGolden + "L_sft", out = folder / "out";
  Run run = gen(folder,
                {"--hypernet", net, "--base", net + "/base", "--embedding", net + kEmbedding, "--out", out, "--json"});
  INFO(run.err);
  REQUIRE(run.status == 0);
  const Json report = parse_json(run.out, "stdout");
  CHECK(report["adapters"].size() == 2);
  CHECK(report["adapters"][1]["path"] == out + "/1");
  CHECK(report["seconds"]["hypernet"].get<double>() > 0);
  const SafeTensors got = SafeTensors::open(out + "/1/adapter_model.safetensors");
  CHECK(got.names() == SafeTensors::open(net + "/expected/1/adapter_model.safetensors").names());
  const Json config = read_json(out + "/1/adapter_config.json");
  CHECK(config["r"] == 3);
  CHECK(config["lora_alpha"] == 6);
  CHECK(config["use_rslora"] == true);
  CHECK(config["target_modules"] == Json({"q_proj", "v_proj"}));

  SECTION("an output that is not empty is kept, unless forced") {
    const Run again = gen(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out", out});
    CHECK(again.status == 1);
    CHECK(again.err.find("--force") != std::string::npos);
    CHECK(gen(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out", out, "--force"}).status == 0);
  }
  SECTION("the scale is declared or baked in") {
    const auto name = got.names()[1];  // a lora_B
    REQUIRE(name.find("lora_B") != std::string::npos);
    for (const std::string scale : {"plain", "rslora", "2.5"}) {
      REQUIRE(
          gen(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out", folder / scale, "--scale", scale})
              .status == 0);
      const Json c = read_json(folder / (scale + "/0/adapter_config.json"));
      CHECK(c["use_rslora"] == (scale == "rslora"));
      CHECK(c["lora_alpha"] == (scale == "2.5" ? 3 : 6));
      const auto scaled =
          SafeTensors::open(folder / (scale + "/0/adapter_model.safetensors")).get(name).to_vector<float>();
      const auto plain = SafeTensors::open(out + "/0/adapter_model.safetensors").get(name).to_vector<float>();
      for (size_t i = 0; i < plain.size(); ++i) CHECK(scaled[i] == plain[i] * (scale == "2.5" ? 2.5f : 1.0f));
    }
  }
  SECTION("half precision on disk") {
    for (const std::string dtype : {"bf16", "f16"}) {
      REQUIRE(gen(folder,
                  {"--hypernet", net, "--embedding", net + kEmbedding, "--out", folder / dtype, "--out-dtype", dtype})
                  .status == 0);
      const SafeTensors file = SafeTensors::open(folder / (dtype + "/0/adapter_model.safetensors"));
      CHECK(file.info(file.names()[0]).type == (dtype == "bf16" ? Stored::BF16 : Stored::F16));
    }
  }
  SECTION("our own layout gives the same bytes") {
    REQUIRE(gen(folder, {"--hypernet", net, "--save", folder / "ours"}).status == 0);
    REQUIRE(gen(folder, {"--hypernet", folder / "ours", "--embedding", net + kEmbedding, "--out", folder / "again"})
                .status == 0);
    CHECK(read_text_file(folder / "again/1/adapter_model.safetensors") ==
          read_text_file(out + "/1/adapter_model.safetensors"));
    const Json info = parse_json(gen(folder, {"--hypernet", folder / "ours", "--info", "--json"}).out, "stdout");
    CHECK(info["parameters"]["total"] ==
          parse_json(gen(folder, {"--hypernet", net, "--info", "--json"}).out, "stdout")["parameters"]["total"]);
  }
}

TEST_CASE("text through an encoder") {
  const Scratch folder;
  // The committed golden BERT as a folder, and a hypernetwork of its width.
  const std::string golden = "tests/golden/encoders/", encoder = folder / "models/tiny-bert";
  fs::create_directories(encoder);
  fs::copy_file(golden + "bert.safetensors", encoder + "/model.safetensors");
  fs::copy_file(golden + "tokenizer.json", encoder + "/tokenizer.json");
  const Json bert = read_json(golden + "cases.json")["bert"]["config"];
  write_text_file(encoder + "/config.json", bert.dump());
  const auto width = bert["hidden_size"].get<int64_t>();
  HypernetConfig c;
  c.layers = 2;
  c.rank = 2;
  c.latent = 8;
  c.head_in = 5;
  c.task_dim = width;
  c.objective = HypernetConfig::Objective::Reconstruction;
  c.modules = {{"q_proj", 6, 6}, {"v_proj", 6, 3}};
  TrainedHypernet t{Hypernet(c), {"base", 2, 4, true, 0, {"q_proj", "v_proj"}}, {}, false, {}, "", "", "", 0, {}, {}};
  t.encoder.model = "tiny-bert";
  t.encoder.dim = width;
  t.net.parameters().initialise(3);
  fs::create_directories(folder / "net");
  save_hypernet(t, folder / "net");
  setenv("T2L_MODELS", (folder / "models").c_str(), 1);

  REQUIRE(gen(folder,
              {"--hypernet", folder / "net", "--task", "Reverse the words of the sentence", "--out", folder / "one"})
              .status == 0);
  CHECK(read_text_file(folder / "one/task_desc.txt") == "Reverse the words of the sentence");
  const std::string lines = "Reverse the words of the sentence\n\nCount the letters.\r\n";
  REQUIRE(gen(folder, {"--hypernet", folder / "net", "--tasks", "-", "--out", folder / "many"}, lines).status == 0);
  CHECK(fs::exists(folder / "many/0001/adapter_config.json"));
  // One by one or together, with or without a full stop: the same adapter.
  CHECK(read_text_file(folder / "many/0000/adapter_model.safetensors") ==
        read_text_file(folder / "one/adapter_model.safetensors"));
  REQUIRE(gen(folder, {"--hypernet", folder / "net", "--tasks", "-", "--out", folder / "named"},
              R"({"name": "a.b-c_1", "description": "Reverse the words of the sentence."})")
              .status == 0);
  CHECK(read_text_file(folder / "named/a.b-c_1/adapter_model.safetensors") ==
        read_text_file(folder / "one/adapter_model.safetensors"));

  const std::vector<std::string> tasks{"--hypernet", folder / "net", "--tasks", "-"};
  refused(folder, tasks, "holds no task", 1, "\n \n");
  refused(folder, tasks, "standard input:2", 1,
          "{\"name\": \"a\", \"description\": \"x\"}\n{\"name\": \"a\", \"description\": \"y\"}\n");
  refused(folder, tasks, "'..'", 1, R"({"name": "..", "description": "x"})");
  refused(folder, tasks, "'a/b'", 1, R"({"name": "a/b", "description": "x"})");
  refused(folder, tasks, "description", 1, R"({"name": "a"})");
  refused(folder, tasks, "blank", 1, R"({"name": "a", "description": " "})");
  refused(folder, tasks, "UTF-8", 1, "\xff\xfe bad\n");
  refused(folder, {"--hypernet", folder / "net", "--task", "x", "--encoder", folder / "nowhere"}, "nowhere");
}

TEST_CASE("options, signals and full disks") {
  const Scratch folder;
  const std::string net = kGolden + "L_sft";
  // --key=value, and --quiet says nothing
  const Run run =
      gen(folder, {"--hypernet=" + net, "--embedding=" + net + kEmbedding, "--out=" + (folder / "a"), "--quiet"});
  CHECK(run.status == 0);
  CHECK(run.out + run.err == "");
  // stdout that cannot take the result is an error
  const char* bin = std::getenv("T2L_BIN");
  const std::string program = fmt::format("{}/t2l-gen", bin ? bin : "build/bin");
  CHECK(std::system((program + " --hypernet " + net + " --info --json >/dev/full 2>/dev/null").c_str()) == 1 << 8);
  CHECK(std::system((program + " --hypernet " + net + " --info | head -c 1 >/dev/null").c_str()) == 0);

  // Ctrl-C, TERM and HUP while it waits for descriptions: it ends, and leaves nothing
  for (const std::string signal : {"INT", "TERM", "HUP"}) {
    const std::string script = fmt::format(
        "mkfifo {0}/pipe; sleep 20 >{0}/pipe & w=$!; {1} --hypernet {2} --tasks - --out {0}/b --device cpu "
        "<{0}/pipe 2>{0}/err & p=$!; sleep 0.3; kill -{3} $p; wait $p; s=$?; kill $w; rm {0}/pipe; exit $s",
        folder.path.string(), program, net, signal);
    const int status = std::system(("bash -c " + quoted(script) + " 2>/dev/null").c_str());
    INFO(signal);
    CHECK(WEXITSTATUS(status) == 130);
    CHECK(read_text_file(folder / "err") == "error: interrupted; nothing was written\n");
    CHECK_FALSE(fs::exists(folder / "b"));
  }
}

TEST_CASE("wrong command lines") {
  const Scratch folder;
  const std::string net = kGolden + "L_sft";
  refused(folder, {}, "--hypernet", 2);
  refused(folder, {"--hypernet", net}, "exactly one", 2);
  refused(folder, {"--hypernet", net, "--task", "x", "--embedding", "y"}, "exactly one", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--format", "gguf"}, "not built yet", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--scale", "big"}, "--scale", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--scale", "nan"}, "--scale", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out-dtype", "f8"}, "--out-dtype", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--scale", "1e39"}, "--scale", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--scale", "1e6", "--out-dtype", "f16"}, "bf16");
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--pooling", "cls"}, "no effect", 2);
  refused(folder, {"--hypernet", net, "--task", "x", "--pooling", "best"}, "best", 2);
  refused(folder, {"--hypernet", net, "--task", ""}, "--task is empty", 2);
  refused(folder, {"--hypernet", net, "--info"}, "--out has no effect", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--nonsense"}, "nonsense", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--threads", "0"}, "--threads", 2);
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--module-order", "q_proj"}, "--module-order");
  refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--base", kGolden + "Spos_sft"}, "config.json");
  refused(folder, {"--hypernet", folder / "nowhere", "--task", "x"}, "nowhere");
  refused(folder, {"--hypernet", folder.path.string(), "--task", "x"}, "neither hypermod.pt nor hypernet.json");
}

TEST_CASE("damaged checkpoints are refused, and nothing is written") {
  const Scratch folder;
  const auto run = [&](const std::string& net, const std::string& names) {
    refused(folder, {"--hypernet", net, "--embedding", net + kEmbedding}, names);
  };
  std::string net = copy_of(folder, "S_recon_z");
  SECTION("configs") {
    struct Change {
      std::string file, from, to, names;
    };
    for (const Change& c :
         {Change{"/args.yaml", "shared_AB_head: true", "shared_AB_head: false", "heads."},
          Change{"/args.yaml", "shared_AB_head: true", "shared_AB_head: [1, 2]", "shared_AB_head"},
          Change{"/args.yaml", "training_task: recon", "training_task: chess", "chess"},
          Change{"/args.yaml", "hypernet_latent_size: 12", "hypernet_latent_size: 16", "this model needs [8, 7]"},
          Change{"/adapter_config.json", "\"r\": 3", "\"r\": 4", "rank 4"},
          Change{"/adapter_config.json", "\"r\": 3", "\"r\": 3.5", "'r'"}}) {
      edit(net + c.file, c.from, c.to);
      run(net, c.names);
      net = copy_of(folder, "S_recon_z");
    }
    fs::remove(net + "/args.yaml");
    run(net, "args.yaml");
    net = copy_of(folder, "S_recon_z");
    write_text_file(net + "/args.yaml", std::string(100000, '['));
    run(net, "args.yaml");
  }
  SECTION("truncated anywhere") {
    const std::string whole = read_text_file(net + "/hypermod.pt");
    std::mt19937 rng(1);
    for (int i = 0; i < 20; ++i) {
      write_text_file(net + "/hypermod.pt", whole.substr(0, rng() % whole.size()));
      run(net, "hypermod.pt");
    }
  }
  SECTION("bits flipped in a tensor: the checksum says so before the adapter is kept") {
    const std::string whole = read_text_file(net + "/hypermod.pt");
    const TorchArchive archive = TorchArchive::open(net + "/hypermod.pt");
    for (const std::string name : {"mlp1.mlp.1.weight", "heads.q_proj.weight"}) {
      std::string damaged = whole;
      const Tensor t = archive.get(name);
      const size_t at = whole.find(std::string(reinterpret_cast<const char*>(t.raw()), 64));
      REQUIRE(at != std::string::npos);
      damaged[at + 7] = char(damaged[at + 7] ^ 1);
      write_text_file(net + "/hypermod.pt", damaged);
      run(net, "hypermod.pt");
      write_text_file(net + "/hypermod.pt", whole);
    }
  }
  SECTION("random bits: never a crash") {
    const std::string whole = read_text_file(net + "/hypermod.pt");
    std::mt19937 rng(2);
    for (int i = 0; i < 40; ++i) {
      std::string damaged = whole;
      for (int k = 0; k < 3; ++k) damaged[rng() % damaged.size()] ^= char(1 << rng() % 8);
      write_text_file(net + "/hypermod.pt", damaged);
      const Run r = gen(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out", folder / "out"});
      INFO(r.err);
      CHECK((r.status == 0 || r.status == 1));
      CHECK(fs::exists(folder / "out") == (r.status == 0));
      fs::remove_all(folder / "out");
    }
  }
  SECTION("a pickle that runs a command") {
    // cos\nsystem\n('touch …') R, where the state dict should be
    const std::string marker = folder / "pwned";
    const std::string pickle =
        "\x80\x02"
        "cos\nsystem\nX" +
        std::string(1, char(6 + marker.size())) + std::string(3, '\0') + "touch " + marker + "\x85R.";
    const std::string version = "3\n";
    const std::vector<std::pair<std::string, Bytes>> entries{{"hypermod/data.pkl", as_bytes(pickle)},
                                                             {"hypermod/version", as_bytes(version)}};
    AtomicFile file(net + "/hypermod.pt");
    const ZipImage image = make_zip(entries);
    file.write(image.pieces);
    file.commit();
    run(net, "os.system");
    CHECK_FALSE(fs::exists(marker));
  }
  SECTION("a wrong embedding") {
    write_safetensors(net + kEmbedding, {{"embedding", Tensor::full({2, 5}, 1)}});
    run(net, "embedding is [2, 5]");
    write_safetensors(net + kEmbedding, {{"embedding", Tensor::full({1, 7}, NAN)}});
    run(net, "no encoder gives");
    write_safetensors(net + kEmbedding, {{"embedding", Tensor::full({1, 7}, 1e30f)}});
    run(net, "no encoder gives");
    write_safetensors(net + kEmbedding,
                      {{"embedding", Tensor::from(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7}).reshape({1, 7})}});
    run(net, "integers");
    write_safetensors(net + kEmbedding, {{"other", Tensor::full({1, 7}, 1)}});
    run(net, "embedding");
  }
}

TEST_CASE("a one-hot hypernetwork takes the names of its tasks") {
  const Scratch folder;
  const std::string net = copy_of(folder, "L_sft");
  std::string args = read_text_file(net + "/args.yaml");
  edit(net + "/args.yaml", "use_one_hot_task_emb: false", "use_one_hot_task_emb: true");
  edit(net + "/args.yaml", "- a\n- b\n", "- a\n- b\n- c\n- d\n- e\n- f\n- g\n");
  REQUIRE(gen(folder, {"--hypernet", net, "--task", "c", "--out", folder / "c"}).status == 0);
  Tensor row = Tensor::zeros({1, 7});
  row.data<float>()[2] = 1;
  write_safetensors(net + kEmbedding, {{"embedding", row}});
  REQUIRE(gen(folder, {"--hypernet", net, "--embedding", net + kEmbedding, "--out", folder / "row"}).status == 0);
  CHECK(read_text_file(folder / "c/adapter_model.safetensors") ==
        read_text_file(folder / "row/adapter_model.safetensors"));
  refused(folder, {"--hypernet", net, "--task", "zebra"}, "zebra");
}
