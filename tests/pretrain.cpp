// t2l-train pretrain: what is drawn and asked for, gradients of every weight against finite differences, a small model
// that learns to follow descriptions and examples, runs that resume, and folders that load again.
#include <catch2/catch.hpp>
#include <filesystem>
#include <map>
#include <set>

#include "t2l/pretrain.h"
#include "tests/golden_files.h"
#include "tests/support.h"
#include "transformer/generation.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

constexpr int32_t kBos = 1, kEos = 2, kSep = 60;
const char* const kTemplate =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<sep>{{ m.content }}!{% else %}{{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}"
    "{% endfor %}";

// A base model's folder without weights, with a byte-level tokenizer of letters, and tasks whose inputs are letters.
struct World {
  Scratch scratch;
  std::string base = scratch / "base";

  explicit World(const Json& changes = Json::object(), const std::string& family = "llama3") {
    scratch.write("base/tokenizer.json",
                  letters_tokenizer({{0, "<pad>"}, {kBos, "<s>"}, {kEos, "</s>"}, {kSep, "<sep>"}}, nullptr).dump());
    scratch.write("base/tokenizer_config.json", Json{{"bos_token", "<s>"},
                                                     {"eos_token", "</s>"},
                                                     {"tokenizer_class", "PreTrainedTokenizerFast"},
                                                     {"chat_template", kTemplate}}
                                                    .dump());
    scratch.write("base/generation_config.json", R"({"eos_token_id": 2})");
    Json config = read_json("tests/golden/decoders/" + family + "/config.json");
    config["vocab_size"] = 61;
    config["gist_token_id"] = kSep;
    config["bos_token_id"] = kBos;
    config["eos_token_id"] = kEos;
    config.merge_patch(changes);
    scratch.write("base/config.json", config.dump());
    // copy "cd" -> "cd", first "cd" -> "c", upper "cd" -> "CD", upper+first "cd" -> "C"
    task("copy", 1, [](const std::string& s) { return s; });
    task("first", 1, [](const std::string& s) { return s.substr(0, 1); });
    task("upper", 1, [](const std::string& s) { return upper(s); });
    task("both", 2, [](const std::string& s) { return upper(s.substr(0, 1)); });
  }
  static std::string upper(std::string s) {
    for (char& c : s) c = char(c - 'a' + 'A');
    return s;
  }
  template <class F>
  void task(const std::string& name, int level, F&& answer, bool described = true) const {
    std::string metadata = "user_prompt_template: '{input}'\nresponse_field: output\n";
    if (described) metadata += "descriptions: ['" + name + ".', 'do " + name + ".', 'please " + name + ".']\n";
    if (level > 0) metadata += fmt::format("level: {}\n", level);
    scratch.write("tasks/" + name + "/metadata.yaml", metadata);
    std::string rows;
    for (char a = 'a'; a <= 'f'; ++a)
      for (char b = 'a'; b <= 'f'; ++b) {
        const std::string input{a, b};
        rows += Json{{"input", input}, {"output", answer(input)}}.dump() + "\n";
      }
    scratch.write("tasks/" + name + "/train.jsonl", rows);
  }

  std::string yaml(const std::string& more = "") const {
    return fmt::format("model_dir: {}\ndata: {}\nsteps: 20\nseed: 5\n", base, scratch / "tasks") + more +
           (more.find("batch_size") == std::string::npos ? "batch_size: 8\n" : "");
  }
  TrainConfig config(const std::string& more = "") const {
    return TrainConfig::parse(Verb::Pretrain, yaml(more), "c.yaml");
  }
  Run train(const std::string& out, const std::vector<std::string>& more = {}) const {
    scratch.write("c.yaml", yaml());
    std::vector<std::string> a{"pretrain", "--config", scratch / "c.yaml", "--out", out, "--quiet"};
    a.insert(a.end(), more.begin(), more.end());
    return run_program(scratch, "t2l-train", a);
  }
  SampleEncoder encoder() const { return SampleEncoder::load(base, base, true, 512); }
};

const Json kSmall{{"hidden_size", 32},
                  {"intermediate_size", 48},
                  {"num_attention_heads", 4},
                  {"num_key_value_heads", 2},
                  {"head_dim", 8},
                  {"num_hidden_layers", 2},
                  {"rope_scaling", nullptr},
                  {"tie_word_embeddings", true},
                  {"initializer_range", 0.15}};

std::vector<Json> rows_of(const std::string& out) {
  std::vector<Json> rows = json_lines(read_text_file(out + "/metrics.jsonl"), out);
  for (Json& row : rows) row.erase("seconds");
  return rows;
}

// The ids of `text`, in which ( | > stand for <s>, <sep> and </s>.
std::vector<int32_t> ids_of(const std::string& text) {
  const std::string letters = "abcdefghijklmnopqrstuvwxyz.,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::vector<int32_t> ids;
  for (const char c : text)
    ids.push_back(c == '(' ? kBos : c == '|' ? kSep : c == '>' ? kEos : c == ' ' ? 59 : int32_t(letters.find(c)) + 3);
  return ids;
}
// The same, -100 where `asked` has a '-'.
std::vector<int32_t> labels_of(const std::string& text, const std::string& asked) {
  std::vector<int32_t> ids = ids_of(text);
  REQUIRE(text.size() == asked.size());
  for (size_t i = 0; i < ids.size(); ++i)
    if (asked[i] == '-') ids[i] = -100;
  return ids;
}

}  // namespace

