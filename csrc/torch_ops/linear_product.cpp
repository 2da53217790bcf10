// A product with a weight matrix, as Python sees it: the quickest one for the form of the kernels.
#include "../cpu/linear_product.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "../cpu/simd/dispatch.h"
#include "checks.h"

namespace gptx {
namespace {

// With this many rows or more, our product is faster than PyTorch's, packing of the weight included. The
// choice depends only on the shapes and on the form: all ranks and a resumed run choose alike.
constexpr int64_t kFewestRows = 192;

// With AVX-512, oneDNN's product is as fast as ours, and faster with many outputs.
at::Tensor product_of_onednn(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                               c10::string_view, Scalars, std::optional<c10::string_view>);
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                                    .typed<Signature>();
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  return operation.call(x, weight, bias, "none", Scalars(), "");
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                   c10::string_view variant) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
                  (!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0))),
              "x must be (n, m), weight (f, m) and bias (f,), got ", x.sizes(), ", ", weight.sizes(),
              " and ", bias ? bias->sizes() : at::IntArrayRef());
  const std::string name(variant == "best" ? cpu_capability() : std::string(variant));
  const bool wide = x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
                    (!bias || bias->scalar_type() == at::kFloat);
  if (wide && variant == "best" && name == "avx512" && at::globalContext().hasMKLDNN())
    return product_of_onednn(x, weight, bias);
  if (wide && name != "default" && x.size(0) >= kFewestRows && x.size(1) > 0 && weight.size(0) > 0)
    return linear_product(x, weight, bias, name);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  return at::linear(x, weight, bias);
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def("product(Tensor x, Tensor weight, Tensor? bias, str variant='best') -> Tensor");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) { library.impl("product", &gptx::product); }
