// The softmax of long rows, for any vector type V; part of row_kernels-inl.h.

namespace gptx {
namespace {

constexpr float kInfinity = __builtin_inff();

// From here up exp(x) is no denormal number.
constexpr float kLeastExponent = -87;

// exp(x) of x up to 0: within two units in the last place, 0 below -87.7.
template <class V>
inline V exp_of(V x) {
  constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts, the first with so few digits that its multiples are exact.
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912;  // 1.5 * 2^23: a sum with it has no room for a fraction
  x = larger(V::fill(-88), x);
  const V n = add(fma(x, V::fill(kLog2E), V::fill(kRounder)), V::fill(-kRounder));
  const V r = fma(n, V::fill(-kLn2Low), fma(n, V::fill(-kLn2High), x));
  // Taylor's series: |r| <= ln 2 / 2, where what follows is below 1e-8.
  V sum = V::fill(1.0f / 5040);
  for (const float inverse : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = fma(sum, r, V::fill(inverse));
  return mul(sum, power_of_two(n));
}

// The largest of a row, NaN aside.
template <class V>
float largest_of(const float* row, int64_t n) {
  V first = V::fill(-kInfinity), second = first;
  int64_t c = 0;
  for (; c + 2 * V::W <= n; c += 2 * V::W) {
    first = larger(V::load(row + c), first);
    second = larger(V::load(row + c + V::W), second);
  }
  for (; c < n; c += V::W)
    first = larger(V::load_part(row + c, std::min<int64_t>(n - c, V::W), -kInfinity), first);
  float lanes[V::W], largest = -kInfinity;
  larger(first, second).store(lanes);
  for (const float lane : lanes) largest = std::max(largest, lane);
  return largest;
}

template <class V>
ExpSum softmax(float* row, int64_t n) {
  const float largest = largest_of<V>(row, n);
  const V minus = V::fill(-largest);
  V total = V::fill(0), other = total;
  int64_t c = 0;
  for (; c + 2 * V::W <= n; c += 2 * V::W) {
    const V low = exp_of(add(V::load(row + c), minus));
    const V high = exp_of(add(V::load(row + c + V::W), minus));
    low.store(row + c);
    high.store(row + c + V::W);
    total = add(total, low);
    other = add(other, high);
  }
  for (; c < n; c += V::W) {
    const int64_t left = std::min<int64_t>(n - c, V::W);
    const V part = exp_of(add(V::load_part(row + c, left, -kInfinity), minus));
    part.store_part(row + c, left);
    total = add(total, part);
  }
  const float all = sum(add(total, other));
  const V factor = V::fill(1 / all);
  for (c = 0; c < n; c += V::W) {
    const int64_t left = std::min<int64_t>(n - c, V::W);
    mul(factor, V::load_part(row + c, left, 0)).store_part(row + c, left);
  }
  return {largest, all};
}

}  // namespace
}  // namespace gptx
