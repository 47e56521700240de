// The training loop, whatever is learnt: micro-batches, accumulation, clipping, AdamW, the schedule, metrics, and runs
// that survive. After any interruption a resumed run ends with the bytes of an uninterrupted one: all that a step
// depends on is its number, the seed, and what a checkpoint holds.
#pragma once
#include <functional>

#include "nn/optimizer.h"
#include "tensor/json.h"
#include "tensor/safetensors.h"

namespace t2l {

// Learning rate of an update, counted from 0: linear warm-up, then linear or cosine decay to `floor` of it
// (transformers' get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup and get_cosine_with_min_lr). The
// first update has rate 0 where it warms up.
struct Schedule {
  enum class Decay : uint8_t { Linear, Cosine } decay = Decay::Linear;
  double peak = 1e-4, floor = 0;
  int64_t warmup = 0, total = 0;  // updates

  double operator()(int64_t update) const;
};

struct TrainPlan {
  int64_t iterations = 0;  // micro-batches
  int64_t accumulate = 1;  // micro-batches an update
  // The official loop drops the gradient of all but the last micro-batch of an update (its zero_grad stands before
  // backward) and still divides by their number.
  bool official_accumulation = false;
  Schedule schedule;
  AdamW adamw;             // with max_norm
  int64_t clip_group = 0;  // elements of the slab that are clipped together; 0: all
  int64_t save_every = 0;  // updates; 0: at the end only
  int64_t keep_last = 2;   // checkpoints
  std::string dump_grads;  // safetensors of the gradients that enter the first clipping; empty: none
  // Updates between validations, which are also made before the first update and after the last; 0: none.
  int64_t validate_every = 0;
  int64_t patience = 0;    // validations with a higher loss than the lowest before the run stops; 0: any number
  bool keep_best = false;  // keeps the checkpoint of the lowest validation loss, and ends with its parameters
};

// What a micro-batch gave: the loss to minimise, and what metrics.jsonl shall say of it besides.
struct MicroBatch {
  Var loss;  // f32 [1]
  Json metrics = Json::object();
  int64_t models = 1;  // that are trained side by side: the loss is the mean of theirs, and each follows its own
};

struct TrainHooks {
  std::function<MicroBatch(int64_t iteration)> forward;
  std::function<void(int64_t iteration, const Json& row)> progress = {};
  // Rows for metrics.jsonl, one a split, each with "split" and "loss". The first split decides which parameters are
  // best. May throw to stop, as check_interrupt.
  std::function<std::vector<Json>()> validate = {};
  // Is called after each checkpoint, and at the end of the run.
  std::function<void()> saved = {};
  std::function<void()> check_interrupt = {};  // throws to stop; the state is saved first
  // Which setting of the run differs from those it began with, as `config` was then; empty: none that matters.
  std::function<std::string(const Json& before)> changed = {};
};

struct TrainResult {
  int64_t updates = 0;         // made
  bool stopped_early = false;  // by patience
  int64_t best_updates = -1;   // made when the validation loss was lowest; -1: there was no validation
  double best_loss = 0;
};

// Trains `parameters` (committed) in the directory `out`, which has metrics.jsonl and checkpoints/step_N/. Checkpoints
// keep `config` for hooks.changed. With resume, goes on from the last one, if there is any. Error for a changed
// setting.
TrainResult train(Parameters& parameters, const TrainPlan& plan, const TrainHooks& hooks, const std::string& out,
                  const Json& config, bool resume);

}  // namespace t2l
