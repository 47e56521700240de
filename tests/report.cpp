// The HTML report: well-formed whatever the names and numbers, inside its frames, loading nothing; curves and
// similarities by definition; and a run leaves one, finished or interrupted.
#include <catch2/catch.hpp>
#include <charconv>

#include "t2l/report.h"
#include "tests/train_world.h"

using namespace t2l;
using namespace test;
namespace fs = std::filesystem;

namespace {

const std::string kHostile = "</title><script>alert(\"1\" & '2')</script>\x01\xff";

// What is wrong with the page as XML (all that HTML and it share is used), and with its references; empty: nothing.
std::string fault_of(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = 0; at < page.size();) {
    if (page[at] == '&') {
      const size_t end = page.find(';', at);
      const std::string entity = page.substr(at, end - at + 1);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;" && entity != "&#39;")
        return "entity " + page.substr(at, 12);
      at = end + 1;
    } else if (page[at] == '<') {
      const size_t end = page.find_first_of("<>", at + 1);
      if (end == std::string::npos || page[end] == '<') return "a tag without end: " + page.substr(at, 60);
      const std::string tag = page.substr(at + 1, end - at - 1), name = tag.substr(0, tag.find_first_of(" \n/", 1));
      if (std::count(tag.begin(), tag.end(), '"') % 2) return "quotes of " + tag;
      if (tag.starts_with('/')) {
        if (open.empty() || open.back() != tag.substr(1)) return "closes " + tag;
        open.pop_back();
      } else if (!tag.ends_with('/') && !tag.starts_with('!')) {
        open.push_back(name);
      }
      for (const char* bad : {"script", "link", "iframe", "object"})
        if (name == bad) return "has " + name;
      for (const char* bad : {" src=", " href=", "url(", " onload=", " onclick="})
        if (tag.find(bad) != std::string::npos) return "loads: " + tag;
      at = end + 1;
    } else {
      if (uint8_t(page[at]) < 0x20 && page[at] != '\n' && page[at] != '\t') return "a control character";
      ++at;
    }
  }
  if (!valid_utf8(page)) return "not UTF-8";
  return open.empty() ? "" : "leaves open " + open.back();
}

std::vector<double> numbers_in(std::string_view text) {
  std::vector<double> all;
  while (!text.empty()) {
    double x = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
    if (error == std::errc()) all.push_back(x);
    text.remove_prefix(error == std::errc() ? size_t(end - text.data()) : 1);
  }
  return all;
}

