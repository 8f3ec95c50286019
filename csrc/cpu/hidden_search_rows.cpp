// Compiled once per instruction set (see isa.h). One row after the other; its H hidden units stay in the first-level
// cache for all steps, and the rows of the Gram matrix in the second.
#include "hidden_search_rows.h"

#include "../math/hidden_search.h"
#include "element.h"
#include "scratch.h"

namespace drocc::cpu::DROCC_ISA {
namespace {

template <typename C>
bool search_rows(const HiddenSearchArgs& args, int64_t begin, int64_t end) {
  const int64_t hidden = args.hidden;
  const Scratch<C> narrow(5 * hidden + args.length);
  const Scratch<double> wide(hidden);
  C* memory = narrow.data();
  if (memory == nullptr || wide.data() == nullptr) return false;
  const math::SerialTeam team;
  for (int64_t row = begin; row < end; ++row) {
    const math::HiddenRow<C> operands{args.length,
                                      hidden,
                                      static_cast<const C*>(args.weight),
                                      static_cast<const C*>(args.gram),
                                      static_cast<const C*>(args.output),
                                      static_cast<const C*>(args.clean) + row * hidden,
                                      static_cast<C*>(args.h) + row * args.length,
                                      static_cast<C*>(args.u) + row * hidden,
                                      static_cast<C*>(args.coefficients) + row * hidden,
                                      memory,
                                      memory + hidden,
                                      memory + 2 * hidden,
                                      memory + 3 * hidden,
                                      memory + 4 * hidden,
                                      wide.data(),
                                      memory + 5 * hidden};
    const C radius =
        args.radius_rows != nullptr ? static_cast<const C*>(args.radius_rows)[row] : static_cast<C>(args.radius);
    math::HiddenSearch search(team, operands);
    static_cast<C*>(args.scale)[row] = static_cast<C>(search.run(
        math::make_shell(radius, args.gamma), args.step_size, args.num_steps, args.project_every, args.project_last));
  }
  return true;
}

}  // namespace

extern const HiddenSearchRows hidden_search_rows = {{search_rows<float>, search_rows<double>}};

}  // namespace drocc::cpu::DROCC_ISA
