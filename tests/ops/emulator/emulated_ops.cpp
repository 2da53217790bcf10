// The CUDA implementation of top-k softmax on CPU tensors, its kernels emulated.
#include "emulated_launch.h"

#include <torch/library.h>

#include "../../../csrc/binding/checks.h"
#include "../../../csrc/cuda/topk_softmax_tensors.h"

namespace gptx {

const char* launch_topk_softmax(const ForwardArguments& arguments, Number type, int, void*) {
  emulate(arguments, type);
  return nullptr;
}

const char* launch_topk_softmax_backward(const BackwardArguments& arguments, Number type, int, void*) {
  emulate(arguments, type);
  return nullptr;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& scores,
                                                       const OptionalTensor& slopes, int64_t top_k,
                                                       const OptionalTensor& row_start,
                                                       double dropout_p, int64_t seed,
                                                       int64_t schedule_index) {
  check_topk_softmax(scores, slopes, top_k, row_start, dropout_p);
  schedule = static_cast<emulator::Schedule>(schedule_index);
  return topk_softmax_cuda(scores, {slopes, top_k, row_start, dropout_p, seed, ""}, nullptr);
}

at::Tensor backward(const at::Tensor& grad_probs, const at::Tensor& kept, const at::Tensor& weights,
                    double dropout_p, int64_t seed, int64_t schedule_index) {
  check_topk_softmax_backward(grad_probs, kept, weights);
  schedule = static_cast<emulator::Schedule>(schedule_index);
  return topk_softmax_backward_cuda(grad_probs, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                                    nullptr);
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY(gptx_emulated, library) {
  library.def("topk_softmax", &gptx::forward);
  library.def("topk_softmax_backward", &gptx::backward);
}
