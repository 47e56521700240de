// How alike tasks are to a hypernetwork: the cosine between the changes it makes to the base model,
//   <dW, dW'> = sum over modules and layers of tr((B A)^T B' A') = sum of (A A'^T) o (B^T B'),
// which no choice of A and B for the same product changes, and which needs no product dW.
#pragma once
#include "t2l/hypernet.h"

namespace t2l {

struct TaskSimilarity {
  std::vector<std::string> names;
  std::vector<double> cosine;  // [n, n]; 0 with an adapter that is zero
};

// At most `most` of 0 .. n - 1, evenly spaced, the first and the last among them.
std::vector<int64_t> evenly_spaced(int64_t n, int64_t most);

// tasks: f32 [n, task_dim] for n names, as Hypernet::generate() takes them. Of the layers, at most four, evenly spaced:
// enough to tell tasks apart, and cheap beside a checkpoint.
TaskSimilarity adapter_similarity(const Hypernet& net, const Tensor& tasks, std::vector<std::string> names);

// Rows and columns in the order of average linkage (Sokal & Michener, 1958): like tasks side by side.
TaskSimilarity clustered(const TaskSimilarity& similarity);

}  // namespace t2l