// Every coordinate of the one chart lies in its view box.
void check_inside(const std::string& chart) {
  const std::vector<double> box = numbers_in(chart.substr(chart.find("viewBox=") + 9, 16));
  REQUIRE(box.size() >= 4);
  const auto each = [&](const std::string& attribute, double most) {
    for (size_t at = chart.find(attribute); at != std::string::npos; at = chart.find(attribute, at + 1)) {
      const size_t begin = at + attribute.size();
      const double x = numbers_in(chart.substr(begin, chart.find('"', begin) - begin)).at(0);
      if (!(x >= 0 && x <= most)) FAIL_CHECK(attribute << x);
    }
  };
  for (const char* a : {" x=\"", " cx=\"", " x1=\"", " x2=\"", " width=\""}) each(a, box[2]);
  for (const char* a : {" y=\"", " cy=\"", " y1=\"", " y2=\"", " height=\""}) each(a, box[3]);
  for (size_t at = chart.find(" d=\""); at != std::string::npos; at = chart.find(" d=\"", at + 1)) {
    const std::vector<double> d = numbers_in(chart.substr(at + 4, chart.find('"', at + 4) - at - 4));
    for (size_t i = 0; i < d.size(); ++i)
      if (!(d[i] >= 0 && d[i] <= box[i % 2 ? 3 : 2])) FAIL_CHECK("path " << d[i]);
  }
  CHECK(chart.find("nan") == std::string::npos);
  CHECK(chart.find("inf") == std::string::npos);
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("the checker finds faults") {
  CHECK(fault_of("<p>a &amp; b<br/></p>").empty());
  for (const char* bad : {"<p>", "<p></q>", "a & b", "<p a=\"></p>", "<script></script>", "<i src=\"x\"/>", "<a\n<b>"})
    CHECK_FALSE(fault_of(bad).empty());
}

TEST_CASE("a long curve keeps its mean in at most a thousand points") {
  Curve c;
  double sum = 0;
  const int n = 123'457;
  for (int i = 0; i < n; ++i) {
    const double y = std::sin(i * 0.001) + (i % 7) * 0.1;
    c.add(i, y);
    sum += y;
  }
  c.add(n, NAN);
  c.add(n, INFINITY);
  const auto points = c.points();
  CHECK(points.size() <= Curve::kMost);
  CHECK(points.size() >= Curve::kMost / 2);
  double mean = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    mean += points[i].second / double(points.size());
    if (i > 0 && !(points[i].first > points[i - 1].first)) FAIL_CHECK(i);
    if (i + 1 < points.size() && std::abs(points[i].second - std::sin(points[i].first * 0.001) - 0.3) > 0.05)
      FAIL_CHECK(i);
  }
  CHECK(mean == Approx(sum / n).epsilon(0.01));
  Curve few;
  for (int i = 0; i < 5; ++i) few.add(i, i * i);
  CHECK(few.points() == std::vector<std::pair<double, double>>{{0, 0}, {1, 1}, {2, 4}, {3, 9}, {4, 16}});

  std::vector<std::pair<double, double>> line;
  for (int i = 0; i < 400; ++i) line.emplace_back(i, 3 * i + 1);
  const auto smooth = smoothed(line);
  for (size_t i = 10; i < 390; ++i) CHECK(smooth[i].second == Approx(3 * smooth[i].first + 1));
  CHECK(smooth[0].second == Approx(3 * 5 + 1));
  CHECK(smooth[399].second == Approx(3 * 394 + 1));
}

TEST_CASE("charts are well-formed and inside their frames, whatever the numbers") {
  const std::vector<std::vector<std::pair<double, double>>> cases = {
      {},
      {{1, 2}},
      {{1, 2}, {2, 2}, {3, 2}},
      {{0, -5}, {1, 1e9}, {2, NAN}, {3, INFINITY}, {4, 0}},
      {{0, 1e-12}, {1e9, 2e-12}},
      {{5, -1e308}, {6, 1e308}},
      {{0, 0}, {1, 0}}};
  for (const auto& points : cases) {
    const std::string chart = line_chart(
        kHostile, "step",
        {{"raw" + kHostile, points, Series::Style::Faint}, {"b", points}, {"c", points, Series::Style::Dots}});
    CHECK(fault_of(chart) == "");
    check_inside(chart);
  }
  std::vector<std::pair<std::string, double>> bars;
  for (int i = 0; i < 9; ++i) bars.emplace_back(kHostile + std::string(size_t(20 * i), 'x'), (i - 4) * 1e6);
  bars.emplace_back("nothing", NAN);
  CHECK(fault_of(bar_chart(kHostile, bars)) == "");
  check_inside(bar_chart("bars", bars));
  for (const size_t n : {1, 2, 17, 64}) {
    std::vector<std::string> names;
    std::vector<double> values;
    for (size_t i = 0; i < n; ++i) names.push_back(kHostile + std::to_string(i));
    for (size_t i = 0; i < n * n; ++i) values.push_back(i % 5 ? std::cos(double(i)) : NAN);
    const std::string map = heat_map(kHostile, names, values);
    CHECK(fault_of(map) == "");
    check_inside(map);
    CHECK(count_of(map, "fill-opacity") == n * n - (n * n + 4) / 5 + 11);
  }
}

