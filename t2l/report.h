// A run as one HTML file that loads nothing: what was trained, its curves, and how alike the tasks have become.
#pragma once
#include <map>

#include "t2l/chart.h"
#include "t2l/similarity.h"
#include "tensor/json.h"

namespace t2l {

// What a run's metrics.jsonl says, read as it grows.
class RunMetrics {
 public:
  explicit RunMetrics(std::string path) : path_(std::move(path)) {}
  void update();  // reads what was added since; a line that is no JSON object is passed over

  Curve loss, lr, grad_norm, tokens_per_second;
  std::map<std::string, std::vector<std::pair<double, double>>> validation;  // by split: step, loss
  int64_t steps = 0, tokens = 0;
  double seconds = 0;

 private:
  std::string path_;
  size_t read_ = 0;  // bytes
};

struct ReportFacts {
  std::string title;                                       // what is trained
  std::vector<std::pair<std::string, std::string>> facts;  // name and value
  std::vector<std::pair<std::string, double>> parameters;  // by part
  std::string config;                                      // as YAML
};

// The page; similarity may be empty.
std::string report_html(const ReportFacts& facts, const RunMetrics& metrics, const TaskSimilarity& similarity);

}  // namespace t2l