TEST_CASE("draws: what was asked for, and the same for every order of asking") {
  const std::vector<PretrainSampler::Size> tasks = {{40, 3, 1}, {40, 0, 2}, {2, 5, 2}, {1, 2, 1}, {40, 2, 0}};
  const PretrainSampler s({.batch_size = 500, .p_no_description = 0.2, .p_shots = 0.3, .curriculum_end = 10, .seed = 3},
                          tasks);
  std::vector<std::vector<PretrainDraw>> all;
  for (int64_t i = 0; i < 20; ++i) all.push_back(s.batch(i));
  for (int64_t i = 19; i >= 0; --i) CHECK(s.batch(i) == all[size_t(i)]);
  CHECK(PretrainSampler({.batch_size = 500, .p_no_description = 0.2, .p_shots = 0.3, .curriculum_end = 10, .seed = 4},
                        tasks)
            .batch(0) != all[0]);

  double early = 0, late = 0, described = 0, with_descriptions = 0;
  std::map<size_t, double> shots;
  std::map<int32_t, std::set<int32_t>> rows;
  for (size_t i = 0; i < all.size(); ++i)
    for (const PretrainDraw& d : all[i]) {
      const PretrainSampler::Size& t = tasks[size_t(d.task)];
      REQUIRE(d.description < t.descriptions);
      const std::set<int32_t> unique(d.rows.begin(), d.rows.end());
      REQUIRE(unique.size() == d.rows.size());
      REQUIRE((*unique.begin() >= 0 && *unique.rbegin() < t.rows));
      REQUIRE((d.rows.size() == 1 || d.description < 0));
      rows[d.task].insert(d.rows.begin(), d.rows.end());
      (i < 10 ? early : late) += t.level == 1;
      if (t.descriptions) described += d.description >= 0, ++with_descriptions;
      if (t.rows == 40) ++shots[d.rows.size()];
    }
  CHECK(early / 5000 == Approx(0.9 + 0.1 * 2 / 5).margin(0.02));
  CHECK(late / 5000 == Approx(0.2 + 0.8 * 2 / 5).margin(0.02));
  CHECK(described / with_descriptions == Approx(0.5).margin(0.02));
  const double total = shots[1] + shots[2] + shots[3] + shots[4];
  for (const size_t n : {2, 3, 4}) CHECK(shots[n] / total == Approx(0.1).margin(0.02));
  for (const auto& [task, seen] : rows) CHECK(int64_t(seen.size()) == tasks[size_t(task)].rows);  // every row comes
  CHECK(std::all_of(all[3].begin(), all[3].end(),
                    [&](const PretrainDraw& d) { return int64_t(d.rows.size()) <= tasks[size_t(d.task)].rows; }));

  // Without a curriculum levels play no part.
  const PretrainSampler plain({.batch_size = 2000}, tasks);
  std::map<int32_t, double> count;
  for (const PretrainDraw& d : plain.batch(0)) ++count[d.task];
  for (int32_t t = 0; t < 5; ++t) CHECK(count[t] / 2000 == Approx(0.2).margin(0.04));
  check_refused([&] { PretrainSampler({.curriculum_end = 1}, {{4, 1, 2}, {4, 1, 0}}); }, {"curriculum", "level: 1"});
}

