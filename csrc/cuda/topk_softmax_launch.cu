// Starts the kernels on a stream. No header of torch: what nvcc reads here is CUDA's and ours.
#include <cuda_runtime.h>

#include "topk_softmax_launch.h"
#include "topk_softmax_dispatch.cuh"

namespace gptx {
namespace {

template <class Arguments>
const char* start(void (*kernel)(Arguments), const Arguments& arguments, int64_t num_blocks, int device,
                  void* stream) {
  // This library has a CUDA runtime of its own, which does not know what torch's has chosen.
  cudaError_t status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    const auto blocks = static_cast<unsigned>(num_blocks);
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
    status = cudaGetLastError();
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

template <class Arguments>
const char* launch(const Arguments& arguments, Number type, int device, void* stream) {
  const char* problem = nullptr;
  choose_kernel(arguments, type, [&](auto kernel, int warps_of_row) {
    problem = start(kernel, arguments, num_blocks(arguments.rows, warps_of_row), device, stream);
  });
  return problem;
}

template <class Arguments>
const char* launch_over_kept(const Arguments& arguments, Number type, bool whole, int device,
                             void* stream) {
  const char* problem = nullptr;
  choose_kernel_over_kept(arguments, type, whole, [&](auto kernel) {
    const int64_t blocks = num_blocks_over_kept(arguments.rows, arguments.log_lanes);
    problem = start(kernel, arguments, blocks, device, stream);
  });
  return problem;
}

}  // namespace

const char* launch_topk_softmax(const ForwardArguments& arguments, Number type, int device,
                                void* stream) {
  return launch(arguments, type, device, stream);
}

const char* launch_topk_softmax_backward(const BackwardArguments& arguments, Number type, int device,
                                         void* stream) {
  return launch(arguments, type, device, stream);
}

const char* launch_sum_of_kept(const SumArguments& arguments, Number type, bool whole, int device,
                               void* stream) {
  return launch_over_kept(arguments, type, whole, device, stream);
}

const char* launch_kept_gradients(const KeptGradientArguments& arguments, Number type, bool whole,
                                  int device, void* stream) {
  return launch_over_kept(arguments, type, whole, device, stream);
}

const char* launch_add_kept(const AddArguments& arguments, int device, void* stream) {
  return start(add_kept<1>, arguments, num_blocks(arguments.rows, 1), device, stream);
}

const char* topk_softmax_architectures() { return GPTX_CUDA_ARCHITECTURES; }

}  // namespace gptx
