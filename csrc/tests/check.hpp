// Cases and checks of the C++ tests: a failed check throws and names its line.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

struct Case {
  std::string name;
  std::function<void()> run;
};

std::vector<Case>& cases();

struct Register {
  Register(std::string name, std::function<void()> run) {
    cases().push_back({std::move(name), std::move(run)});
  }
};

#define CASE(name)                                  \
  static void name();                               \
  static const Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) +   \
                               ": " #condition);                                          \
    }                                                                                     \
  } while (false)

#define CHECK_THROWS(Kind, expression) \
  do {                                 \
    bool thrown = false;               \
    try {                              \
      (void)(expression);              \
    } catch (const Kind&) {            \
      thrown = true;                   \
    }                                  \
    CHECK(thrown && #Kind);            \
  } while (false)
