#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cross_entropy.h"
#include "rows.h"

namespace gptx {
namespace {

// Rows per task.
constexpr int64_t kGrain = 8;

}  // namespace

std::tuple<at::Tensor, at::Tensor> cross_entropy(const at::Tensor& logits, const at::Tensor& labels,
                                                 int64_t ignored, const std::string& variant) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);
  const int64_t n = logits.size(0), v = logits.size(1);
  const at::Tensor total = at::empty({}, logits.options());
  const at::Tensor sums = at::zeros({n, 2}, logits.options());
  const float* data = logits.const_data_ptr<float>();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  float* row_sums = sums.mutable_data_ptr<float>();
  std::vector<double> losses(n);
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (label[i] == ignored) continue;
      const ExpSum found = rows.sum_of_exp(data + i * v, v);
      row_sums[2 * i] = found.largest;
      row_sums[2 * i + 1] = found.sum;
      losses[i] = std::log(double(found.sum)) + (double(found.largest) - data[i * v + label[i]]);
    }
  });
  // One after the other, so that the sum is the same for any number of threads.
  *total.mutable_data_ptr<float>() = std::accumulate(losses.begin(), losses.end(), 0.0);
  return {total, sums};
}

void cross_entropy_backward(const at::Tensor& logits, const at::Tensor& sums, const at::Tensor& labels,
                            double scale, int64_t ignored, const std::string& variant) {
  const RowKernels& rows = row_kernels(variant);
  const int64_t n = logits.size(0), v = logits.size(1);
  float* data = logits.mutable_data_ptr<float>();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const float* row_sums = sums.const_data_ptr<float>();
  const float factor = static_cast<float>(scale);
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = data + i * v;
      if (label[i] == ignored) {
        std::fill(row, row + v, 0.0f);
        continue;
      }
      rows.scaled_exp(row, v, row_sums[2 * i], factor / row_sums[2 * i + 1]);
      row[label[i]] -= factor;
    }
  });
}

}  // namespace gptx
