// The bodies of RowKernels for any vector type V. A variant's source file includes this after it has
// set the compiler's target and defined V; nothing here may be shared between those files, or the
// linker could give the scalar variant a function full of AVX-512.
//
// V offers: W lanes; kRows queries by kColumns vectors of keys, whose sums fit into the registers; fill,
// load, load_part (n < W lanes, the others as given), store, store_part; add, mul; fma(a, b, c) =
// a * b + c; divide; larger(a, b), which is b where either is NaN; with_sign_of(a, b), a >= 0;
// power_of_two of whole numbers from -127, for which it is 0, to 127; sum; positions (0, 1, 2, ...);
// not_at_most and unordered, which give one bit per lane; and Eight, a descending list of keys, whose
// insert returns the one that it drops.

#include "exp-inl.h"  // first: the others use it

#include "select_keys-inl.h"
#include "gelu-inl.h"
#include "products-inl.h"

#include "weight_gradient-inl.h"  // after products_body.h, which it uses

#include "linear_product-inl.h"  // after both

namespace gptx {
namespace {

template <class V>
void weighted_sum(const float* rows, int64_t stride, const int32_t* kept, const float* weights,
                  int64_t num_kept, int64_t d, float* out) {
  int64_t c = 0;
  for (; c + 2 * V::W <= d; c += 2 * V::W) {
    V low = V::fill(0), high = V::fill(0);
    for (int64_t m = 0; m < num_kept; ++m) {
      const float* row = rows + kept[m] * stride + c;
      const V weight = V::fill(weights[m]);
      low = fma(weight, V::load(row), low);
      high = fma(weight, V::load(row + V::W), high);
    }
    low.store(out + c);
    high.store(out + c + V::W);
  }
  for (; c < d; c += V::W) {
    const int64_t left = std::min<int64_t>(d - c, V::W);
    V total = V::fill(0);
    for (int64_t m = 0; m < num_kept; ++m) {
      const V row = V::load_part(rows + kept[m] * stride + c, left, 0);
      total = fma(V::fill(weights[m]), row, total);
    }
    total.store_part(out + c, left);
  }
}

template <class V>
void dot_products(const float* rows, int64_t stride, const int32_t* kept, const float* x,
                  int64_t num_kept, int64_t d, float* out) {
  for (int64_t m = 0; m < num_kept; ++m) {
    const float* row = rows + kept[m] * stride;
    V total = V::fill(0);
    int64_t c = 0;
    for (; c + V::W <= d; c += V::W) total = fma(V::load(x + c), V::load(row + c), total);
    if (c < d) total = fma(V::load_part(x + c, d - c, 0), V::load_part(row + c, d - c, 0), total);
    out[m] = sum(total);
  }
}

template <class V>
void add_multiples(float* rows, int64_t stride, const int32_t* kept, const float* weights,
                   const float* x, int64_t num_kept, int64_t d) {
  for (int64_t m = 0; m < num_kept; ++m) {
    float* row = rows + kept[m] * stride;
    const V weight = V::fill(weights[m]);
    int64_t c = 0;
    for (; c + V::W <= d; c += V::W)
      fma(weight, V::load(x + c), V::load(row + c)).store(row + c);
    if (c < d) {
      const V old = V::load_part(row + c, d - c, 0);
      fma(weight, V::load_part(x + c, d - c, 0), old).store_part(row + c, d - c);
    }
  }
}

template <class V>
constexpr RowKernels kernels_of() {
  return {pack<V>,          choose<V>,    weighted_sum<V>, dot_products<V>,
          add_multiples<V>, copy_rows<V>, add_products<V>, add_weight_gradient<V>,
          pack_weight<V>,   multiply_rows<V>, softmax<V>, add_gelu<V>, gelu_gradient<V>,
          2 * V::W};
}

}  // namespace
}  // namespace gptx
