// Compiled once per instruction set (see isa.h). Arithmetic is in double whatever is stored: divisions, not
// conversions, take the time, and float rows then need none of the scaling that double rows get.
#include "mahalanobis_shell_kernel.h"

#include "../math/mahalanobis_shell.h"
#include "element.h"
#include "scratch.h"

#include <type_traits>

namespace drocc::cpu::DROCC_ISA {
namespace {

using math::SerialTeam;
using math::Side;

template <typename T>
using Compute = typename ComputeOf<T>::type;

template <typename T>
constexpr bool kIsCompute = __is_same(T, Compute<T>);

// From this relative accuracy on one more step of Newton's method leaves an error below the compute type's rounding.
template <typename C>
constexpr double kEnough = sizeof(C) == 4 ? 1e-5 : 1e-9;

// A row as the solver sees it. After an ascent it is in double, so that results are rounded once, else as stored.
template <typename C, bool kAscent>
struct SolverRow {
  static constexpr bool kScaled = sizeof(C) == 8;
  using Moved = std::conditional_t<kAscent, double, C>;
  const Moved* d_row;
  const C* sigma_row;
  DROCC_HD_MEMBER double d(int64_t i) const { return d_row[i]; }
  DROCC_HD_MEMBER double sigma(int64_t i) const { return sigma_row[i]; }
};

template <typename C, bool kAscent>
struct WritableRow : SolverRow<C, kAscent> {
  C* out_row;
  DROCC_HD_MEMBER void store(int64_t i, double value) const { out_row[i] = static_cast<C>(value); }
};

template <typename T, bool kAscent>
struct GradientRow : SolverRow<Compute<T>, kAscent> {
  const T* upstream_row;
  DROCC_HD_MEMBER double upstream(int64_t i) const { return to_compute(upstream_row[i]); }
};

// One row of memory for each operand that cannot be used where it lies.
template <typename T, bool kAscent>
class RowReader {
 public:
  using Row = SolverRow<Compute<T>, kAscent>;

  explicit RowReader(const MahalanobisRowsArgs& args)
      : args_(args), moved_(args.length), sigma_(args.length), out_(args.length) {}

  bool ok() const { return moved_.data() != nullptr && sigma_.data() != nullptr && out_.data() != nullptr; }

  Row read(int64_t row) {
    const int64_t n = args_.length;
    const T* h = static_cast<const T*>(args_.h) + row * n;
    const T* sigma = static_cast<const T*>(args_.sigma) + row * args_.sigma_stride;
    Row result{};
    result.sigma_row = converted(sigma, sigma_.data());
    if constexpr (kAscent) {
      const T* grad_row = static_cast<const T*>(args_.grad) + row * n;
      const auto grad = [&](int64_t i) -> double { return to_compute(grad_row[i]); };
      if constexpr (Row::kScaled) {
        grad_norm_ = math::scaled_norm(SerialTeam{}, n, grad);
      } else {
        grad_norm_ = math::narrow_norm(SerialTeam{}, n, grad);
      }
      const math::Ascent ascent = math::make_ascent(grad_norm_, args_.step_size);
      double* moved = moved_.data();
      DROCC_SIMD()
      for (int64_t i = 0; i < n; ++i) moved[i] = ascent(to_compute(h[i]), to_compute(grad_row[i]));
      result.d_row = moved;
    } else {
      result.d_row = converted(h, moved_.data());
    }
    return result;
  }

  math::Shell shell(int64_t row) const {
    const Compute<T> radius = args_.radius_rows != nullptr ? static_cast<const Compute<T>*>(args_.radius_rows)[row]
                                                           : static_cast<Compute<T>>(args_.radius);
    return math::make_shell(radius, args_.gamma);
  }

  // Of the row last read, with an ascent.
  const math::ScaledNorm& grad_norm() const { return grad_norm_; }
  // Where a row of results is made that is not of the compute type.
  Compute<T>* out() { return out_.data(); }

 private:
  const Compute<T>* converted(const T* row, Compute<T>* copy) const {
    if constexpr (kIsCompute<T>) {
      return row;
    } else {
      for (int64_t start = 0; start < args_.length; start += kBlock) {
        const int64_t count = args_.length - start < kBlock ? args_.length - start : kBlock;
        load_block(row + start, count, copy + start);
      }
      return copy;
    }
  }