TEST_CASE("a sample is what the chat template says, and asks for its answers") {
  const World w(kSmall);
  const SampleEncoder encoder = w.encoder();
  const TrainConfig config = w.config();
  const TaskSet set = TaskSet::load(config, &encoder);
  REQUIRE(set.tasks.size() == 4);  // both, copy, first, upper
  CHECK(set.tasks[0].level == 2);
  CHECK(set.tasks[1].level == 1);
  REQUIRE(set.tasks[1].conversations.size() == 36);
  const auto check = [&](const PretrainDraw& draw, const std::string& text, const std::string& asked) {
    const PretrainSample s = pretrain_sample(encoder, set.tasks[size_t(draw.task)], draw);
    CHECK(s.ids == ids_of(text));
    CHECK(s.labels == labels_of(text, asked));
  };
  check({1, -1, {8}}, "(|bc!bc>", "-----xxx");
  check({1, 1, {8}}, "(do copy.|bc!bc>", "-------------xxx");
  check({3, -1, {1, 8}}, "(|ab!AB|bc!BC>", "-----------xxx");
  check({3, -1, {1, 8, 14, 0}}, "(|ab!AB|bc!BC|cc!CC|aa!AA>", "-----------xx----xx----xxx");
  check({2, 2, {1, 8, 14}}, "(please first.|ab!a|bc!b|cc!c>", "-----------------------x----xx");
}

TEST_CASE("batches hold what each draw's own rendering gives") {
  const World w(kSmall);
  // An example of a long input, and descriptions that the limit cuts off
  w.scratch.write(
      "tasks/long/metadata.yaml",
      "user_prompt_template: '{input}'\nresponse_field: output\ndescriptions: ['a very long story.', b.]\n");
  w.scratch.write("tasks/long/train.jsonl", R"({"input": "abcdefghijkl", "output": "abc"})"
                                            "\n"
                                            R"({"input": "a", "output": "b"})"
                                            "\n");
  for (const int32_t gist : {kSep, -1})
    for (const int64_t limit : {512, 22}) {
      const SampleEncoder encoder = SampleEncoder::load(w.base, w.base, true, limit);
      const TaskSet set = TaskSet::load(w.config(), &encoder);
      std::vector<PretrainSampler::Size> sizes;
      for (const Task& t : set.tasks)
        sizes.push_back({int64_t(t.train.size()), int64_t(t.descriptions.size()), t.level});
      const PretrainSampler sampler({.batch_size = 40, .p_no_description = 0.2, .p_shots = 0.2}, sizes);
      PretrainSamples samples(encoder, set.tasks, gist, limit);
      for (int64_t i = 0; i < 20; ++i) {
        const std::vector<PretrainDraw> draws = sampler.batch(i);
        const SftBatch batch = samples.batch(draws);
        for (size_t s = 0; s < draws.size(); ++s) {
          const PretrainSample want = pretrain_sample(encoder, set.tasks[size_t(draws[s].task)], draws[s]);
          REQUIRE(batch.ids[s] == want.ids);
          REQUIRE(batch.labels[s] == want.labels);
        }
      }
    }
}