TEST_CASE("similarity is the cosine of the adapters' products, and like tasks come together") {
  HypernetConfig c;
  c.layers = 9, c.rank = 3, c.latent = 12, c.head_in = 10, c.task_dim = 5,
  c.modules = {{"q_proj", 7, 11}, {"v_proj", 7, 6}};
  Hypernet net(c);
  Parameters& p = net.parameters();
  p.initialise(3);
  for (const char* m : {"q_proj", "v_proj"}) {  // untrained heads would give every task the same
    Tensor w = p.value(fmt::format("heads.{}.weight", m));
    backend(w).random_normal(w, 0, 0.5f, {4, uint64_t(m[0])});
  }
  const int64_t n = 11;  // more than a chunk
  Tensor tasks = Tensor::empty({n, 5});
  backend(tasks).random_normal(tasks, 0, 1, {5, 0});
  std::vector<std::string> names;
  for (int64_t i = 0; i < n; ++i) names.push_back(std::to_string(i));
  const TaskSimilarity s = adapter_similarity(net, tasks, names);

  const NoGrad no_grad;
  const std::vector<ModuleAdapters> all = net.generate(tasks);
  std::vector<std::vector<double>> products(names.size());  // of layers 0, 2, 5 and 8, entry by entry
  for (const ModuleAdapters& m : all) {
    const int64_t in = m.a.dim(3), out = m.b.dim(2);
    const float *a = m.a.value.data<float>(), *b = m.b.value.data<float>();
    for (int64_t t = 0; t < n; ++t)
      for (const int64_t layer : {0, 2, 5, 8})
        for (int64_t i = 0; i < out; ++i)
          for (int64_t j = 0; j < in; ++j) {
            double sum = 0;
            for (int64_t k = 0; k < 3; ++k)
              sum += double(b[((t * 9 + layer) * out + i) * 3 + k]) * double(a[((t * 9 + layer) * 3 + k) * in + j]);
            products[size_t(t)].push_back(sum);
          }
  }
  const auto dot = [&](size_t i, size_t j) {
    double sum = 0;
    for (size_t k = 0; k < products[i].size(); ++k) sum += products[i][k] * products[j][k];
    return sum;
  };
  for (size_t i = 0; i < size_t(n); ++i)
    for (size_t j = 0; j < size_t(n); ++j)
      CHECK(s.cosine[i * size_t(n) + j] == Approx(dot(i, j) / std::sqrt(dot(i, i) * dot(j, j))).margin(1e-5));

  for (const Device device : devices()) {
    p.move_to(device);
    const TaskSimilarity there = adapter_similarity(net, tasks.to(device), names);
    for (size_t i = 0; i < s.cosine.size(); ++i) CHECK(there.cosine[i] == Approx(s.cosine[i]).margin(1e-5));
  }

  // Two groups, interleaved.
  TaskSimilarity mixed{{"a", "x", "b", "y", "c", "z"}, std::vector<double>(36)};
  for (size_t i = 0; i < 6; ++i)
    for (size_t j = 0; j < 6; ++j)
      mixed.cosine[i * 6 + j] = i == j ? 1 : i % 2 == j % 2 ? 0.8 - 0.01 * std::abs(double(i) - double(j)) : 0.1;
  const TaskSimilarity sorted = clustered(mixed);
  const auto group = [&](size_t i) { return sorted.names[i] < "m"; };
  CHECK((group(0) == group(1) && group(1) == group(2) && group(2) != group(3) && group(3) == group(4) &&
         group(4) == group(5)));
  for (size_t i = 0; i < 6; ++i)
    for (size_t j = 0; j < 6; ++j) {
      const auto old = [&](size_t k) {
        return size_t(std::find(mixed.names.begin(), mixed.names.end(), sorted.names[k]) - mixed.names.begin());
      };
      CHECK(sorted.cosine[i * 6 + j] == mixed.cosine[old(i) * 6 + old(j)]);
    }
  CHECK(evenly_spaced(9, 4) == std::vector<int64_t>{0, 2, 5, 8});
  CHECK(evenly_spaced(3, 64) == std::vector<int64_t>{0, 1, 2});
  CHECK(evenly_spaced(1, 4) == std::vector<int64_t>{0});
}

