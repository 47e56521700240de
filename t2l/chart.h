// Charts as inline SVG, for pages that load nothing and run no script. Colours are the page's CSS variables
// (kChartStyle has defaults, light and dark), so that a chart follows the reader's theme. Every text is escaped; what
// is not finite is left out; a hover shows the numbers.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace t2l {

// For the text and the attributes of HTML and XML: also what no XML may contain, or is no UTF-8, becomes harmless.
std::string escaped(std::string_view text);

// A curve of any length in at most kMost points: each is the mean of equally many neighbours.
class Curve {
 public:
  static constexpr size_t kMost = 1000;

  void add(double x, double y);  // x must not decrease; ignored where y is not finite
  std::vector<std::pair<double, double>> points() const;

 private:
  struct Bin {
    double x = 0, y = 0;  // sums
    int64_t n = 0;
  };
  std::vector<Bin> bins_;
  int64_t width_ = 1;  // of a full bin
};

// The mean of each point with its neighbours, a fortieth of the curve to either side.
std::vector<std::pair<double, double>> smoothed(const std::vector<std::pair<double, double>>& points);

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x rising
  enum class Style { Line, Faint, Dots } style = Style::Line;
};

// At most six series have colours of their own. Faint ones share that of the next.
std::string line_chart(const std::string& title, const std::string& x, const std::vector<Series>& series);
std::string bar_chart(const std::string& title, const std::vector<std::pair<std::string, double>>& bars);
// values: [n, n] for n names; the colour goes from the smallest value off the diagonal to the largest.
std::string heat_map(const std::string& title, const std::vector<std::string>& names,
                     const std::vector<double>& values);

extern const char* const kChartStyle;  // CSS

}  // namespace t2l
