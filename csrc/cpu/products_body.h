// Products of a part of a matrix with rows, for any vector type V; part of rows_body.h.

namespace gptx {
namespace {

// Two vectors of columns of up to M rows of out. `width` is of the columns, at most 2 * V::W.
template <class V, int M>
__attribute__((noinline)) void add_tile(const float* a, int64_t out_step, int64_t row_step,
                                        const float* rows, int64_t stride, int64_t num_rows,
                                        int64_t width, float scale, float* out, int64_t out_stride) {
  const int64_t low = std::min<int64_t>(width, V::W), high = width - low;
  V sums[M][2];
  for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = V::fill(0);
  for (int64_t n = 0; n < num_rows; ++n, rows += stride, a += row_step) {
    const V first = low == V::W ? V::load(rows) : V::load_part(rows, low, 0);
    const V second = high == V::W ? V::load(rows + V::W)
                     : high       ? V::load_part(rows + V::W, high, 0)
                                  : V::fill(0);
    for (int m = 0; m < M; ++m) {
      const V factor = V::fill(a[m * out_step]);
      sums[m][0] = fma(factor, first, sums[m][0]);
      sums[m][1] = fma(factor, second, sums[m][1]);
    }
  }
  const V scales = V::fill(scale);
  for (int m = 0; m < M; ++m, out += out_stride) {
    fma(scales, sums[m][0], V::load_part(out, low, 0)).store_part(out, low);
    if (high) fma(scales, sums[m][1], V::load_part(out + V::W, high, 0)).store_part(out + V::W, high);
  }
}

template <class V>
void add_products(const float* a, int64_t out_step, int64_t row_step, int64_t num_out,
                  const float* rows, int64_t stride, int64_t num_rows, int64_t d, float scale,
                  float* out, int64_t out_stride) {
  // Sums of so many terms stay accurate, and their rows in the first-level cache.
  constexpr int64_t kTerms = 128;
  for (int64_t n = 0; n < num_rows; n += kTerms) {
    const int64_t terms = std::min(kTerms, num_rows - n);
    for (int64_t c = 0; c < d; c += 2 * V::W) {
      const int64_t width = std::min<int64_t>(d - c, 2 * V::W);
      int64_t m = 0;
      const auto add_rows = [&](auto tile, int64_t count) {
        for (; m + count <= num_out; m += count)
          tile(a + m * out_step + n * row_step, out_step, row_step, rows + n * stride + c, stride,
               terms, width, scale, out + m * out_stride + c, out_stride);
      };
      add_rows(add_tile<V, V::kRows>, V::kRows);
      add_rows(add_tile<V, 2>, 2);
      add_rows(add_tile<V, 1>, 1);
    }
  }
}

}  // namespace
}  // namespace gptx
