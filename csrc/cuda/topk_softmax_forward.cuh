// The forward pass of top-k softmax: each row's k largest z, and the softmax of those.
//
// The threads of a row hold its z in registers. Columns with the same column % 32 form a class, and
// the largest z of each class is found. The k-th largest of these 32 numbers is a lower bound for
// every selected z. Few z reach the bound, and only these are compared with one another. Adjacent
// columns fall into different classes. With steep ALiBi only the last columns matter; they are then
// spread over many classes, so the bound stays tight. If k is above 32, or if more z than a warp has
// lanes reach the bound (equal scores do), bisection finds the k-th largest z exactly.
#pragma once

#include "rows.cuh"

namespace gptx {

// What one warp compares at once: one for each lane.
constexpr int kCandidates = kLanes;

struct Candidate {
  float z;
  int column;
};

template <int kWarps>
struct ForwardShared {
  Candidate found[kWarps][kCandidates];
  Candidate joined[kWarps > 1 ? kCandidates : 1];
  Board<kWarps> board;
};

// The visible columns of a row, from `start` to `position`. Each warp takes some chunks of them. A thread
// names a column by its distance from the thread's first one: a constant, which takes no register.
template <int kWarps, int kChunks>
class SeenColumns {
 public:
  __device__ SeenColumns(const Group<kWarps>& group, int start, int position)
      : start_(start), position_(position), lane_(group.lane) {
    const int first = start / kChunk, num_chunks = position / kChunk - first + 1;
    num_own_ = (num_chunks + kWarps - 1) / kWarps;
    first_column_ = (first + group.warp * num_own_) * kChunk + group.lane * kLaneColumns;
  }

  __device__ int first() const { return first_column_; }

  // Asks for the row's scores; `convert` awaits them.
  template <class T>
  __device__ void load(const typename T::Bits* row, bool aligned) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
      load_columns<T>(row, first_column_ + c * kChunk, position_, aligned,
                      words_ + c * kLaneColumns);
    }
  }

  // Converts scores to z (adds ALiBi). Returns the largest z of one class of columns, a class being
  // the columns with the same column % 32. Each lane returns another class. NaN counts as the largest.
  template <class T>
  __device__ float convert(float slope) {
    float largest[kLaneColumns];
#pragma unroll
    for (float& one : largest) one = minus_infinity();
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
      const int column = first_column_ - lane_ * kLaneColumns + c * kChunk;
      // The usual case needs no comparison.
      if (column >= start_ && column + kChunk - 1 <= position_) {
        convert_chunk<T, true>(c, slope, largest);
      } else {
        convert_chunk<T, false>(c, slope, largest);
      }
    }
    // Every fourth lane holds the same classes. In each round a lane hands half of its classes to
    // another lane.
#pragma unroll
    for (int half = kLaneColumns / 2; half; half /= 2) {
      const int distance = half * 4;
      const bool upper = lane_ & distance;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float given = upper ? largest[i] : largest[i + half];
        const float own = upper ? largest[i + half] : largest[i];
        largest[i] = larger_or_nan(own, __shfl_xor_sync(kAll, given, distance));
      }
    }
    return largest[0];
  }

  // How many columns of this thread satisfy `wanted(z, at)`.
  template <class Wanted>
  __device__ uint32_t count(Wanted wanted) const {
    uint32_t found = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        found += wanted(z(c, e), c * kChunk + e) ? 1 : 0;
      }
    }
    return found;
  }

  // Calls take(rank, z, column) for every wanted column. The rank counts this warp's wanted columns from 0,
  // from left to right. Returns their number.
  template <class Wanted, class Take>
  __device__ uint32_t collect(Wanted wanted, Take take) const {
    uint32_t rank = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
      uint32_t columns = 0;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        columns |= (wanted(z(c, e), c * kChunk + e) ? 1u : 0u) << e;
      }
      uint32_t own_rank = rank;
      // One round finds the lanes with one column or more, the next those with two or more, ...
      for (int n = 1;; ++n) {
        const uint32_t lanes = __ballot_sync(kAll, __popc(columns) >= n);
        if (lanes == 0) break;
        own_rank += __popc(lanes & ((1u << lane_) - 1));
        rank += __popc(lanes);
      }
      if (columns == 0) continue;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        if (columns >> e & 1) take(own_rank++, z(c, e), first_column_ + c * kChunk + e);
      }
    }
    return rank;
  }

 private:
  // A masked column is NaN, which reaches no bound.
  __device__ __forceinline__ float z(int c, int e) const {
    return float_of(words_[c * kLaneColumns + e]);
  }

  template <class T, bool kAllSeen>
  __device__ __forceinline__ void convert_chunk(int c, float slope, float* largest) {
    uint32_t* words = words_ + c * kLaneColumns;
    // Whole numbers, so that adding to them rounds nothing.
    const float nearest = static_cast<float>(first_column_ - position_);
#pragma unroll
    for (int e = kLaneColumns - 1; e >= 0; --e) {
      const int at = c * kChunk + e;
      // Two roundings, as everywhere else: every kernel must compute the same z.
      const float bias = __fmul_rn(slope, nearest + static_cast<float>(at));
      const float z = __fadd_rn(column_of<T>(words, e), bias);
      const bool seen = kAllSeen || (at >= start_ - first_column_ && at <= position_ - first_column_);
      largest[e] = larger_or_nan(largest[e], seen ? z : minus_infinity());
      words[e] = bits_of(seen ? z : not_a_number());
    }
  }

  int start_, position_, lane_, num_own_, first_column_;
  uint32_t words_[kChunks * kLaneColumns];
};

