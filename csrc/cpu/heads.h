// What the passes share: plain float32 views of one head.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace gptx {

// Queries that one task takes: whole groups of every variant's kRows.
constexpr int64_t kBlock = 42;

// grads becomes the gradient of the scores, from that of the weights of a softmax over them.
inline void softmax_gradient(const float* weights, int64_t num_kept, float* grads) {
  double sum = 0;
  for (int64_t m = 0; m < num_kept; ++m) sum += weights[m] * grads[m];
  const float mean = static_cast<float>(sum);
  for (int64_t m = 0; m < num_kept; ++m) grads[m] = weights[m] * (grads[m] - mean);
}

// (b, h, n, d) float32, the last dimension dense; any strides before it.
class Heads {
 public:
  explicit Heads(const at::Tensor& x)
      : tensor_(dense_rows(x.to(at::kFloat))), num_heads_(x.size(1)) {}

  // The first row of head `index` of all b * h.
  float* head(int64_t index) const {
    return tensor_.data_ptr<float>() + index / num_heads_ * tensor_.stride(0) +
           index % num_heads_ * tensor_.stride(1);
  }
  int64_t stride() const { return tensor_.stride(2); }

 private:
  static at::Tensor dense_rows(const at::Tensor& x) {
    const bool dense = x.stride(3) == 1 && x.stride(2) >= x.size(3);
    return dense ? x : x.contiguous();
  }
  at::Tensor tensor_;
  int64_t num_heads_;
};

}  // namespace gptx
