// What the kernels of top-k softmax are given. No header of torch or CUDA: the C++ compiler, nvcc,
// NVRTC and the tests' emulator all read this.
#pragma once

#include "../include/device.h"

namespace gptx {

// Beyond this many keys a row does not fit the registers of a block.
constexpr int kMostKeys = 16384;

enum class Number { kFloat32, kBFloat16, kFloat16 };

// num_rows = b * h * s rows of t scores; everything that has no Strides is contiguous.
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
  void* cleared;             // the same scores, of which the unseen are set to 0; or null
  const float* slopes;       // (h), or null
  const int32_t* row_start;  // (b, s), or null
  void* probs;               // or null
  int32_t* kept;             // (b, h, s, width)
  float* weights;
};

// Strides, in numbers, between batch entries, heads and positions. Each vector is head_dim neighbours.
struct Strides {
  int64_t of_batch, of_head, of_position;
};

// A row's kept values, added up.
struct SumArguments {
  Rows rows;
  int head_dim;
  int log_lanes;             // the binary logarithm of how many threads share a row
  const int32_t* kept;
  const float* weights;
  const void* values;        // (b, h, t, head_dim)
  Strides value_strides;
  void* out;                 // (b, h, s, head_dim)
  Strides out_strides;
};

// The gradients of a row's kept scores: (b, h, s, width).
struct KeptGradientArguments {
  Rows rows;
  int head_dim;
  int log_lanes;
  const int32_t* kept;
  const float* weights;
  const void* values;
  Strides value_strides;
  const void* grad_out;      // (b, h, s, head_dim)
  Strides grad_strides;
  float* grads;
};

// Adds the gradients of kept scores to the (b, h, s, t) gradients of all scores, and sets the gradients of
// masked keys to 0.
struct AddArguments {
  Rows rows;
  const int32_t* row_start;  // (b, s), or null
  const int32_t* kept;
  const float* grads;
  float* pairs;
};

struct BackwardArguments {
  Rows rows;
  const void* grad_probs;
  const int32_t* kept;
  const float* weights;
  void* grad_scores;
};

#if !defined(__CUDACC_RTC__)
// Weak symbols: a library without the CUDA half links, and has null here. The functions return null, or an
// error message. `stream` is a cudaStream_t of that device.
__attribute__((weak)) const char* launch_topk_softmax(const ForwardArguments& arguments, Number type,
                                                      int device, void* stream);
__attribute__((weak)) const char* launch_topk_softmax_backward(const BackwardArguments& arguments,
                                                               Number type, int device, void* stream);
// `whole` tells whether vectors are made of pieces of 16 bytes, and begin with one.
__attribute__((weak)) const char* launch_sum_of_kept(const SumArguments& arguments, Number type,
                                                     bool whole, int device, void* stream);
__attribute__((weak)) const char* launch_kept_gradients(const KeptGradientArguments& arguments,
                                                        Number type, bool whole, int device,
                                                        void* stream);
__attribute__((weak)) const char* launch_add_kept(const AddArguments& arguments, int device,
                                                  void* stream);
// What the CUDA half was compiled for, as TORCH_CUDA_ARCH_LIST names it: "8.0 9.0+PTX".
__attribute__((weak)) const char* topk_softmax_architectures();
#endif

}  // namespace gptx
