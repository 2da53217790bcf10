// Which kernel takes which row, for nvcc and for the tests' emulator. Nothing of torch or CUDA.
#pragma once

#include "selected_keys.cuh"
#include "topk_softmax_backward.cuh"
#include "topk_softmax_forward.cuh"

// row(kWarps, kChunks) takes up to 256 * kWarps * kChunks keys; the shortest come first.
#define GPTX_FORWARD_SIZES(row) row(1, 2) row(1, 4) row(1, 8) row(4, 4) row(4, 8) row(4, 16)

namespace gptx {

// Calls `run(kernel, warps of a row)` with the kernel for rows of numbers T.
template <class T, class Run>
void choose_forward(const ForwardArguments& arguments, Run run) {
#define GPTX_TAKE(warps, chunks)                                 \
  if (arguments.rows.num_keys <= warps * chunks * kChunk) {      \
    run(topk_softmax_forward<T, warps, chunks>, warps);          \
    return;                                                      \
  }
  GPTX_FORWARD_SIZES(GPTX_TAKE)
#undef GPTX_TAKE
}

template <class T, class Run>
void choose_backward(const BackwardArguments& arguments, Run run) {
  constexpr int kLongestOfWarp = 2048;
  if (arguments.rows.num_keys <= kLongestOfWarp) {
    run(topk_softmax_backward<T, 1>, 1);
  } else {
    run(topk_softmax_backward<T, 4>, 4);
  }
}

template <class Run>
void choose_kernel(const ForwardArguments& arguments, Number type, Run run) {
  if (type == Number::kFloat32) return choose_forward<Float32>(arguments, run);
  if (type == Number::kBFloat16) return choose_forward<BFloat16>(arguments, run);
  choose_forward<Float16>(arguments, run);
}

template <class Run>
void choose_kernel(const BackwardArguments& arguments, Number type, Run run) {
  if (type == Number::kFloat32) return choose_backward<Float32>(arguments, run);
  if (type == Number::kBFloat16) return choose_backward<BFloat16>(arguments, run);
  choose_backward<Float16>(arguments, run);
}

// Calls `run(kernel)`.
template <class T, class Run>
void choose_over_kept(const SumArguments&, bool whole, Run run) {
  run(whole ? sum_of_kept<T, true> : sum_of_kept<T, false>);
}

template <class T, class Run>
void choose_over_kept(const KeptGradientArguments&, bool whole, Run run) {
  run(whole ? kept_gradients<T, true> : kept_gradients<T, false>);
}

template <class Arguments, class Run>
void choose_kernel_over_kept(const Arguments& arguments, Number type, bool whole, Run run) {
  if (type == Number::kFloat32) return choose_over_kept<Float32>(arguments, whole, run);
  if (type == Number::kBFloat16) return choose_over_kept<BFloat16>(arguments, whole, run);
  choose_over_kept<Float16>(arguments, whole, run);
}

// Blocks for rows of which each takes 2^log_lanes threads.
inline int64_t num_blocks_over_kept(const Rows& rows, int log_lanes) {
  return ((rows.num_rows << log_lanes) + kThreads - 1) / kThreads;
}

// Blocks for all rows, of which one takes several where a row is a warp's.
inline int64_t num_blocks(const Rows& rows, int warps_of_row) {
  const int rows_of_block = kThreads / (warps_of_row * kLanes);
  return (rows.num_rows + rows_of_block - 1) / rows_of_block;
}

}  // namespace gptx
