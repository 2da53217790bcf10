// Cross entropy of logits, as Python sees it.
#include <torch/library.h>

#include "../cpu/cross_entropy.h"

namespace gptx {
namespace {

void check(const at::Tensor& logits, const at::Tensor& labels, int64_t ignored) {
  TORCH_CHECK(logits.dim() == 2 && logits.scalar_type() == at::kFloat && logits.is_contiguous(),
              "logits must be (n, v) contiguous float32, got ", logits.sizes(), " strided ",
              logits.strides(), " ", logits.scalar_type());
  const int64_t n = logits.size(0), v = logits.size(1);
  TORCH_CHECK(labels.dim() == 1 && labels.size(0) == n && labels.scalar_type() == at::kLong &&
                  labels.is_contiguous() && labels.device() == logits.device(),
              "labels must be one contiguous int64 per row on ", logits.device(), ", (", n, ",), got ",
              labels.sizes(), " ", labels.scalar_type(), " on ", labels.device());
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i)
    TORCH_CHECK(label[i] == ignored || (label[i] >= 0 && label[i] < v), "label ", label[i], " of row ",
                i, " is outside the vocabulary of ", v);
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& logits, const at::Tensor& labels,
                                           int64_t ignored, c10::string_view variant) {
  check(logits, labels, ignored);
  return cross_entropy(logits, labels, ignored, std::string(variant));
}

void backward(at::Tensor& logits, const at::Tensor& sums, const at::Tensor& labels, double scale,
              int64_t ignored, c10::string_view variant) {
  check(logits, labels, ignored);
  TORCH_CHECK(sums.dim() == 2 && sums.size(0) == logits.size(0) && sums.size(1) == 2 &&
                  sums.scalar_type() == at::kFloat && sums.is_contiguous(),
              "sums must be what the forward pass returned");
  cross_entropy_backward(logits, sums, labels, scale, ignored, std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def(
      "cross_entropy(Tensor logits, Tensor labels, int ignored, str variant='best') -> (Tensor total, "
      "Tensor sums)");
  library.def(
      "cross_entropy_backward_(Tensor(a!) logits, Tensor sums, Tensor labels, float scale, int ignored, "
      "str variant='best') -> ()");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("cross_entropy", &gptx::forward);
  library.impl("cross_entropy_backward_", &gptx::backward);
}
