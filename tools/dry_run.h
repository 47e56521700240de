// t2l-train --dry-run: what a run would do and cost, as a table or one JSON document.
#pragma once
#include "t2l/learners.h"

namespace t2l {

void print_dry_run(const TrainConfig& config, const Learner& learner, const Parameters& parameters,
                   const TrainPlan& plan, DType dtype, Device device);

}  // namespace t2l
