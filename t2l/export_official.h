// A trained hypernetwork as the official Python loads it (load_hypermod_checkpoint): hypermod.pt, args.yaml and
// adapter_config.json.
#pragma once
#include "t2l/checkpoint.h"
#include "t2l/train_config.h"

namespace t2l {

// Writes the three files into a directory that exists. `config` is that of the training, `tasks` are those it trained
// on. Returns, in a line each, what the official code will do otherwise than the training did.
std::vector<std::string> export_official(const TrainedHypernet& trained, const TrainConfig& config,
                                         const std::vector<std::string>& tasks, const std::string& directory);

}  // namespace t2l
