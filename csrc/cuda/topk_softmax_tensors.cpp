#include "topk_softmax_tensors.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>

#include "topk_softmax_launch.h"

namespace gptx {
namespace {

Number number_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return Number::kFloat32;
  return x.scalar_type() == at::kBFloat16 ? Number::kBFloat16 : Number::kFloat16;
}

Rows rows_of(at::IntArrayRef rows, int64_t num_keys, int64_t width, const Selection& selection) {
  const int64_t num_rows = rows[0] * rows[1] * rows[2];
  TORCH_CHECK(num_keys <= kMostKeys, "the CUDA kernel takes at most ", kMostKeys, " keys, here are ",
              num_keys);
  TORCH_CHECK(num_rows <= std::numeric_limits<int>::max(), num_rows, " rows are more than ",
              std::numeric_limits<int>::max());
  return {num_rows,
          static_cast<int>(rows[1]),
          static_cast<int>(rows[2]),
          static_cast<int>(num_keys),
          static_cast<int>(width),
          drop_below(selection.dropout_p),
          static_cast<float>(1 / (1 - selection.dropout_p)),
          static_cast<uint64_t>(selection.seed)};
}

// The rows that have chosen their keys.
Rows rows_over(const at::Tensor& kept, int64_t num_keys, const Selection& selection) {
  return rows_of(kept.sizes(), num_keys, kept.size(3), selection);
}

void check_launch(const char* problem) {
  TORCH_CHECK(problem == nullptr, "top-k attention could not be started: ", problem);
}

// The tensors live until the kernel is on the stream. Later work on the stream may then reuse their memory.
struct Dense {
  explicit Dense(const Selection& selection)
      : slopes(selection.slopes ? selection.slopes->contiguous() : at::Tensor()),
        starts(selection.row_start ? selection.row_start->contiguous() : at::Tensor()) {}
  const float* slope_of_heads() const { return slopes.defined() ? slopes.data_ptr<float>() : nullptr; }
  const int32_t* row_start() const { return starts.defined() ? starts.data_ptr<int32_t>() : nullptr; }
  at::Tensor slopes, starts;
};

// Vectors whose numbers are neighbours.
at::Tensor with_dense_vectors(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

Strides strides_of(const at::Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

bool whole_pieces(const at::Tensor& x) {
  const int64_t piece = 16 / x.element_size();
  bool whole = x.size(3) % piece == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int dimension = 0; dimension < 3; ++dimension) whole &= x.stride(dimension) % piece == 0;
  return whole;
}

// As many lanes as a vector has pieces, up to a warp.
int log_lanes(int64_t head_dim, int64_t piece) {
  int log = 0;
  while (log < 5 && piece << log < head_dim) ++log;
  return log;
}

// Kept keys and weights of contiguous scores.
std::tuple<at::Tensor, at::Tensor> select(const at::Tensor& scores, void* cleared, void* probs,
                                          const Selection& selection, void* stream) {
  const int64_t width = std::min(selection.top_k, scores.size(3));
  const Rows rows = rows_of(scores.sizes(), scores.size(3), width, selection);
  const std::array<int64_t, 4> kept_sizes{scores.size(0), scores.size(1), scores.size(2), width};
  const at::Tensor kept = at::empty(kept_sizes, scores.options().dtype(at::kInt));
  const at::Tensor weights = at::empty(kept_sizes, scores.options().dtype(at::kFloat));
  if (rows.num_rows == 0) return {kept, weights};

  const Dense dense(selection);
  const ForwardArguments arguments{rows,
                                   scores.const_data_ptr(),
                                   cleared,
                                   dense.slope_of_heads(),
                                   dense.row_start(),
                                   probs,
                                   kept.data_ptr<int32_t>(),
                                   weights.data_ptr<float>()};
  check_launch(launch_topk_softmax(arguments, number_of(scores), scores.device().index(), stream));
  return {kept, weights};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_softmax_cuda(const at::Tensor& scores,
                                                                 const Selection& selection,
                                                                 void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const at::Tensor probs = at::empty(scores.sizes(), scores.options());
  const auto [kept, weights] = select(scores.contiguous(), nullptr, probs.data_ptr(), selection, stream);
  return {probs, kept, weights};
}

std::tuple<at::Tensor, at::Tensor> topk_select_cuda(const at::Tensor& scores, const Selection& selection,
                                                    bool clear_unseen, void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  return select(scores, clear_unseen ? scores.data_ptr() : nullptr, nullptr, selection, stream);
}

at::Tensor topk_softmax_backward_cuda(const at::Tensor& grad_probs, const at::Tensor& kept,
                                      const at::Tensor& weights, const Selection& selection,
                                      void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Rows rows = rows_over(kept, grad_probs.size(3), selection);
  const at::Tensor grad_scores = at::empty(grad_probs.sizes(), grad_probs.options());
  if (rows.num_rows == 0) return grad_scores;
  const at::Tensor dense = grad_probs.contiguous();
  const BackwardArguments arguments{rows, dense.const_data_ptr(), kept.data_ptr<int32_t>(),
                                    weights.data_ptr<float>(), grad_scores.data_ptr()};
  check_launch(launch_topk_softmax_backward(arguments, number_of(grad_probs),
                                            grad_probs.device().index(), stream));
  return grad_scores;
}

at::Tensor sum_of_kept_cuda(const at::Tensor& kept, const at::Tensor& weights, const at::Tensor& v,
                            const Selection& selection, void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const int64_t b = v.size(0), h = v.size(1), s = kept.size(2), d = v.size(3);
  const Rows rows = rows_over(kept, v.size(2), selection);
  // Heads side by side, as the projection behind them wants them.
  const at::Tensor out = at::empty({b, s, h, d}, v.options()).transpose(1, 2);
  if (out.numel() == 0) return out;
  const at::Tensor values = with_dense_vectors(v);
  const bool whole = whole_pieces(values) && whole_pieces(out);
  const SumArguments arguments{rows,
                               static_cast<int>(d),
                               log_lanes(d, whole ? 16 / v.element_size() : 1),
                               kept.data_ptr<int32_t>(),
                               weights.data_ptr<float>(),
                               values.const_data_ptr(),
                               strides_of(values),
                               out.data_ptr(),
                               strides_of(out)};
  check_launch(launch_sum_of_kept(arguments, number_of(v), whole, v.device().index(), stream));
  return out;
}

at::Tensor kept_gradients_cuda(const at::Tensor& grad_out, const at::Tensor& v, const at::Tensor& kept,
                               const at::Tensor& weights, const Selection& selection, void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const int64_t d = v.size(3);
  const Rows rows = rows_over(kept, v.size(2), selection);
  const at::Tensor grads = at::empty(weights.sizes(), weights.options());
  if (grads.numel() == 0) return grads;
  const at::Tensor values = with_dense_vectors(v), incoming = with_dense_vectors(grad_out);
  const bool whole = whole_pieces(values) && whole_pieces(incoming);
  const KeptGradientArguments arguments{rows,
                                        static_cast<int>(d),
                                        log_lanes(d, whole ? 16 / v.element_size() : 1),
                                        kept.data_ptr<int32_t>(),
                                        weights.data_ptr<float>(),
                                        values.const_data_ptr(),
                                        strides_of(values),
                                        incoming.const_data_ptr(),
                                        strides_of(incoming),
                                        grads.data_ptr<float>()};
  check_launch(launch_kept_gradients(arguments, number_of(v), whole, v.device().index(), stream));
  return grads;
}

void add_kept_cuda(const at::Tensor& pairs, const at::Tensor& kept, const at::Tensor& grads,
                   const Selection& selection, void* stream) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Rows rows = rows_over(kept, pairs.size(3), selection);
  if (pairs.numel() == 0) return;
  const Dense dense(selection);
  const AddArguments arguments{rows, dense.row_start(), kept.data_ptr<int32_t>(),
                               grads.data_ptr<float>(), pairs.data_ptr<float>()};
  check_launch(launch_add_kept(arguments, pairs.device().index(), stream));
}

}  // namespace gptx
