// A product with a weight matrix, on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace gptx {

// x (n, m) times weight (f, m) transposed, plus bias (f); all float32. A sum's order depends on m alone.
at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, const std::string& variant);

}  // namespace gptx
