#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "heads.h"
#include "simd/dispatch.h"
#include "topk_attention.h"

namespace gptx {

std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_softmax(const at::Tensor& scores,
                                                            const Selection& selection) {
  const int64_t b = scores.size(0), h = scores.size(1), s = scores.size(2), t = scores.size(3);
  const int64_t width = std::min(selection.top_k, t);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(selection.variant);

  const auto floats = scores.options().dtype(at::kFloat);
  const at::Tensor dense = scores.to(at::kFloat).contiguous();
  const at::Tensor probs = at::empty({b, h, s, t}, floats);
  const at::Tensor kept = at::empty({b, h, s, width}, scores.options().dtype(at::kInt));
  const at::Tensor weights = at::empty({b, h, s, width}, floats);
  const float* scores_data = dense.data_ptr<float>();
  float* probs_data = probs.data_ptr<float>();
  int32_t* kept_data = kept.data_ptr<int32_t>();
  float* weights_data = weights.data_ptr<float>();
  const RowStarts starts(selection.row_start, t);
  const Dropout dropout(selection.dropout_p, selection.seed);
  const std::vector<float> slope = selection.slope_of_heads(h);
  const int64_t num_blocks = (s + kBlock - 1) / kBlock;

  at::parallel_for(0, b * h * num_blocks, 1, [&](int64_t begin, int64_t end) {
    const Panels no_keys(0, 0);
    ChoiceScratch scratch(width);
    std::vector<float> used(width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / num_blocks, first = interleave(task % num_blocks, num_blocks) * kBlock;
      const int64_t num_rows = std::min(kBlock, s - first), position = t - s + first;
      const int32_t* start = starts.batch(head / h);
      const int64_t row = head * s + first;
      const Queries block{nullptr, 0, num_rows, position, start ? start + first : nullptr,
                          0,       0, slope[head % h], width, scores_data + row * t, nullptr, false};
      rows.choose(block, no_keys, t, width, scratch, kept_data + row * width, weights_data + row * width);
      for (int64_t i = 0; i < num_rows; ++i) {
        const int32_t* row_kept = kept_data + (row + i) * width;
        const int64_t num_kept = num_used(row_kept, width);
        dropout.apply(head / h, head % h, position + i, row_kept, weights_data + (row + i) * width,
                      num_kept, used.data());
        float* row_probs = probs_data + (row + i) * t;
        std::fill(row_probs, row_probs + t, 0.0f);
        for (int64_t m = 0; m < num_kept; ++m) row_probs[row_kept[m]] = used[m];
      }
    }
  });
  return {probs.to(scores.scalar_type()), kept, weights};
}

at::Tensor topk_softmax_backward(const at::Tensor& grad_probs, const at::Tensor& kept,
                                 const at::Tensor& weights, const Selection& selection) {
  const int64_t h = grad_probs.size(1), s = grad_probs.size(2), t = grad_probs.size(3);
  const int64_t width = kept.size(3);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const at::Tensor dense = grad_probs.to(at::kFloat).contiguous();
  const at::Tensor grad_scores = at::empty(grad_probs.sizes(), dense.options());
  const float* incoming = dense.data_ptr<float>();
  float* outgoing = grad_scores.data_ptr<float>();
  const int32_t* kept_data = kept.data_ptr<int32_t>();
  const float* weights_data = weights.data_ptr<float>();
  const Dropout dropout(selection.dropout_p, selection.seed);

  at::parallel_for(0, kept.size(0) * h * s, kBlock, [&](int64_t begin, int64_t end) {
    std::vector<float> grads(width);
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* row_kept = kept_data + row * width;
      const float* row_weights = weights_data + row * width;
      const int64_t num_kept = num_used(row_kept, width), head = row / s;
      for (int64_t m = 0; m < num_kept; ++m) grads[m] = incoming[row * t + row_kept[m]];
      dropout.apply(head / h, head % h, t - s + row % s, row_kept, grads.data(), num_kept, grads.data());
      softmax_gradient(row_weights, num_kept, grads.data());
      float* row_out = outgoing + row * t;
      std::fill(row_out, row_out + t, 0.0f);
      for (int64_t m = 0; m < num_kept; ++m) row_out[row_kept[m]] = grads[m];
    }
  });
  return grad_scores.to(grad_probs.scalar_type());
}

}  // namespace gptx
