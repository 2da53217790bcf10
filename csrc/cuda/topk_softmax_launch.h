// What the kernels of top-k softmax are given. No header of torch or CUDA: the C++ compiler, nvcc,
// NVRTC and the tests' emulator all read this.
#pragma once

#include "../include/device.h"

namespace gptx {

// Beyond this many keys a row does not fit the registers of a block.
constexpr int kMostKeys = 16384;

enum class Number { kFloat32, kBFloat16, kFloat16 };

// num_rows = b * h * s rows of t scores; everything contiguous, on one device.
struct Rows {
  int64_t num_rows;
  int num_heads, num_queries, num_keys;
  int width;            // slots per row for kept keys, min(top_k, t)
  uint32_t drop_below;  // see philox.h; 0 drops nothing
  float survivor_factor;
  uint64_t seed;
};

struct ForwardArguments {
  Rows rows;
  const void* scores;
  const float* slopes;       // (h), or null
  const int32_t* row_start;  // (b, s), or null
  void* probs;
  int32_t* kept;             // (b, h, s, width)
  float* weights;
};

struct BackwardArguments {
  Rows rows;
  const void* grad_probs;
  const int32_t* kept;
  const float* weights;
  void* grad_scores;
};

#if !defined(__CUDACC_RTC__)
// Weak, so that a library without the CUDA half links; null in that. They return null, or what is
// wrong. `stream` is a cudaStream_t of that device.
__attribute__((weak)) const char* launch_topk_softmax(const ForwardArguments& arguments, Number type,
                                                      int device, void* stream);
__attribute__((weak)) const char* launch_topk_softmax_backward(const BackwardArguments& arguments,
                                                               Number type, int device, void* stream);
// What the CUDA half was compiled for, as TORCH_CUDA_ARCH_LIST names it: "8.0 9.0+PTX".
__attribute__((weak)) const char* topk_softmax_architectures();
#endif

}  // namespace gptx
