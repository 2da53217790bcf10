// The launchers, which run the kernels where they are called.
#pragma once

#include "cuda_emulator.h"

#include "../../../csrc/cuda/topk_softmax_launch.h"
#include "../../../csrc/cuda/topk_softmax_sizes.cuh"

namespace gptx {

inline emulator::Schedule schedule = emulator::Schedule::kAscending;

template <class Arguments>
void emulate(const Arguments& arguments, Number type) {
  choose_kernel(arguments, type, [&](auto kernel, int warps_of_row) {
    const int64_t blocks = num_blocks(arguments.rows, warps_of_row);
    emulator::run_grid(blocks, kThreads, schedule, [&] { kernel(arguments); });
  });
}

}  // namespace gptx
