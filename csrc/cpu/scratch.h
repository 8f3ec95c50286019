// Memory that a row kernel needs for a row of its own. Torch-free, and with malloc rather than a container: the
// *_rows.cpp files may not instantiate functions that the linker could share between instruction sets.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename C>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<C*>(std::malloc(static_cast<size_t>(count) * sizeof(C)))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  C* data() const { return data_; }

 private:
  C* data_;
};

}  // namespace
}  // namespace drocc::cpu::DROCC_ISA
