#include "topk_softmax_tensors.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <limits>

#include "topk_softmax_launch.h"

namespace gptx {
namespace {

Number number_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return Number::kFloat32;
  return x.scalar_type() == at::kBFloat16 ? Number::kBFloat16 : Number::kFloat16;
}

Rows rows_of(const at::Tensor& x, int64_t width, const Selection& selection) {
  const int64_t num_rows = x.size(0) * x.size(1) * x.size(2), num_keys = x.size(3);
  TORCH_CHECK(num_keys <= kMostKeys, "the CUDA kernel takes at most ", kMostKeys, " keys, here are ",
              num_keys);
  TORCH_CHECK(num_rows <= std::numeric_limits<int>::max(), num_rows, " rows are more than ",
              std::numeric_limits<int>::max());
  return {num_rows,
          static_cast<int>(x.size(1)),
          static_cast<int>(x.size(2)),
          static_cast<int>(num_keys),
          static_cast<int>(width),
          drop_below(selection.dropout_p),
          static_cast<float>(1 / (1 - selection.dropout_p)),
          static_cast<uint64_t>(selection.seed)};
}

void check_launch(const char* problem) {
  TORCH_CHECK(problem == nullptr, "top-k softmax could not be started: ", problem);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_softmax_cuda(const at::Tensor& scores,
                                                                 const Selection& selection,
                                                                 void* stream) {
  const int64_t b = scores.size(0), h = scores.size(1), s = scores.size(2), t = scores.size(3);
  const int64_t width = std::min(selection.top_k, t);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Rows rows = rows_of(scores, width, selection);
  const at::Tensor probs = at::empty({b, h, s, t}, scores.options());
  const at::Tensor kept = at::empty({b, h, s, width}, scores.options().dtype(at::kInt));
  const at::Tensor weights = at::empty({b, h, s, width}, scores.options().dtype(at::kFloat));
  if (rows.num_rows == 0) return {probs, kept, weights};

  // They live until the kernel has been given to the stream, and so does what follows them there.
  const at::Tensor dense = scores.contiguous();
  const at::Tensor slopes = selection.slopes ? selection.slopes->contiguous() : at::Tensor();
  const at::Tensor starts = selection.row_start ? selection.row_start->contiguous() : at::Tensor();
  const ForwardArguments arguments{rows,
                                   dense.const_data_ptr(),
                                   slopes.defined() ? slopes.data_ptr<float>() : nullptr,
                                   starts.defined() ? starts.data_ptr<int32_t>() : nullptr,
                                   probs.data_ptr(),
                                   kept.data_ptr<int32_t>(),
                                   weights.data_ptr<float>()};
  check_launch(launch_topk_softmax(arguments, number_of(scores), scores.device().index(), stream));
  return {probs, kept, weights};
}

at::Tensor topk_softmax_backward_cuda(const at::Tensor& grad_probs, const at::Tensor& kept,
                                      const at::Tensor& weights, const Selection& selection,
                                      void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Rows rows = rows_of(grad_probs, kept.size(3), selection);
  const at::Tensor grad_scores = at::empty(grad_probs.sizes(), grad_probs.options());
  if (rows.num_rows == 0) return grad_scores;
  const at::Tensor dense = grad_probs.contiguous();
  const BackwardArguments arguments{rows, dense.const_data_ptr(), kept.data_ptr<int32_t>(),
                                    weights.data_ptr<float>(), grad_scores.data_ptr()};
  check_launch(launch_topk_softmax_backward(arguments, number_of(grad_probs),
                                            grad_probs.device().index(), stream));
  return grad_scores;
}

}  // namespace gptx
