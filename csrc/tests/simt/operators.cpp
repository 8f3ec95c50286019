#include "operators.h"

namespace tests {
namespace {

using Radii = const std::optional<Tensor>&;
using T = const Tensor&;
using drocc::cuda::Residency;

template <typename... Tensors>
std::vector<Tensor> listed(const std::tuple<Tensors...>& tensors) {
  return std::apply([](const auto&... each) { return std::vector<Tensor>{each...}; }, tensors);
}

std::vector<Operator> l2() {
  using namespace reference;
  return {
      {"normalized_ascent", kH | kGrad, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         return {function_of<Tensor (*)(T, T, double)>("normalized_ascent")(c.h, c.grad, c.step)};
       },
       [](const Row& row) { return l2_forward(row, false); }},
      {"normalized_ascent_", kH | kGrad | kInPlace, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         function_of<void (*)(T, T, double)>("normalized_ascent_")(c.h, c.grad, c.step);
         return {c.h};
       },
       [](const Row& row) { return l2_forward(row, false); }},
      {"_normalized_ascent_backward", kGrad | kUpstream, true, Residency::kNothing,
       [](const Call& c) -> std::vector<Tensor> {
         return {function_of<Tensor (*)(T, T, double)>("_normalized_ascent_backward")(c.upstream, c.grad, c.step)};
       },
       [](const Row& row) { return l2_backward(row, true, false); }},
      {"project_l2_shell", kH | kShell, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         return {function_of<Tensor (*)(T, double, Radii, double)>("project_l2_shell")(c.h, c.radius, c.radius_rows,
                                                                                       c.gamma)};
       },
       [](const Row& row) { return l2_forward(row, true); }},
      {"project_l2_shell_", kH | kShell | kInPlace, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         function_of<void (*)(T, double, Radii, double)>("project_l2_shell_")(c.h, c.radius, c.radius_rows, c.gamma);
         return {c.h};
       },
       [](const Row& row) { return l2_forward(row, true); }},
      {"_project_l2_shell_backward", kH | kShell | kUpstream, true, Residency::kNothing,
       [](const Call& c) {
         using Function = std::tuple<Tensor, Tensor> (*)(T, T, double, Radii, double);
         return listed(
             function_of<Function>("_project_l2_shell_backward")(c.upstream, c.h, c.radius, c.radius_rows, c.gamma));
       },
       [](const Row& row) { return l2_backward(row, false, true); }},
      {"l2_shell_step", kH | kGrad | kShell, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = Tensor (*)(T, T, double, double, Radii, double);
         return {function_of<Function>("l2_shell_step")(c.h, c.grad, c.step, c.radius, c.radius_rows, c.gamma)};
       },
       [](const Row& row) { return l2_forward(row, true); }},
      {"l2_shell_step_", kH | kGrad | kShell | kInPlace, false, Residency::kRegisters,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = void (*)(T, T, double, double, Radii, double);
         function_of<Function>("l2_shell_step_")(c.h, c.grad, c.step, c.radius, c.radius_rows, c.gamma);
         return {c.h};
       },
       [](const Row& row) { return l2_forward(row, true); }},
      {"_l2_shell_step_backward", kH | kGrad | kShell | kUpstream, true, Residency::kNothing,
       [](const Call& c) {
         using Function = std::tuple<Tensor, Tensor, Tensor> (*)(T, T, T, double, double, Radii, double);
         return listed(function_of<Function>("_l2_shell_step_backward")(c.upstream, c.h, c.grad, c.step, c.radius,
                                                                        c.radius_rows, c.gamma));
       },
       [](const Row& row) { return l2_backward(row, true, true); }},
      {"influence", kGrad, false, Residency::kNothing,
       [](const Call& c) -> std::vector<Tensor> { return {function_of<Tensor (*)(T)>("influence")(c.grad)}; },
       [](const Row& row) { return influence(row); }},
      {"_influence_backward", kGrad | kUpstream, true, Residency::kNothing,
       [](const Call& c) -> std::vector<Tensor> {
         return {function_of<Tensor (*)(T, T)>("_influence_backward")(c.upstream, c.grad)};
       },
       [](const Row& row) { return influence_backward(row); }},
  };
}

