// GELU and its derivative, for any vector type V; part of row_kernels-inl.h.
//
// gelu(x) = x * P(x), where P is the normal distribution function. Source: Hendrycks and Gimpel 2016,
// arXiv:1606.08415.

namespace gptx {
namespace {

template <class V>
struct Normal {
  V size;     // |x|, at most 14, beyond which P(-|x|) is 0
  V above;    // P(-|x|)
  V density;  // P'(x)
};

template <class V>
inline Normal<V> normal(V x) {
  const V opposite = larger(V::fill(-14), mul(larger(mul(x, V::fill(-1)), x), V::fill(-1)));
  const V size = mul(opposite, V::fill(-1));
  const V bell = exp_of(mul(mul(opposite, V::fill(0.5f)), size));
  // P(-x) / exp(-x^2 / 2) for x >= 0 is a smooth function of 1 / (1 + 0.26 x): its polynomial of
  // degree 9, fitted for the least largest relative error, which is 6e-9.
  const V t = divide(V::fill(1), fma(size, V::fill(0.26f), V::fill(1)));
  V ratio = V::fill(0.0339128263f);
  for (const float coefficient :
       {-0.170443535f, 0.290797979f, -0.200554088f, 0.199892491f, 0.0313354619f,
        0.109434485f, 0.101726256f, 0.103905201f, -7.08780635e-06f})
    ratio = fma(ratio, t, V::fill(coefficient));
  return {size, mul(bell, ratio), mul(bell, V::fill(0.39894228f))};
}

template <class V>
inline V gelu_of(V x, const Normal<V>& at) {
  // Positive x lose a share, and of negative x that share is left.
  return fma(mul(at.size, V::fill(-1)), at.above, larger(V::fill(0), x));
}

template <class V>
void add_gelu(float* row, const float* bias, int64_t n, float* out) {
  for (int64_t c = 0; c < n; c += V::W) {
    const int64_t left = std::min<int64_t>(n - c, V::W);
    V x = V::load_part(row + c, left, 0);
    if (bias) {
      x = add(x, V::load_part(bias + c, left, 0));
      x.store_part(row + c, left);
    }
    gelu_of(x, normal(x)).store_part(out + c, left);
  }
}

template <class V>
void gelu_gradient(const float* row, const float* grad, int64_t n, float* out) {
  for (int64_t c = 0; c < n; c += V::W) {
    const int64_t left = std::min<int64_t>(n - c, V::W);
    const V x = V::load_part(row + c, left, 0);
    const Normal<V> at = normal(x);
    // P(x) is as far above 1/2 as P(-|x|) is below it where x > 0.
    const V from_half = add(V::fill(0.5f), mul(at.above, V::fill(-1)));
    const V below = add(V::fill(0.5f), with_sign_of(from_half, x));
    const V slope = fma(x, at.density, below);
    mul(V::load_part(grad + c, left, 0), slope).store_part(out + c, left);
  }
}

}  // namespace
}  // namespace gptx
