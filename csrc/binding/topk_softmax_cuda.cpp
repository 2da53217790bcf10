// Top-k softmax on CUDA tensors, as Python sees it. Plain C++: it is compiled on every machine, and
// does nothing where the library has no CUDA half.
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../cuda/topk_softmax_launch.h"
#include "../cuda/topk_softmax_tensors.h"
#include "checks.h"

namespace gptx {
namespace {

// Whether torch's streams tell what they are to CUDA; older ones do so in CUDA's own headers alone,
// which a build of torch for CPUs lacks.
template <class Stream, class = void>
struct HasHandle : std::false_type {};
template <class Stream>
struct HasHandle<Stream, std::void_t<decltype(std::declval<Stream>().native_handle())>>
    : std::true_type {};

template <class Stream>
void* handle_of(const Stream& stream) {
  if constexpr (HasHandle<Stream>::value) return stream.native_handle();
  return nullptr;
}

void* current_stream(const at::Tensor& x) {
  return handle_of(c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()));
}

bool has_cuda_half() { return HasHandle<c10::Stream>::value && topk_softmax_architectures; }

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& scores,
                                                       const OptionalTensor& slopes, int64_t top_k,
                                                       const OptionalTensor& row_start,
                                                       double dropout_p, int64_t seed) {
  check_topk_softmax(scores, slopes, top_k, row_start, dropout_p);
  const c10::DeviceGuard guard(scores.device());
  return topk_softmax_cuda(scores, {slopes, top_k, row_start, dropout_p, seed, ""},
                           current_stream(scores));
}

at::Tensor backward(const at::Tensor& grad_probs, const at::Tensor& kept, const at::Tensor& weights,
                    double dropout_p, int64_t seed) {
  check_topk_softmax_backward(grad_probs, kept, weights);
  const c10::DeviceGuard guard(grad_probs.device());
  return topk_softmax_backward_cuda(grad_probs, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                                    current_stream(grad_probs));
}

// None where the library has no CUDA half.
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  if (!has_cuda_half()) return names;
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
  if (!gptx::has_cuda_half()) return;
  library.impl("topk_softmax", &gptx::forward);
  library.impl("topk_softmax_backward", &gptx::backward);
}