TEST_CASE("gradients of every weight against finite differences") {
  // gemma2: norms after attention and MLP, capped logits; llama_bias: biases everywhere, an untied head; qwen3: normed
  // q and k.
  for (const char* family : {"llama3", "gemma2", "llama_bias", "qwen2", "qwen3"})
    for (const bool tied : {true, false}) {
      const World w({{"tie_word_embeddings", tied}, {"gist_token_id", kSep}}, family);
      CAPTURE(family, tied);
      const std::unique_ptr<Learner> learner =
          make_learner(w.config("p_shots: 0.3\nlabel_smoothing: 0.1\nbatch_size: 4\n"), DType::F32, Device::CPU);
      Parameters& p = learner->parameters();
      // Away from the start, where norms are 1 and biases 0.
      Tensor noise = Tensor::empty(p.values().shape());
      backend(noise).random_normal(noise, 0, 0.1f, {77, 0});
      for (const std::string& name : p.names()) {
        const auto [begin, end] = *p.place(name);
        Tensor here = p.values().slice(begin, end);
        backend(here).scale(here, noise.slice(begin, end), 1, true);
      }
      backward(learner->forward(0).loss);
      const Values gradient = values(p.grads());
      const auto loss = [&] {
        const NoGrad no_grad;
        return double(learner->forward(0).loss.value.to_vector<float>()[0]);
      };
      for (const std::string& name : p.names()) {
        CAPTURE(name);
        const auto [begin, end] = *p.place(name);
        // Along the gradient itself the slope is its norm.
        double norm = 0;
        for (int64_t i = begin; i < end; ++i) norm += std::pow(double(gradient[size_t(i)]), 2);
        norm = std::sqrt(norm);
        // The keys' bias shifts all scores of a query alike, but for the rotation; so its gradient is small, not zero.
        REQUIRE(norm > 1e-5);
        const Values g(gradient.begin() + begin, gradient.begin() + end);
        const Tensor direction = Tensor::from<float>(g, {end - begin}, Device::CPU);
        Tensor here = p.values().slice(begin, end);
        const Tensor before = here.clone();
        // Steps that change the loss by some 0.01: above the rounding of f32, below the curvature.
        const double step = std::min(0.01 / norm, 0.05);
        backend(here).scale(here, direction, float(step / norm), true);
        const double up = loss();
        here.copy_from(before);
        backend(here).scale(here, direction, float(-step / norm), true);
        const double down = loss();
        here.copy_from(before);
        CHECK((up - down) / (2 * step) == Approx(norm).epsilon(0.02).margin(2e-5));
      }
    }
}

TEST_CASE("norms and biases do not decay") {
  const World w(Json::object(), "llama_bias");
  const std::unique_ptr<Learner> learner = make_learner(w.config(), DType::F32, Device::CPU);
  Parameters& p = learner->parameters();
  p.clear_grads();
  Optimizer optimizer(p, {.weight_decay = 0.5});
  std::map<std::string, Values> before;
  for (const std::string& name : p.names()) before[name] = values(p.value(name));
  optimizer.step(0.1);  // no gradient: decay is all there is
  for (const std::string& name : p.names()) {
    CAPTURE(name);
    Values want = before[name];
    if (p.shape(name).rank() > 1)
      for (float& x : want) x *= float(1 - 0.1 * 0.5);
    CHECK(values(p.value(name)) == want);
  }
}

TEST_CASE("initial weights") {
  const World w(kSmall);
  const auto deviation = [](const std::string& name, const World& world) {
    const std::unique_ptr<Learner> learner = make_learner(world.config(), DType::F32, Device::CPU);
    double sum = 0;
    const Values x = values(learner->parameters().value(name));
    for (const float v : x) sum += double(v) * v;
    return std::sqrt(sum / double(x.size()));
  };
  CHECK(deviation("model.layers.1.mlp.down_proj.weight", w) == Approx(0.15).epsilon(0.1));
  CHECK(deviation("model.embed_tokens.weight", w) == Approx(0.15).epsilon(0.1));
  CHECK(deviation("model.norm.weight", w) == 1);
  Json wide = kSmall;
  wide["initializer_range"] = 0.5;
  CHECK(deviation("model.layers.0.self_attn.q_proj.weight", World(wide)) == Approx(0.5).epsilon(0.1));
}

