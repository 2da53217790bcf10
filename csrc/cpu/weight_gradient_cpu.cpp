#include "weight_gradient.h"

#include <ATen/Parallel.h>

#include <memory>

#include "simd/dispatch.h"

namespace gptx {
namespace {

// Outputs per task: whole groups of every variant's kRows.
constexpr int64_t kGrain = 42;

}  // namespace

void add_weight_gradient(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const std::string& variant) {
  const RowKernels& rows = row_kernels(variant);
  const WeightGradient sought{grad.const_data_ptr<float>(),
                              x.const_data_ptr<float>(),
                              grad.size(0),
                              grad.size(1),
                              x.size(1),
                              weight.mutable_data_ptr<float>(),
                              bias ? bias->mutable_data_ptr<float>() : nullptr};
  at::parallel_for(0, sought.num_outputs, kGrain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[WeightGradient::kScratch]);
    rows.add_weight_gradient(sought, begin, end, scratch.get());
  });
}

}  // namespace gptx
