// The rest of attention after each row has selected its keys: it reads k value vectors, not t.
//
// Neighbouring lanes share a vector. Their number is the number of 16-byte pieces in the vector,
// rounded up to a power of two, and at most a warp.
#pragma once

#include "rows.cuh"

namespace gptx {

// The vector of one batch entry, head and position.
template <class Bits>
__device__ __forceinline__ Bits* vector_of(Bits* data, const Strides& strides, const Place& place,
                                           int64_t position) {
  return data + place.batch * strides.of_batch + place.head * strides.of_head +
         position * strides.of_position;
}

// What a thread reads at once: a piece of 16 bytes, or one number where vectors do not consist of
// whole pieces.
template <class T, bool kWhole>
struct Piece {
  static constexpr int kSize = kWhole ? kPiece<T> : 1;

  __device__ explicit Piece(const typename T::Bits* from) {
    if constexpr (kWhole) {
      const uint4 piece = *reinterpret_cast<const uint4*>(from);
      words[0] = piece.x, words[1] = piece.y, words[2] = piece.z, words[3] = piece.w;
    } else {
      words[0] = *from;
    }
  }

  __device__ float operator[](int e) const { return column_of<T>(words, e); }

  uint32_t words[kWhole ? 4 : 1];
};

template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads) sum_of_kept(SumArguments arguments) {
  using Read = Piece<T, kWhole>;
  const Rows& rows = arguments.rows;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread >> arguments.log_lanes;
  if (row >= rows.num_rows) return;

  const int num_lanes = 1 << arguments.log_lanes, lane = static_cast<int>(thread) & (num_lanes - 1);
  const Place place(rows, static_cast<int>(row));
  const int32_t* kept = arguments.kept + row * rows.width;
  const float* weights = arguments.weights + row * rows.width;
  const auto* values = vector_of(static_cast<const typename T::Bits*>(arguments.values),
                                 arguments.value_strides, place, 0);
  auto* out = vector_of(static_cast<typename T::Bits*>(arguments.out), arguments.out_strides, place,
                        query_of(rows, place));
  for (int at = lane * Read::kSize; at < arguments.head_dim; at += num_lanes * Read::kSize) {
    float sum[Read::kSize] = {};
    for (int m = 0; m < rows.width && kept[m] >= 0; ++m) {
      const float weight = weights[m] * survival(rows, place, kept[m]);
      const Read piece(values + kept[m] * arguments.value_strides.of_position + at);
#pragma unroll
      for (int e = 0; e < Read::kSize; ++e) sum[e] += weight * piece[e];
    }
#pragma unroll
    for (int e = 0; e < Read::kSize; ++e) out[at + e] = T::store(sum[e]);
  }
}

template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads) kept_gradients(KeptGradientArguments arguments) {
  using Read = Piece<T, kWhole>;
  const Rows& rows = arguments.rows;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool is_there = (thread >> arguments.log_lanes) < rows.num_rows;
  // Lanes without a row go on, because a warp's shuffles need all lanes.
  const int64_t row = is_there ? thread >> arguments.log_lanes : rows.num_rows - 1;

  const int num_lanes = 1 << arguments.log_lanes, lane = static_cast<int>(thread) & (num_lanes - 1);
  const Place place(rows, static_cast<int>(row));
  const int32_t* kept = arguments.kept + row * rows.width;
  const float* weights = arguments.weights + row * rows.width;
  float* grads = arguments.grads + row * rows.width;
  const auto* values = vector_of(static_cast<const typename T::Bits*>(arguments.values),
                                 arguments.value_strides, place, 0);
  const auto* incoming = vector_of(static_cast<const typename T::Bits*>(arguments.grad_out),
                                   arguments.grad_strides, place, query_of(rows, place));
  double sum = 0;
  for (int m = 0; m < rows.width; ++m) {
    float product = 0;
    const int key = kept[m];
    if (key >= 0) {
      const auto* value = values + key * arguments.value_strides.of_position;
      for (int at = lane * Read::kSize; at < arguments.head_dim; at += num_lanes * Read::kSize) {
        const Read grad(incoming + at), piece(value + at);
#pragma unroll
        for (int e = 0; e < Read::kSize; ++e) product += grad[e] * piece[e];
      }
    }
    for (int distance = num_lanes / 2; distance; distance /= 2) {
      product += __shfl_xor_sync(kAll, product, distance);
    }
    if (key < 0) continue;
    product *= survival(rows, place, key);
    sum += weights[m] * product;
    if (is_there && lane == 0) grads[m] = product;
  }
  __syncwarp();  // before others read what the first lanes have written
  if (!is_there) return;
  const float mean = static_cast<float>(sum);
  for (int m = lane; m < rows.width; m += num_lanes) {
    grads[m] = kept[m] < 0 ? 0.0f : weights[m] * (grads[m] - mean);
  }
}

// A warp per row.
template <int kWarps>
__global__ void __launch_bounds__(kThreads) add_kept(AddArguments arguments) {
  const Group<kWarps> group(nullptr);
  const Rows& rows = arguments.rows;
  const int64_t row = row_of_thread<kWarps>();
  if (row >= rows.num_rows) return;

  const Place place(rows, static_cast<int>(row));
  float* pairs = arguments.pairs + row * rows.num_keys;
  clear_unseen<Float32>(reinterpret_cast<uint32_t*>(pairs), first_seen(rows, place, arguments.row_start),
                        place.position, rows.num_keys,
                        pieces_are_aligned<Float32>(arguments.pairs, rows.num_keys), group);
  for (int m = group.rank(); m < rows.width; m += group.kSize) {
    const int key = arguments.kept[row * rows.width + m];
    if (key >= 0) pairs[key] += arguments.grads[row * rows.width + m];
  }
}

}  // namespace gptx