TEST_CASE("a small model learns tasks by description and by example, and its folder is complete") {
  const World w(kSmall);
  const std::string out = w.scratch / "out";
  const Run r = w.train(out, {"--steps=600", "--lr=0.005", "--batch_size=32", "--p_no_description=0.05",
                              "--p_shots=0.35", "--curriculum=0.2", "--json"});
  INFO(r.err);
  REQUIRE(r.status == 0);
  const std::vector<Json> rows = rows_of(out);
  REQUIRE(rows.size() == 600);
  CHECK(rows[599]["loss"].get<double>() < 0.25 * rows[0]["loss"].get<double>());
  CHECK(rows[599]["lr"].get<double>() == Approx(0.00025).epsilon(0.01));  // min_lr_frac
  CHECK(rows[0]["tokens"].get<int64_t>() > 0);
  CHECK(parse_json(r.out, "stdout")["parameters"] == DecoderConfig::load(out).parameters());

  const Decoder model = Decoder::load(out);
  CHECK(model.config().gist_token == kSep);
  const auto answer = [&](const std::string& prompt) {
    GenerationOptions o;
    o.max_new_tokens = 4;
    o.eos = GenerationConfig::load(out).eos;
    return generate(model, {ids_of(prompt)}, o)[0];
  };
  int right = 0;
  std::string wrong;
  for (const std::string in : {"ab", "cf", "dd", "ea", "fc"}) {
    const std::string up = World::upper(in);
    for (const auto& [name, want] :
         {std::pair("copy", in), {"first", in.substr(0, 1)}, {"upper", up}, {"both", up.substr(0, 1)}})
      if (const auto got = answer(fmt::format("(do {}.|{}!", name, in)); got == ids_of(want + ">"))
        ++right;
      else
        wrong += fmt::format("{} {}: {} ", name, in, fmt::join(got, ","));
  }
  INFO(wrong);
  CHECK(right >= 19);  // of 20
  // Two examples say which task it is; an answer ends as it does without them.
  int by_example = 0;
  for (const std::string in : {"ab", "cf", "ea"}) {
    by_example += answer(fmt::format("(|be!BE|da!DA|{}!", in)) == ids_of(World::upper(in) + ">");
    by_example += answer(fmt::format("(|be!b|da!d|{}!", in)) == ids_of(in.substr(0, 1) + ">");
  }
  CHECK(by_example >= 5);  // of 6

  // The files of the model's folder, and t2l-run on them.
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    CHECK(read_text_file(out + "/" + name) == read_text_file(w.base + "/" + name));
  Json before = read_json(w.base + "/config.json"), after = read_json(out + "/config.json");
  CHECK(after["torch_dtype"] == "float32");
  before.erase("torch_dtype"), after.erase("torch_dtype");
  CHECK(after == before);
  const Run run =
      run_program(w.scratch, "t2l-run",
                  {"--model", out, "--ids", fmt::format("{}", fmt::join(ids_of("(do first.|cf!"), ",")), "--json"});
  INFO(run.err);
  CHECK(run.status == 0);
  CHECK(run.out.find("\"c") != std::string::npos);

  // The same weights as the last checkpoint's; and what goes on from them starts as low as they ended.
  const SafeTensors written = SafeTensors::open(out),
                    last = SafeTensors::open(out + "/checkpoints/step_600/parameters.safetensors");
  CHECK(written.names() == last.names());
  for (const std::string& name : written.names()) CHECK(values(written.get(name)) == values(last.get(name)));
  const std::unique_ptr<Learner> more =
      make_learner(w.config("init_from: " + out + "\nbatch_size: 32\n"), DType::F32, Device::CPU);
  for (const std::string& name : written.names())
    CHECK(values(more->parameters().value(name)) == values(written.get(name)));
  CHECK(values(more->forward(0).loss.value)[0] < 1);
  Tape::clear();
}

