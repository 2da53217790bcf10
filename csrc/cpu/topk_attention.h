// Causal top-k attention on the CPU. Shapes: q (b, h, s, d), k and v (b, h, t, d), t >= s.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace gptx {

// Returns out (b, h, s, d) in v's type, scores (b, h, s, t) or (0), kept keys (b, h, s, n) int32
// and their weights, n = min(top_k, t). A row of fewer keys fills up with zeros.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> topk_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& slopes, int64_t top_k,
    const std::optional<at::Tensor>& prev_scores, bool return_scores, const std::string& variant);

// Returns the gradients of q, k, v, and of prev_scores where it is asked for, else (0).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> topk_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_scores, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& kept, const at::Tensor& weights,
    bool needs_grad_prev, const std::string& variant);

}  // namespace gptx
