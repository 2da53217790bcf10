// What no op may be handed, on any device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace gptx {

using OptionalTensor = std::optional<at::Tensor>;

inline bool is_float(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

// Of h heads and s queries of a batch of b, on one device.
inline void check_selection(const at::Tensor& like, int64_t num_queries, const OptionalTensor& slopes,
                            int64_t top_k, const OptionalTensor& row_start, double dropout_p) {
  const int64_t b = like.size(0), h = like.size(1);
  TORCH_CHECK(top_k > 0, "top_k must be at least 1, got ", top_k);
  TORCH_CHECK(dropout_p >= 0 && dropout_p < 1, "dropout_p must be in [0, 1), got ", dropout_p);
  TORCH_CHECK(!slopes || (slopes->dim() == 1 && slopes->size(0) == h &&
                          slopes->scalar_type() == at::kFloat && slopes->device() == like.device()),
              "slopes must be one float32 per head on ", like.device(), ", (", h, ",), got ",
              slopes->sizes(), " ", slopes->scalar_type(), " on ", slopes->device());
  TORCH_CHECK(!row_start || (row_start->dim() == 2 && row_start->size(0) == b &&
                             row_start->size(1) == num_queries && row_start->scalar_type() == at::kInt &&
                             row_start->device() == like.device()),
              "row_start must be (b, s) int32 on ", like.device(), ", here (", b, ", ", num_queries,
              "), got ", row_start->sizes(), " ", row_start->scalar_type(), " on ",
              row_start->device());
}

// Kept keys are int32, and a float32 counts no further than this.
inline void check_num_keys(int64_t num_keys) {
  TORCH_CHECK(num_keys <= 1 << 24, num_keys, " keys are more than ", 1 << 24);
}

// Of the rows of `like`, on its device.
inline void check_kept(const at::Tensor& kept, const at::Tensor& weights, const at::Tensor& like,
                       at::IntArrayRef rows, int64_t num_keys) {
  TORCH_CHECK(kept.device() == like.device() && weights.device() == like.device(),
              "kept and weights must be on ", like.device(), ", got ", kept.device(), " and ",
              weights.device());
  TORCH_CHECK(kept.dim() == 4 && kept.sizes() == weights.sizes() && kept.sizes().slice(0, 3) == rows &&
                  kept.size(3) <= num_keys && kept.scalar_type() == at::kInt &&
                  weights.scalar_type() == at::kFloat && kept.is_contiguous() &&
                  weights.is_contiguous(),
              "kept and weights must be what the forward pass returned");
}

inline void check_topk_softmax(const at::Tensor& scores, const OptionalTensor& slopes, int64_t top_k,
                               const OptionalTensor& row_start, double dropout_p) {
  TORCH_CHECK(scores.dim() == 4, "scores must be (b, h, s, t), got ", scores.sizes());
  TORCH_CHECK(is_float(scores), "scores must be float32, bfloat16 or float16, got ",
              scores.scalar_type());
  TORCH_CHECK(scores.size(2) <= scores.size(3), "there are ", scores.size(2), " queries for ",
              scores.size(3), " keys; the queries are the last of the keys' positions");
  check_num_keys(scores.size(3));
  check_selection(scores, scores.size(2), slopes, top_k, row_start, dropout_p);
}

inline void check_topk_softmax_backward(const at::Tensor& grad_probs, const at::Tensor& kept,
                                        const at::Tensor& weights) {
  TORCH_CHECK(grad_probs.dim() == 4 && is_float(grad_probs),
              "grad_probs must be (b, h, s, t) float32, bfloat16 or float16, got ",
              grad_probs.sizes(), " ", grad_probs.scalar_type());
  check_kept(kept, weights, grad_probs, grad_probs.sizes().slice(0, 3), grad_probs.size(3));
}

inline void check_topk_select(const at::Tensor& scores, const OptionalTensor& slopes, int64_t top_k,
                              const OptionalTensor& row_start) {
  check_topk_softmax(scores, slopes, top_k, row_start, 0.0);
  TORCH_CHECK(scores.is_contiguous(), "scores must be contiguous");
}

inline void check_values(const at::Tensor& v, const at::Tensor& kept, const at::Tensor& weights) {
  TORCH_CHECK(v.dim() == 4 && is_float(v) && kept.dim() == 4 && v.size(0) == kept.size(0) &&
                  v.size(1) == kept.size(1) && kept.size(2) <= v.size(2),
              "v must be (b, h, t, d) float32, bfloat16 or float16 for the rows of kept, got ", v.sizes(),
              " ", v.scalar_type());
  check_kept(kept, weights, v, kept.sizes().slice(0, 3), v.size(2));
}

inline void check_grad_out(const at::Tensor& grad_out, const at::Tensor& v, const at::Tensor& kept) {
  TORCH_CHECK(grad_out.dim() == 4 && grad_out.sizes().slice(0, 3) == kept.sizes().slice(0, 3) &&
                  grad_out.size(3) == v.size(3) && grad_out.scalar_type() == v.scalar_type() &&
                  grad_out.device() == v.device(),
              "grad_out must be what sum_of_kept returned, got ", grad_out.sizes(), " ",
              grad_out.scalar_type());
}

inline void check_add_kept(const at::Tensor& pairs, const at::Tensor& kept, const at::Tensor& grads,
                           const OptionalTensor& row_start) {
  TORCH_CHECK(pairs.dim() == 4 && pairs.scalar_type() == at::kFloat && pairs.is_contiguous(),
              "pairs must be contiguous (b, h, s, t) float32, got ", pairs.sizes(), " ",
              pairs.scalar_type());
  TORCH_CHECK(pairs.size(2) <= pairs.size(3), "pairs must have a key for every query, got ",
              pairs.sizes());
  check_kept(kept, grads, pairs, pairs.sizes().slice(0, 3), pairs.size(3));
  check_selection(pairs, pairs.size(2), {}, 1, row_start, 0.0);
}

}  // namespace gptx
