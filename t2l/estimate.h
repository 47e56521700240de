// What a training step costs, told from shapes before anything is run.
//
// FLOPs are those of products and attention, a multiply and an add counted as two. They are what a step does: no
// gradients of the frozen base's weights, nothing below the lowest adapted layer, the last layer beyond its keys and
// values and the logits for response tokens alone, and the gradient of logits in the forward pass, where it is made.
// tests/dry_run.cpp holds them against a trace.
//
// Bytes are of the largest tensors alive at once: what stays (the base, slabs of parameters, gradients and two
// moments), what the forward pass keeps for backward, operation by operation, and the few buffers of one block's
// backward. What the allocator rounds up and small things are left out; peak memory measured on small shapes was within
// the factor that tests/dry_run.cpp states.
#pragma once
#include "t2l/hypernet.h"
#include "transformer/decoder_config.h"

namespace t2l {

// Trainable elements by part: of a hypernetwork encoder, embeddings, trunk, heads and offset; else by linear layer.
std::vector<std::pair<std::string, int64_t>> parameters_by_part(const Parameters& parameters);

struct StepCost {
  struct Flops {
    std::string part;
    double forward = 0, backward = 0;
  };
  std::vector<Flops> flops;
  std::vector<std::pair<std::string, double>> bytes;  // by part
  int64_t samples = 0, tokens = 0, response_tokens = 0;

  double total_flops() const;
  double total_bytes() const;
};

// Tokens that go through a frozen base model with adapters, and the loss on their responses.
struct BaseStep {
  const DecoderConfig& base;
  DType dtype = DType::F32;
  bool recompute = false;
  std::vector<int64_t> lengths;     // [samples]
  std::vector<int64_t> responses;   // [samples]: how many of the last tokens are predicted
  std::vector<Projection> adapted;  // in every layer
  int64_t rank = 8;
  float dropout = 0;   // of the adapters' input
  bool whole = false;  // the base itself is trained
};
void add_base_step(StepCost& cost, const BaseStep& step);

// A hypernetwork's part of a step for n descriptions; dtype: of the base model that takes the adapters.
void add_hypernet(StepCost& cost, const Hypernet& net, int64_t n, DType dtype);
// The loss against given adapters, of `tasks` tasks in memory.
void add_reconstruction(StepCost& cost, const HypernetConfig& net, int64_t n, int64_t tasks);
// Slabs of values, gradients and AdamW's two moments.
void add_slabs(StepCost& cost, const Parameters& parameters);

}  // namespace t2l
