// Cross entropy of logits, on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

namespace gptx {

// The sum over rows of -log softmax(logits)[label], and of each row the largest logit and the sum over
// exp(logit - largest), (n, 2); float32. Rows with the label `ignored` do not count. logits (n, v)
// contiguous float32, labels (n,) int64.
std::tuple<at::Tensor, at::Tensor> cross_entropy(const at::Tensor& logits, const at::Tensor& labels,
                                                 int64_t ignored, const std::string& variant);

// Puts the gradient, times `scale`, in the logits' place.
void cross_entropy_backward(const at::Tensor& logits, const at::Tensor& sums, const at::Tensor& labels,
                            double scale, int64_t ignored, const std::string& variant);

}  // namespace gptx
