// The ops that Python sees, and what it may not hand them.
#include <torch/library.h>

#include "../cpu/rows.h"
#include "../cpu/topk_attention.h"

namespace gptx {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using FourTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

bool is_float(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

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
  // Kept keys are int32, and a float32 counts no further than this.
  TORCH_CHECK(k.size(2) <= 1 << 24, k.size(2), " keys are more than ", 1 << 24);
}

void check_pairs(const OptionalTensor& pairs, const char* name, const at::Tensor& q,
                 const at::Tensor& k) {
  if (!pairs) return;
  const std::vector<int64_t> expected{q.size(0), q.size(1), q.size(2), k.size(2)};
  TORCH_CHECK(pairs->sizes() == at::IntArrayRef(expected) && pairs->scalar_type() == at::kFloat, name,
              " must be (b, h, s, t) float32, here ", at::IntArrayRef(expected), ", got ",
              pairs->sizes(), " ", pairs->scalar_type());
}

FourTensors forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const OptionalTensor& slopes, int64_t top_k, const OptionalTensor& prev_scores,
                    bool return_scores, c10::string_view variant) {
  check_qkv(q, k, v);
  TORCH_CHECK(top_k > 0, "top_k must be at least 1, got ", top_k);
  TORCH_CHECK(!slopes || (slopes->dim() == 1 && slopes->size(0) == q.size(1) &&
                          slopes->scalar_type() == at::kFloat),
              "slopes must be one float32 per head, (", q.size(1), ",), got ",
              slopes->sizes(), " ", slopes->scalar_type());
  check_pairs(prev_scores, "prev_scores", q, k);
  return topk_attention(q, k, v, slopes, top_k, prev_scores, return_scores, std::string(variant));
}

FourTensors backward(const at::Tensor& grad_out, const OptionalTensor& grad_scores,
                     const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& kept, const at::Tensor& weights, bool needs_grad_prev,
                     c10::string_view variant) {
  check_qkv(q, k, v);
  check_pairs(grad_scores, "grad_scores", q, k);
  TORCH_CHECK(grad_out.sizes() == q.sizes(), "grad_out must be ", q.sizes(), ", got ",
              grad_out.sizes());
  TORCH_CHECK(kept.dim() == 4 && kept.sizes() == weights.sizes() &&
                  kept.sizes().slice(0, 3) == q.sizes().slice(0, 3) && kept.size(3) <= k.size(2) &&
                  kept.scalar_type() == at::kInt && weights.scalar_type() == at::kFloat &&
                  kept.is_contiguous() && weights.is_contiguous(),
              "kept and weights must be what the forward pass returned");
  return topk_attention_backward(grad_out, grad_scores, q, k, v, kept, weights, needs_grad_prev,
                                 std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY(gptx, library) {
  library.def(
      "topk_attention(Tensor q, Tensor k, Tensor v, Tensor? slopes, int top_k, Tensor? prev_scores, "
      "bool return_scores, str variant='best') -> (Tensor out, Tensor scores, Tensor kept, Tensor "
      "weights)");
  library.def(
      "topk_attention_backward(Tensor grad_out, Tensor? grad_scores, Tensor q, Tensor k, Tensor v, "
      "Tensor kept, Tensor weights, bool needs_grad_prev, str variant='best') -> (Tensor grad_q, "
      "Tensor grad_k, Tensor grad_v, Tensor grad_prev)");
  library.def("cpu_variants() -> str[]", &gptx::row_variants);
}

TORCH_LIBRARY_IMPL(gptx, CPU, library) {
  library.impl("topk_attention", &gptx::forward);
  library.impl("topk_attention_backward", &gptx::backward);
}
