// The tensors of a deep network: checks that every operator on one uses.
#include "mlp_search.h"

namespace drocc {

MlpTensors::MlpTensors(const char* op, const Tensor& h, const std::vector<Tensor>& weights,
                       const std::vector<std::optional<Tensor>>& biases, const std::vector<double>& negative_slopes,
                       const Tensor& output) {
  const size_t layers = weights.size();
  if (layers < 1 || layers > kMostMlpLayers) {
    fail(op, "weights must be of 1 to ", kMostMlpLayers, " hidden layers, got ", layers);
  }
  if (biases.size() != layers) fail(op, "biases must have one entry per layer, ", layers, ", got ", biases.size());
  if (negative_slopes.size() != layers) {
    fail(op, "negative_slopes must have one entry per layer, ", layers, ", got ", negative_slopes.size());
  }
  view_.num_layers = static_cast<int>(layers);
  view_.widths[0] = h.size(1);
  for (size_t l = 0; l < layers; ++l) {
    const Tensor& weight = weights[l];
    if (weight.dim() != 2 || weight.size(0) < 1 || weight.size(1) != view_.widths[l]) {
      fail(op, "weights[", l, "] must have shape [units, ", view_.widths[l], "], got ", describe_shape(weight));
    }
    check_like_h_in_kind(op, "weights", weight, h);
    const int64_t units = view_.widths[l + 1] = weight.size(0);
    view_.weight[l] = keep(weight);
    if (biases[l].has_value()) {
      const Tensor& bias = *biases[l];
      if (bias.dim() != 1 || bias.size(0) != units) {
        fail(op, "biases[", l, "] must have shape [", units, "], got ", describe_shape(bias));
      }
      check_like_h_in_kind(op, "biases", bias, h);
      view_.bias[l] = keep(bias);
    }
    if (!std::isfinite(negative_slopes[l])) {
      fail(op, "negative_slopes must be finite, got ", negative_slopes[l]);
    }
    view_.negative_slope[l] = negative_slopes[l];
  }
  if (output.dim() != 1 || output.size(0) != view_.widths[layers]) {
    fail(op, "output must have shape [", view_.widths[layers], "], got ", describe_shape(output));
  }
  check_like_h_in_kind(op, "output", output, h);
  view_.output = keep(output);
}

const void* MlpTensors::keep(const Tensor& tensor) {
  kept_.push_back(torch::stable::contiguous(tensor));
  return kept_.back().const_data_ptr();
}

}  // namespace drocc
