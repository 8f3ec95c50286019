// Checks that count their failures and print the first few.
#pragma once

#include <cstdio>

namespace tests {

inline int failures = 0;
constexpr int kMostPrinted = 30;

}  // namespace tests

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition) && ++tests::failures <= tests::kMostPrinted) {      \
      std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
    }                                                                    \
  } while (false)
