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

at::Tensor forward(at::Tensor& logits, const at::Tensor& labels, int64_t ignored,
                   c10::string_view variant) {
  check(logits, labels, ignored);
  return cross_entropy(logits, labels, ignored, std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def(
      "cross_entropy_(Tensor(a!) logits, Tensor labels, int ignored, str variant='best') -> Tensor");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) { library.impl("cross_entropy_", &gptx::forward); }
