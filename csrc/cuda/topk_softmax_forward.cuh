// The forward pass of top-k softmax: each row's k largest z, and the softmax of those.
//
// A row's z lie in the registers of its threads, as whole numbers of the same order. Of the maxima
// that its lanes find, the k-th largest is a bound that few z reach: those are sorted. Where k is
// larger than a warp, or where more reach it, as equal scores do, the k-th largest is found exactly
// by halving the range that it lies in.
#pragma once

#include "rows.cuh"

namespace gptx {

// What one warp sorts at once.
constexpr int kCandidates = kLanes;

template <int kWarps>
struct ForwardShared {
  uint64_t candidates[kCandidates];
  Board<kWarps> board;
};

// The seen columns of a row, those from `start` to `position`: chunks of them are dealt to the warps.
// A thread names its columns by their distance from its first one: a constant, that takes no register.
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
                      keys_ + c * kLaneColumns);
    }
  }

  // Makes z of the scores; returns whether this thread met one that is no number.
  template <class T>
  __device__ bool convert(float slope) {
    bool nan = false;
    // Whole numbers, so that adding to them rounds nothing.
    const float nearest = static_cast<float>(first_column_ - position_);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
      uint32_t* keys = keys_ + c * kLaneColumns;
#pragma unroll
      for (int e = kLaneColumns - 1; e >= 0; --e) {
        const int at = c * kChunk + e;
        // Two roundings, as everywhere else: z must not depend on who computes it.
        const float bias = __fmul_rn(slope, nearest + static_cast<float>(at));
        const float z = __fadd_rn(column_of<T>(keys, e), bias);
        const bool seen = at >= start_ - first_column_ && at <= position_ - first_column_;
        nan |= seen && z != z;
        keys[e] = seen ? ordered(z) : kUnseen;
      }
    }
    return nan;
  }

  // This thread's largest.
  __device__ uint32_t largest() const {
    uint32_t most = kUnseen;
    each([&](uint32_t key, int) { most = key > most ? key : most; });
    return most;
  }

  // How many columns of this thread satisfy `wanted(key, at)`.
  template <class Wanted>
  __device__ uint32_t count(Wanted wanted) const {
    uint32_t found = 0;
    each([&](uint32_t key, int at) { found += wanted(key, at) ? 1 : 0; });
    return found;
  }

  // Calls take(rank, key, column) for every column that is wanted: ranks count the columns of this
  // warp from `rank` on, from left to right.
  template <class Wanted, class Take>
  __device__ void collect(uint32_t rank, Wanted wanted, Take take) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
      uint32_t found = 0;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        found += wanted(keys_[c * kLaneColumns + e], c * kChunk + e) ? 1 : 0;
      }
      uint32_t own_rank = rank;
      // One round finds the lanes with one column or more, the next those with two or more, ...
      for (uint32_t n = 1;; ++n) {
        const uint32_t lanes = __ballot_sync(kAll, found >= n);
        if (lanes == 0) break;
        own_rank += __popc(lanes & ((1u << lane_) - 1));
        rank += __popc(lanes);
      }
      if (found == 0) continue;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        const uint32_t key = keys_[c * kLaneColumns + e];
        if (wanted(key, c * kChunk + e)) take(own_rank++, key, first_column_ + c * kChunk + e);
      }
    }
  }

 private:
  template <class Look>
  __device__ __forceinline__ void each(Look look) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= num_own_) break;
#pragma unroll
      for (int e = 0; e < kLaneColumns; ++e) {
        look(keys_[c * kLaneColumns + e], c * kChunk + e);
      }
    }
  }

  int start_, position_, lane_, num_own_, first_column_;
  uint32_t keys_[kChunks * kLaneColumns];
};

// The least (key, column) that is kept, and what a thread's columns are held against.
struct Limit {
  uint32_t key;
  int column, first;
  __device__ bool operator()(uint32_t other_key, int at) const {
    return other_key > key || (other_key == key && at >= column - first);
  }
};

// Finds the limit that num_kept columns reach, where num_found reach `least`.
template <int kWarps, int kChunks>
__device__ __forceinline__ Limit find_limit(Group<kWarps>& group,
                                            const SeenColumns<kWarps, kChunks>& columns,
                                            uint32_t least, uint32_t largest, uint32_t num_found,
                                            uint32_t num_kept, int position) {
  uint32_t above = largest + 1;
  while (num_found != num_kept && above - least > 1) {
    const uint32_t middle = least + (above - least) / 2;
    const uint32_t found = group.sum(columns.count([=](uint32_t key, int) { return key >= middle; }));
    if (found >= num_kept) {
      least = middle;
      num_found = found;
    } else {
      above = middle;
    }
  }
  Limit limit{least, 0, columns.first()};
  for (int end = position + 1; num_found != num_kept && end - limit.column > 1;) {
    const Limit middle{least, limit.column + (end - limit.column) / 2, columns.first()};
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
    probs[column] = T::store(weight * survival(rows, place, column));
  }
};

// A row of minus infinity weighs nothing.
__device__ __forceinline__ float exponential(float z, float largest) {
  return largest == float_of(0xff800000u) ? 0.0f : expf(z - largest);
}