// The smallest selected z, and the first column to select among the columns with that z. `first`
// is the thread's first column.
struct Limit {
  float z;
  int column, first;
  __device__ bool operator()(float other, int at) const {
    return other > z || (other == z && at >= column - first);
  }
};

// Finds the limit that num_kept columns reach, where num_found reach `least`.
template <int kWarps, int kChunks>
__device__ __forceinline__ Limit find_limit(Group<kWarps>& group,
                                            const SeenColumns<kWarps, kChunks>& columns, float least,
                                            float largest, uint32_t num_found, uint32_t num_kept,
                                            int position) {
  uint32_t low = ordered(least), above = ordered(largest) + 1;
  while (num_found != num_kept && above - low > 1) {
    const uint32_t middle = low + (above - low) / 2;
    const float z = z_of(middle);
    const uint32_t found = group.sum(columns.count([=](float other, int) { return other >= z; }));
    if (found >= num_kept) {
      low = middle;
      num_found = found;
    } else {
      above = middle;
    }
  }
  Limit limit{z_of(low), 0, columns.first()};
  for (int end = position + 1; num_found != num_kept && end - limit.column > 1;) {
    const Limit middle{limit.z, limit.column + (end - limit.column) / 2, columns.first()};
    const uint32_t found = group.sum(columns.count(middle));
    if (found >= num_kept) {
      limit = middle;
      num_found = found;
    } else {
      end = middle.column;
    }
  }
  return limit;
}

// Where a row's results go.
template <class T>
struct Outputs {
  typename T::Bits* probs;
  int32_t* kept;
  float* weights;
  __device__ void put(const Rows& rows, const Place& place, uint32_t slot, int column, float weight) const {
    kept[slot] = column;
    weights[slot] = weight;
    if (probs) probs[column] = T::store(weight * survival(rows, place, column));
  }
};

// A row of minus infinity weighs nothing.
__device__ __forceinline__ float exponential(float z, float largest) {
  return largest == minus_infinity() ? 0.0f : expf(z - largest);
}

// Sums are double: a row is rounded to float32 once.
__device__ __forceinline__ float divisor_of(double sum) {
  return sum > 0 ? static_cast<float>(sum) : 1.0f;
}

// Keeps num_kept of up to kCandidates candidates, which lie in the order of their columns.
template <class T>
__device__ __forceinline__ void finish_few(const Candidate* candidates, uint32_t num_found,
                                           uint32_t num_kept, float largest, const Rows& rows,
                                           const Place& place, const Outputs<T>& outputs,
                                           uint32_t lane) {
  const Candidate own = candidates[lane < num_found ? lane : 0];
  uint32_t num_better = 0;
  for (uint32_t m = 0; m < num_found; ++m) {
    const float other = candidates[m].z;
    num_better += other > own.z || (other == own.z && m > lane) ? 1 : 0;
  }
  const bool is_kept = lane < num_found && num_better < num_kept;
  const float mass = is_kept ? exponential(own.z, largest) : 0.0f;
  const float divisor = divisor_of(warp_sum<double>(mass));
  const uint32_t lanes = __ballot_sync(kAll, is_kept);
  if (is_kept) {
    outputs.put(rows, place, __popc(lanes & ((1u << lane) - 1)), own.column, mass / divisor);
  }
}

// Turns the z of kept keys, which lie in `weights`, into weights.
template <class T, int kWarps>
__device__ __forceinline__ void finish_many(Group<kWarps>& group, uint32_t num_kept, float largest,
                                            const Rows& rows, const Place& place,
                                            const Outputs<T>& outputs) {
  double sum = 0;
  for (uint32_t m = group.rank(); m < num_kept; m += group.kSize) {
    const float mass = exponential(outputs.weights[m], largest);
    outputs.weights[m] = mass;
    sum += mass;
  }
  const float divisor = divisor_of(group.sum(sum));
  for (uint32_t m = group.rank(); m < num_kept; m += group.kSize) {
    outputs.put(rows, place, m, outputs.kept[m], outputs.weights[m] / divisor);
  }
}

