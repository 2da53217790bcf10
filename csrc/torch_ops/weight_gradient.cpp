// The gradients of a projection's weight and bias, as Python sees them.
#include "../cpu/weight_gradient.h"

#include <torch/library.h>

#include "checks.h"

namespace gptx {
namespace {

void check(const char* name, const at::Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK(x.sizes() == shape && x.scalar_type() == at::kFloat && x.is_contiguous(), name,
              " must be ", shape, " contiguous float32, got ", x.sizes(), " strided ", x.strides(), " ",
              x.scalar_type());
}

void add(const at::Tensor& grad, const at::Tensor& x, at::Tensor& weight,
         const std::optional<at::Tensor>& bias, c10::string_view variant) {
  TORCH_CHECK(grad.dim() == 2 && x.dim() == 2, "grad must be (n, f) and x (n, m), got ", grad.sizes(),
              " and ", x.sizes());
  const int64_t n = grad.size(0), f = grad.size(1), m = x.size(1);
  check("grad", grad, {n, f});
  check("x", x, {n, m});
  check("weight", weight, {f, m});
  if (bias) check("bias", *bias, {f});
  add_weight_gradient(grad, x, weight, bias, std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def(
      "add_weight_gradient_(Tensor grad, Tensor x, Tensor(a!) weight, Tensor(b!)? bias, str "
      "variant='best') -> ()");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) { library.impl("add_weight_gradient_", &gptx::add); }
