// The choice of each query's best keys, for any vector type V; see row_kernels-inl.h for the rules of such
// a file.
//
// A group of queries meets the panels from the right to the left, so that under ALiBi the first keys
// it sees are its most likely ones: from then on a key enters only if it beats the worst that is
// kept, which is rare, and whole panels cannot (`reaches`).

namespace gptx {
namespace {

// Orders like (z, j): of equal z the larger position is larger. Adding 0 makes -0 the equal of 0.
inline int64_t rank_key(float z, int64_t position) {
  const float positive_zero = z + 0.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &positive_zero, sizeof bits);
  bits ^= (bits >> 31) & 0x7fffffff;
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(bits)) << 32 |
                              static_cast<uint32_t>(position));
}

inline float z_of_rank(int64_t key) {
  int32_t bits = static_cast<int32_t>(key >> 32);
  bits ^= (bits >> 31) & 0x7fffffff;
  float z;
  __builtin_memcpy(&z, &bits, sizeof z);
  return z;
}

// The best keys of one query so far. Up to a moderate number they are a sorted list, filled up with
// the least of all keys; beyond that a list that is thinned out whenever it is full.
template <class V>
struct BestKeys {
  int64_t* keys;
  int64_t top_k, capacity;
  bool sorted;
  int64_t size;  // of the list that is not sorted
  // A z that is not above it cannot enter; NaN, which lets all in, until there are enough.
  float limit;
  bool any_nan;

  BestKeys() = default;
  BestKeys(int64_t* keys, int64_t top_k, int64_t capacity)
      : keys(keys), top_k(top_k), capacity(capacity), sorted(is_sorted(top_k)), size(0),
        limit(__builtin_nanf("")), any_nan(false) {
    if (sorted) std::fill(keys, keys + capacity, INT64_MIN);
  }

  // Takes the z of some lanes of a panel.
  void enter(const float* zs, uint32_t lanes, int64_t first_key) {
    if (capacity == 8) {
      // The usual case: the list stays in registers.
      auto list = V::Eight::load(keys);
      for (; lanes; lanes &= lanes - 1) list.insert(lowest_key(zs, lanes, first_key));
      list.store(keys);
    } else if (sorted) {
      for (; lanes; lanes &= lanes - 1) {
        int64_t key = lowest_key(zs, lanes, first_key);
        for (int64_t m = 0; m < capacity; m += 8) {
          auto list = V::Eight::load(keys + m);
          key = list.insert(key);
          list.store(keys + m);
        }
      }
    } else {
      for (; lanes; lanes &= lanes - 1) {
        keys[size++] = lowest_key(zs, lanes, first_key);
        if (size == capacity) thin_out();
      }
      return;
    }
    limit = z_of_rank(keys[top_k - 1]);
  }

  static int64_t lowest_key(const float* zs, uint32_t lanes, int64_t first_key) {
    const int lane = __builtin_ctz(lanes);
    return rank_key(zs[lane], first_key + lane);
  }

  void thin_out() {
    keep_largest(keys, size, top_k);
    size = top_k;
    limit = z_of_rank(keys[top_k - 1]);
  }
};

// The bits of a panel's keys from `first` to `last`, either of which may lie outside.
inline uint32_t lanes_between(int64_t first, int64_t last) {
  const auto below = [](int64_t end) {
    return (uint64_t{1} << std::min(std::max<int64_t>(end, 0), kPanel)) - 1;
  };
  return static_cast<uint32_t>(below(last + 1) & ~below(first));
}

