// The softmax of long rows, for any vector type V; part of rows_body.h.

namespace gptx {
namespace {

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

template <class V>
ExpSum sum_of_exp(const float* row, int64_t n) {
  constexpr float kLowest = -__builtin_inff();
  V first = V::fill(kLowest), second = first;
  int64_t c = 0;
  for (; c + 2 * V::W <= n; c += 2 * V::W) {
    first = larger(V::load(row + c), first);
    second = larger(V::load(row + c + V::W), second);
  }
  for (; c < n; c += V::W)
    first = larger(V::load_part(row + c, std::min<int64_t>(n - c, V::W), kLowest), first);
  float lanes[V::W], largest = kLowest;
  larger(first, second).store(lanes);
  for (const float lane : lanes) largest = std::max(largest, lane);

  const V minus = V::fill(-largest);
  V total = V::fill(0), other = total;
  for (c = 0; c + 2 * V::W <= n; c += 2 * V::W) {
    total = add(total, exp_of(add(V::load(row + c), minus)));
    other = add(other, exp_of(add(V::load(row + c + V::W), minus)));
  }
  for (; c < n; c += V::W) {
    const V left = V::load_part(row + c, std::min<int64_t>(n - c, V::W), kLowest);
    total = add(total, exp_of(add(left, minus)));
  }
  return {largest, sum(add(total, other))};
}

template <class V>
void scaled_exp(float* row, int64_t n, float largest, float scale) {
  const V minus = V::fill(-largest), factor = V::fill(scale);
  int64_t c = 0;
  for (; c + V::W <= n; c += V::W)
    mul(factor, exp_of(add(V::load(row + c), minus))).store(row + c);
  if (c < n) {
    const V left = V::load_part(row + c, n - c, largest);
    mul(factor, exp_of(add(left, minus))).store_part(row + c, n - c);
  }
}

}  // namespace
}  // namespace gptx
