// The gradients of a projection's weight and bias, on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace gptx {

// weight (f, m) += grad (n, f) transposed times x (n, m), and bias (f) += the sum of grad over its
// rows; all contiguous float32.
void add_weight_gradient(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const std::string& variant);

}  // namespace gptx
