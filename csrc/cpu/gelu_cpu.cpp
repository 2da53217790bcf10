#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>

#include "gelu.h"
#include "simd/dispatch.h"

namespace gptx {
namespace {

// Rows per task.
constexpr int64_t kGrain = 16;

}  // namespace

at::Tensor bias_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias,
                     const std::string& variant) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);
  const at::Tensor out = at::empty_like(x);
  const int64_t f = x.size(1);
  float* from = x.mutable_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const float* added = bias ? bias->const_data_ptr<float>() : nullptr;
  at::parallel_for(0, x.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rows.add_gelu(from + i * f, added, f, to + i * f);
  });
  return out;
}

at::Tensor gelu_backward(const at::Tensor& grad, const at::Tensor& x, const std::string& variant) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);
  const at::Tensor out = at::empty_like(x);
  const int64_t f = x.size(1);
  const float* from = x.const_data_ptr<float>();
  const float* incoming = grad.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, x.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      rows.gelu_gradient(from + i * f, incoming + i * f, f, to + i * f);
  });
  return out;
}

}  // namespace gptx
