// Causal top-k attention on the CPU. Shapes: q (b, h, s, d), k and v (b, h, t, d), t >= s.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "selection.h"

namespace gptx {

// Returns out (b, h, s, d) in v's type, kept keys (b, h, s, n) int32 and their weights before
// dropout, n = min(top_k, t). A row of fewer keys ends with -1 and 0. If `carry`
// is defined, the scores (b, h, s, t) are written to it, with 0 for masked keys. It may be the same
// tensor as `prev`, whose masked keys are already 0. Without both, panels of keys that are too far
// away to matter are skipped, unless `skip` forbids it. The result is the same.
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& prev, const at::Tensor& carry, const Selection& selection,
    bool skip);

// Returns the gradients of q, k and v. If `grad_prev` (b, h, s, t) is defined, the gradient of the
// previous scores is written to it; it may be `grad_scores`.
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_scores, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& kept, const at::Tensor& weights,
    const at::Tensor& grad_prev, const Selection& selection);

// Returns probabilities like scores (b, h, s, t), and kept keys and weights as above.
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_softmax(const at::Tensor& scores,
                                                            const Selection& selection);

// Returns the gradient of the scores, like grad_probs (b, h, s, t).
at::Tensor topk_softmax_backward(const at::Tensor& grad_probs, const at::Tensor& kept,
                                 const at::Tensor& weights, const Selection& selection);

}  // namespace gptx
