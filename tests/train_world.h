// A small world for runs of t2l-train: a base model with a byte-level tokenizer of letters, four tasks of a few rows,
// an adapter for each, and the embeddings of their descriptions.
#pragma once
#include <filesystem>

#include "t2l/adapter.h"
#include "t2l/learners.h"
#include "tests/support.h"
#include "transformer/decoder.h"

namespace t2l::test {

inline std::vector<Json> rows_of(const std::string& file) { return json_lines(read_text_file(file), file); }

// `model` is what the base model's config has otherwise; the longest input takes `longest` tokens.
struct World {
  Scratch scratch;
  std::string base = scratch / "base";

  explicit World(const Json& model = Json::object(), int longest = 18) {
    scratch.write("base/tokenizer.json", letters_tokenizer({{0, "<pad>"}, {1, "<s>"}, {2, "</s>"}}, nullptr).dump());
    scratch.write("base/tokenizer_config.json",
                  Json{{"bos_token", "<s>"},
                       {"eos_token", "</s>"},
                       {"chat_template",
                        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
                        "{% elif m.role == 'user' %}{{ bos_token }}{{ m.content }}{% endif %}{% endfor %}"}}
                      .dump());
    Json config = read_json("tests/golden/decoders/mistral/config.json");
    config["vocab_size"] = 60;
    config.merge_patch(model);
    scratch.write("base/config.json", config.dump());
    Decoder d(DecoderConfig::load(base), DecoderOptions{});
    d.initialise(1);
    NamedTensors tensors;
    for (const Decoder::Parameter& p : d.parameters()) {
      Tensor v = p.value->value;
      if (p.shape.rank() > 1) backend(v).scale(v, v, 12, false);  // so that adapters can move its answers
      tensors.emplace_back(p.name, v);
    }
    write_safetensors(base + "/model.safetensors", tensors);

    NamedTensors embeddings;
    for (int t = 0; t < 4; ++t) {
      const std::string name = fmt::format("task{}", t);
      scratch.write("tasks/" + name + "/metadata.yaml",
                    "descriptions:\n- Do it\n- Do that\nuser_prompt_template: '{input}'\nresponse_field: output\n"
                    "system_message: ''\nassistant_prefill: ''\nds_kwargs:\n  path: json\n  split: train\n");
      std::string rows;
      for (int i = 0; i < 6; ++i)
        rows += Json{{"input", std::string(size_t(3 + (longest - 3) * ((i + t) % 4) / 3), char('a' + i))},
                     {"output", std::string(size_t(1 + i % 3), char('A' + t))}}
                    .dump() +
                "\n";
      scratch.write("tasks/" + name + "/train.jsonl", rows);
      Tensor e = Tensor::empty({2, 6});
      backend(e).random_normal(e, 0, 1, {7, uint64_t(t)});
      embeddings.emplace_back(name, e);

      std::vector<LoraWeights> weights;
      for (int64_t layer = 0; layer < d.config().layers; ++layer)
        for (const char* module : {"q_proj", "v_proj"}) {
          const BaseModel::Linear l = *d.config().linear(module);
          Tensor a = Tensor::empty({4, l.in}), b = Tensor::empty({l.out, 4});
          backend(a).random_normal(a, 0, 0.1f, {8, uint64_t(t * 100 + layer)});
          backend(b).random_normal(b, 0, 0.1f, {9, uint64_t(t * 100 + layer)});
          weights.push_back({module, layer, a, b});
        }
      std::filesystem::create_directories(scratch / ("oracle/" + name));
      write_adapter(scratch / ("oracle/" + name), {"base", 4, 8, true, 0, {"q_proj", "v_proj"}}, weights, {});
    }
    write_safetensors(scratch / "embeddings.safetensors", embeddings);
    scratch.write("c.yaml",
                  fmt::format("model_dir: {0}/base\nemb_model: {0}/embeddings.safetensors\noracle_dir: {0}/oracle\n"
                              "hypernet_latent_size: 16\nhead_in_size: 8\nlora_r: 4\nlora_alpha: 8\nseed: 3\nlr: 0.01\n"
                              "inp_max_len: 64\nneftune_noise_alpha: 5\nbase_dtype: f32\n",
                              scratch.path.string()));
  }

  std::vector<std::string> arguments(const std::string& verb, const std::string& out,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> a{verb,    "--config", scratch / "c.yaml", "--data", scratch / "tasks",
                               "--out", out,        "--quiet"};
    if (verb == "sft" || verb == "multitask")
      a.insert(a.end(), {"--use_hierarchical_sampler=true", "--n_tasks_per_batch=3"});
    if (verb == "reconstruct") a.push_back("--n_tasks_per_batch=3");
    if (verb == "lora") a.insert(a.end(), {"--train_ds_names=task1", "--batch_size=4"});
    a.insert(a.end(), more.begin(), more.end());
    return a;
  }
  Run train(const std::string& verb, const std::string& out, const std::vector<std::string>& more = {}) const {
    return run_program(scratch, "t2l-train", arguments(verb, out, more));
  }
};

}  // namespace t2l::test