TEST_CASE("a resumed run of pretraining ends with the bytes of an uninterrupted one") {
  const World w(kSmall);
  const std::string whole = w.scratch / "whole", parts = w.scratch / "parts";
  for (const std::vector<std::string>& kind :
       std::vector<std::vector<std::string>>{{}, {"--dtype=bf16", "--grad_accum_steps=2", "--recompute"}}) {
    fs::remove_all(whole);
    fs::remove_all(parts);
    std::vector<std::string> more{"--steps=12", "--save_freq=4", "--keep_last=9", "--curriculum=0.5", "--p_shots=0.3"};
    more.insert(more.end(), kind.begin(), kind.end());
    REQUIRE(w.train(whole, more).status == 0);
    // As a run that was killed in its seventh update leaves it
    fs::create_directories(parts + "/checkpoints");
    fs::copy(whole + "/checkpoints/step_4", parts + "/checkpoints/step_4");
    const std::string metrics = read_text_file(whole + "/metrics.jsonl");
    write_text_file(parts + "/metrics.jsonl", metrics.substr(0, metrics.size() * 6 / 10));
    more.push_back("--resume");
    const Run r = w.train(parts, more);
    INFO(r.err);
    REQUIRE(r.status == 0);
    CHECK(rows_of(whole) == rows_of(parts));
    for (const char* file : {"/model.safetensors", "/config.json", "/checkpoints/step_12/optimizer.safetensors"})
      CHECK(read_text_file(whole + file) == read_text_file(parts + file));
  }
}

TEST_CASE("transformers reads what pretraining wrote") {
  const char* python = std::getenv("T2L_PYTHON");
  if (!python) return skip("set T2L_PYTHON to a Python that has torch and transformers");
  for (const char* family : {"llama3", "gemma2", "llama_bias", "qwen2"}) {
    CAPTURE(family);
    const World w({{"rope_scaling", nullptr}}, family);
    const std::string out = w.scratch / "out";
    REQUIRE(w.train(out, {"--steps=3"}).status == 0);
    const std::vector<int32_t> ids = ids_of("(|bc!B");
    const NoGrad no_grad;
    const Decoder d = Decoder::load(out);
    write_safetensors(w.scratch / "ours.safetensors", {{"logits", d.logits(d.hidden({.ids = {ids}}).value)}});
    w.scratch.write("check.py", R"(
import sys, torch, safetensors.torch, transformers
d = sys.argv[1]
model, info = transformers.AutoModelForCausalLM.from_pretrained(d + '/out', output_loading_info=True, attn_implementation='eager')
assert not info['missing_keys'] and not info['unexpected_keys'], info
tokenizer = transformers.AutoTokenizer.from_pretrained(d + '/out')
turns = [{'role': 'system', 'content': ''}, {'role': 'user', 'content': 'bc'}]
ids = tokenizer.apply_chat_template(turns, tokenize=True)
assert ids == [int(i) for i in sys.argv[2].split(',')][:-1], ids
ids = torch.tensor([[int(i) for i in sys.argv[2].split(',')]])
want = safetensors.torch.load_file(d + '/ours.safetensors')['logits']
got = model(ids).logits[0].detach()
assert (got - want).norm() < 1e-5 * want.norm(), (got - want).norm() / want.norm()
assert model.generation_config.eos_token_id == 2
)");
    const int status =
        std::system(fmt::format("{} -W ignore {} {} {} >{} 2>&1", quoted(python), quoted(w.scratch / "check.py"),
                                quoted(w.scratch.path.string()), fmt::join(ids, ","), quoted(w.scratch / "said"))
                        .c_str());
    INFO(read_text_file(w.scratch / "said"));
    CHECK(status == 0);
  }
}

