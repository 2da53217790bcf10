// Products of a part of a matrix with rows, for any vector type V; part of row_kernels-inl.h.

namespace gptx {
namespace {

template <class V>
void copy_rows(const float* from, int64_t from_stride, int64_t num_rows, int64_t d, float* to,
               int64_t to_stride) {
  for (int64_t n = 0; n < num_rows; ++n, from += from_stride, to += to_stride) {
    int64_t c = 0;
    for (; c + V::W <= d; c += V::W) V::load(from + c).store(to + c);
    if (c < d) V::load_part(from + c, d - c, 0).store_part(to + c, d - c);
  }
}

// Two vectors of columns of M rows of out, whole ones or the first `width` columns of them.
template <class V, int M, bool kWhole>
__attribute__((noinline)) void add_tile(const float* a, int64_t out_step, int64_t row_step,
                                        const float* rows, int64_t stride, int64_t num_rows,
                                        int64_t width, float scale, float* out, int64_t out_stride) {
  const int64_t low = std::min<int64_t>(width, V::W), high = width - low;
  V sums[M][2];
  for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = V::fill(0);
  for (int64_t n = 0; n < num_rows; ++n, rows += stride, a += row_step) {
    const V first = kWhole ? V::load(rows) : V::load_part(rows, low, 0);
    const V second = kWhole ? V::load(rows + V::W) : V::load_part(rows + low, high, 0);
    for (int m = 0; m < M; ++m) {
      const V factor = V::fill(a[m * out_step]);
      sums[m][0] = fma(factor, first, sums[m][0]);
      sums[m][1] = fma(factor, second, sums[m][1]);
    }
  }
  const V scales = V::fill(scale);
  for (int m = 0; m < M; ++m, out += out_stride) {
    fma(scales, sums[m][0], V::load_part(out, low, 0)).store_part(out, low);
    fma(scales, sums[m][1], V::load_part(out + low, high, 0)).store_part(out + low, high);
  }
}

template <class V, bool kWhole>
void add_columns(const float* a, int64_t out_step, int64_t row_step, int64_t num_out,
                 const float* rows, int64_t stride, int64_t num_rows, int64_t width, float scale,
                 float* out, int64_t out_stride) {
  int64_t m = 0;
  const auto add_rows = [&](auto tile, int64_t count) {
    for (; m + count <= num_out; m += count)
      tile(a + m * out_step, out_step, row_step, rows, stride, num_rows, width, scale,
           out + m * out_stride, out_stride);
  };
  add_rows(add_tile<V, V::kRows, kWhole>, V::kRows);
  add_rows(add_tile<V, 2, kWhole>, 2);
  add_rows(add_tile<V, 1, kWhole>, 1);
}

template <class V>
void add_products(const float* a, int64_t out_step, int64_t row_step, int64_t num_out,
                  const float* rows, int64_t stride, int64_t num_rows, int64_t d, float scale,
                  float* out, int64_t out_stride) {
  // Sums of so many terms stay accurate, and their rows in the first-level cache.
  constexpr int64_t kTerms = 128;
  for (int64_t n = 0; n < num_rows; n += kTerms) {
    for (int64_t c = 0; c < d; c += 2 * V::W) {
      const int64_t width = std::min<int64_t>(d - c, 2 * V::W);
      const auto add = width == 2 * V::W ? add_columns<V, true> : add_columns<V, false>;
      add(a + n * row_step, out_step, row_step, num_out, rows + n * stride + c, stride,
          std::min(kTerms, num_rows - n), width, scale, out + c, out_stride);
    }
  }
}

}  // namespace
}  // namespace gptx
