// The threads that share a row: one warp, or the warps of a block. What one of them learns, all do.
#pragma once

#include "dtypes.cuh"

namespace gptx {

constexpr int kThreads = 128;  // of a block
constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xffffffffu;

template <class X>
__device__ __forceinline__ X warp_sum(X x) {
  for (int distance = kLanes / 2; distance; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}

__device__ __forceinline__ uint32_t warp_sum(uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAll, x);
#else
  return warp_sum<uint32_t>(x);
#endif
}

// The largest in lane 0, the least in the last.
__device__ __forceinline__ float sort_descending(float x, int lane) {
  for (int size = 2; size <= kLanes; size *= 2) {
    for (int distance = size / 2; distance; distance /= 2) {
      const float other = __shfl_xor_sync(kAll, x, distance);
      const bool takes_larger = ((lane & size) == 0) == ((lane & distance) == 0);
      x = takes_larger ? fmaxf(x, other) : fminf(x, other);
    }
  }
  return x;
}

// The words that the warps of a block tell one another. Two sets take turns: a set is written again
// only after all have passed the barrier behind the reading of it.
template <int kWarps>
struct Board {
  uint64_t words[2][kWarps * kLanes];
};

// A sum over the warps of a block: of those before this one, and of all.
struct Share {
  uint32_t before, total;
};

template <int kWarps>
class Group {
 public:
  static constexpr int kSize = kWarps * kLanes;

  __device__ explicit Group(Board<kWarps>* board)
      : lane(threadIdx.x % kLanes), warp(kWarps == 1 ? 0 : threadIdx.x / kLanes), board_(board) {}

  __device__ int rank() const { return warp * kLanes + lane; }

  __device__ void sync() const {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ uint32_t sum(uint32_t x) { return share(warp_sum(x)).total; }

  __device__ double sum(double x) {
    x = warp_sum<double>(x);
    if constexpr (kWarps == 1) return x;
    const uint64_t* words = tell(bits_of(x));
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += double_of(words[w]);
    return total;
  }

  // Of numbers that each warp agrees on.
  __device__ Share share(uint32_t x) {
    if constexpr (kWarps == 1) return {0, x};
    const uint64_t* words = tell(x);
    Share share{0, 0};
    for (int w = 0; w < kWarps; ++w) {
      const auto other = static_cast<uint32_t>(words[w]);
      if (w < warp) share.before += other;
      share.total += other;
    }
    return share;
  }

  // The largest x of this lane in any warp, or one that is no number.
  __device__ float lane_max(float x) {
    if constexpr (kWarps == 1) return x;
    uint64_t* words = board_->words[turn_ ^= 1];
    words[warp * kLanes + lane] = bits_of(x);
    sync();
    for (int w = 0; w < kWarps; ++w) {
      x = larger_or_nan(x, float_of(static_cast<uint32_t>(words[w * kLanes + lane])));
    }
    return x;
  }

  const int lane, warp;

 private:
  // One word of each warp.
  __device__ const uint64_t* tell(uint64_t word) {
    uint64_t* words = board_->words[turn_ ^= 1];
    if (lane == 0) words[warp] = word;
    sync();
    return words;
  }

  Board<kWarps>* board_;
  int turn_ = 0;
};

}  // namespace gptx