TEST_CASE("recomputed blocks and threads do not change pretraining") {
  const World w(kSmall);
  const std::string one = w.scratch / "one";
  REQUIRE(w.train(one, {"--steps=4"}).status == 0);
  for (const char* other : {"--recompute", "--threads=1", "--threads=3"}) {
    CAPTURE(other);
    const std::string out = w.scratch / "other";
    REQUIRE(w.train(out, {"--steps=4", other, "--force"}).status == 0);
    CHECK(rows_of(one)[3]["loss"] == rows_of(out)[3]["loss"]);
  }
}

TEST_CASE("on the device, and in bf16, pretraining takes the same course") {
  if (!has_cuda()) return skip("no CUDA device, real or emulated");
  const World w(kSmall);
  const auto losses = [&](DType dtype, Device device) {
    const std::unique_ptr<Learner> learner = make_learner(w.config("batch_size: 4\n"), dtype, device);
    Optimizer optimizer(learner->parameters(), {.weight_decay = 0.05, .max_norm = 1});
    Values all;
    for (int64_t i = 0; i < 4; ++i) {
      const MicroBatch micro = learner->forward(i);
      backward(micro.loss);
      optimizer.step(3e-3);
      all.push_back(values(micro.loss.value)[0]);
    }
    return all;
  };
  const Values want = losses(DType::F32, Device::CPU);
  CHECK(want[3] < want[0]);
  CHECK(relative(losses(DType::F32, Device::CUDA), want) < 1e-5);
  CHECK(relative(losses(DType::BF16, Device::CPU), want) < 1e-2);
  CHECK(relative(losses(DType::BF16, Device::CUDA), want) < 1e-2);
}

TEST_CASE("what pretraining refuses") {
  const World w(kSmall);
  const auto refused = [&](const std::string& more, const std::vector<std::string>& parts) {
    check_refused([&] { make_learner(w.config(more), DType::F32, Device::CPU); }, parts);
  };
  refused("p_shots: 0.7\np_no_description: 0.5\n", {"p_shots", "more than 1"});
  refused("p_shots: 1.5\n", {"p_shots", "from 0 to 1"});
  refused("data_order: x\n", {"data_order"});
  refused("init_from: /nowhere\n", {"/nowhere"});
  const World other(Json{{"num_hidden_layers", 1}});
  const std::string out = other.scratch / "out";
  REQUIRE(other.train(out, {"--steps=1"}).status == 0);
  refused("init_from: " + out + "\n", {"model.safetensors", "config.json asks for"});
  const World plain(Json{{"gist_token_id", nullptr}});
  check_refused([&] { make_learner(plain.config("gist_mask: true\n"), DType::F32, Device::CPU); },
                {"config.json", "gist_token_id"});
  check_refused(
      [&] {
        for (const char* name : {"both", "copy", "first", "upper"})
          plain.task(name, 0, [](const std::string& s) { return s; });
        make_learner(plain.config("curriculum: 0.5\n"), DType::F32, Device::CPU);
      },
      {"curriculum", "level: 1"});
  plain.scratch.write("base/tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  check_refused([&] { make_learner(plain.config(), DType::F32, Device::CPU); }, {"chat template", "p_no_description"});
  // Plain text without descriptions, levels and template
  const std::unique_ptr<Learner> learner =
      make_learner(plain.config("p_no_description: 1\np_shots: 0\n"), DType::F32, Device::CPU);
  CHECK(values(learner->forward(0).loss.value)[0] == Approx(std::log(61.)).epsilon(0.1));
  Tape::clear();
  // A model can be trained without its gist rule, and then has none.
  const std::string without = w.scratch / "without";
  REQUIRE(w.train(without, {"--steps=1", "--gist_mask=false"}).status == 0);
  CHECK(DecoderConfig::load(without).gist_token == -1);
}
