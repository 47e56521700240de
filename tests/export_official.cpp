// --export-official: what the official Python saved, read and exported again, has its names, order and bits; and, where
// there is a Python for it, the official loader takes the export and generates what t2l-gen does.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <set>

#include "t2l/export_official.h"
#include "t2l/torch_archive.h"
#include "tests/golden_files.h"
#include "tests/train_world.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

std::vector<std::string> goldens() {
  std::vector<std::string> all = folders_with("tests/golden/hypernet", "hypermod.pt");
  if (!shared_folder().empty())
    for (const std::string& f : folders_with(shared_folder() + "/golden/hypernet", "hypermod.pt")) all.push_back(f);
  return all;
}

// As a run would: the config that the official code left beside the checkpoint.
std::vector<std::string> export_golden(const std::string& golden, const std::string& to) {
  const TrainedHypernet t = load_hypernet(golden);
  t.verified.get();
  const bool recon = t.net.config().objective == HypernetConfig::Objective::Reconstruction;
  const TrainConfig c = TrainConfig::load(recon ? Verb::Reconstruct : Verb::Sft, golden + "/args.yaml");
  fs::create_directories(to);
  return export_official(t, c, c.train_ds_names, to);
}

}  // namespace

TEST_CASE("an official hypernetwork, exported, is what it was") {
  const std::vector<std::string> all = goldens();
  REQUIRE(all.size() >= 8);
  for (const std::string& golden : all) {
    CAPTURE(golden);
    const Scratch scratch;
    const std::string out = scratch / "export";
    export_golden(golden, out);
    const TorchArchive was = TorchArchive::open(golden + "/hypermod.pt"), is = TorchArchive::open(out + "/hypermod.pt");
    const TrainedHypernet read = load_hypernet(golden);
    is.verify();
    CHECK(is.names() == was.names());
    for (const std::string& name : was.names()) {
      CAPTURE(name);
      const Tensor a = was.get(name), b = is.get(name);
      REQUIRE(a.shape() == b.shape());
      // Of the fixed tensors that a mode does not read, the goldens' are made up; a run's are zero.
      const std::vector<float> zeros(size_t(a.size()));
      CHECK(b.to_vector<float>() == (read.net.parameters().contains(name) ? a.to_vector<float>() : zeros));
    }

    const Json before = read_yaml(golden + "/args.yaml"), after = read_yaml(out + "/args.yaml");
    const bool recon = before["training_task"] == "recon";
    for (const char* key : {"model_dir", "emb_model", "use_one_hot_task_emb", "train_ds_names", "training_task",
                            "target_modules", "shared_AB_head", "autoreg_gen", "learnable_pos_emb", "mt_lora_path",
                            "learnable_AB_offset", "hypernet_latent_size", "head_in_size", "encoder_type"}) {
      CAPTURE(key);
      // The base model as encoder is "" there and null here; the loader asks whether it is true. Lists may be text.
      if (std::string(key) == "emb_model" && before[key] == "") {
        CHECK(after[key].is_null());
      } else if (before[key] != after[key] && before[key].is_string() && after[key].is_array()) {
        CHECK(before[key] == fmt::format("{}", fmt::join(after[key].get<std::vector<std::string>>(), ",")));
      } else if (std::string(key) == "target_modules") {
        CHECK(std::set<Json>(before[key].begin(), before[key].end()) ==
              std::set<Json>(after[key].begin(), after[key].end()));
      } else {
        CHECK(before[key] == after[key]);
      }
    }
    if (recon)
      for (const char* key : {"factorized", "pred_z_score"}) CHECK(before[key] == after[key]);
    const Json peft = read_json(golden + "/adapter_config.json"), ours = read_json(out + "/adapter_config.json");
    for (const char* key : {"peft_type", "r", "lora_alpha", "use_rslora", "base_model_name_or_path", "lora_dropout"})
      CHECK(peft[key] == ours[key]);

    const TrainedHypernet &x = read, y = load_hypernet(out);
    CHECK(x.net.parameters().names() == y.net.parameters().names());
    CHECK(x.encoder.model == y.encoder.model);
    CHECK(x.encoder.pooling == y.encoder.pooling);
    CHECK(x.adapter.scaling() == y.adapter.scaling());
    CHECK(x.tasks == y.tasks);
  }
}