// tile (M, kPanel) = queries . keys of one panel. A sum runs over the elements in their order, in one
// lane: a score depends on its query and its key alone, not on what it is computed with.
template <class V, int M>
__attribute__((noinline)) void multiply(const float* const* queries, int64_t d, const float* panel,
                                        float* tile) {
  constexpr int N = V::kColumns;
  for (int64_t at = 0; at < kPanel; at += N * V::W) {
    V sums[M][N];
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) sums[m][n] = V::fill(0);
    const float* column = panel + at;
    for (int64_t c = 0; c < d; ++c, column += kPanel) {
      V keys[N];
      for (int n = 0; n < N; ++n) keys[n] = V::load(column + n * V::W);
      for (int m = 0; m < M; ++m) {
        const V query = V::fill(queries[m][c]);
        for (int n = 0; n < N; ++n) sums[m][n] = fma(query, keys[n], sums[m][n]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) sums[m][n].store(tile + m * kPanel + at + n * V::W);
  }
}

// Fetches a panel's previous scores, which lie in another page for every query, while products are made.
inline void prefetch(const Queries& queries, int64_t first, int64_t num_rows, int64_t first_key,
                     int64_t num_keys) {
  for (int64_t m = 0; m < num_rows; ++m) {
    const float* from = queries.prev + (first + m) * num_keys + first_key;
    __builtin_prefetch(from, 1);
    __builtin_prefetch(from + kPanel / 2, 1);
  }
}

// Takes one query's scores for a panel, which start as q . k in `tile`, to its best keys.
template <class V>
void consider(const Queries& queries, int64_t row, int64_t first_key, int64_t num_keys,
              const float* tile, BestKeys<V>& best) {
  const int64_t position = queries.position + row;
  const int64_t start = queries.row_start ? queries.row_start[row] : 0;
  const uint32_t seen = lanes_between(start - first_key, position - first_key);
  if (seen == 0) return;
  const V scale = V::fill(queries.scale), slope = V::fill(queries.slope), limit = V::fill(best.limit);
  // Whole numbers, so that adding to them rounds nothing.
  const V nearest = add(V::positions(), V::fill(static_cast<float>(first_key - position)));
  alignas(64) float zs[kPanel];
  uint32_t candidates = 0, nan = 0;
  for (int64_t at = 0; at < kPanel && first_key + at <= position; at += V::W) {
    const V bias = mul(slope, add(nearest, V::fill(static_cast<float>(at))));
    const V product = V::load(tile + at);
    V z;
    if (queries.prev || queries.carry) {
      const int64_t place = row * num_keys + first_key + at;
      const int64_t count = std::min<int64_t>(position + 1 - first_key - at, V::W);
      V score;
      if (queries.prev) {
        const float* from = queries.prev + place;
        score = fma(scale, product, count == V::W ? V::load(from) : V::load_part(from, count, 0));
      } else {
        score = mul(scale, product);
      }
      if (queries.carry) {
        count == V::W ? score.store(queries.carry + place) : score.store_part(queries.carry + place, count);
      }
      z = add(score, bias);
    } else {
      z = fma(scale, product, bias);
    }
    z.store(zs + at);
    candidates |= not_at_most(z, limit) << at;
    nan |= unordered(z) << at;
  }
  best.any_nan |= (nan & seen) != 0;
  if (candidates &= seen) best.enter(zs, candidates, first_key);
}

// Whether a key of the panel can still be among a query's best: a product is at most the product of
// the lengths, which the margin keeps true of its rounded value, and the penalty is at least that of
// the panel's last key.
inline bool reaches(float limit, double slope, double longest_product, int64_t distance) {
  const double rounding = 1e-6;
  const double bound = longest_product - slope * static_cast<double>(distance) * (1 - rounding);
  return !(bound + rounding * std::abs(bound) < limit);
}

// Sorts a few keys in a register, where a branch per comparison would often be mispredicted.
template <class V>
void sort_few(int64_t* keys, int64_t num_keys) {
  if (num_keys > 8) {
    sort_ascending(keys, num_keys);
    return;
  }
  int64_t descending[8];
  std::fill(descending, descending + 8, INT64_MIN);
  auto list = V::Eight::load(descending);
  for (int64_t m = 0; m < num_keys; ++m) list.insert(keys[m]);
  list.store(descending);
  for (int64_t m = 0; m < num_keys; ++m) keys[m] = descending[num_keys - 1 - m];
}

// Some z, none of them NaN, become their softmax; zeros where none is above -inf.
template <class V>
void softmax_of_few(float* zs, int64_t num_keys) {
  float largest = -kInfinity, smallest = kInfinity;
  for (int64_t m = 0; m < num_keys; ++m) {
    largest = std::max(largest, zs[m]);
    smallest = std::min(smallest, zs[m]);
  }
  if (smallest - largest > kLeastExponent) {
    const V minus = V::fill(-largest);
    for (int64_t m = 0; m < num_keys; m += V::W) {
      const int64_t left = std::min<int64_t>(num_keys - m, V::W);
      exp_of(add(V::load_part(zs + m, left, largest), minus)).store_part(zs + m, left);
    }
  } else {
    // exp_of would make 0 of weights that are denormal numbers, and takes no infinities.
    for (int64_t m = 0; m < num_keys; ++m)
      zs[m] = largest == -kInfinity ? 0 : std::exp(zs[m] - largest);
  }
  double sum = 0;
  for (int64_t m = 0; m < num_keys; ++m) sum += zs[m];
  const V divisor = V::fill(sum > 0 ? static_cast<float>(sum) : 1);
  for (int64_t m = 0; m < num_keys; m += V::W) {
    const int64_t left = std::min<int64_t>(num_keys - m, V::W);
    divide(V::load_part(zs + m, left, 0), divisor).store_part(zs + m, left);
  }
}

// Writes the keys in ascending order, with their softmax.
template <class V>
void finish(BestKeys<V>& best, int64_t num_seen, int64_t position, int64_t width, int32_t* kept,
            float* weights) {
  const int64_t num_kept = std::min(num_seen, width);
  std::fill(kept + num_kept, kept + width, -1);
  std::fill(weights + num_kept, weights + width, 0.0f);
  if (best.any_nan) {
    for (int64_t m = 0; m < num_kept; ++m) kept[m] = static_cast<int32_t>(position - num_kept + 1 + m);
    std::fill(weights, weights + num_kept, __builtin_nanf(""));
    return;
  }
  if (best.size > best.top_k) best.thin_out();
  // By position, the rank of z in the lower half.
  for (int64_t m = 0; m < num_kept; ++m) {
    const uint64_t key = static_cast<uint64_t>(best.keys[m]);
    best.keys[m] = static_cast<int64_t>(key << 32 | key >> 32);
  }
  sort_few<V>(best.keys, num_kept);
  for (int64_t m = 0; m < num_kept; ++m) {
    kept[m] = static_cast<int32_t>(best.keys[m] >> 32);
    weights[m] = z_of_rank(best.keys[m] << 32);
  }
  softmax_of_few<V>(weights, num_kept);
}

// Up to M queries, from `first` on.
template <class V, int M>
void choose_group(const Queries& queries, int64_t first, const Panels& panels, int64_t num_keys,
                  int64_t width, ChoiceScratch& scratch, int32_t* kept, float* weights) {
  const int64_t num_rows = std::min<int64_t>(M, queries.num_rows - first);
  const float* rows[M];
  BestKeys<V> best[M];
  double length[M];
  int64_t start[M], leftmost = num_keys;
  for (int64_t m = 0; m < M; ++m) {
    // After the last query, the last one is computed again, and the result is ignored.
    const int64_t row = first + std::min(m, num_rows - 1);
    rows[m] = queries.rows + row * queries.stride;
    start[m] = queries.row_start ? queries.row_start[row] : 0;
    leftmost = std::min(leftmost, start[m]);
    best[m] = {scratch.keys.data() + m * scratch.capacity, width, scratch.capacity};
    double squares = 0;
    for (int64_t c = 0; queries.skip && c < queries.d; ++c) squares += double(rows[m][c]) * rows[m][c];
    // The margin covers the rounding of a sum of d products, and of the keys' lengths.
    length[m] = queries.scale * std::sqrt(squares) * (1 + 1e-6 * (queries.d + 10.0));
  }
  alignas(64) float tile[M * kPanel] = {};
  const int64_t last = queries.position + first + num_rows - 1;
  for (int64_t panel = last / kPanel; panel >= leftmost / kPanel; --panel) {
    const int64_t first_key = panel * kPanel;
    if (queries.skip) {
      bool any = false;
      for (int64_t m = 0; m < num_rows && !any; ++m) {
        const int64_t distance = queries.position + first + m - (first_key + kPanel - 1);
        any = reaches(best[m].limit, queries.slope, length[m] * panels.longest[panel],
                      std::max<int64_t>(distance, 0));
      }
      if (!any) continue;
    }
    if (queries.d) {
      if (queries.prev) prefetch(queries, first, num_rows, first_key, num_keys);
      multiply<V, M>(rows, queries.d, panels.data.data() + first_key * queries.d, tile);
    }
    for (int64_t m = 0; m < num_rows; ++m) {
      consider<V>(queries, first + m, first_key, num_keys, tile + m * kPanel, best[m]);
    }
  }
  for (int64_t m = 0; m < num_rows; ++m) {
    const int64_t row = first + m, position = queries.position + row;
    finish(best[m], std::max<int64_t>(position - start[m] + 1, 0), position, width,
           kept + row * width, weights + row * width);
    if (queries.carry) {
      // Panels begin before the first visible key.
      float* row_carry = queries.carry + row * num_keys;
      std::fill(row_carry + start[m] / kPanel * kPanel, row_carry + start[m], 0.0f);
    }
  }
}

template <class V>
void choose(const Queries& queries, const Panels& panels, int64_t num_keys, int64_t width,
            ChoiceScratch& scratch, int32_t* kept, float* weights) {
  static_assert(V::kRows <= ChoiceScratch::kMostRows);
  if (queries.d == 0) {
    // Nothing to multiply: one row after the other is how memory is read best.
    for (int64_t row = 0; row < queries.num_rows; ++row)
      choose_group<V, 1>(queries, row, panels, num_keys, width, scratch, kept, weights);
    return;
  }
  for (int64_t first = 0; first < queries.num_rows; first += V::kRows)
    choose_group<V, V::kRows>(queries, first, panels, num_keys, width, scratch, kept, weights);
}

template <class V>
void pack(const float* rows, int64_t stride, int64_t num_keys, int64_t d, Panels& panels) {
  for (int64_t panel = 0; panel < num_panels(num_keys); ++panel) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, num_keys - first);
    float* to = panels.data.data() + first * d;
    // In float64, where the square of no float32 is lost.
    double squares[kPanel] = {};
    for (int64_t c = 0; c < d; ++c, to += kPanel) {
      for (int64_t n = 0; n < count; ++n) to[n] = rows[(first + n) * stride + c];
      for (int64_t n = count; n < kPanel; ++n) to[n] = 0;
      for (int64_t n = 0; n < kPanel; ++n) squares[n] += double(to[n]) * to[n];
    }
    double longest = 0;
    // A length that is no number is the longest.
    for (double square : squares) longest = longest != longest || square <= longest ? longest : square;
    panels.longest[panel] = std::sqrt(longest);
  }
}

}  // namespace
}  // namespace gptx
