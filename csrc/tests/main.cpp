#include <cstdio>

#include "check.hpp"

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

int main() {
  int failed = 0;
  for (const Case& test : cases()) {
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name.c_str(), error.what());
    }
  }
  std::printf("%zu cases, %d failed\n", cases().size(), failed);
  return failed == 0 ? 0 : 1;
}
