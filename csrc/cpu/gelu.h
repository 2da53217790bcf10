// GELU behind a projection, on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace gptx {

// Adds the bias to x, (n, f) contiguous float32, where it lies; returns gelu(x).
at::Tensor bias_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                     const std::string& variant);

// The gradient of x, from x and the gradient of gelu(x).
at::Tensor gelu_backward(const at::Tensor& grad, const at::Tensor& x, const std::string& variant);

}  // namespace gptx
