// Entry point of the search in deep networks: checks and outputs, the same for every device. A Backend has
//   search(op, args, h), over all rows of h.
#pragma once

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "mlp.h"

namespace drocc {

// A network's tensors without gaps, and the view of them that kernels get.
class MlpTensors {
 public:
  MlpTensors(const char* op, const Tensor& h, const std::vector<Tensor>& weights,
             const std::vector<std::optional<Tensor>>& biases, const std::vector<double>& negative_slopes,
             const Tensor& output);
  const MlpView& view() const { return view_; }

 private:
  const void* keep(const Tensor& tensor);

  std::vector<Tensor> kept_;
  MlpView view_{};
};

template <typename Backend>
struct MlpSearchOps {
  static constexpr const char* kOp = "_mlp_search";

  static std::tuple<Tensor, Tensor> search(const Tensor& h, const Tensor& x, std::vector<Tensor> weights,
                                           std::vector<std::optional<Tensor>> biases,
                                           std::vector<double> negative_slopes, const Tensor& output,
                                           const std::optional<Tensor>& sigma, double step_size, int64_t num_steps,
                                           int64_t project_every, double radius,
                                           const std::optional<Tensor>& radius_rows, double gamma, int64_t grid_points,
                                           bool project_last) {
    const L2ShellInputs inputs{
        .h = h, .step_size = step_size, .radius = radius, .radius_rows = &radius_rows, .gamma = gamma};
    check_l2_shell_inputs(kOp, inputs);
    if (h.scalar_type() != ScalarType::Float && h.scalar_type() != ScalarType::Double) {
      fail(kOp, "h must be float32 or float64");
    }
    if (h.dim() != 2 || !h.is_contiguous()) {
      fail(kOp, "h must be contiguous of shape [B, D], got ", describe_shape(h));
    }
    check_like_h(kOp, "x", x, h);
    if (share_memory(x, h)) fail(kOp, "x must not share memory with h");
    if (num_steps < 0) fail(kOp, "num_steps must be >= 0, got ", num_steps);
    if (project_every < 1) fail(kOp, "project_every must be >= 1, got ", project_every);
    if (grid_points != 0 && grid_points < 2) fail(kOp, "grid_points must be 0 or >= 2, got ", grid_points);
    const MlpTensors network(kOp, h, weights, biases, negative_slopes, output);
    std::optional<Tensor> sigmas;
    if (sigma.has_value()) {
      check_like_h_in_kind(kOp, "sigma", *sigma, h);
      const bool shared = sigma->dim() == 1 && sigma->size(0) == h.size(1);
      if (!shared && !same_shape(*sigma, h)) {
        fail(kOp, "sigma must have shape [", h.size(1), "] or ", describe_shape(h), ", got ", describe_shape(*sigma));
      }
      sigmas = torch::stable::contiguous(*sigma);
    }
    const std::optional<Tensor> radii = contiguous_radius_rows(inputs);
    const Tensor rows = torch::stable::contiguous(x);
    const int64_t units = network.view().widths[1];
    Tensor clean = torch::stable::new_empty(h, {h.size(0), units}, h.scalar_type());
    Tensor adv = torch::stable::new_empty(h, {h.size(0), units}, h.scalar_type());
    Tensor start = h;
    const MlpSearchArgs args{network.view(),
                             start.mutable_data_ptr(),
                             rows.const_data_ptr(),
                             sigmas.has_value() ? sigmas->const_data_ptr() : nullptr,
                             sigmas.has_value() && sigmas->dim() == 2 ? h.size(1) : 0,
                             clean.mutable_data_ptr(),
                             adv.mutable_data_ptr(),
                             h.size(0),
                             step_size,
                             num_steps,
                             project_every,
                             project_last,
                             radius,
                             radii.has_value() ? radii->const_data_ptr() : nullptr,
                             gamma,
                             grid_points};
    if (h.size(0) > 0) Backend::search(kOp, args, h);
    return {clean, adv};
  }
};

}  // namespace drocc
