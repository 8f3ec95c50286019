// Compiled once per instruction set (see isa.h). The rows of a block go through all steps by themselves, so that
// threads need not meet; weights stay in the second-level cache.
#include "lstm_kernel.h"

#include "../math/lstm.h"
#include "gemm.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

// What packed products read: as B [depth, columns], the transposed weights forward and the weights themselves backward.
template <typename C>
int64_t packed_ih(const LstmArgs& args, bool backward) {
  return backward ? packed_size<C>(4 * args.units, args.inputs) : packed_size<C>(args.inputs, 4 * args.units);
}
template <typename C>
int64_t packed_hh(const LstmArgs& args, bool backward) {
  return backward ? packed_size<C>(4 * args.units, args.units) : packed_size<C>(args.units, 4 * args.units);
}

template <typename C>
void pack_weights(const LstmArgs& args, bool backward) {
  const int64_t gates = 4 * args.units;
  const auto* ih = static_cast<const C*>(args.w_ih);
  const auto* hh = static_cast<const C*>(args.w_hh);
  if (backward) {
    pack<C>({ih, args.inputs, 1}, gates, args.inputs, static_cast<C*>(args.packed_ih));
    pack<C>({hh, args.units, 1}, gates, args.units, static_cast<C*>(args.packed_hh));
  } else {
    pack<C>({ih, 1, args.inputs}, args.inputs, gates, static_cast<C*>(args.packed_ih));
    pack<C>({hh, 1, args.units}, args.units, gates, static_cast<C*>(args.packed_hh));
  }
}

template <typename C>
struct WithTwoBiases {
  const C* one;
  const C* other;
  template <typename V>
  DROCC_HD_MEMBER V operator()(V value, int64_t, int64_t column) const {
    if (one != nullptr) value += load<V>(one + column);
    return other == nullptr ? value : value + load<V>(other + column);
  }
};

template <typename C>
void forward(const LstmArgs& args, int64_t begin, int64_t end) {
  const int64_t units = args.units, rows = end - begin, gates_size = 4 * units;
  const WithTwoBiases<C> biases{static_cast<const C*>(args.b_ih), static_cast<const C*>(args.b_hh)};
  for (int64_t t = 0; t < args.steps; ++t) {
    const int64_t first = t * args.batch + begin, former = first - args.batch;
    const C* x = static_cast<const C*>(args.x) + first * args.inputs;
    C* gates = static_cast<C*>(args.gates) + first * gates_size;
    C* cells = static_cast<C*>(args.cells) + first * units;
    C* hidden = static_cast<C*>(args.hidden) + first * units;
    const C* h =
        t == 0 ? static_cast<const C*>(args.h_0) + begin * units : static_cast<const C*>(args.hidden) + former * units;
    const C* c =
        t == 0 ? static_cast<const C*>(args.c_0) + begin * units : static_cast<const C*>(args.cells) + former * units;
    multiply<C>(rows, gates_size, args.inputs, {x, args.inputs, 1}, static_cast<const C*>(args.packed_ih), gates,
                gates_size, false, biases);
    multiply<C>(rows, gates_size, units, {h, units, 1}, static_cast<const C*>(args.packed_hh), gates, gates_size, true);
    for (int64_t row = 0; row < rows; ++row) {
      C* z = gates + row * gates_size;
      const C* former_cells = c + row * units;
      C* new_cells = cells + row * units;
      C* new_hidden = hidden + row * units;
      DROCC_SIMD()
      for (int64_t j = 0; j < units; ++j) {
        const math::LstmUnit<C> unit =
            math::lstm_unit<C>({z[j], z[units + j], z[2 * units + j], z[3 * units + j]}, former_cells[j]);
        z[j] = unit.gates.input;
        z[units + j] = unit.gates.forget;
        z[2 * units + j] = unit.gates.cell;
        z[3 * units + j] = unit.gates.output;
        new_cells[j] = unit.cell;
        new_hidden[j] = unit.hidden;
      }
    }
  }
}

template <typename C>
void backward(const LstmArgs& args, int64_t begin, int64_t end) {
  const int64_t units = args.units, rows = end - begin, gates_size = 4 * units;
  C* carried_h = static_cast<C*>(args.grad_h_0) + begin * units;  // what later steps say of the hidden state
  C* carried_c = static_cast<C*>(args.grad_c_0) + begin * units;
  for (int64_t i = 0; i < rows * units; ++i) {
    carried_h[i] = 0;
    carried_c[i] = args.grad_cell == nullptr ? C(0) : static_cast<const C*>(args.grad_cell)[begin * units + i];
  }
  for (int64_t t = args.steps - 1; t >= 0; --t) {
    const int64_t first = t * args.batch + begin, former = first - args.batch;
    C* gates = static_cast<C*>(args.gates) + first * gates_size;
    const C* cells = static_cast<const C*>(args.cells) + first * units;
    const C* grad = static_cast<const C*>(args.grad_hidden) + first * units;
    const C* c =
        t == 0 ? static_cast<const C*>(args.c_0) + begin * units : static_cast<const C*>(args.cells) + former * units;
    for (int64_t row = 0; row < rows; ++row) {
      C* z = gates + row * gates_size;
      const int64_t at = row * units;
      C* row_c = carried_c + at;
      const C* row_h = carried_h + at;
      const C *row_grad = grad + at, *row_cells = cells + at, *row_former = c + at;
      DROCC_SIMD()
      for (int64_t j = 0; j < units; ++j) {
        const math::LstmUnitGradient<C> back =
            math::lstm_unit_backward<C>({z[j], z[units + j], z[2 * units + j], z[3 * units + j]}, row_cells[j],
                                        row_former[j], row_grad[j] + row_h[j], row_c[j]);
        z[j] = back.gates.input;
        z[units + j] = back.gates.forget;
        z[2 * units + j] = back.gates.cell;
        z[3 * units + j] = back.gates.output;
        row_c[j] = back.former_cell;
      }
    }
    multiply<C>(rows, units, gates_size, {gates, gates_size, 1}, static_cast<const C*>(args.packed_hh), carried_h,
                units);
    multiply<C>(rows, args.inputs, gates_size, {gates, gates_size, 1}, static_cast<const C*>(args.packed_ih),
                static_cast<C*>(args.grad_x) + first * args.inputs, args.inputs);
  }
}

}  // namespace

extern const LstmTable lstm_kernels = {
    {{packed_ih<float>, packed_hh<float>, pack_weights<float>, forward<float>, backward<float>},
     {packed_ih<double>, packed_hh<double>, pack_weights<double>, forward<double>, backward<double>}}};

}  // namespace drocc::cpu::DROCC_ISA
