// Top-k softmax over tensors of a GPU: what the CPU's functions of csrc/cpu/topk_attention.h return.
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

}  // namespace gptx
