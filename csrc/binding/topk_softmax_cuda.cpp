// Top-k softmax on CUDA tensors, as Python sees it. Plain C++: it is compiled on every machine, and
// does nothing where the library has no CUDA half.
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <sstream>
#include <string>
#include <vector>

#include "../cuda/topk_softmax_launch.h"
#include "../cuda/topk_softmax_tensors.h"
#include "checks.h"

namespace gptx {
namespace {

// Torch's current one; asked for in a way that needs no library of torch's CUDA build.
void* stream_of(const at::Tensor& x) {
  return c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()).native_handle();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& scores,
                                                       const OptionalTensor& slopes, int64_t top_k,
                                                       const OptionalTensor& row_start,
                                                       double dropout_p, int64_t seed) {
  check_topk_softmax(scores, slopes, top_k, row_start, dropout_p);
  const c10::DeviceGuard guard(scores.device());
  return topk_softmax_cuda(scores, {slopes, top_k, row_start, dropout_p, seed, ""},
                           stream_of(scores));
}

at::Tensor backward(const at::Tensor& grad_probs, const at::Tensor& kept, const at::Tensor& weights,
                    double dropout_p, int64_t seed) {
  check_topk_softmax_backward(grad_probs, kept, weights);
  const c10::DeviceGuard guard(grad_probs.device());
  return topk_softmax_backward_cuda(grad_probs, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                                    stream_of(grad_probs));
}

// None where the library has no CUDA half.
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  if (!topk_softmax_architectures) return names;
  std::istringstream all(topk_softmax_architectures());
  for (std::string name; all >> name;) names.push_back(name);
  return names;
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def("cuda_architectures() -> str[]", &gptx::architectures);
}

TORCH_LIBRARY_IMPL(gptx, CUDA, library) {
  if (!gptx::topk_softmax_architectures) return;
  library.impl("topk_softmax", &gptx::forward);
  library.impl("topk_softmax_backward", &gptx::backward);
}
