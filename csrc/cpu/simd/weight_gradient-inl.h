// The gradient of a weight matrix, for any vector type V; part of row_kernels-inl.h.

namespace gptx {
namespace {

// Some rows and columns of x as panels, each two vectors wide, filled up with zeros.
template <class V>
void pack_columns(const float* x, int64_t stride, int64_t num_rows, int64_t num_columns, float* to) {
  for (int64_t c = 0; c < num_columns; c += 2 * V::W) {
    const int64_t low = std::min<int64_t>(num_columns - c, V::W);
    const int64_t high = std::min<int64_t>(num_columns - c - low, V::W);
    for (int64_t n = 0; n < num_rows; ++n, to += 2 * V::W) {
      const float* from = x + n * stride + c;
      V::load_part(from, low, 0).store(to);
      V::load_part(from + low, high, 0).store(to + V::W);
    }
  }
}

// sums += the sum of each of some columns of grad.
template <class V>
void add_rows(const float* grad, int64_t stride, int64_t num_rows, int64_t num_columns, float* sums) {
  // Sums of a few, which are summed in turn, round less than one long sum.
  constexpr int64_t kFew = 16;
  for (int64_t c = 0; c < num_columns; c += V::W) {
    const int64_t width = std::min<int64_t>(num_columns - c, V::W);
    V total = V::fill(0);
    for (int64_t first = 0; first < num_rows; first += kFew) {
      V part = V::fill(0);
      for (int64_t n = first; n < std::min(num_rows, first + kFew); ++n)
        part = add(part, V::load_part(grad + n * stride + c, width, 0));
      total = add(total, part);
    }
    add(V::load_part(sums + c, width, 0), total).store_part(sums + c, width);
  }
}

template <class V>
void add_weight_gradient(const WeightGradient& sought, int64_t begin, int64_t end, float* scratch) {
  constexpr int64_t kWidth = 2 * V::W;
  const int64_t f = sought.num_outputs, m = sought.num_inputs;
  for (int64_t n = 0; n < sought.num_rows; n += WeightGradient::kTerms) {
    const int64_t num_rows = std::min(sought.num_rows - n, WeightGradient::kTerms);
    const float* grad = sought.grad + n * f;
    if (sought.bias) add_rows<V>(grad + begin, f, num_rows, end - begin, sought.bias + begin);
    for (int64_t c = 0; c < m; c += WeightGradient::kInputs) {
      const int64_t width = std::min(m - c, WeightGradient::kInputs);
      pack_columns<V>(sought.x + n * m + c, m, num_rows, width, scratch);
      // A few outputs at a time, whose gradients then stay near from panel to panel.
      for (int64_t output = begin; output < end; output += WeightGradient::kOutputs) {
        const int64_t count = std::min(end - output, WeightGradient::kOutputs);
        // Side by side: rows that lie a power of two apart compete for a few sets of the cache.
        float* own = scratch + WeightGradient::kTerms * WeightGradient::kInputs;
        copy_rows<V>(grad + output, f, num_rows, count, own, count);
        for (int64_t at = 0; at < width; at += kWidth)
          add_columns<V, true>(own, 1, count, count, scratch + at * num_rows, kWidth, num_rows,
                               std::min(width - at, kWidth), 1, sought.weight + output * m + c + at, m);
      }
    }
  }
}

}  // namespace
}  // namespace gptx
