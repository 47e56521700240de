// What `make demo` needs besides t2l-gen: models made on the spot, with random weights, in the layouts that people
// download (an official hypernetwork, a BERT with a WordPiece vocabulary), and a look at the adapters.
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "t2l/adapter.h"
#include "t2l/hypernet.h"
#include "t2l/torch_archive.h"
#include "tools/cli.h"
#include "tools/tasks.h"

using namespace t2l;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kWidth = 128, kVocab = 512, kPositions = 128;  // of the encoder

// The letters, digits and marks of English and the words of the descriptions: any text has a tokenisation.
std::vector<std::string> vocabulary(const std::string& descriptions) {
  std::vector<std::string> tokens{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
  for (char c = '!'; c <= '~'; ++c)
    if (!std::isupper(static_cast<unsigned char>(c))) tokens.emplace_back(1, c);
  for (char c = 'a'; c <= 'z'; ++c) tokens.push_back(std::string("##") + c);
  for (char c = '0'; c <= '9'; ++c) tokens.push_back(std::string("##") + c);
  std::set<std::string> words;
  for (const NamedTask& task : read_tasks(descriptions)) {
    std::string text = task.description;
    for (char& c : text) c = std::isalpha(static_cast<unsigned char>(c)) ? char(std::tolower(c)) : ' ';
    std::istringstream stream(text);
    for (std::string word; stream >> word;)
      if (word.size() > 1) words.insert(word);
  }
  tokens.insert(tokens.end(), words.begin(), words.end());
  T2L_CHECK(int64_t(tokens.size()) <= kVocab, "{} words", tokens.size());
  return tokens;
}

void make_encoder(const std::string& folder, const std::vector<std::string>& tokens, uint64_t seed) {
  fs::create_directories(folder + "/1_Pooling");
  Json vocab = Json::object(), added = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  for (int i = 0; i < 5; ++i)
    added.push_back({{"id", i},
                     {"content", tokens[size_t(i)]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const auto piece = [](const char* kind, const char* id) {
    return Json::object({{kind, {{"id", id}, {"type_id", 0}}}});
  };
  const auto special = [](const char* token, int id) {
    return Json{{"id", token}, {"ids", Json::array({id})}, {"tokens", Json::array({token})}};
  };
  const Json tokenizer{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer",
       {{"type", "BertNormalizer"},
        {"clean_text", true},
        {"handle_chinese_chars", true},
        {"strip_accents", nullptr},
        {"lowercase", true}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {piece("SpecialToken", "[CLS]"), piece("Sequence", "A"), piece("SpecialToken", "[SEP]")}},
        {"pair",
         {piece("SpecialToken", "[CLS]"), piece("Sequence", "A"), piece("SpecialToken", "[SEP]"),
          piece("Sequence", "B"), piece("SpecialToken", "[SEP]")}},
        {"special_tokens", {{"[CLS]", special("[CLS]", 2)}, {"[SEP]", special("[SEP]", 3)}}}}},
      {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
      {"model",
       {{"type", "WordPiece"},
        {"unk_token", "[UNK]"},
        {"continuing_subword_prefix", "##"},
        {"max_input_chars_per_word", 100},
        {"vocab", vocab}}}};
  write_text_file(folder + "/tokenizer.json", tokenizer.dump(1));
  write_text_file(folder + "/config.json", Json{{"model_type", "bert"},
                                                {"hidden_size", kWidth},
                                                {"num_hidden_layers", 2},
                                                {"num_attention_heads", 4},
                                                {"intermediate_size", 4 * kWidth},
                                                {"vocab_size", kVocab},
                                                {"max_position_embeddings", kPositions},
                                                {"type_vocab_size", 2},
                                                {"hidden_act", "gelu"},
                                                {"layer_norm_eps", 1e-12}}
                                               .dump(1));
  write_text_file(folder + "/1_Pooling/config.json",
                  Json{{"word_embedding_dimension", kWidth}, {"pooling_mode_mean_tokens", true}}.dump(1));
  write_text_file(
      folder + "/modules.json",
      Json::array(
          {{{"idx", 0}, {"name", "0"}, {"path", ""}, {"type", "sentence_transformers.models.Transformer"}},
           {{"idx", 1}, {"name", "1"}, {"path", "1_Pooling"}, {"type", "sentence_transformers.models.Pooling"}}})
          .dump(1));

  Parameters p;
  declare_embedding(p, "embeddings.word_embeddings", kVocab, kWidth);
  declare_embedding(p, "embeddings.position_embeddings", kPositions, kWidth);
  declare_embedding(p, "embeddings.token_type_embeddings", 2, kWidth);
  declare_layernorm(p, "embeddings.LayerNorm", kWidth);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string name = fmt::format("encoder.layer.{}.", layer);
    for (const char* part :
         {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
      declare_linear(p, name + part, kWidth, kWidth);
    declare_linear(p, name + "intermediate.dense", kWidth, 4 * kWidth);
    declare_linear(p, name + "output.dense", 4 * kWidth, kWidth);
    declare_layernorm(p, name + "attention.output.LayerNorm", kWidth);
    declare_layernorm(p, name + "output.LayerNorm", kWidth);
  }
  p.initialise(seed);
  NamedTensors weights;
  for (const std::string& name : p.names()) weights.emplace_back(name, p.value(name));
  write_safetensors(folder + "/model.safetensors", weights);
}

// A hypernetwork L for a base model of 8 layers, as the official training would save it before its first step.
void make_hypernet(const std::string& folder, uint64_t seed) {
  fs::create_directories(folder);
  HypernetConfig c;
  c.objective = HypernetConfig::Objective::Reconstruction;
  c.layers = 8;
  c.task_dim = kWidth;
  c.modules = {{"q_proj", 1024, 1024}, {"v_proj", 1024, 256}};
  Hypernet net(c);
  net.parameters().initialise(seed);
  NamedTensors state;
  for (auto& m : c.modules) state.emplace_back("AB_offset.A." + m.name, Tensor::zeros({c.layers, c.rank, m.in}));
  for (auto& m : c.modules) state.emplace_back("AB_offset.B." + m.name, Tensor::zeros({c.layers, m.out, c.rank}));
  for (const std::string& name : net.parameters().names()) state.emplace_back(name, net.parameters().value(name));
  write_torch_archive(folder + "/hypermod.pt", state);
  write_text_file(
      folder + "/args.yaml",
      "autoreg_gen: false\nemb_model: demo/random-bert\nencoder_type: linear\nfactorized: true\nhead_in_size: 512\n"
      "hypernet_latent_size: 128\nlearnable_AB_offset: false\nlearnable_pos_emb: false\nmodel_dir: demo/random-base\n"
      "mt_lora_path: null\npred_z_score: false\nshared_AB_head: false\ntarget_modules:\n- q_proj\n- v_proj\n"
      "training_task: recon\nuse_one_hot_task_emb: false\n");
  write_text_file(folder + "/adapter_config.json", Json{{"base_model_name_or_path", "demo/random-base"},
                                                        {"lora_alpha", 16},
                                                        {"lora_dropout", 0.05},
                                                        {"peft_type", "LORA"},
                                                        {"r", 8},
                                                        {"target_modules", {"q_proj", "v_proj"}},
                                                        {"task_type", "CAUSAL_LM"},
                                                        {"use_rslora", true}}
                                                       .dump(2));
}

double norm(const Tensor& t) {
  double sum = 0;
  for (const float x : t.host<float>()) sum += double(x) * x;
  return std::sqrt(sum);
}

// |B A|, from the rank x rank products: |BA|^2 = sum of (B^T B) * (A A^T).
double delta_norm(const Tensor& a, const Tensor& b) {
  const int64_t r = a.dim(0);
  const NoGrad no_grad;
  const Tensor aa = matmul(a, a, false, true).value, bb = matmul(b, b, true, false).value;
  double sum = 0;
  for (int64_t i = 0; i < r * r; ++i) sum += double(aa.data<float>()[i]) * bb.data<float>()[i];
  return std::sqrt(std::max(sum, 0.0));
}

// The norms of each adapter by layer and module, and how alike the adapters are.
void show(const std::string& folder) {
  std::vector<std::string> names;
  for (auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  std::vector<std::vector<float>> all;
  for (const std::string& name : names) {
    const SafeTensors file = SafeTensors::open(folder + "/" + name + "/adapter_model.safetensors");
    std::map<std::string, std::map<int, std::string>> cells;  // module -> layer
    all.emplace_back();
    for (const std::string& tensor : file.names()) {
      const auto values = file.get(tensor).to_vector<float>();
      all.back().insert(all.back().end(), values.begin(), values.end());
      // base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight
      const size_t end = tensor.find(".lora_A.weight"), layer = tensor.find(".layers.");
      if (end == std::string::npos || layer == std::string::npos) continue;
      const std::string module = tensor.substr(tensor.rfind('.', end - 1) + 1, end - tensor.rfind('.', end - 1) - 1);
      const Tensor a = file.get(tensor), b = file.get(tensor.substr(0, end) + ".lora_B.weight");
      cells[module][std::stoi(tensor.substr(layer + 8))] =
          fmt::format("{:5.2f} {:5.2f} {:6.2f}", norm(a), norm(b), delta_norm(a, b));
    }
    fmt::print("\n{}\n  {:<6}", read_text_file(folder + "/" + name + "/task_desc.txt"), "layer");
    for (auto& [module, unused] : cells) fmt::print("  {:>6} |A|   |B|   |BA|", module);
    fmt::print("\n");
    for (auto& [layer, unused] : cells.begin()->second) {
      fmt::print("  {:<6}", layer);
      for (auto& [module, layers] : cells) fmt::print("  {:>20}   ", layers[layer]);
      fmt::print("\n");
    }
  }
  fmt::print("\ncosine of the adapters, seen as vectors\n");
  for (size_t i = 0; i < all.size(); ++i) {
    fmt::print("  {:<18}", names[i]);
    for (size_t j = 0; j <= i; ++j) {
      double ij = 0, ii = 0, jj = 0;
      for (size_t k = 0; k < all[i].size(); ++k) {
        ij += double(all[i][k]) * all[j][k];
        ii += double(all[i][k]) * all[i][k];
        jj += double(all[j][k]) * all[j][k];
      }
      fmt::print(" {:6.3f}", ij / std::sqrt(ii * jj));
    }
    fmt::print("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_program([&] {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.size() == 3 && args[0] == "make") {
      make_encoder(args[1] + "/models/demo/random-bert", vocabulary(args[2]), 1);
      make_hypernet(args[1] + "/hypernet", 2);
    } else if (args.size() == 2 && args[0] == "show") {
      show(args[1]);
    } else {
      throw UsageError("usage: demo make FOLDER DESCRIPTIONS | demo show ADAPTERS");
    }
    return 0;
  });
}
