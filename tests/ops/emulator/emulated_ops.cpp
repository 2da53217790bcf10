// The CUDA implementation of top-k attention on CPU tensors, its kernels emulated.
#include "emulated_launch.h"

#include <torch/library.h>

#include "../../../csrc/torch_ops/checks.h"
// Compiled in one with what calls it: torch's headers take longer than all the rest.
#include "../../../csrc/cuda/topk_softmax_tensors.cpp"

namespace gptx {

const char* launch_topk_softmax(const ForwardArguments& arguments, Number type, int, void*) {
  emulate(arguments, type);
  return nullptr;
}

const char* launch_topk_softmax_backward(const BackwardArguments& arguments, Number type, int, void*) {
  emulate(arguments, type);
  return nullptr;
}

const char* launch_sum_of_kept(const SumArguments& arguments, Number type, bool whole, int, void*) {
  emulate_over_kept(arguments, type, whole);
  return nullptr;
}

const char* launch_kept_gradients(const KeptGradientArguments& arguments, Number type, bool whole, int,
                                  void*) {
  emulate_over_kept(arguments, type, whole);
  return nullptr;
}

const char* launch_add_kept(const AddArguments& arguments, int, void*) {
  emulate(arguments);
  return nullptr;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> emulated_forward(const at::Tensor& scores,
                                                       const OptionalTensor& slopes, int64_t top_k,
                                                       const OptionalTensor& row_start,
                                                       double dropout_p, int64_t seed,
                                                       int64_t schedule_index) {
  check_topk_softmax(scores, slopes, top_k, row_start, dropout_p);
  schedule = static_cast<emulator::Schedule>(schedule_index);
  return topk_softmax_cuda(scores, {slopes, top_k, row_start, dropout_p, seed, ""}, nullptr);
}

at::Tensor emulated_backward(const at::Tensor& grad_probs, const at::Tensor& kept, const at::Tensor& weights,
                    double dropout_p, int64_t seed, int64_t schedule_index) {
  check_topk_softmax_backward(grad_probs, kept, weights);
  schedule = static_cast<emulator::Schedule>(schedule_index);
  return topk_softmax_backward_cuda(grad_probs, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                                    nullptr);
}

std::tuple<at::Tensor, at::Tensor> emulated_select(const at::Tensor& scores, const OptionalTensor& slopes,
                                          int64_t top_k, const OptionalTensor& row_start,
                                          bool clear_unseen) {
  check_topk_select(scores, slopes, top_k, row_start);
  return topk_select_cuda(scores, {slopes, top_k, row_start, 0.0, 0, ""}, clear_unseen,
                          nullptr);
}

at::Tensor sum(const at::Tensor& kept, const at::Tensor& weights, const at::Tensor& v, double dropout_p,
               int64_t seed) {
  check_values(v, kept, weights);
  return sum_of_kept_cuda(kept, weights, v, {{}, 1, {}, dropout_p, seed, ""}, nullptr);
}

at::Tensor gradients(const at::Tensor& grad_out, const at::Tensor& v, const at::Tensor& kept,
                     const at::Tensor& weights, double dropout_p, int64_t seed) {
  check_values(v, kept, weights);
  check_grad_out(grad_out, v, kept);
  return kept_gradients_cuda(grad_out, v, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                             nullptr);
}

void add(const at::Tensor& pairs, const at::Tensor& kept, const at::Tensor& grads,
         const OptionalTensor& row_start) {
  check_add_kept(pairs, kept, grads, row_start);
  add_kept_cuda(pairs, kept, grads, {{}, 1, row_start, 0.0, 0, ""}, nullptr);
}

void take_turns(int64_t schedule_index) {
  schedule = static_cast<emulator::Schedule>(schedule_index);
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY(gptx_emulated, library) {
  library.def("topk_softmax", &gptx::emulated_forward);
  library.def("topk_softmax_backward", &gptx::emulated_backward);
  library.def("take_turns", &gptx::take_turns);
}

// What the compiled kernels have for GPUs alone, for CPUs too.
TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("topk_select_", &gptx::emulated_select);
  library.impl("sum_of_kept", &gptx::sum);
  library.impl("kept_gradients", &gptx::gradients);
  library.impl("add_kept_", &gptx::add);
}
