#include "linear_product.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include "simd/dispatch.h"

namespace gptx {
namespace {

// Rows per task: whole groups of every variant's kRows.
constexpr int64_t kGrain = 42;

}  // namespace

at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, const std::string& variant) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);
  const at::Tensor dense = x.stride(1) == 1 ? x : x.contiguous();
  const bool reads = weight.stride(0) == 1 || weight.stride(1) == 1;
  const at::Tensor matrix = reads ? weight : weight.contiguous();
  const at::Tensor added = bias ? bias->contiguous() : at::Tensor();
  const int64_t n = x.size(0), m = x.size(1), f = weight.size(0);
  const at::Tensor out = at::empty({n, f}, x.options());
  const LinearProduct sought{dense.const_data_ptr<float>(),
                             dense.stride(0),
                             n,
                             matrix.const_data_ptr<float>(),
                             matrix.stride(0),
                             matrix.stride(1),
                             f,
                             m,
                             bias ? added.const_data_ptr<float>() : nullptr,
                             out.mutable_data_ptr<float>()};
  const int64_t num_panels = (f + rows.panel_width - 1) / rows.panel_width;
  const at::Tensor panels = at::empty({num_panels * rows.panel_width * m}, x.options());
  float* packed = panels.mutable_data_ptr<float>();
  at::parallel_for(0, num_panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) rows.pack_weight(sought, panel, packed);
  });
  at::parallel_for(0, (n + kGrain - 1) / kGrain, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kGrain; first < std::min(n, end * kGrain); first += kGrain)
      rows.multiply_rows(sought, packed, first, std::min(n, first + kGrain));
  });
  return out;
}

}  // namespace gptx
