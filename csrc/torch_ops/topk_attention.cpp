// Top-k attention, as Python sees it.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../cpu/simd/dispatch.h"
#include "../cpu/topk_attention.h"
#include "checks.h"

namespace gptx {
namespace {

using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

void check_qkv(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
              "q, k and v must be (b, h, s, d), (b, h, t, d) and (b, h, t, d), got ", q.sizes(), ", ",
              k.sizes(), " and ", v.sizes());
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(1) == k.size(1) &&
                  q.size(3) == k.size(3),
              "q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(),
              " must agree in batch, heads and width, and k and v in length too");
  TORCH_CHECK(q.size(2) <= k.size(2), "there are ", q.size(2), " queries for ", k.size(2),
              " keys; the queries are the last of the keys' positions");
  TORCH_CHECK(q.size(3) > 0, "the heads have a width of 0");
  TORCH_CHECK(is_float(q) && q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
              "q, k and v must all be float32, bfloat16 or float16, got ", q.scalar_type(), ", ",
              k.scalar_type(), " and ", v.scalar_type());
  check_num_keys(k.size(2));
}

void check_pairs(const OptionalTensor& pairs, const char* name, const at::Tensor& q,
                 const at::Tensor& k) {
  if (!pairs) return;
  const std::vector<int64_t> expected{q.size(0), q.size(1), q.size(2), k.size(2)};
  TORCH_CHECK(pairs->sizes() == at::IntArrayRef(expected) && pairs->scalar_type() == at::kFloat, name,
              " must be (b, h, s, t) float32, here ", at::IntArrayRef(expected), ", got ",
              pairs->sizes(), " ", pairs->scalar_type());
}

void check_gradient(const at::Tensor& grad_out, const OptionalTensor& grad_scores, const at::Tensor& q,
                    const at::Tensor& k, const at::Tensor& v, const at::Tensor& kept,
                    const at::Tensor& weights, const OptionalTensor& row_start, double dropout_p) {
  check_qkv(q, k, v);
  check_selection(q, q.size(2), {}, 1, row_start, dropout_p);
  check_pairs(grad_scores, "grad_scores", q, k);
  TORCH_CHECK(grad_out.sizes() == q.sizes(), "grad_out must be ", q.sizes(), ", got ",
              grad_out.sizes());
  check_kept(kept, weights, q, q.sizes().slice(0, 3), k.size(2));
}

FourTensors forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const OptionalTensor& prev_scores, const OptionalTensor& slopes, int64_t top_k,
                    const OptionalTensor& row_start, double dropout_p, int64_t seed,
                    bool return_scores, c10::string_view variant, bool skip) {
  check_qkv(q, k, v);
  check_selection(q, q.size(2), slopes, top_k, row_start, dropout_p);
  check_pairs(prev_scores, "prev_scores", q, k);
  const auto floats = q.options().dtype(at::kFloat);
  const at::Tensor scores =
      return_scores ? at::empty({q.size(0), q.size(1), q.size(2), k.size(2)}, floats) : at::Tensor();
  auto [out, kept, weights] = topk_attention(
      q, k, v, prev_scores, scores, {slopes, top_k, row_start, dropout_p, seed, std::string(variant)},
      skip);
  return {out, return_scores ? scores : at::empty({0}, floats), kept, weights};
}

ThreeTensors forward_in_place(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              at::Tensor carry, const OptionalTensor& slopes, int64_t top_k,
                              const OptionalTensor& row_start, double dropout_p, int64_t seed,
                              c10::string_view variant) {
  check_qkv(q, k, v);
  check_selection(q, q.size(2), slopes, top_k, row_start, dropout_p);
  check_pairs(carry, "carry", q, k);
  TORCH_CHECK(carry.is_contiguous(), "a carry that is written to must be contiguous");
  return topk_attention(q, k, v, carry, carry,
                        {slopes, top_k, row_start, dropout_p, seed, std::string(variant)}, false);
}

FourTensors backward(const at::Tensor& grad_out, const OptionalTensor& grad_scores,
                     const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& kept, const at::Tensor& weights,
                     const OptionalTensor& row_start, double dropout_p, int64_t seed,
                     bool needs_grad_prev, c10::string_view variant) {
  check_gradient(grad_out, grad_scores, q, k, v, kept, weights, row_start, dropout_p);
  const auto floats = q.options().dtype(at::kFloat);
  const at::Tensor grad_prev =
      needs_grad_prev ? at::empty({q.size(0), q.size(1), q.size(2), k.size(2)}, floats) : at::Tensor();
  auto [grad_q, grad_k, grad_v] =
      topk_attention_backward(grad_out, grad_scores, q, k, v, kept, weights, grad_prev,
                              {{}, 1, row_start, dropout_p, seed, std::string(variant)});
  return {grad_q, grad_k, grad_v, needs_grad_prev ? grad_prev : at::empty({0}, floats)};
}

ThreeTensors backward_in_place(const at::Tensor& grad_out, at::Tensor grad_carry, const at::Tensor& q,
                               const at::Tensor& k, const at::Tensor& v, const at::Tensor& kept,
                               const at::Tensor& weights, const OptionalTensor& row_start,
                               double dropout_p, int64_t seed, c10::string_view variant) {
  check_gradient(grad_out, grad_carry, q, k, v, kept, weights, row_start, dropout_p);
  TORCH_CHECK(grad_carry.is_contiguous(), "a gradient that is written to must be contiguous");
  return topk_attention_backward(grad_out, grad_carry, q, k, v, kept, weights, grad_carry,
                                 {{}, 1, row_start, dropout_p, seed, std::string(variant)});
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def(
      "topk_attention(Tensor q, Tensor k, Tensor v, Tensor? prev_scores, Tensor? slopes, int top_k, "
      "Tensor? row_start, float dropout_p, int seed, bool return_scores, str variant='best', bool "
      "skip=True) -> (Tensor out, Tensor scores, Tensor kept, Tensor weights)");
  library.def(
      "topk_attention_(Tensor q, Tensor k, Tensor v, Tensor(a!) carry, Tensor? slopes, int top_k, "
      "Tensor? row_start, float dropout_p, int seed, str variant='best') -> (Tensor out, Tensor kept, "
      "Tensor weights)");
  library.def(
      "topk_attention_backward(Tensor grad_out, Tensor? grad_scores, Tensor q, Tensor k, Tensor v, "
      "Tensor kept, Tensor weights, Tensor? row_start, float dropout_p, int seed, bool "
      "needs_grad_prev, str variant='best') -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor "
      "grad_prev)");
  library.def(
      "topk_attention_backward_(Tensor grad_out, Tensor(a!) grad_carry, Tensor q, Tensor k, Tensor v, "
      "Tensor kept, Tensor weights, Tensor? row_start, float dropout_p, int seed, str variant='best') "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  library.def("cpu_variants() -> str[]", &gptx::row_variants);
  library.def("cpu_capability() -> str", [] { return gptx::cpu_capability(); });
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("topk_attention", &gptx::forward);
  library.impl("topk_attention_", &gptx::forward_in_place);
  library.impl("topk_attention_backward", &gptx::backward);
  library.impl("topk_attention_backward_", &gptx::backward_in_place);
}
