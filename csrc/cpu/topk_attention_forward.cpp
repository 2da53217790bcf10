#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "heads.h"
#include "rows.h"
#include "topk_attention.h"

namespace gptx {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> topk_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& slopes, int64_t top_k,
    const std::optional<at::Tensor>& prev_scores, bool return_scores, const std::string& variant) {
  const int64_t b = q.size(0), h = q.size(1), s = q.size(2), d = q.size(3), t = k.size(2);
  const int64_t width = std::min(top_k, t);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(variant);

  const auto floats = q.options().dtype(at::kFloat);
  // Heads side by side, as the projection behind the attention reads them.
  const at::Tensor out = at::empty({b, s, h, d}, floats).transpose(1, 2);
  const at::Tensor scores = at::empty(return_scores ? at::IntArrayRef{b, h, s, t} : at::IntArrayRef{0},
                                      floats);
  const at::Tensor kept = at::zeros({b, h, s, width}, q.options().dtype(at::kInt));
  const at::Tensor weights = at::zeros({b, h, s, width}, floats);
  const Heads queries(q), keys(k), values(v), outs(out);
  const at::Tensor prev = prev_scores ? prev_scores->contiguous() : at::Tensor();
  const float* prev_data = prev_scores ? prev.data_ptr<float>() : nullptr;
  float* scores_data = return_scores ? scores.data_ptr<float>() : nullptr;
  int32_t* kept_data = kept.data_ptr<int32_t>();
  float* weights_data = weights.data_ptr<float>();
  std::vector<float> slope_of(h, 0.0f);
  if (slopes) {
    const at::Tensor dense = slopes->contiguous();
    std::copy_n(dense.data_ptr<float>(), h, slope_of.begin());
  }
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  const int64_t block = s ? rows_per_block(s, t) : 1, num_blocks = (s + block - 1) / block;

  at::parallel_for(0, b * h * num_blocks, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView no_gradients_here;
    RowScratch scratch(t);
    std::vector<float> own(return_scores ? 0 : block * t);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / num_blocks, first = task % num_blocks * block;
      const int64_t num_rows = std::min(block, s - first);
      // The next layer wants every score, this one only those up to the diagonal.
      const int64_t num_columns = return_scores ? t : t - s + first + num_rows;
      const int64_t offset = (head * s + first) * t, stride = return_scores ? t : num_columns;
      float* block_scores = return_scores ? scores_data + offset : own.data();
      if (prev_data)
        for (int64_t i = 0; i < num_rows; ++i)
          std::memcpy(block_scores + i * stride, prev_data + offset + i * t,
                      num_columns * sizeof(float));
      multiply(matrix(block_scores, num_rows, num_columns, stride),
               matrix(queries.head(head) + first * queries.stride(), num_rows, d, queries.stride()),
               matrix(keys.head(head), num_columns, d, keys.stride()).t(), prev_data ? 1 : 0, scale);
      for (int64_t i = 0; i < num_rows; ++i) {
        const int64_t row = head * s + first + i, count = t - s + first + i + 1;
        int32_t* row_kept = kept_data + row * width;
        float* row_weights = weights_data + row * width;
        rows.choose(block_scores + i * stride, count, slope_of[head % h], width, scratch, row_kept,
                    row_weights);
        rows.weighted_sum(values.head(head), values.stride(), row_kept, row_weights,
                          std::min(width, count), d,
                          outs.head(head) + (first + i) * outs.stride());
      }
    }
  });
  return {out.to(v.scalar_type()), scores, kept, weights};
}

}  // namespace gptx
