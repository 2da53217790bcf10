#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

#include "heads.h"
#include "simd/dispatch.h"
#include "topk_attention.h"

namespace gptx {

std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& prev, const at::Tensor& carry, const Selection& selection,
    bool skip) {
  const int64_t b = q.size(0), h = q.size(1), s = q.size(2), d = q.size(3), t = k.size(2);
  const int64_t width = std::min(selection.top_k, t);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(selection.variant);

  const auto floats = q.options().dtype(at::kFloat);
  // Heads side by side, as the projection behind the attention reads them.
  const at::Tensor out = at::empty({b, s, h, d}, floats).transpose(1, 2);
  const at::Tensor kept = at::empty({b, h, s, width}, q.options().dtype(at::kInt));
  const at::Tensor weights = at::empty({b, h, s, width}, floats);
  const Heads queries(q), keys(k), values(v), outs(out);
  const at::Tensor dense_prev = prev ? prev->contiguous() : at::Tensor();
  const float* prev_data = prev ? dense_prev.data_ptr<float>() : nullptr;
  float* carry_data = carry.defined() ? carry.data_ptr<float>() : nullptr;
  const bool in_place = carry_data && carry_data == prev_data;
  int32_t* kept_data = kept.data_ptr<int32_t>();
  float* weights_data = weights.data_ptr<float>();
  const RowStarts starts(selection.row_start, t);
  const Dropout dropout(selection.dropout_p, selection.seed);
  const std::vector<float> slope = selection.slope_of_heads(h);
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  const int64_t num_blocks = (s + kBlock - 1) / kBlock;

  at::parallel_for(0, b * h * num_blocks, 1, [&](int64_t begin, int64_t end) {
    Panels panels(t, d);
    ChoiceScratch scratch(width);
    std::vector<float> used(width);
    int64_t packed = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / num_blocks, first = interleave(task % num_blocks, num_blocks) * kBlock;
      if (head != packed) {
        rows.pack(keys.head(head), keys.stride(), t, d, panels);
        packed = head;
      }
      const int64_t num_rows = std::min(kBlock, s - first), position = t - s + first;
      const int32_t* start = starts.batch(head / h);
      const int64_t row = head * s + first;
      const Queries block{queries.head(head) + first * queries.stride(),
                          queries.stride(),
                          num_rows,
                          position,
                          start ? start + first : nullptr,
                          d,
                          scale,
                          slope[head % h],
                          width,
                          prev_data ? prev_data + row * t : nullptr,
                          carry_data ? carry_data + row * t : nullptr,
                          skip && !prev_data && !carry_data && slope[head % h] >= 0};
      rows.choose(block, panels, t, width, scratch, kept_data + row * width, weights_data + row * width);
      for (int64_t i = 0; i < num_rows; ++i) {
        const int32_t* row_kept = kept_data + (row + i) * width;
        const int64_t num_kept = num_used(row_kept, width);
        dropout.apply(head / h, head % h, position + i, row_kept, weights_data + (row + i) * width,
                      num_kept, used.data());
        rows.weighted_sum(values.head(head), values.stride(), row_kept, used.data(), num_kept, d,
                          outs.head(head) + (first + i) * outs.stride());
        if (carry_data && !in_place) {
          float* row_carry = carry_data + (row + i) * t;
          std::fill(row_carry, row_carry + (start ? start[first + i] : 0), 0.0f);
          std::fill(row_carry + position + i + 1, row_carry + t, 0.0f);
        }
      }
    }
  });
  return {out.to(v.scalar_type()), kept, weights};
}

}  // namespace gptx
