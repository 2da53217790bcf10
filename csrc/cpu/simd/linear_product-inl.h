// A product with a weight matrix, for any vector type V; part of row_kernels-inl.h.

namespace gptx {
namespace {

// The outputs of a weight matrix in panels, each two vectors of outputs wide and filled up with zeros.
template <class V>
void pack_weight(const LinearProduct& sought, int64_t panel, float* packed) {
  constexpr int64_t kWidth = 2 * V::W;
  const int64_t first = panel * kWidth, count = std::min(sought.num_outputs - first, kWidth);
  const int64_t m = sought.num_inputs;
  float* to = packed + first * m;
  if (sought.output_step == 1) {
    pack_columns<V>(sought.weight + first, sought.input_step, m, count, to);
    return;
  }
  for (int64_t n = 0; n < kWidth; ++n) {
    const float* from = sought.weight + (first + n) * sought.output_step;
    for (int64_t c = 0; c < m; ++c) to[c * kWidth + n] = n < count ? from[c] : 0;
  }
}

template <class V>
void multiply_rows(const LinearProduct& sought, const float* packed, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = 2 * V::W;
  const int64_t f = sought.num_outputs, m = sought.num_inputs;
  for (int64_t row = begin; row < end; ++row) {
    float* out = sought.out + row * f;
    if (sought.bias)
      std::memcpy(out, sought.bias, f * sizeof(float));
    else
      std::memset(out, 0, f * sizeof(float));
  }
  for (int64_t n = 0; n < m; n += LinearProduct::kTerms) {
    const int64_t num_terms = std::min(m - n, LinearProduct::kTerms);
    for (int64_t at = 0; at < f; at += kWidth)
      add_columns<V, true>(sought.x + begin * sought.x_stride + n, sought.x_stride, 1, end - begin,
                           packed + at * m + n * kWidth, kWidth, num_terms, std::min(f - at, kWidth), 1,
                           sought.out + begin * f + at, f);
  }
}

}  // namespace
}  // namespace gptx
