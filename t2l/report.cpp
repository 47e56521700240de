#include "t2l/report.h"

#include <filesystem>

namespace t2l {

void RunMetrics::update() {
  if (!std::filesystem::exists(path_)) return;
  const MappedFile file = MappedFile::open(path_);
  std::string_view text = as_text(file.bytes());
  if (text.size() < read_) return;
  text.remove_prefix(read_);
  text = text.substr(0, text.rfind('\n') + 1);  // complete lines; npos + 1 is 0
  read_ += text.size();
  for_lines(text, [&](std::string_view line, int64_t) {
    const Json row = Json::parse(line, nullptr, false);
    if (!row.is_object()) return;
    const auto number = [&](const char* key) {
      const auto it = row.find(key);
      return it != row.end() && it->is_number() ? it->get<double>() : NAN;
    };
    const double step = number("step");
    if (row.contains("split")) {
      if (row["split"].is_string()) validation[row["split"].get<std::string>()].emplace_back(step, number("loss"));
      return;
    }
    steps = std::isfinite(step) ? int64_t(step) : steps;
    loss.add(step, number("loss"));
    lr.add(step, number("lr"));
    grad_norm.add(step, number("grad_norm"));
    const double n = number("tokens"), s = number("seconds");
    if (n > 0 && s > 0) tokens_per_second.add(step, n / s);
    if (n > 0) tokens += int64_t(n);
    if (s > 0) seconds += s;
  });
}

std::string report_html(const ReportFacts& facts, const RunMetrics& m, const TaskSimilarity& similarity) {
  using Style = Series::Style;
  std::string page = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"/>\n<title>{0}</title>\n<style>{1}\n"
      "body {{ margin: 0 auto; padding: 1.5rem; max-width: 60rem; background: var(--page); color: var(--ink); "
      "font: 15px/1.5 system-ui, sans-serif }}\n"
      "dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 1rem 0 }}\n"
      "dt {{ color: var(--soft); font-size: .85rem }} dd {{ margin: 0; font-size: 1.15rem; overflow-wrap: anywhere }}\n"
      "pre {{ overflow-x: auto; font-size: .85rem }}\n</style></head>\n<body>\n<h1>{0}</h1>\n<dl>\n",
      escaped(facts.title), kChartStyle);
  const auto fact = [&](const std::string& name, const std::string& value) {
    page += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", escaped(name), escaped(value));
  };
  const auto raw = m.loss.points(), smooth = smoothed(raw);
  fact("steps", fmt::format("{}", m.steps));
  if (!smooth.empty()) fact("loss", fmt::format("{:.4g}", smooth.back().second));
  for (const auto& [split, points] : m.validation) {
    double best = INFINITY;
    for (const auto& p : points) best = std::min(best, p.second);
    fact("best loss, " + split, fmt::format("{:.4g}", best));
  }
  if (m.tokens > 0) fact("tokens", fmt::format("{:.3g} M", double(m.tokens) / 1e6));
  if (m.tokens > 0 && m.seconds > 0) fact("tokens/s", fmt::format("{:.4g}", double(m.tokens) / m.seconds));
  fact("time", m.seconds < 120 ? fmt::format("{:.1f} s", m.seconds) : fmt::format("{:.1f} min", m.seconds / 60));
  for (const auto& [name, value] : facts.facts) fact(name, value);
  page += "</dl>\n";

  page += line_chart("Loss", "step", {{"each step", raw, Style::Faint}, {"smoothed", smooth}});
  if (!m.validation.empty()) {
    std::vector<Series> splits;
    for (const auto& [split, points] : m.validation) {
      Curve curve;
      for (const auto& [step, loss] : points) curve.add(step, loss);
      splits.push_back({split, curve.points(), Style::Dots});
    }
    page += line_chart("Validation loss", "step", splits);
  }
  page += line_chart("Learning rate", "step", {{"learning rate", m.lr.points()}});
  const auto norms = m.grad_norm.points();
  page += line_chart("Gradient norm, before clipping", "step",
                     {{"each update", norms, Style::Faint}, {"smoothed", smoothed(norms)}});
  if (const auto rate = m.tokens_per_second.points(); !rate.empty())
    page += line_chart("Tokens per second", "step", {{"each step", rate, Style::Faint}, {"smoothed", smoothed(rate)}});
  if (!similarity.names.empty()) {
    const TaskSimilarity s = clustered(similarity);
    page += heat_map("Cosine similarity of the tasks' adapters, like tasks side by side", s.names, s.cosine);
  }
  if (!facts.parameters.empty()) page += bar_chart("Parameters", facts.parameters);
  page += fmt::format("<details><summary>Settings</summary><pre>{}</pre></details>\n", escaped(facts.config));
  return page + "</body></html>\n";
}

}  // namespace t2l
