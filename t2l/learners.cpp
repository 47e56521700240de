#include "t2l/learners.h"

#include "t2l/learner_parts.h"
#include "t2l/pretrain.h"

namespace t2l {
std::vector<std::string> Learner::save_official(const std::string&) const {
  T2L_CHECK(false, "the config refuses export_official for what is no hypernetwork");
  return {};
}

std::unique_ptr<Learner> make_learner(const TrainConfig& c, DType dtype, Device device,
                                      const TaskSet::Progress& progress) {
  switch (c.verb) {
    case Verb::Lora:
    case Verb::Multitask: return make_adapter_learner(c, dtype, device, progress);
    case Verb::Reconstruct:
    case Verb::Sft:
    case Verb::Hyperdecoders: return make_hypernet_learner(c, dtype, device, progress);
    case Verb::Pretrain: return make_pretrain_learner(c, dtype, device, progress);
  }
  return nullptr;
}

int64_t iterations_of(const TrainConfig& c, const Sampler& sampler) {
  return sampler.recorded() ? sampler.recorded()
         : c.steps          ? c.steps * c.grad_accum_steps
                            : c.epochs * sampler.batches_per_epoch();
}

TrainPlan plan_of(const TrainConfig& c, const Learner& learner) {
  TrainPlan p;
  p.accumulate = c.grad_accum_steps;
  p.iterations = iterations_of(c, learner.sampler());
  p.official_accumulation = c.compat == "official";
  p.schedule.decay = c.schedule == "cosine" ? Schedule::Decay::Cosine : Schedule::Decay::Linear;
  p.schedule.peak = c.lr;
  p.schedule.floor = c.min_lr_frac;
  p.schedule.warmup = int64_t(c.warmup_frac * double(p.iterations) / double(p.accumulate));
  p.schedule.total = p.iterations / p.accumulate;
  p.adamw = {.lr = c.lr, .beta2 = c.adam_beta2, .weight_decay = c.weight_decay, .max_norm = c.max_grad_norm};
  p.save_every = c.save_freq == TrainConfig::kNever ? 0 : c.save_freq;
  p.keep_last = c.keep_last;
  p.dump_grads = c.dump_grads;
  p.validate_every = c.skip_eval ? 0 : c.val_freq;
  p.patience = c.patience;
  p.keep_best = c.keep_best;
  p.clip_group = learner.group();
  return p;
}

}  // namespace t2l
