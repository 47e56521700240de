// A trained hypernetwork on disk, in two layouts:
//   official: hypermod.pt, args.yaml, adapter_config.json, as the Python code saves them
//   ours:     hypernet.safetensors with the official tensor names, and hypernet.json, which says all the rest
#pragma once
#include <future>

#include "t2l/adapter.h"
#include "t2l/hypernet.h"
#include "t2l/task_embedding.h"

namespace t2l {

struct TrainedHypernet {
  Hypernet net;
  AdapterSpec adapter;
  EncoderSpec encoder;
  bool one_hot = false;            // a task is a row of the identity
  std::vector<std::string> tasks;  // one-hot: their names, in order

  std::string path, layout, order_from;  // where it was read from, "official" or "ours", where the module order stands
  size_t file_bytes = 0;                 // of the file with the weights
  std::vector<std::string> warnings;
  // Ready when the checkpoint's checksums have been compared, on a thread of its own; throws if they differ. Wait for
  // it before keeping anything computed from the weights.
  std::shared_future<void> verified;
};

struct LoadOptions {
  std::vector<std::string> module_order;  // overrides the index order of the type embedding
  std::string base;                       // directory of the base model, to check the shapes against; may be empty
};

// Error, with the remedy, for anything that is missing, contradicts itself or is damaged in its structure.
TrainedHypernet load_hypernet(const std::string& directory, const LoadOptions& options = {});

// Writes the layout `ours` into a directory that exists.
void save_hypernet(const TrainedHypernet& trained, const std::string& directory);

}  // namespace t2l
