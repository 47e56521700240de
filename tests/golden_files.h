// Where golden files are: the committed ones, and the large set beside the repository, which may be absent.
#pragma once
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace t2l::test {

// The folder given by T2L_SHARED, or ../shared; empty if there is none.
inline std::string shared_folder() {
  const char* given = std::getenv("T2L_SHARED");
  const std::string folder = given ? given : "../shared";
  return std::filesystem::is_directory(folder) ? folder : "";
}

// Sorted directories below `folder` that contain `file`.
inline std::vector<std::string> folders_with(const std::string& folder, const std::string& file) {
  std::vector<std::string> found;
  if (std::filesystem::is_directory(folder))
    for (auto& entry : std::filesystem::directory_iterator(folder))
      if (std::filesystem::exists(entry.path() / file)) found.push_back(entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace t2l::test
