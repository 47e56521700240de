// Adapters on a base model: side by side in a batch, a different sum of adapters for each sample, or merged into the
// weights.
#pragma once
#include "t2l/adapter.h"
#include "t2l/hypernet.h"
#include "transformer/decoder.h"

namespace t2l {

// Adapters that add up, each times its strength. The adapters must outlive what is made of them here.
struct AdapterTerm {
  const Adapter* adapter;
  float strength = 1;
};
using AdapterSum = std::vector<AdapterTerm>;  // empty: the base model as it is

// Error, naming the adapter, for layers or shapes that the base model does not have.
void check_fits(const AdapterSum& sum, const DecoderConfig& base);

// One adapter of the batch for each sum: its terms lie side by side along the rank, with their scaling and strength in
// B. Error as check_fits() has it.
AdapterBatch stack_adapters(const std::vector<AdapterSum>& sums, const DecoderConfig& base,
                            const DecoderOptions& options);

// What a hypernetwork generated, an adapter for each sample, with its gradients; scale multiplies B A.
AdapterBatch adapters_of(const std::vector<ModuleAdapters>& generated, const HypernetConfig& net, float scale,
                         DType dtype);

// W + sum of strength scaling B A in place of W, while it lives; then the weights are as before, bit for bit.
class MergedAdapters {
 public:
  MergedAdapters(Decoder& decoder, const AdapterSum& sum);
  ~MergedAdapters();
  MergedAdapters(const MergedAdapters&) = delete;

 private:
  std::vector<std::pair<Var*, Tensor>> before_;
};

}  // namespace t2l
