// What lets one header serve a C++ compiler, nvcc and NVRTC, which brings no headers of its own.
#pragma once

#if defined(__CUDACC_RTC__)
using int32_t = int;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define GPTX_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GPTX_HOST_DEVICE inline
#endif
