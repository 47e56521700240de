#include "transformer/generation.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace t2l {
namespace {

constexpr int64_t kPrefillTokens = 2048;  // at once: enough for the products to run at full speed

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

// The sequences that run together: rows of the batch in the order of their adapters.
class Wave {
 public:
  Wave(const Decoder& decoder, const TokenIds& prompts, const GenerationOptions& options, const AdapterBatch* adapters,
       const std::vector<int32_t>& adapter_of, const std::vector<size_t>& members)
      : decoder_(decoder),
        prompts_(prompts),
        options_(options),
        adapters_(adapters),
        adapter_of_(adapter_of),
        members_(members),
        cache_(decoder.config(), capacities(), decoder.options().dtype, decoder.options().device),
        active_(members.size()) {
    std::iota(active_.begin(), active_.end(), 0);
  }

  void run(TokenIds& out, const std::function<void(size_t, int32_t, bool)>& on_token, GenerationTimes& times) {
    auto start = std::chrono::steady_clock::now();
    std::vector<int32_t> next = choose(prefill(times), 0);
    times.prefill += seconds_since(start);
    start = std::chrono::steady_clock::now();
    for (int64_t step = 1;; ++step) {
      TokenBatch batch;
      std::vector<size_t> still;
      for (size_t i = 0; i < active_.size(); ++i) {
        const size_t slot = active_[i], sequence = members_[slot];
        out[sequence].push_back(next[i]);
        ++times.new_tokens;
        const bool last = step == options_.max_new_tokens ||
                          std::find(options_.eos.begin(), options_.eos.end(), next[i]) != options_.eos.end();
        if (on_token) on_token(sequence, next[i], last);
        if (last) continue;
        still.push_back(slot);
        add(batch, slot, {next[i]});
      }
      active_ = std::move(still);
      if (active_.empty()) break;
      ++times.steps;
      next = choose(decoder_.hidden(batch, adapters_, &cache_).value, step);
    }
    times.decode += seconds_since(start);
  }

 private:
  std::vector<int64_t> capacities() const {
    std::vector<int64_t> n;
    for (const size_t m : members_) n.push_back(int64_t(prompts_[m].size()) + options_.max_new_tokens - 1);
    return n;
  }

  void add(TokenBatch& batch, size_t slot, std::vector<int32_t> ids) const {
    batch.ids.push_back(std::move(ids));
    batch.sequences.push_back(int32_t(slot));
    if (adapters_) batch.adapters.push_back(adapter_of_[members_[slot]]);
  }

  // The last hidden state of each prompt [members, hidden].
  Tensor prefill(GenerationTimes& times) {
    const DecoderOptions& o = decoder_.options();
    Tensor last = Tensor::empty({int64_t(members_.size()), decoder_.config().hidden}, o.dtype, o.device);
    TokenBatch batch;
    int64_t tokens = 0;
    std::vector<int32_t> ends, slots;  // rows of the batch that end a prompt, and whose
    const auto flush = [&] {
      if (!tokens) return;
      const Tensor x = decoder_.hidden(batch, adapters_, &cache_).value;
      if (!ends.empty()) {
        Tensor rows = Tensor::empty({int64_t(ends.size()), x.dim(1)}, o.dtype, o.device);
        backend(rows).gather_rows(rows, 0, x, Tensor::from(ends, o.device), false);
        backend(last).put_rows(last, rows, Tensor::from(slots, o.device));
      }
      batch = {}, tokens = 0, ends.clear(), slots.clear();
    };
    for (size_t slot = 0; slot < members_.size(); ++slot) {
      const std::vector<int32_t>& prompt = prompts_[members_[slot]];
      times.prompt_tokens += int64_t(prompt.size());
      for (size_t at = 0; at < prompt.size();) {
        const size_t n = std::min(prompt.size() - at, size_t(kPrefillTokens - tokens));
        add(batch, slot, {prompt.begin() + ptrdiff_t(at), prompt.begin() + ptrdiff_t(at + n)});
        at += n;
        tokens += int64_t(n);
        if (at == prompt.size()) {
          ends.push_back(int32_t(tokens - 1));
          slots.push_back(int32_t(slot));
        }
        if (tokens == kPrefillTokens) flush();
      }
    }
    flush();
    return last;
  }

  // The next token of each active sequence; x: [active, hidden].
  std::vector<int32_t> choose(const Tensor& x, int64_t step) const {
    const Tensor logits = decoder_.logits(x);
    std::vector<float> uniform;
    for (const size_t slot : active_)
      uniform.push_back(unit_uniform(random_bits({options_.seed, members_[slot]}, uint64_t(step))));
    Tensor ids = Tensor::empty({x.rows()}, DType::I32, x.device());
    backend(ids).sample(ids, logits, Tensor::from(uniform, x.device()), options_.temperature, options_.top_k,
                        options_.top_p);
    return ids.to_vector<int32_t>();
  }

  const Decoder& decoder_;
  const TokenIds& prompts_;
  const GenerationOptions& options_;
  const AdapterBatch* adapters_;
  const std::vector<int32_t>& adapter_of_;
  const std::vector<size_t>& members_;
  KvCache cache_;
  std::vector<size_t> active_;  // places among the members, of sequences that go on
};

}  // namespace

TokenIds generate(const Decoder& decoder, const TokenIds& prompts, const GenerationOptions& options,
                  const AdapterBatch* adapters, const std::vector<int32_t>& given,
                  const std::function<void(size_t, int32_t, bool)>& on_token, GenerationTimes* times) {
  const NoGrad no_grad;
  TokenIds out(prompts.size());
  pack_ids(prompts, decoder.config().vocab, decoder.config().path);  // what is wrong with any shows before all work
  if (options.max_new_tokens < 1) return out;

  std::vector<int32_t> adapter_of = given;
  if (adapters && adapter_of.empty()) {
    adapter_of.assign(prompts.size(), 0);
    if (adapters->count > 1) std::iota(adapter_of.begin(), adapter_of.end(), 0);
  }
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t(0));
  if (adapters)
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return adapter_of[a] < adapter_of[b]; });

  GenerationTimes total;
  for (size_t begin = 0; begin < order.size();) {
    std::vector<size_t> members;
    for (int64_t cached = 0; begin < order.size(); ++begin) {
      cached += int64_t(prompts[order[begin]].size()) + options.max_new_tokens;
      if (!members.empty() && (cached > options.max_cached_tokens || int64_t(members.size()) == options.max_sequences))
        break;
      members.push_back(order[begin]);
    }
    Wave(decoder, prompts, options, adapters, adapter_of, members).run(out, on_token, total);
  }
  if (times) *times = total;
  return out;
}

}  // namespace t2l
