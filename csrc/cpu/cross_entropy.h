// Cross entropy of logits, on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace gptx {

// Returns the sum over rows of -log softmax(logits)[label], and leaves its gradient where the logits
// were. Rows with the label `ignored` do not count. logits (n, v) contiguous float32, labels (n,) int64.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, int64_t ignored,
                         const std::string& variant);

}  // namespace gptx
