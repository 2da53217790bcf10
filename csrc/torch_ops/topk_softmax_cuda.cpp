// Top-k softmax and the parts of attention around it on CUDA tensors, as Python sees them. Plain C++:
// it is compiled on every machine, and does nothing where the library has no CUDA half.
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

std::tuple<at::Tensor, at::Tensor> select(const at::Tensor& scores, const OptionalTensor& slopes,
                                          int64_t top_k, const OptionalTensor& row_start,
                                          bool clear_unseen) {
  check_topk_select(scores, slopes, top_k, row_start);
  const c10::DeviceGuard guard(scores.device());
  return topk_select_cuda(scores, {slopes, top_k, row_start, 0.0, 0, ""}, clear_unseen,
                          current_stream(scores));
}

at::Tensor sum(const at::Tensor& kept, const at::Tensor& weights, const at::Tensor& v, double dropout_p,
               int64_t seed) {
  check_values(v, kept, weights);
  const c10::DeviceGuard guard(v.device());
  return sum_of_kept_cuda(kept, weights, v, {{}, 1, {}, dropout_p, seed, ""}, current_stream(v));
}

at::Tensor gradients(const at::Tensor& grad_out, const at::Tensor& v, const at::Tensor& kept,
                     const at::Tensor& weights, double dropout_p, int64_t seed) {
  check_values(v, kept, weights);
  check_grad_out(grad_out, v, kept);
  const c10::DeviceGuard guard(v.device());
  return kept_gradients_cuda(grad_out, v, kept, weights, {{}, 1, {}, dropout_p, seed, ""},
                             current_stream(v));
}

void add(const at::Tensor& pairs, const at::Tensor& kept, const at::Tensor& grads,
         const OptionalTensor& row_start) {
  check_add_kept(pairs, kept, grads, row_start);
  const c10::DeviceGuard guard(pairs.device());
  add_kept_cuda(pairs, kept, grads, {{}, 1, row_start, 0.0, 0, ""}, current_stream(pairs));
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
  library.def(
      "topk_select_(Tensor(a!) scores, Tensor? slopes, int top_k, Tensor? row_start, bool clear_unseen) "
      "-> (Tensor kept, Tensor weights)");
  library.def(
      "sum_of_kept(Tensor kept, Tensor weights, Tensor v, float dropout_p, int seed) -> Tensor out");
  library.def(
      "kept_gradients(Tensor grad_out, Tensor v, Tensor kept, Tensor weights, float dropout_p, int "
      "seed) -> Tensor grads");
  library.def("add_kept_(Tensor(a!) pairs, Tensor kept, Tensor grads, Tensor? row_start) -> ()");
}

TORCH_LIBRARY_IMPL(gptx, CUDA, library) {
  if (!gptx::has_cuda_half()) return;
  library.impl("topk_softmax", &gptx::forward);
  library.impl("topk_softmax_backward", &gptx::backward);
  library.impl("topk_select_", &gptx::select);
  library.impl("sum_of_kept", &gptx::sum);
  library.impl("kept_gradients", &gptx::gradients);
  library.impl("add_kept_", &gptx::add);
}
