// Top-k softmax over given scores, as Python sees it.
#include <torch/library.h>

#include "../cpu/topk_attention.h"
#include "checks.h"

namespace gptx {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& scores,
                                                       const OptionalTensor& slopes, int64_t top_k,
                                                       const OptionalTensor& row_start,
                                                       double dropout_p, int64_t seed) {
  check_topk_softmax(scores, slopes, top_k, row_start, dropout_p);
  return topk_softmax(scores, {slopes, top_k, row_start, dropout_p, seed, "best"});
}

at::Tensor backward(const at::Tensor& grad_probs, const at::Tensor& kept, const at::Tensor& weights,
                    double dropout_p, int64_t seed) {
  check_topk_softmax_backward(grad_probs, kept, weights);
  return topk_softmax_backward(grad_probs, kept, weights, {{}, 1, {}, dropout_p, seed, "best"});
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def(
      "topk_softmax(Tensor scores, Tensor? slopes, int top_k, Tensor? row_start, float dropout_p, int "
      "seed) -> (Tensor probs, Tensor kept, Tensor weights)");
  library.def(
      "topk_softmax_backward(Tensor grad_probs, Tensor kept, Tensor weights, float dropout_p, int "
      "seed) -> Tensor grad_scores");
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("topk_softmax", &gptx::forward);
  library.impl("topk_softmax_backward", &gptx::backward);
}