std::vector<Operator> mahalanobis() {
  using namespace reference;
  return {
      {"mahalanobis_norm", kH | kSigma, false, Residency::kNothing,
       [](const Call& c) -> std::vector<Tensor> {
         return {function_of<Tensor (*)(T, T)>("mahalanobis_norm")(c.h, c.sigma)};
       },
       [](const Row& row) { return mahalanobis_norm(row); }},
      {"_mahalanobis_norm_backward", kH | kSigma | kUpstreamRows, false, Residency::kNothing,
       [](const Call& c) {
         using Function = std::tuple<Tensor, Tensor> (*)(T, T, T);
         return listed(function_of<Function>("_mahalanobis_norm_backward")(c.upstream_rows, c.h, c.sigma));
       },
       [](const Row& row) { return mahalanobis_norm_backward(row); }},
      {"project_mahalanobis_shell", kH | kSigma | kShell, false, Residency::kShared,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = Tensor (*)(T, T, double, Radii, double, int64_t);
         return {function_of<Function>("project_mahalanobis_shell")(c.h, c.sigma, c.radius, c.radius_rows, c.gamma,
                                                                    c.grid)};
       },
       [](const Row& row) { return mahalanobis_forward(row); }},
      {"project_mahalanobis_shell_", kH | kSigma | kShell | kInPlace, false, Residency::kShared,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = void (*)(T, T, double, Radii, double, int64_t);
         function_of<Function>("project_mahalanobis_shell_")(c.h, c.sigma, c.radius, c.radius_rows, c.gamma, c.grid);
         return {c.h};
       },
       [](const Row& row) { return mahalanobis_forward(row); }},
      {"_project_mahalanobis_shell_backward", kH | kSigma | kShell | kUpstream, false, Residency::kShared,
       [](const Call& c) {
         using Function = std::tuple<Tensor, Tensor, Tensor> (*)(T, T, T, double, Radii, double, int64_t);
         return listed(function_of<Function>("_project_mahalanobis_shell_backward")(c.upstream, c.h, c.sigma, c.radius,
                                                                                    c.radius_rows, c.gamma, c.grid));
       },
       [](const Row& row) { return mahalanobis_backward(row); }},
      {"mahalanobis_shell_step", kH | kGrad | kSigma | kShell, false, Residency::kShared,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = Tensor (*)(T, T, T, double, double, Radii, double, int64_t);
         return {function_of<Function>("mahalanobis_shell_step")(c.h, c.grad, c.sigma, c.step, c.radius, c.radius_rows,
                                                                 c.gamma, c.grid)};
       },
       [](const Row& row) { return mahalanobis_forward(row); }},
      {"mahalanobis_shell_step_", kH | kGrad | kSigma | kShell | kInPlace, false, Residency::kShared,
       [](const Call& c) -> std::vector<Tensor> {
         using Function = void (*)(T, T, T, double, double, Radii, double, int64_t);
         function_of<Function>("mahalanobis_shell_step_")(c.h, c.grad, c.sigma, c.step, c.radius, c.radius_rows,
                                                          c.gamma, c.grid);
         return {c.h};
       },
       [](const Row& row) { return mahalanobis_forward(row); }},
      {"_mahalanobis_shell_step_backward", kH | kGrad | kSigma | kShell | kUpstream, false, Residency::kShared,
       [](const Call& c) {
         using Function =
             std::tuple<Tensor, Tensor, Tensor, Tensor> (*)(T, T, T, T, double, double, Radii, double, int64_t);
         return listed(function_of<Function>("_mahalanobis_shell_step_backward")(
             c.upstream, c.h, c.grad, c.sigma, c.step, c.radius, c.radius_rows, c.gamma, c.grid));
       },
       [](const Row& row) { return mahalanobis_backward(row); }},
  };
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> both = l2();
    for (Operator& each : mahalanobis()) both.push_back(std::move(each));
    return both;
  }();
  return all;
}

bool is_registered(const std::string& name) {
  return torch::stable::Library::table().count(name) > 0;
}

}  // namespace tests
