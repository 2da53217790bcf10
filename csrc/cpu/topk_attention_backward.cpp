#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "heads.h"
#include "simd/dispatch.h"
#include "topk_attention.h"

namespace gptx {
namespace {

// Gradients of one block of scores: small enough for a core's second-level cache, with room to spare.
constexpr int64_t kBlockFloats = 128 * 1024;

// Rows of a gradient that are computed together: whole groups of every variant's kRows.
constexpr int64_t kGroup = 42;

int64_t rows_per_block(int64_t num_rows, int64_t num_keys) {
  return std::min(num_rows, std::clamp<int64_t>(kBlockFloats / num_keys, 16, 256));
}

// Copies the gradient of one query's scores, unless it is there already. Masked scores are constants.
void copy_seen(const float* from, int64_t first, int64_t stop, int64_t t, float* to) {
  first = std::min(first, stop);
  std::fill(to, to + first, 0.0f);
  if (to != from) std::memcpy(to + first, from + first, (stop - first) * sizeof(float));
  std::fill(to + stop, to + t, 0.0f);
}

}  // namespace

// One thread owns a head: every sum has one order, whatever the number of threads.
std::tuple<at::Tensor, at::Tensor, at::Tensor> topk_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_scores, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& kept, const at::Tensor& weights,
    const at::Tensor& grad_prev, const Selection& selection) {
  const int64_t b = q.size(0), h = q.size(1), s = q.size(2), d = q.size(3), t = k.size(2);
  const int64_t width = kept.size(3);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const RowKernels& rows = row_kernels(selection.variant);

  const auto floats = q.options().dtype(at::kFloat);
  const bool dense = grad_scores.has_value();
  // Heads side by side, as a projection wants them.
  const at::Tensor grad_q = at::zeros({b, s, h, d}, floats).transpose(1, 2);
  const at::Tensor grad_k = at::empty({b, t, h, d}, floats).transpose(1, 2);
  const at::Tensor grad_v = at::empty({b, t, h, d}, floats).transpose(1, 2);
  const Heads grad_outs(grad_out), queries(q), keys(k), values(v);
  const Heads grad_qs(grad_q), grad_ks(grad_k), grad_vs(grad_v);
  const at::Tensor incoming = dense ? grad_scores->contiguous() : at::Tensor();
  const float* incoming_data = dense ? incoming.data_ptr<float>() : nullptr;
  float* prev_data = grad_prev.defined() ? grad_prev.data_ptr<float>() : nullptr;
  const bool in_place = dense && prev_data == incoming_data;
  const int32_t* kept_data = kept.data_ptr<int32_t>();
  const float* weights_data = weights.data_ptr<float>();
  const RowStarts starts(selection.row_start, t);
  const Dropout dropout(selection.dropout_p, selection.seed);
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  const int64_t block = s ? rows_per_block(s, t) : 1;

  at::parallel_for(0, b * h, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView no_gradients_here;
    std::vector<float> grad_z(width), scaled(width), used(width);
    std::vector<float> own(dense && !prev_data ? block * t : 0);
    std::vector<float> head_q(s * d), head_k(t * d), head_v(t * d), sums_k(t * d), sums_v(t * d);
    for (int64_t head = begin; head < end; ++head) {
      // Side by side: rows of a tensor in which heads alternate compete for a few sets of the cache.
      rows.copy_rows(queries.head(head), queries.stride(), s, d, head_q.data(), d);
      rows.copy_rows(keys.head(head), keys.stride(), t, d, head_k.data(), d);
      rows.copy_rows(values.head(head), values.stride(), t, d, head_v.data(), d);
      std::fill(sums_k.begin(), sums_k.end(), 0.0f);
      std::fill(sums_v.begin(), sums_v.end(), 0.0f);
      const int32_t* start = starts.batch(head / h);
      for (int64_t first = 0; first < s; first += block) {
        const int64_t num_rows = std::min(block, s - first), offset = (head * s + first) * t;
        // Keys before the first query's own.
        const int64_t before = t - s + first;
        float* pairs = prev_data ? prev_data + offset : own.data();
        for (int64_t i = 0; i < num_rows; ++i) {
          const int64_t query = first + i, row = head * s + query, position = t - s + query;
          const int32_t* row_kept = kept_data + row * width;
          const float* row_weights = weights_data + row * width;
          const float* row_grad = grad_outs.head(head) + query * grad_outs.stride();
          const int64_t num_kept = num_used(row_kept, width);
          // The products below read memory that has left the cache. A copy fetches it by itself.
          for (int64_t j = 0; in_place && j <= position; j += 16) __builtin_prefetch(pairs + i * t + j, 1);

          rows.dot_products(head_v.data(), d, row_kept, row_grad, num_kept, d,
                            grad_z.data());
          dropout.apply(head / h, head % h, position, row_kept, grad_z.data(), num_kept, grad_z.data());
          softmax_gradient(row_weights, num_kept, grad_z.data());
          dropout.apply(head / h, head % h, position, row_kept, row_weights, num_kept, used.data());
          rows.add_multiples(sums_v.data(), d, row_kept, used.data(), row_grad, num_kept, d);
          if (dense) {
            copy_seen(incoming_data + offset + i * t, start ? start[query] : 0, position + 1, t,
                      pairs + i * t);
          } else if (prev_data) {
            std::fill(pairs + i * t, pairs + (i + 1) * t, 0.0f);
          }
          if (dense || prev_data)
            for (int64_t m = 0; m < num_kept; ++m) pairs[i * t + row_kept[m]] += grad_z[m];
          if (!dense) {
            for (int64_t m = 0; m < num_kept; ++m) scaled[m] = scale * grad_z[m];
            rows.weighted_sum(head_k.data(), d, row_kept, scaled.data(), num_kept, d,
                              grad_qs.head(head) + query * grad_qs.stride());
            rows.add_multiples(sums_k.data(), d, row_kept, scaled.data(), head_q.data() + query * d,
                               num_kept, d);
          }
        }
        // Takes a few queries at a time, with all keys that the last of them sees. Then takes a few
        // keys at a time, with all queries that see the first of them.
        for (int64_t i = 0; dense && i < num_rows; i += kGroup) {
          const int64_t count = std::min(kGroup, num_rows - i);
          rows.add_products(pairs + i * t, t, 1, count, head_k.data(), d,
                            before + i + count, d, scale,
                            grad_qs.head(head) + (first + i) * grad_qs.stride(), grad_qs.stride());
        }
        for (int64_t j = 0; dense && j < before + num_rows; j += kGroup) {
          const int64_t count = std::min(kGroup, before + num_rows - j), i = std::max<int64_t>(j - before, 0);
          rows.add_products(pairs + i * t + j, 1, t, count,
                            head_q.data() + (first + i) * d, d,
                            num_rows - i, d, scale, sums_k.data() + j * d, d);
        }
      }
      rows.copy_rows(sums_k.data(), d, t, d, grad_ks.head(head), grad_ks.stride());
      rows.copy_rows(sums_v.data(), d, t, d, grad_vs.head(head), grad_vs.stride());
    }
  });
  return {grad_q.to(q.scalar_type()), grad_k.to(k.scalar_type()), grad_v.to(v.scalar_type())};
}

}  // namespace gptx
