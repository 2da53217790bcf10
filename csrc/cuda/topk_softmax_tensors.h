// Top-k softmax over tensors of a GPU, as the CPU's functions of csrc/cpu/topk_attention.h return it,
// and the parts of attention around it.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "../cpu/selection.h"

namespace gptx {

// `stream` is the one that the tensors' device works on.
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_softmax_cuda(const at::Tensor& scores,
                                                                 const Selection& selection,
                                                                 void* stream);

at::Tensor topk_softmax_backward_cuda(const at::Tensor& grad_probs, const at::Tensor& kept,
                                      const at::Tensor& weights, const Selection& selection,
                                      void* stream);

// Only the kept keys and weights of contiguous scores. The scores of masked keys may be set to 0.
std::tuple<at::Tensor, at::Tensor> topk_select_cuda(const at::Tensor& scores, const Selection& selection,
                                                    bool clear_unseen, void* stream);

// Each row's weighted sum of its kept rows of v, (b, h, s, d), heads side by side in memory.
at::Tensor sum_of_kept_cuda(const at::Tensor& kept, const at::Tensor& weights, const at::Tensor& v,
                            const Selection& selection, void* stream);

// Gradients of kept scores, (b, h, s, width) float32.
at::Tensor kept_gradients_cuda(const at::Tensor& grad_out, const at::Tensor& v, const at::Tensor& kept,
                               const at::Tensor& weights, const Selection& selection, void* stream);

// Adds the gradients of kept scores to contiguous float32 pairs, (b, h, s, t). Sets masked pairs to 0.
void add_kept_cuda(const at::Tensor& pairs, const at::Tensor& kept, const at::Tensor& grads,
                   const Selection& selection, void* stream);

}  // namespace gptx
