// GELU behind a projection, as Python sees it.
#include <torch/library.h>

#include "../cpu/gelu.h"
#include "checks.h"

namespace gptx {
namespace {

void check(const char* name, const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat && x.is_contiguous(), name,
              " must be (n, f) contiguous float32, got ", x.sizes(), " strided ", x.strides(), " ",
              x.scalar_type());
}

at::Tensor forward(at::Tensor& x, const OptionalTensor& bias, c10::string_view variant) {
  check("x", x);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1) &&
                        bias->scalar_type() == at::kFloat && bias->is_contiguous() &&
                        bias->device() == x.device()),
              "bias must be (", x.size(1), ",) contiguous float32 on ", x.device(), ", got ",
              bias->sizes(), " ", bias->scalar_type(), " on ", bias->device());
  return bias_gelu(x, bias, std::string(variant));
}

at::Tensor backward(const at::Tensor& grad, const at::Tensor& x, c10::string_view variant) {
  check("x", x);
  check("grad", grad);
  TORCH_CHECK(grad.sizes() == x.sizes(), "grad must have x's shape ", x.sizes(), ", got ",
              grad.sizes());
  return gelu_backward(grad, x, std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def("bias_gelu_(Tensor(a!) x, Tensor? bias, str variant='best') -> Tensor");
  library.def("gelu_backward(Tensor grad, Tensor x, str variant='best') -> Tensor");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("bias_gelu_", &gptx::forward);
  library.impl("gelu_backward", &gptx::backward);
}