  const MahalanobisRowsArgs& args_;
  Scratch<typename Row::Moved> moved_;
  Scratch<Compute<T>> sigma_;
  Scratch<Compute<T>> out_;
  math::ScaledNorm grad_norm_{1.0, 0.0};
};

template <typename T, bool kAscent>
bool forward_rows(const MahalanobisRowsArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  RowReader<T, kAscent> reader(args);
  if (!reader.ok()) return false;
  for (int64_t row = begin; row < end; ++row) {
    T* out = static_cast<T*>(args.out) + row * args.length;
    WritableRow<C, kAscent> view{reader.read(row), nullptr};
    if constexpr (kIsCompute<T>) {
      view.out_row = out;
    } else {
      view.out_row = reader.out();
    }
    const auto plan =
        math::plan_projection<double>(SerialTeam{}, args.length, view, reader.shell(row), args.grid_points, kEnough<C>);
    math::write_projection(SerialTeam{}, args.length, view, plan);
    if constexpr (!kIsCompute<T>) store_block(view.out_row, args.length, out);
  }
  return true;
}

template <typename T>
bool norm_rows(const MahalanobisRowsArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  RowReader<T, false> reader(args);
  if (!reader.ok()) return false;
  for (int64_t row = begin; row < end; ++row) {
    const double norm = math::mahalanobis_norm_row<double>(SerialTeam{}, args.length, reader.read(row));
    static_cast<C*>(args.out)[row] = static_cast<C>(norm);
  }
  return true;
}

template <typename T, bool kAscent>
bool backward_rows(const MahalanobisBackwardArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const MahalanobisRowsArgs& forward = args.forward;
  RowReader<T, kAscent> reader(forward);
  if (!reader.ok()) return false;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = forward.length;
    const int64_t offset = row * n;
    const GradientRow<T, kAscent> view{reader.read(row), static_cast<const T*>(args.upstream) + offset};
    T* grad_h = static_cast<T*>(args.grad_h) + offset;
    C* grad_sigma = static_cast<C*>(args.grad_sigma) + offset;
    const auto plan =
        math::plan_projection<double>(SerialTeam{}, n, view, reader.shell(row), forward.grid_points, kEnough<C>);
    const auto gradient = math::plan_gradient(SerialTeam{}, n, view, plan, forward.gamma);
    const auto term = [&](int64_t i) {
      return math::gradient_term(plan, gradient, i, view.d(i), view.sigma(i), view.upstream(i));
    };
    for (int64_t i = 0; i < n; ++i) {
      const auto both = term(i);
      from_compute(both.d, grad_h + i);
      grad_sigma[i] = static_cast<C>(both.sigma);
    }
    if constexpr (kAscent) {
      const T* grad = static_cast<const T*>(forward.grad) + offset;
      T* grad_grad = static_cast<T*>(args.grad_grad) + offset;
      math::ascent_backward(
          SerialTeam{}, n, reader.grad_norm(), forward.step_size,
          [&](int64_t i) -> double { return to_compute(grad[i]); }, [&](int64_t i) -> double { return term(i).d; },
          [&](int64_t i, double value) { from_compute(value, grad_grad + i); });
    }
    const double grad_radius = plan.side == Side::kInvalid ? math::quiet_nan() : gradient.radius;
    static_cast<C*>(args.grad_radius)[row] = static_cast<C>(grad_radius);
  }
  return true;
}

template <typename T>
bool norm_backward_rows(const MahalanobisBackwardArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t n = args.forward.length;
  RowReader<T, false> reader(args.forward);
  if (!reader.ok()) return false;
  for (int64_t row = begin; row < end; ++row) {
    const SolverRow<C, false> view = reader.read(row);
    const double length = math::mahalanobis_norm_row<double>(SerialTeam{}, n, view);
    const double upstream = static_cast<const C*>(args.upstream)[row];
    for (int64_t i = 0; i < n; ++i) {
      const auto both = math::norm_gradient_term(length, view.d(i), view.sigma(i), upstream);
      from_compute(both.d, static_cast<T*>(args.grad_h) + row * n + i);
      static_cast<C*>(args.grad_sigma)[row * n + i] = static_cast<C>(both.sigma);
    }
  }
  return true;
}

}  // namespace

#define DROCC_FOR_DTYPES(...) {__VA_ARGS__(float), __VA_ARGS__(double), __VA_ARGS__(Half), __VA_ARGS__(BFloat16)}
#define DROCC_PROJECT(T) forward_rows<T, false>
#define DROCC_STEP(T) forward_rows<T, true>
#define DROCC_PROJECT_BACKWARD(T) backward_rows<T, false>
#define DROCC_STEP_BACKWARD(T) backward_rows<T, true>

extern const MahalanobisShellRows mahalanobis_shell_kernels = {
    DROCC_FOR_DTYPES(DROCC_PROJECT),
    DROCC_FOR_DTYPES(DROCC_STEP),
    {norm_rows<float>, norm_rows<double>, norm_rows<Half>, norm_rows<BFloat16>},
    DROCC_FOR_DTYPES(DROCC_PROJECT_BACKWARD),
    DROCC_FOR_DTYPES(DROCC_STEP_BACKWARD),
    {norm_backward_rows<float>, norm_backward_rows<double>, norm_backward_rows<Half>, norm_backward_rows<BFloat16>},
};

}  // namespace drocc::cpu::DROCC_ISA
