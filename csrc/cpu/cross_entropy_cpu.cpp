#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cross_entropy.h"
#include "simd/dispatch.h"

namespace gptx {
namespace {

// Rows per task.
constexpr int64_t kGrain = 8;

}  // namespace

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, int64_t ignored,
                         const std::string& variant) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);
  const int64_t n = logits.size(0), v = logits.size(1);
  const at::Tensor total = at::empty({}, logits.options());
  float* data = logits.mutable_data_ptr<float>();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  std::vector<double> losses(n);
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = data + i * v;
      if (label[i] == ignored) {
        std::fill(row, row + v, 0.0f);
        continue;
      }
      const double wanted = row[label[i]];
      const ExpSum found = rows.softmax(row, v);
      losses[i] = std::log(double(found.sum)) + (found.largest - wanted);
      row[label[i]] -= 1;
    }
  });
  // One after the other, so that the sum is the same for any number of threads.
  *total.mutable_data_ptr<float>() = std::accumulate(losses.begin(), losses.end(), 0.0);
  return total;
}

}  // namespace gptx
