// The bodies of RowKernels for any vector type V. A variant's source file includes this after it has
// set the compiler's target and defined V; nothing here may be shared between those files, or the
// linker could give the scalar variant a function full of AVX-512.
//
// V is a vector of float32 numbers:
//
//   struct V {
//     static constexpr int W;                 // lanes
//     static constexpr int kRows, kColumns;   // queries and vectors of keys in one tile of products:
//                                             // the sums of a tile fit into the registers
//     static V fill(float x);                 // x in every lane
//     static V positions();                   // 0, 1, 2, ...
//     static V load(const float* from);
//     static V load_part(const float* from, int64_t n, float rest);  // n lanes; the others hold `rest`
//     void store(float* to) const;
//     void store_part(float* to, int64_t n) const;                   // the first n lanes
//     struct Eight;                           // eight keys in descending order, with load and store;
//   };                                        // insert(key) drops the smallest of nine and returns it
//
//   V add(V a, V b), mul(V a, V b), divide(V a, V b);
//   V fma(V a, V b, V c);                     // a * b + c
//   V larger(V a, V b);                       // b where either is NaN
//   V with_sign_of(V a, V b);                 // a with the sign of b; a >= 0
//   V power_of_two(V n);                      // 2^n for whole n from -126 to 127; 0 for -127
//   float sum(V a);                           // over the lanes
//   uint32_t not_at_most(V a, V b);           // one bit per lane: !(a <= b)
//   uint32_t unordered(V a);                  // one bit per lane: NaN

#include "exp-inl.h"  // first: the others use it

#include "select_keys-inl.h"
#include "gelu-inl.h"
#include "products-inl.h"

#include "weight_gradient-inl.h"  // after products-inl.h, which it uses

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
