// The reconstruction objective of Text-to-LoRA, as the official recon_trainer.py has it: a hypernetwork learns to give
// back adapters that were trained one by one. The loss is a mean absolute error of
//   A and B by themselves, as z-scores over the training tasks     (factorized), or of
//   delta W = B A, against delta_w_scaling times the target's      (dense; no delta W is ever held).
#pragma once
#include "t2l/adapter.h"
#include "t2l/hypernet.h"

namespace t2l {

// The adapters of the training tasks, in the order of the hypernetwork's modules.
struct ReconTargets {
  struct Module {
    Tensor a;  // f32 [tasks, layers, rank, in]
    Tensor b;  // f32 [tasks, layers, out, rank]
  };
  std::vector<std::string> tasks;
  std::vector<Module> modules;

  ReconTargets to(Device device) const;
};

// Reads `folder`/<task>/, PEFT adapters. Error naming the adapter if it does not have just the hypernetwork's modules,
// layers, rank and shapes, or a value that is not finite.
ReconTargets load_targets(const std::string& folder, const std::vector<std::string>& tasks,
                          const HypernetConfig& config);
// As load_targets, of adapters that are there already.
ReconTargets stack_targets(const std::vector<Adapter>& adapters, const HypernetConfig& config);

// Gives a hypernetwork of z-scores the targets' mean and unbiased deviation, element by element, before commit(). Error
// for fewer than two tasks.
void set_z_scores(Hypernet& net, const ReconTargets& targets);

struct ReconLoss {
  Var loss;      // f32 [1], to be minimised: the mean over modules
  Tensor error;  // f32 [1], the same in the targets' own unit, official unnorm_err
};
// tasks: f32 [n, task_dim], as Hypernet::predict takes it; task_of_row: the index in targets.tasks of each of its rows.
// The targets must be on its device.
ReconLoss reconstruct_loss(const Hypernet& net, const Var& tasks, const std::vector<int32_t>& task_of_row,
                           const ReconTargets& targets, const Hypernet::Training* training = nullptr);

}  // namespace t2l
