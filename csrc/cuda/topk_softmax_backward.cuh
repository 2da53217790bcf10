// The backward pass of top-k softmax: dS = P * (dP - sum(P dP)) on kept keys, 0 elsewhere.
//
// It reads only the incoming gradients of the kept keys: k per row.
#pragma once

#include "rows.cuh"

namespace gptx {

// With this number of blocks, a multiprocessor has few enough threads that no register spills.
template <class T, int kWarps>
__global__ void __launch_bounds__(kThreads, 12) topk_softmax_backward(BackwardArguments arguments) {
  __shared__ Board<kWarps> boards[kThreads / (kWarps * kLanes)];
  Group<kWarps> group(&boards[threadIdx.x / (kWarps * kLanes)]);
  const Rows& rows = arguments.rows;
  const int64_t row = row_of_thread<kWarps>();
  if (row >= rows.num_rows) return;

  const Place place(rows, static_cast<int>(row));
  const int num_keys = rows.num_keys, width = rows.width;
  const auto* incoming = static_cast<const typename T::Bits*>(arguments.grad_probs) + row * num_keys;
  auto* outgoing = static_cast<typename T::Bits*>(arguments.grad_scores) + row * num_keys;
  const int32_t* kept = arguments.kept + row * width;
  const float* weights = arguments.weights + row * width;
  const auto gradient = [&](int key) {
    return T::load(incoming[key]) * survival(rows, place, key);
  };

  double sum = 0;
  for (int m = group.rank(); m < width; m += group.kSize) {
    if (kept[m] >= 0) sum += weights[m] * gradient(kept[m]);
  }
  clear<T>(outgoing, 0, num_keys, pieces_are_aligned<T>(arguments.grad_scores, num_keys), group);
  const float mean = static_cast<float>(group.sum(sum));
  group.sync();  // before gradients are written over the zeros
  for (int m = group.rank(); m < width; m += group.kSize) {
    if (kept[m] >= 0) outgoing[kept[m]] = T::store(weights[m] * (gradient(kept[m]) - mean));
  }
}

}  // namespace gptx
