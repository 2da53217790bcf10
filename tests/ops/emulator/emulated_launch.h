// The launchers, which run the kernels where they are called.
#pragma once

#include "cuda_emulator.h"

#include "../../../csrc/cuda/topk_softmax_launch.h"
#include "../../../csrc/cuda/topk_softmax_dispatch.cuh"

namespace gptx {

inline emulator::Schedule schedule = emulator::Schedule::kAscending;

template <class Arguments>
void emulate(const Arguments& arguments, Number type) {
  choose_kernel(arguments, type, [&](auto kernel, int warps_of_row) {
    const int64_t blocks = num_blocks(arguments.rows, warps_of_row);
    emulator::run_grid(blocks, kThreads, schedule, [&] { kernel(arguments); });
  });
}

template <class Arguments>
void emulate_over_kept(const Arguments& arguments, Number type, bool whole) {
  choose_kernel_over_kept(arguments, type, whole, [&](auto kernel) {
    const int64_t blocks = num_blocks_over_kept(arguments.rows, arguments.log_lanes);
    emulator::run_grid(blocks, kThreads, schedule, [&] { kernel(arguments); });
  });
}

inline void emulate(const AddArguments& arguments) {
  emulator::run_grid(num_blocks(arguments.rows, 1), kThreads, schedule, [&] { add_kept<1>(arguments); });
}

}  // namespace gptx
