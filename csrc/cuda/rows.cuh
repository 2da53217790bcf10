// A row as its threads see it: in chunks of 256 columns, of which a lane holds 8 neighbours.
#pragma once

#include "../include/philox.h"
#include "thread_group.cuh"
#include "topk_softmax_launch.h"

namespace gptx {

constexpr int kLaneColumns = 8;
constexpr int kChunk = kLanes * kLaneColumns;

// Elements in 16 bytes.
template <class T>
constexpr int kPiece = 16 / static_cast<int>(sizeof(typename T::Bits));

template <class T>
__device__ __forceinline__ bool pieces_are_aligned(const void* data, int num_keys) {
  return num_keys % kPiece<T> == 0 && reinterpret_cast<uint64_t>(data) % 16 == 0;
}

// A row of the tensors, and where it stands among the keys.
struct Place {
  // Rows are fewer than 2^31, and dividing 64 bits is slow.
  __device__ Place(const Rows& rows, int row)
      : position(rows.num_keys - rows.num_queries + row % rows.num_queries),
        head(row / rows.num_queries % rows.num_heads),
        batch(row / rows.num_queries / rows.num_heads) {}
  int position, head, batch;
};

// What a weight or its gradient is multiplied by.
__device__ __forceinline__ float survival(const Rows& rows, const Place& place, int key) {
  if (rows.drop_below == 0) return 1;
  const uint32_t word = philox(rows.seed, static_cast<uint32_t>(place.batch),
                               static_cast<uint32_t>(place.head),
                               static_cast<uint32_t>(place.position), static_cast<uint32_t>(key));
  return word < rows.drop_below ? 0 : rows.survivor_factor;
}

// The row of a thread. Each row takes kWarps warps of the block.
template <int kWarps>
__device__ __forceinline__ int64_t row_of_thread() {
  constexpr int kRows = kThreads / (kWarps * kLanes);
  return static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / (kWarps * kLanes);
}

// Sets the columns from `begin` to before `end` to 0.
template <class T, int kWarps>
__device__ __forceinline__ void clear(typename T::Bits* row, int begin, int end, bool aligned,
                                      const Group<kWarps>& group) {
  const int first = aligned ? (begin + kPiece<T> - 1) / kPiece<T> : 0;
  const int last = aligned ? end / kPiece<T> : 0;
  uint4* pieces = reinterpret_cast<uint4*>(row);
  for (int p = first + group.rank(); p < last; p += group.kSize) pieces[p] = make_uint4(0, 0, 0, 0);
  const int left = first < last ? first * kPiece<T> : end;
  for (int j = begin + group.rank(); j < left; j += group.kSize) row[j] = 0;
  if (first < last) {
    for (int j = last * kPiece<T> + group.rank(); j < end; j += group.kSize) row[j] = 0;
  }
}

// The queries are the last of the keys' positions.
__device__ __forceinline__ int query_of(const Rows& rows, const Place& place) {
  return place.position - (rows.num_keys - rows.num_queries);
}

// The first column that a row sees; behind its position where it sees none.
__device__ __forceinline__ int first_seen(const Rows& rows, const Place& place, const int32_t* row_start) {
  if (row_start == nullptr) return 0;
  const int64_t at = static_cast<int64_t>(place.batch) * rows.num_queries + query_of(rows, place);
  return row_start[at] < 0 ? 0 : row_start[at];
}

// Sets what a row does not see to 0: all but the columns from `start` to `position`.
template <class T, int kWarps>
__device__ __forceinline__ void clear_unseen(typename T::Bits* row, int start, int position,
                                             int num_keys, bool aligned, const Group<kWarps>& group) {
  clear<T>(row, 0, start <= position ? start : position + 1, aligned, group);
  clear<T>(row, position + 1, num_keys, aligned, group);
}

template <class T>
constexpr int kInWord = 4 / static_cast<int>(sizeof(typename T::Bits));

// 8 columns from `first` on, as they lie in memory; some columns after `last` are read as 0.
template <class T>
__device__ __forceinline__ void load_columns(const typename T::Bits* row, int first, int last,
                                             bool aligned, uint32_t* words) {
  if (aligned) {
    for (int at = 0; at < kLaneColumns; at += kPiece<T>) {
      uint4 piece = make_uint4(0, 0, 0, 0);
      if (first + at <= last) piece = *reinterpret_cast<const uint4*>(row + first + at);
      uint32_t* to = words + at / kInWord<T>;
      to[0] = piece.x, to[1] = piece.y, to[2] = piece.z, to[3] = piece.w;
    }
  } else {
    for (int e = 0; e < kLaneColumns; ++e) {
      const uint32_t bits = first + e <= last ? row[first + e] : 0;
      words[e / kInWord<T>] = e % kInWord<T> ? words[e / kInWord<T>] | bits << 16 : bits;
    }
  }
}

template <class T>
__device__ __forceinline__ float column_of(const uint32_t* words, int e) {
  return T::load(static_cast<typename T::Bits>(words[e / kInWord<T>] >> (e % kInWord<T> * 16)));
}

}  // namespace gptx
