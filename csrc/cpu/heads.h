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
      : tensor_(dense_rows(x.to(at::kFloat))),
        data_(tensor_.data_ptr<float>()),
        num_heads_(x.size(1)),
        batch_stride_(tensor_.stride(0)),
        head_stride_(tensor_.stride(1)),
        stride_(tensor_.stride(2)) {}

  // The first row of head `index` of all b * h.
  float* head(int64_t index) const {
    return data_ + index / num_heads_ * batch_stride_ + index % num_heads_ * head_stride_;
  }
  int64_t stride() const { return stride_; }

 private:
  static at::Tensor dense_rows(const at::Tensor& x) {
    const bool dense = x.stride(3) == 1 && x.stride(2) >= x.size(3);
    return dense ? x : x.contiguous();
  }
  at::Tensor tensor_;
  float* data_;
  int64_t num_heads_, batch_stride_, head_stride_, stride_;
};

}  // namespace gptx
