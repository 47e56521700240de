// What a training step costs, told from shapes before anything is run.
#pragma once
#include "nn/parameters.h"

namespace t2l {

// Trainable elements by part: of a hypernetwork encoder, embeddings, trunk, heads and offset; else by linear layer.
std::vector<std::pair<std::string, int64_t>> parameters_by_part(const Parameters& parameters);

}  // namespace t2l
