// Supervised fine-tuning: the losses and first gradients of official runs (../shared/golden/training), and what must
// hold in any: packed equals one by one, an untrained hypernetwork leaves the base as it is, noise and dropout by key.
#include <catch2/catch.hpp>
#include <random>

#include "t2l/apply_adapter.h"
#include "t2l/checkpoint.h"
#include "t2l/sft.h"
#include "tests/golden_files.h"
#include "tests/support.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;
using namespace test;

// One recorded iteration: padding is cut off again.
SftBatch recorded_batch(const SafeTensors& file, int64_t step) {
  const auto get = [&](const char* name) { return file.get(fmt::format("step{}.{}", step, name)); };
  const Tensor ids = get("input_ids"), mask = get("attention_mask"), labels = get("labels");
  SftBatch batch;
  for (int64_t s = 0; s < ids.dim(0); ++s) {
    const auto row = [&](const Tensor& t) { return t.slice(s, s + 1).to_vector<int32_t>(); };
    const std::vector<int32_t> m = row(mask);
    const auto n = ptrdiff_t(std::count(m.begin(), m.end(), 1));
    const auto cut = [n](const std::vector<int32_t>& v) { return std::vector<int32_t>(v.begin(), v.begin() + n); };
    batch.ids.push_back(cut(row(ids)));
    batch.labels.push_back(cut(row(labels)));
  }
  return batch;
}

TEST_CASE("losses and first gradients of the official code") {
  const std::string root = shared_folder() + "/golden/training";
  if (!fs::is_directory(root)) return skip("../shared/golden/training is not here");
  for (const Device device : devices()) {
    const Decoder base = Decoder::load(root + "/world/base", {.device = device});
    for (const std::string name : {"sft_L", "sft_M", "sft_S", "sft_L_token"}) {
      CAPTURE(name, name_of(device));
      const std::string dir = root + "/" + name;
      const Json info = read_json(dir + "/case.json");
      TrainedHypernet t = load_hypernet((fs::path(dir) / info["init"].get<std::string>()).lexically_normal().string(),
                                        {.module_order = {}, .base = root + "/world/base"});
      t.net.parameters().commit(device);
      const SafeTensors batches = SafeTensors::open(dir + "/batches.safetensors");
      SftOptions o;
      o.equally_weight_sample = name != "sft_L_token";
      std::ifstream steps(dir + "/steps.jsonl");
      std::string line;
      std::getline(steps, line);
      const Json want = Json::parse(line);
      const SftBatch batch = recorded_batch(batches, 1);
      const Tensor task = batches.get("step1.task_embs").to(device);
      const std::vector<ModuleAdapters> generated = t.net.generate(task);
      const SftLoss loss = sft_loss(
          base, batch, adapters_of(generated, t.net.config(), float(t.adapter.scaling()), base.options().dtype),
          &generated, o, nullptr);
      CHECK(values(loss.sft)[0] == Approx(want["sft_loss"].get<double>()).epsilon(2e-6));
      CHECK(values(loss.l2)[0] == Approx(want["generated_w_l2_loss"].get<double>()).epsilon(1e-5));
      CHECK(loss.tokens == want["tokens"]);
      CHECK(loss.response_tokens == want["response_tokens"]);
      backward(loss.total);
      const SafeTensors grads = SafeTensors::open(dir + "/grads_step1.safetensors");
      for (const std::string& p : grads.names()) {
        CAPTURE(p);
        check_near(t.net.parameters()(p).grad(), values(grads.get(p)), 2e-5);
      }
    }
  }
}

}  // namespace
}  // namespace t2l
