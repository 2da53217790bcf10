// Starts the kernels on a stream. No header of torch: what nvcc reads here is CUDA's and ours.
#include <cuda_runtime.h>

#include "topk_softmax_launch.h"
#include "topk_softmax_sizes.cuh"

namespace gptx {
namespace {

template <class Arguments>
const char* launch(const Arguments& arguments, Number type, int device, void* stream) {
  // This library has a CUDA runtime of its own, which does not know what torch's has chosen.
  cudaError_t status = cudaSetDevice(device);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  choose_kernel(arguments, type, [&](auto kernel, int warps_of_row) {
    const auto blocks = static_cast<unsigned>(num_blocks(arguments.rows, warps_of_row));
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
    status = cudaGetLastError();
  });
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
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

const char* topk_softmax_architectures() { return GPTX_CUDA_ARCHITECTURES; }

}  // namespace gptx