// The number of blocks that fit into a multiprocessor's registers without spilling.
template <int kChunks>
constexpr int kBlocks = kChunks > 8 ? 2 : 4;

template <class T, int kWarps, int kChunks>
__global__ void __launch_bounds__(kThreads, kBlocks<kChunks>)
    topk_softmax_forward(ForwardArguments arguments) {
  constexpr int kGroups = kThreads / (kWarps * kLanes);
  __shared__ ForwardShared<kWarps> all_shared[kGroups];
  ForwardShared<kWarps>& shared = all_shared[threadIdx.x / (kWarps * kLanes)];
  Group<kWarps> group(&shared.board);
  const Rows& rows = arguments.rows;
  const int64_t row = row_of_thread<kWarps>();
  if (row >= rows.num_rows) return;

  const Place place(rows, static_cast<int>(row));
  const int num_keys = rows.num_keys, width = rows.width;
  const int start = first_seen(rows, place, arguments.row_start);
  const int num_seen = start > place.position ? 0 : place.position - start + 1;
  const uint32_t num_kept = num_seen < width ? num_seen : width;
  const auto* scores = static_cast<const typename T::Bits*>(arguments.scores) + row * num_keys;
  auto* probs = static_cast<typename T::Bits*>(arguments.probs);
  const Outputs<T> outputs{probs ? probs + row * num_keys : nullptr, arguments.kept + row * width,
                           arguments.weights + row * width};

  SeenColumns<kWarps, kChunks> columns(group, num_seen ? start : 0, num_seen ? place.position : 0);
  if (num_seen) columns.template load<T>(scores, pieces_are_aligned<T>(arguments.scores, num_keys));
  if (probs) clear<T>(outputs.probs, 0, num_keys, pieces_are_aligned<T>(probs, num_keys), group);
  if (arguments.cleared) {
    // Another lane may have loaded cleared columns, but it ignores masked ones.
    clear_unseen<T>(static_cast<typename T::Bits*>(arguments.cleared) + row * num_keys, start,
                    place.position, num_keys, pieces_are_aligned<T>(arguments.cleared, num_keys), group);
  }
  for (int m = static_cast<int>(num_kept) + group.rank(); m < width; m += group.kSize) {
    outputs.kept[m] = -1;
    outputs.weights[m] = 0;
  }
  if (num_seen == 0) return;
  group.sync();  // before kept probabilities are written over the zeros

  const float slope = arguments.slopes ? arguments.slopes[place.head] : 0.0f;
  const float of_class = group.lane_max(columns.template convert<T>(slope));
  if (__any_sync(kAll, of_class != of_class)) {
    for (uint32_t m = group.rank(); m < num_kept; m += group.kSize) {
      outputs.put(rows, place, m, place.position - static_cast<int>(num_kept) + 1 + static_cast<int>(m),
                  not_a_number());
    }
    return;
  }
  const float sorted = sort_descending(of_class, group.lane);
  const float largest = __shfl_sync(kAll, sorted, 0);
  const float kth = __shfl_sync(kAll, sorted, static_cast<int>((num_kept - 1) % kLanes));
  const float bound = num_kept <= kLanes ? kth : minus_infinity();
  const auto reaches_bound = [=](float z, int) { return z >= bound; };

  Candidate* own_candidates = shared.found[group.warp];
  const uint32_t num_own = columns.collect(reaches_bound, [&](uint32_t rank, float z, int column) {
    if (rank < kCandidates) own_candidates[rank] = {z, column};
  });
  const Share share = group.share(num_own);
  if (share.total <= kCandidates) {
    const Candidate* candidates = own_candidates;
    __syncwarp();
    if constexpr (kWarps > 1) {
      if (group.lane < static_cast<int>(num_own)) {
        shared.joined[share.before + group.lane] = own_candidates[group.lane];
      }
      candidates = shared.joined;
      group.sync();
    }
    if (group.warp == 0) {
      finish_few(candidates, share.total, num_kept, largest, rows, place, outputs, group.lane);
    }
    return;
  }
  const Limit limit =
      find_limit(group, columns, bound, largest, share.total, num_kept, place.position);
  const uint32_t before = group.share(warp_sum(columns.count(limit))).before;
  columns.collect(limit, [&](uint32_t rank, float z, int column) {
    outputs.kept[before + rank] = column;
    outputs.weights[before + rank] = z;
  });
  group.sync();
  finish_many(group, num_kept, largest, rows, place, outputs);
}

}  // namespace gptx
