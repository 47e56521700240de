#include "transformer/model_lookup.h"

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "tensor/file.h"

namespace t2l {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool is_folder(const fs::path& p) {
  std::error_code ignored;
  return fs::is_directory(p, ignored);
}

fs::path hub_cache() {
  if (const std::string s = environment("HF_HUB_CACHE"); !s.empty()) return s;
  if (const std::string s = environment("HF_HOME"); !s.empty()) return fs::path(s) / "hub";
  if (const std::string s = environment("XDG_CACHE_HOME"); !s.empty()) return fs::path(s) / "huggingface/hub";
  const std::string home = environment("HOME");
  return home.empty() ? fs::path{} : fs::path(home) / ".cache/huggingface/hub";
}

// The revision that "main" names, else the one written last; empty if there is none.
fs::path snapshot(const fs::path& repository) {
  std::error_code ignored;
  if (const fs::path main = repository / "refs/main"; fs::is_regular_file(main, ignored)) {
    std::string revision = read_text_file(main.string(), 4096);
    revision.erase(std::min(revision.find_last_not_of(" \r\n\t") + 1, revision.size()));
    const fs::path folder = repository / "snapshots" / revision;
    if (!revision.empty() && revision.find('/') == std::string::npos && is_folder(folder)) return folder;
  }
  fs::path newest;
  for (const auto& entry : fs::directory_iterator(repository / "snapshots", ignored)) {
    if (!is_folder(entry.path())) continue;
    if (newest.empty() || fs::last_write_time(entry.path(), ignored) > fs::last_write_time(newest, ignored))
      newest = entry.path();
  }
  return newest;
}

}  // namespace

std::string find_model(const std::string& name, const std::string& remedy) {
  if (name.empty()) fail("the model has no name; {}", remedy);
  if (is_folder(name)) return name;
  const fs::path path(name);
  std::vector<std::string> looked = {"'" + printable(name) + "'"};
  // Only names are joined to other folders: an absolute path, or one with "..", means one place.
  bool plain = path.is_relative();
  for (const fs::path& part : path) plain &= part != "..";
  if (plain) {
    const std::string models = environment("T2L_MODELS");
    if (models.empty()) looked.push_back("T2L_MODELS (which is not set)");
    for (size_t begin = 0; begin < models.size();) {
      const size_t end = std::min(models.find(':', begin), models.size());
      const fs::path root = models.substr(begin, end - begin);
      begin = end + 1;
      if (root.empty()) continue;
      for (const fs::path& candidate : {root / path, root / path.filename()})
        if (is_folder(candidate)) return candidate.string();
      looked.push_back(root.string());
    }
    if (const fs::path cache = hub_cache(); !cache.empty()) {
      std::string entry = "models--" + name;
      for (size_t at; (at = entry.find('/')) != std::string::npos;) entry.replace(at, 1, "--");
      if (const fs::path found = snapshot(cache / entry); !found.empty()) return found.string();
      looked.push_back(cache.string());
    }
  }
  fail("model '{}' was not found in {}; {}", printable(name), fmt::join(looked, ", "), remedy);
}

}  // namespace t2l
