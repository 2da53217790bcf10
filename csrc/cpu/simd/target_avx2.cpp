#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.h"

// From here on the compiler may use these instructions, before here it may not: a standard function
// compiled with them could replace the one that other files use.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace gptx {
namespace {

struct Avx2 {
  static constexpr int W = 8, kRows = 6, kColumns = 2;
  __m256 lanes;

  static __m256i first(int64_t n) {
    const __m256i position = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), position);
  }
  static Avx2 fill(float x) { return {_mm256_set1_ps(x)}; }
  static Avx2 positions() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }
  static Avx2 load(const float* from) { return {_mm256_loadu_ps(from)}; }
  // Some CPUs store by a mask thirty times as slowly as whole vectors, which are nearly all there are.
  static Avx2 load_part(const float* from, int64_t n, float rest) {
    if (n >= W) return load(from);
    const __m256i taken = first(n);
    const __m256 values = _mm256_maskload_ps(from, taken);
    return {_mm256_blendv_ps(_mm256_set1_ps(rest), values, _mm256_castsi256_ps(taken))};
  }
  void store(float* to) const { _mm256_storeu_ps(to, lanes); }
  void store_part(float* to, int64_t n) const {
    if (n >= W)
      store(to);
    else
      _mm256_maskstore_ps(to, first(n), lanes);
  }

  struct Eight {
    __m256i low, high;
    static __m256i larger(__m256i a, __m256i b) {
      return _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
    }
    static __m256i smaller(__m256i a, __m256i b) {
      return _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b));
    }
    // Keys one place further, the last of `before` in the first.
    static __m256i shift(__m256i keys, __m256i before) {
      return _mm256_alignr_epi8(keys, _mm256_permute2x128_si256(before, keys, 0x21), 8);
    }
    static Eight load(const int64_t* from) {
      const __m256i* place = reinterpret_cast<const __m256i*>(from);
      return {_mm256_loadu_si256(place), _mm256_loadu_si256(place + 1)};
    }
    void store(int64_t* to) const {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + 1, high);
    }
    int64_t insert(int64_t key) {
      const __m256i added = _mm256_set1_epi64x(key);
      const int64_t last = _mm256_extract_epi64(high, 3);
      high = larger(high, smaller(shift(high, low), added));
      low = larger(low, smaller(shift(low, _mm256_set1_epi64x(INT64_MAX)), added));
      return std::min(last, key);
    }
  };
};

inline Avx2 add(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
inline Avx2 mul(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
inline Avx2 fma(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline Avx2 larger(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
inline Avx2 power_of_two(Avx2 a) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.lanes), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline Avx2 divide(Avx2 a, Avx2 b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
inline Avx2 with_sign_of(Avx2 a, Avx2 b) {
  return {_mm256_or_ps(a.lanes, _mm256_and_ps(b.lanes, _mm256_set1_ps(-0.0f)))};
}
inline float sum(Avx2 a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
inline uint32_t not_at_most(Avx2 a, Avx2 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.lanes, b.lanes, _CMP_NLE_UQ));
}
inline uint32_t unordered(Avx2 a) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
}

}  // namespace
}  // namespace gptx

#include "row_kernels-inl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace gptx {
const RowKernels avx2_rows = kernels_of<Avx2>();
}
#endif