TEST_CASE("an export says what the official code will do otherwise") {
  const Scratch scratch;
  TrainedHypernet t = load_hypernet("tests/golden/hypernet/L_sft");
  TrainConfig c = TrainConfig::load(Verb::Sft, "tests/golden/hypernet/L_sft/args.yaml");
  const auto said = [&](const std::string& part) {
    for (const std::string& line : export_official(t, c, {"a", "b"}, scratch.path.string()))
      if (line.find(part) != std::string::npos) return true;
    return false;
  };
  CHECK(said("PYTHONHASHSEED"));
  for (const char* part : {"emb_layer", "emb_suffix", "emb_prefix", "emb_pooling", "embedded in", "no pooling"}) {
    CAPTURE(part);
    CHECK_FALSE(said(part));
  }
  t.encoder.layer = -2;
  CHECK(said("emb_layer is -2"));
  t.encoder.suffix = " <sep>";
  CHECK(said("emb_suffix is ' <sep>'"));
  t.encoder.prefix = "Say: ";
  CHECK(said("emb_prefix is 'Say: '"));
  t.encoder.pooling = "mean";
  CHECK(said("emb_pooling is mean; the official code will take cls"));
  t.encoder.model = "BAAI/bge-small-en";
  CHECK(said("no pooling for BAAI/bge-small-en"));
  c.embeddings = "e.safetensors";
  CHECK(said("embedded in e.safetensors"));
}

TEST_CASE("the official loader takes an export and generates the same adapters") {
  const char *python = std::getenv("T2L_PYTHON"), *official = std::getenv("T2L_OFFICIAL");
  if (!python || !official) {
    skip("set T2L_PYTHON to a Python with torch, transformers and peft, T2L_OFFICIAL to a checkout of text-to-lora");
    return;
  }
  const Scratch scratch;
  std::string folders;
  for (const std::string& golden : folders_with("tests/golden/hypernet", "hypermod.pt")) {
    const std::string to = scratch / fs::path(golden).filename().string();
    export_golden(golden, to);
    fs::copy(golden + "/base", to + "/base", fs::copy_options::recursive);
    fs::copy(golden + "/embedding.safetensors", to + "/embedding.safetensors");
    folders += " " + quoted(to);
  }
  const std::string command =
      fmt::format("{} -W ignore tests/official_check.py {}{}", quoted(python), quoted(official), folders);
  CHECK(std::system(command.c_str()) == 0);
}

TEST_CASE("t2l-train exports at the end of a run") {
  const World w;
  for (const std::string verb : {"sft", "reconstruct"}) {
    CAPTURE(verb);
    const std::string out = w.scratch / verb, official = w.scratch / (verb + "_official");
    const Run r = w.train(verb, out, {"--steps=2", "--export-official=" + official});
    INFO(r.err);
    REQUIRE(r.status == 0);
    CHECK(r.err.find("warning: --export-official: descriptions were embedded in") != std::string::npos);
    const TrainedHypernet ours = load_hypernet(out), theirs = load_hypernet(official);
    REQUIRE(ours.net.parameters().names() == theirs.net.parameters().names());
    for (const std::string& name : ours.net.parameters().names())
      CHECK(ours.net.parameters().value(name).to_vector<float>() ==
            theirs.net.parameters().value(name).to_vector<float>());
    CHECK(ours.adapter.scaling() == theirs.adapter.scaling());
    CHECK(read_yaml(official + "/args.yaml")["train_ds_names"] == Json{"task0", "task1", "task2", "task3"});
    const Run again = w.train(verb, w.scratch / "other", {"--steps=2", "--export-official=" + official});
    CHECK(again.status == 1);
    CHECK_FALSE(fs::exists(w.scratch / "other"));
  }
}
