// Numbers as they lie in memory, as float32, and as whole numbers of the same order.
//
// No CUDA header is needed, so NVRTC compiles this for devices that nvcc has dropped. bf16 needs no
// instruction that these devices lack.
#pragma once

#include "../include/device.h"

namespace gptx {

__device__ __forceinline__ uint32_t bits_of(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

__device__ __forceinline__ float float_of(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

__device__ __forceinline__ float not_a_number() { return float_of(0x7fc00000u); }

__device__ __forceinline__ uint64_t bits_of(double x) {
#if defined(__CUDACC__)
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  return __builtin_bit_cast(uint64_t, x);
#endif
}

__device__ __forceinline__ double double_of(uint64_t bits) {
#if defined(__CUDACC__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return __builtin_bit_cast(double, bits);
#endif
}

struct Float32 {
  using Bits = uint32_t;
  static __device__ __forceinline__ float load(Bits bits) { return float_of(bits); }
  static __device__ __forceinline__ Bits store(float x) { return bits_of(x); }
};

struct BFloat16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ float load(Bits bits) {
    return float_of(static_cast<uint32_t>(bits) << 16);
  }
  static __device__ __forceinline__ Bits store(float x) {
    if (x != x) return 0x7fc0;
    const uint32_t bits = bits_of(x);
    return static_cast<Bits>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
  }
};

struct Float16 {
  using Bits = uint16_t;
#if defined(__CUDACC__)
  static __device__ __forceinline__ float load(Bits bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
  static __device__ __forceinline__ Bits store(float x) {
    Bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
  }
#else
  static float load(Bits bits) { return __builtin_bit_cast(_Float16, bits); }
  static Bits store(float x) { return __builtin_bit_cast(Bits, static_cast<_Float16>(x)); }
#endif
};

__device__ __forceinline__ float minus_infinity() { return float_of(0xff800000u); }

__device__ __forceinline__ float larger_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float x;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(a), "f"(b));
  return x;
#else
  return b > a || b != b ? b : a;
#endif
}

// Orders as z does, with -0 the equal of 0.
__device__ __forceinline__ uint32_t ordered(float z) {
  const uint32_t bits = bits_of(z + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

__device__ __forceinline__ float z_of(uint32_t key) {
  return float_of(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

}  // namespace gptx
