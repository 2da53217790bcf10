// Kernels with the mistakes that the emulator is for; prints, a line each, what becomes of them.
#include <cstdio>
#include <string>

#include "cuda_emulator.h"

namespace {

constexpr int kThreads = 64;
int found[kThreads];

void take_neighbours(bool wait) {
  __shared__ int words[kThreads];
  words[threadIdx.x] = threadIdx.x;
  if (wait) __syncwarp();
  found[threadIdx.x] = words[threadIdx.x ^ 1];
  __syncwarp();
  words[threadIdx.x] = -1;
}

void take_far_neighbours(bool wait) {
  __shared__ int words[kThreads];
  words[threadIdx.x] = threadIdx.x;
  wait ? __syncthreads() : __syncwarp();
  found[threadIdx.x] = words[threadIdx.x ^ 32];
  __syncthreads();
  words[threadIdx.x] = -1;
}

void meet_elsewhere() { threadIdx.x % 2 ? __ballot_sync(~0u, true) : __shfl_sync(~0u, 1u, 0); }

void leave_early() {
  if (threadIdx.x == 5) return;
  __syncwarp();
}

void leave_early_in_block() {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}

template <class Kernel>
void run(const char* name, Kernel kernel, int distance) {
  std::string line = name;
  for (const auto schedule : {emulator::Schedule::kAscending, emulator::Schedule::kDescending,
                              emulator::Schedule::kShuffled}) {
    try {
      emulator::run_grid(2, kThreads, schedule, kernel);
      bool right = true;
      for (int i = 0; i < kThreads; ++i) right = right && found[i] == (i ^ distance);
      line += right ? "\tright" : "\twrong";
    } catch (const std::runtime_error& error) {
      line += std::string("\t") + error.what();
    }
  }
  std::puts(line.c_str());
}

}  // namespace

int main() {
  run("warp", [] { take_neighbours(true); }, 1);
  run("warp without waiting", [] { take_neighbours(false); }, 1);
  run("block", [] { take_far_neighbours(true); }, 32);
  run("block that waits in warps", [] { take_far_neighbours(false); }, 32);
  run("elsewhere", meet_elsewhere, 0);
  run("early", leave_early, 0);
  run("early in block", leave_early_in_block, 0);
}