// Sums are double: one float32 of them is all that a row loses.
__device__ __forceinline__ float divisor_of(double sum) {
  return sum > 0 ? static_cast<float>(sum) : 1.0f;
}

// Keeps num_kept of `num_found` <= 32 candidates, which lie in the order of their columns.
template <class T>
__device__ __forceinline__ void finish_few(const uint64_t* candidates, uint32_t num_found,
                                           uint32_t num_kept, const Rows& rows, const Place& place,
                                           const Outputs<T>& outputs, int lane) {
  const uint64_t own = lane < static_cast<int>(num_found) ? candidates[lane] : 0;
  const uint64_t sorted = sort_descending(own, lane);
  const uint64_t limit = __shfl_sync(kAll, sorted, static_cast<int>(num_kept) - 1);
  const float largest = z_of(static_cast<uint32_t>(__shfl_sync(kAll, sorted, 0) >> 32));
  const bool is_kept = own >= limit;
  const float mass = is_kept ? exponential(z_of(static_cast<uint32_t>(own >> 32)), largest) : 0.0f;
  const float divisor = divisor_of(warp_sum<double>(mass));
  const uint32_t lanes = __ballot_sync(kAll, is_kept);
  if (is_kept) {
    outputs.put(rows, place, __popc(lanes & ((1u << lane) - 1)), static_cast<int>(own & 0xffffffffu),
                mass / divisor);
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

// So many blocks at a time fit a multiprocessor's registers, without any of them spilling.
template <int kChunks>
constexpr int kBlocks = kChunks > 8 ? 2 : 4;

template <class T, int kWarps, int kChunks>
__global__ void __launch_bounds__(kThreads, kBlocks<kChunks>) topk_softmax_forward(ForwardArguments arguments) {
  constexpr int kGroups = kThreads / (kWarps * kLanes);
  __shared__ ForwardShared<kWarps> all_shared[kGroups];
  ForwardShared<kWarps>& shared = all_shared[threadIdx.x / (kWarps * kLanes)];
  Group<kWarps> group(&shared.board);
  const Rows& rows = arguments.rows;
  const int64_t row = row_of_thread<kWarps>();
  if (row >= rows.num_rows) return;

  const Place place(rows, row);
  const int num_keys = rows.num_keys, width = rows.width;
  int start = 0;
  if (arguments.row_start) {
    start = arguments.row_start[static_cast<int64_t>(place.batch) * rows.num_queries +
                                row % rows.num_queries];
    start = start < 0 ? 0 : start;
  }
  const int num_seen = start > place.position ? 0 : place.position - start + 1;
  const uint32_t num_kept = num_seen < width ? num_seen : width;
  const auto* scores = static_cast<const typename T::Bits*>(arguments.scores) + row * num_keys;
  const Outputs<T> outputs{static_cast<typename T::Bits*>(arguments.probs) + row * num_keys,
                           arguments.kept + row * width, arguments.weights + row * width};

  SeenColumns<kWarps, kChunks> columns(group, start, num_seen ? place.position : start);
  if (num_seen) columns.template load<T>(scores, pieces_are_aligned<T>(arguments.scores, num_keys));
  clear<T>(outputs.probs, num_keys, pieces_are_aligned<T>(arguments.probs, num_keys), group);
  for (int m = static_cast<int>(num_kept) + group.rank(); m < width; m += group.kSize) {
    outputs.kept[m] = -1;
    outputs.weights[m] = 0;
  }
  if (num_seen == 0) return;
  group.sync();  // before kept probabilities are written over the zeros

  const float slope = arguments.slopes ? arguments.slopes[place.head] : 0.0f;
  if (group.any(columns.template convert<T>(slope))) {
    for (uint32_t m = group.rank(); m < num_kept; m += group.kSize) {
      outputs.put(rows, place, m, place.position - static_cast<int>(num_kept) + 1 + static_cast<int>(m),
                  not_a_number());
    }
    return;
  }

  const uint32_t maxima = sort_descending(group.lane_max(columns.largest()), group.lane);
  const uint32_t largest = __shfl_sync(kAll, maxima, 0);
  uint32_t bound = kLeast;
  if (num_kept <= kLanes) {
    const uint32_t reached = __shfl_sync(kAll, maxima, static_cast<int>(num_kept) - 1);
    bound = reached > bound ? reached : bound;
  }
  const auto reaches_bound = [=](uint32_t key, int) { return key >= bound; };
  const uint32_t num_own = columns.count(reaches_bound);
  const uint32_t num_found = group.sum(num_own);

  if (num_found <= kCandidates) {
    columns.collect(group.sum_before(num_own), reaches_bound, [&](uint32_t rank, uint32_t key, int column) {
      shared.candidates[rank] = static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(column);
    });
    group.sync();
    if (group.warp == 0) {
      finish_few(shared.candidates, num_found, num_kept, rows, place, outputs, group.lane);
    }
    return;
  }
  const Limit limit =
      find_limit(group, columns, bound, largest, num_found, num_kept, place.position);
  columns.collect(group.sum_before(columns.count(limit)), limit,
                  [&](uint32_t rank, uint32_t key, int column) {
                    outputs.kept[rank] = column;
                    outputs.weights[rank] = z_of(key);
                  });
  group.sync();
  finish_many(group, num_kept, z_of(largest), rows, place, outputs);
}

}  // namespace gptx
