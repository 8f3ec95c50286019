// Checks that count their failures and print the first few.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace tests {

inline int failures = 0;
constexpr int kMostPrinted = 30;
inline bool stop_at_first = false;

}  // namespace tests

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition) && ++tests::failures <= tests::kMostPrinted) {      \
      std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
      if (tests::stop_at_first) std::_Exit(1);                           \
    }                                                                    \
  } while (false)
