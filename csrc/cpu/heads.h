// What the forward and the backward pass share: plain float32 views of one head, and their products.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdint>

namespace gptx {

// Scores of one block of queries: small enough for a core's second-level cache, with room to spare.
constexpr int64_t kBlockFloats = 128 * 1024;

inline int64_t rows_per_block(int64_t num_rows, int64_t num_keys) {
  return std::min(num_rows, std::clamp<int64_t>(kBlockFloats / num_keys, 16, 256));
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

inline at::Tensor matrix(float* data, int64_t rows, int64_t columns, int64_t stride) {
  return at::from_blob(data, {rows, columns}, {stride, 1}, at::kFloat);
}

// out = beta * out + alpha * a @ b, on one thread where others run beside it.
inline void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b, float beta,
                     float alpha) {
  at::addmm_out(out, out, a, b, beta, alpha);
}

}  // namespace gptx
