// The bodies of RowKernels for any vector type V. A variant's source file includes this after it has
// set the compiler's target and defined V; nothing here may be shared between those files, or the
// linker could give the scalar variant a function full of AVX-512.
//
// V offers: W lanes; fill, load, load_part (n < W lanes, the others as given), store, store_part;
// add, mul, max; fma(a, b, c) = a * b + c; sum; positions (0, 1, 2, ...); at_least and unordered,
// which give one bit per lane.

namespace gptx {
namespace {

constexpr float kInfinity = __builtin_inff();

// Orders like (z, j): of equal z the larger position is larger. Adding 0 makes -0 the equal of 0.
inline uint64_t rank_key(float z, int64_t position) {
  const float positive_zero = z + 0.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &positive_zero, sizeof bits);
  bits ^= (bits >> 31) & 0x7fffffff;
  return static_cast<uint64_t>(static_cast<uint32_t>(bits) ^ 0x80000000u) << 32 |
         static_cast<uint32_t>(position);
}

template <int N>
float kth_largest(const float (&values)[N], int64_t k) {
  int32_t num_larger[N] = {};
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < N; ++i) num_larger[i] += values[j] > values[i];
  float kth = kInfinity;
  for (int i = 0; i < N; ++i)
    if (num_larger[i] < k && values[i] < kth) kth = values[i];
  return kth;
}

struct Bound {
  float value;
  bool any_nan;
};

// Write z, and return a value that at least k of them reach. The positions j with equal j mod N form
// N classes whose largest elements are N different ones: the k-th of those is such a value.
template <class V, int N>
Bound bound_kth(const float* scores, int64_t count, float slope, int64_t k, float* z) {
  constexpr int U = N / V::W;
  V best[U];
  for (V& one : best) one = V::fill(-kInfinity);
  const V slopes = V::fill(slope), step = V::fill(static_cast<float>(V::W));
  // Whole numbers, so that adding to them rounds nothing.
  V offset = add(V::positions(), V::fill(-static_cast<float>(count - 1)));
  uint32_t nan = 0;
  int64_t j = 0;
  for (; j + N <= count; j += N) {
    for (int u = 0; u < U; ++u) {
      const V value = add(V::load(scores + j + u * V::W), mul(slopes, offset));
      nan |= unordered(value);
      best[u] = max(best[u], value);
      value.store(z + j + u * V::W);
      offset = add(offset, step);
    }
  }
  for (int u = 0; j < count; ++u, j += V::W) {
    const int64_t left = count - j;
    const V score = left >= V::W ? V::load(scores + j) : V::load_part(scores + j, left, -kInfinity);
    const V value = add(score, mul(slopes, offset));
    nan |= unordered(value);
    best[u] = max(best[u], value);
    value.store(z + j);
    offset = add(offset, step);
  }
  float classes[N];
  for (int u = 0; u < U; ++u) best[u].store(classes + u * V::W);
  return {kth_largest(classes, k), nan != 0};
}

template <class V>
int64_t collect(const float* z, int64_t count, float bound, uint64_t* keys) {
  const V limit = V::fill(bound);
  int64_t found = 0;
  for (int64_t j = 0; j < count; j += V::W) {
    uint32_t bits = at_least(V::load(z + j), limit);
    for (; bits; bits &= bits - 1) {
      const int64_t position = j + __builtin_ctz(bits);
      if (position < count) keys[found++] = rank_key(z[position], position);
    }
  }
  return found;
}

inline void softmax(const float* z, const int32_t* kept, int64_t num_kept, float* weights) {
  float best = -kInfinity, sum = 0;
  for (int64_t m = 0; m < num_kept; ++m) best = std::max(best, z[kept[m]]);
  for (int64_t m = 0; m < num_kept; ++m) sum += weights[m] = std::exp(z[kept[m]] - best);
  for (int64_t m = 0; m < num_kept; ++m) weights[m] /= sum;
}

template <class V>
void choose(const float* scores, int64_t count, float slope, int64_t top_k, RowScratch& scratch,
            int32_t* kept, float* weights) {
  const int64_t num_kept = std::min(count, top_k);
  float* z = scratch.z.data();
  uint64_t* keys = scratch.keys.data();
  // Few classes are quick to rank, many give a tight bound; beyond them every key is a candidate.
  Bound bound = top_k <= 8 ? bound_kth<V, 16>(scores, count, slope, num_kept, z)
                           : bound_kth<V, 64>(scores, count, slope, std::min<int64_t>(num_kept, 64), z);
  if (num_kept > 64) bound.value = -kInfinity;
  if (bound.any_nan || num_kept == count) {
    for (int64_t m = 0; m < num_kept; ++m) kept[m] = static_cast<int32_t>(count - num_kept + m);
  } else {
    keep_largest(keys, collect<V>(z, count, bound.value, keys), num_kept);
    for (int64_t m = 0; m < num_kept; ++m) kept[m] = static_cast<int32_t>(uint32_t(keys[m]));
  }
  if (bound.any_nan) {
    std::fill(weights, weights + num_kept, __builtin_nanf(""));
  } else {
    softmax(z, kept, num_kept, weights);
  }
}

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
  return {choose<V>, weighted_sum<V>, dot_products<V>, add_multiples<V>};
}

}  // namespace
}  // namespace gptx
