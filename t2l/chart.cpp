#include "t2l/chart.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "tensor/file.h"

namespace t2l {
namespace {

using Points = std::vector<std::pair<double, double>>;

constexpr double kWidth = 720, kHeight = 240, kLeft = 64, kRight = 12, kTop = 12, kBottom = 34;
constexpr int kColours = 6;

// Four digits, and K, M, G or T.
std::string number(double x) {
  static constexpr std::pair<double, const char*> kUnits[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e4, "K"}};
  for (const auto& [least, unit] : kUnits)
    if (std::abs(x) >= least && std::abs(x) < 1e15)
      return fmt::format("{:.4g}{}", x / (least == 1e4 ? 1e3 : least), unit);
  return fmt::format("{:.4g}", std::abs(x) < 1e-300 ? 0 : x);
}

// Multiples of 1, 2 or 5 times a power of ten, some five of them in [low, high].
std::vector<double> ticks(double low, double high) {
  const double rough = (high - low) / 5, power = std::pow(10, std::floor(std::log10(rough)));
  const double step = power * (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1);
  std::vector<double> at;
  for (double i = std::ceil(low / step); i * step <= high && at.size() < 12; ++i) at.push_back(i * step);
  return at;
}

// From data to a length of the picture.
struct Scale {
  double low = INFINITY, high = -INFINITY, from = 0, to = 0;

  void see(double x) { low = std::min(low, x), high = std::max(high, x); }
  void settle(double a, double b) {
    if (!(low <= high)) low = 0, high = 1;
    if (low == high || !std::isfinite(high - low)) low -= std::abs(low) * 0.1 + 1e-9, high = low + 1;
    from = a, to = b;
  }
  double operator()(double x) const { return from + (to - from) * std::clamp((x - low) / (high - low), 0.0, 1.0); }
};

std::string open_figure(const std::string& title, double height) {
  return fmt::format(
      "<figure><figcaption>{0}</figcaption>\n<svg viewBox=\"0 0 {1} {2:.0f}\" role=\"img\" "
      "aria-label=\"{0}\">\n",
      escaped(title), kWidth, height);
}

std::string text(double x, double y, const char* anchor, const std::string& words) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escaped(words));
}

std::string cut(const std::string& name, size_t most) {
  if (name.size() <= most) return name;
  size_t end = most - 1;
  while (end > 0 && (name[end] & 0xc0) == 0x80) --end;  // not within a character
  return name.substr(0, end) + "\u2026";
}

}  // namespace

const char* const kChartStyle = R"(
:root { color-scheme: light dark; --page: #fff; --ink: #1c1f24; --soft: #667; --line: #e3e5ea;
  --c1: #2f6fde; --c2: #d9622b; --c3: #158f6b; --c4: #8a5cd0; --c5: #a87900; --c6: #c2417c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181d; --ink: #e8eaee; --soft: #9aa1ad; --line: #2c3038;
    --c1: #6ea2ff; --c2: #ff9563; --c3: #45c79a; --c4: #b594ff; --c5: #e0b94a; --c6: #f08ab5; }
}
figure { margin: 1.5rem 0 } figcaption { font-weight: 600; margin-bottom: .4rem }
svg { width: 100%; height: auto; display: block } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
svg .grid { stroke: var(--line) } svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
svg .faint { stroke-width: 1; opacity: .3 } svg .hit { fill: transparent } svg .hit:hover { fill: var(--line); opacity: .6 }
)";

std::string escaped(std::string_view s) {
  std::string out;
  const std::string safe = valid_utf8(s) ? std::string(s) : printable(s);
  for (const char c : safe) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else
      out += uint8_t(c) < 0x20 && c != '\n' && c != '\t' ? '?' : c;
  }
  return out;
}

void Curve::add(double x, double y) {
  if (!std::isfinite(x) || !std::isfinite(y)) return;
  if (bins_.empty() || bins_.back().n == width_) {
    if (bins_.size() == kMost) {
      for (size_t i = 0; i < kMost / 2; ++i) {
        const Bin &a = bins_[2 * i], &b = bins_[2 * i + 1];
        bins_[i] = {a.x + b.x, a.y + b.y, a.n + b.n};
      }
      bins_.resize(kMost / 2);
      width_ *= 2;
    }
    bins_.push_back({});
  }
  bins_.back().x += x, bins_.back().y += y, ++bins_.back().n;
}

Points Curve::points() const {
  Points all;
  for (const Bin& b : bins_) all.emplace_back(b.x / double(b.n), b.y / double(b.n));
  return all;
}

Points smoothed(const Points& points) {
  const auto n = int64_t(points.size()), reach = n / 40;
  Points out = points;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t begin = std::max(i - reach, int64_t(0)), end = std::min(i + reach + 1, n);
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) sum += points[size_t(j)].second;
    out[size_t(i)].second = sum / double(end - begin);
  }
  return out;
}