TEST_CASE("the page shows what metrics.jsonl has, and reads on where it stopped") {
  const Scratch scratch;
  std::string lines;
  for (int i = 1; i <= 40; ++i) {
    lines += Json{{"step", i},     {"loss", 5.0 / i}, {"lr", 1e-4}, {"grad_norm", i % 2 ? Json() : Json(0.5)},
                  {"tokens", 100}, {"seconds", 0.25}}
                 .dump() +
             "\n";
    if (i % 10 == 0)
      for (const std::string& split : {std::string("valid/unseen"), std::string("<b>&\"")})
        lines += Json{{"step", i}, {"split", split}, {"loss", 3.0 / i}}.dump() + "\n";
  }
  scratch.write("metrics.jsonl", lines + "not JSON\n[1]\n{\"step\": 41, \"lo");
  RunMetrics m(scratch / "metrics.jsonl");
  m.update();
  m.update();
  CHECK(m.steps == 40);
  CHECK(m.tokens == 4000);
  CHECK(m.seconds == 10);
  CHECK(m.loss.points().size() == 40);
  CHECK(m.grad_norm.points().size() == 20);
  CHECK(m.validation["valid/unseen"].size() == 4);
  scratch.write("metrics.jsonl", lines + "not JSON\n[1]\n{\"step\": 41, \"loss\": 1}\n");
  m.update();
  CHECK(m.steps == 41);
  CHECK(m.loss.points().size() == 41);

  const std::string page =
      report_html({kHostile, {{"what" + kHostile, kHostile}}, {{"heads", 3e6}, {"trunk", 1e6}}, "a: 1\nb: '<'\n"}, m,
                  {{"one", kHostile}, {1, 0.25, 0.25, 1}});
  CHECK(fault_of(page) == "");
  CHECK(count_of(page, "<svg") == 7);
  CHECK(page.find("0.075") != std::string::npos);  // the best validation loss
  CHECK(page.find("400") != std::string::npos);    // tokens a second
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("b: &#39;&lt;&#39;") != std::string::npos);

  RunMetrics none(scratch / "nothing.jsonl");
  none.update();
  CHECK(fault_of(report_html({}, none, {})) == "");
}

TEST_CASE("a run leaves a report") {
  const World w;
  for (const std::string verb : {"sft", "reconstruct", "lora"}) {
    CAPTURE(verb);
    const std::string out = w.scratch / verb;
    REQUIRE(w.train(verb, out, {"--steps=6"}).status == 0);
    const std::string page = read_text_file(out + "/report.html");
    CHECK(fault_of(page) == "");
    CHECK((page.find("Cosine similarity") != std::string::npos) == (verb != "lora"));
    if (verb != "lora") CHECK(page.find("task3 / task0") != std::string::npos);
    CHECK(page.find("Loss") != std::string::npos);
    for (auto& entry : fs::directory_iterator(out)) CHECK(entry.path().string().find(".tmp") == std::string::npos);
  }
  // Stopped after the first update: the run is saved, and its report too.
  const std::string out = w.scratch / "stopped", bin = std::getenv("T2L_BIN") ? std::getenv("T2L_BIN") : "build/bin";
  std::string command = bin + "/t2l-train";
  for (const std::string& a : w.arguments("sft", out, {"--steps=1000000", "--device=cpu"})) command += " " + quoted(a);
  command += fmt::format(
      " 2>{} & run=$!; until [ -s {}/metrics.jsonl ]; do kill -0 $run || exit; sleep 0.02; done; kill -TERM $run; wait",
      quoted(w.scratch / "stderr"), quoted(out));
  std::system(command.c_str());
  CHECK(read_text_file(w.scratch / "stderr").find("interrupted; the run is saved") != std::string::npos);
  CHECK(fault_of(read_text_file(out + "/report.html")) == "");
}