std::string line_chart(const std::string& title, const std::string& x_name, const std::vector<Series>& all) {
  std::vector<Series> series = all;
  Scale x, y;
  for (Series& s : series) {
    std::erase_if(s.points, [](auto& p) { return !std::isfinite(p.first) || !std::isfinite(p.second); });
    for (const auto& [a, b] : s.points) x.see(a), y.see(b);
  }
  x.settle(kLeft, kWidth - kRight);
  y.settle(kHeight - kBottom, kTop);
  std::string out = open_figure(title, kHeight);
  for (const double t : ticks(y.low, y.high))
    out += fmt::format("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kLeft,
                       kWidth - kRight, y(t), y(t)) +
           text(kLeft - 8, y(t) + 4, "end", number(t));
  for (const double t : ticks(x.low, x.high)) out += text(x(t), kHeight - kBottom + 16, "middle", number(t));
  out += text(kWidth - kRight, kHeight - 4, "end", x_name);

  int colour = 1;
  double legend = kLeft;
  for (const Series& s : series) {
    const bool faint = s.style == Series::Style::Faint;
    std::string path;
    for (const auto& [a, b] : s.points) path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(a), y(b));
    if (!path.empty())
      out += fmt::format("<path class=\"curve{}\" style=\"stroke:var(--c{})\" d=\"{}\"><title>{}</title></path>\n",
                         faint ? " faint" : "", colour, path, escaped(s.name));
    if (s.style == Series::Style::Dots)
      for (const auto& [a, b] : s.points)
        out += fmt::format(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" style=\"fill:var(--c{})\"><title>{}: {}, {} {}"
            "</title></circle>\n",
            x(a), y(b), colour, escaped(s.name), number(b), escaped(x_name), number(a));
    if (series.size() > 1) {
      out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"12\" height=\"3\" style=\"fill:var(--c{})\"{}/>\n",
                         legend, kHeight - 9, colour, faint ? " opacity=\".3\"" : "") +
             text(legend + 16, kHeight - 4, "start", cut(s.name, 24));
      legend += 30 + 6.5 * double(std::min<size_t>(s.name.size(), 24));
    }
    if (!faint) colour = colour % kColours + 1;
  }
  // Columns to hover over, for the first line.
  const auto line = std::find_if(series.begin(), series.end(), [](auto& s) { return s.style == Series::Style::Line; });
  if (line != series.end()) {
    const size_t step = line->points.size() / 120 + 1;
    const double width = (kWidth - kLeft - kRight) / std::max(double(line->points.size() / step), 1.0);
    for (size_t i = 0; i < line->points.size(); i += step) {
      const auto& [a, b] = line->points[i];
      const double left = std::clamp(x(a) - width / 2, kLeft, kWidth - kRight - width);
      out += fmt::format(
          "<rect class=\"hit\" x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\"><title>{} {}: {}"
          "</title></rect>\n",
          left, kTop, width, kHeight - kTop - kBottom, escaped(x_name), number(a), number(b));
    }
  }
  return out + "</svg></figure>\n";
}

std::string bar_chart(const std::string& title, const std::vector<std::pair<std::string, double>>& bars) {
  constexpr double kRow = 22, kNames = 200, kNumbers = 90;
  Scale x;
  x.see(0);
  for (const auto& bar : bars)
    if (std::isfinite(bar.second)) x.see(bar.second);
  x.settle(kNames, kWidth - kNumbers);
  std::string out = open_figure(title, kRow * double(bars.size()) + 4);
  double top = 2;
  for (const auto& [name, value] : bars) {
    if (!std::isfinite(value)) continue;
    const double begin = std::min(x(0), x(value)), end = std::max(x(0), x(value));
    out += text(kNames - 8, top + 15, "end", cut(name, 30));
    out += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" rx=\"2\" "
        "style=\"fill:var(--c1)\"><title>{}: {}</title></rect>\n",
        begin, top + 3, std::max(end - begin, 1.0), kRow - 6, escaped(name), number(value));
    out += text(end + 6, top + 15, "start", number(value));
    top += kRow;
  }
  return out + "</svg></figure>\n";
}

std::string heat_map(const std::string& title, const std::vector<std::string>& names,
                     const std::vector<double>& values) {
  const size_t n = names.size();
  if (n == 0 || values.size() != n * n) return "";
  double low = INFINITY, high = -INFINITY;
  for (size_t i = 0; i < n * n; ++i)
    if (i / n != i % n && std::isfinite(values[i])) low = std::min(low, values[i]), high = std::max(high, values[i]);
  if (!(low < high)) high = low = std::isfinite(low) ? low : 0;
  constexpr double kNames = 150;
  const double cell = std::min((kWidth - kNames) / double(n), 40.0);
  std::string out = open_figure(title, cell * double(n) + 30);
  for (size_t i = 0; i < n; ++i) {
    if (cell >= 9) out += text(kNames - 6, cell * (double(i) + 0.5) + 4, "end", cut(names[i], 22));
    for (size_t j = 0; j < n; ++j) {
      const double v = values[i * n + j];
      if (!std::isfinite(v)) continue;
      // The accent colour over the page's, so that it is right on either theme.
      const double strength = high > low ? std::clamp((v - low) / (high - low), 0.0, 1.0) : 0.5;
      out += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" style=\"fill:var(--c1)\" "
          "fill-opacity=\"{:.2f}\"><title>{} / {}: {:.3f}</title></rect>\n",
          kNames + cell * double(j), cell * double(i), cell, cell, strength, escaped(names[i]), escaped(names[j]), v);
    }
  }
  const double y = cell * double(n) + 12;
  for (int k = 0; k <= 10; ++k)
    out += fmt::format(
        "<rect x=\"{}\" y=\"{:.1f}\" width=\"12\" height=\"12\" style=\"fill:var(--c1)\" "
        "fill-opacity=\"{:.1f}\"/>\n",
        kNames + 40 + 12 * k, y, k / 10.0);
  out += text(kNames + 34, y + 10, "end", fmt::format("{:.2f}", low));
  out += text(kNames + 178, y + 10, "start", fmt::format("{:.2f}", high));
  return out + "</svg></figure>\n";
}

}  // namespace t2l
