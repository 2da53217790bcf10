#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.h"

// From here on the compiler may use these instructions, before here it may not: a standard function
// compiled with them could replace the one that other files use.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma")
#endif

namespace gptx {
namespace {

struct Avx512 {
  static constexpr int W = 16, kRows = 14, kColumns = 2;
  __m512 lanes;

  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Avx512 fill(float x) { return {_mm512_set1_ps(x)}; }
  static Avx512 positions() {
    return {_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)};
  }
  static Avx512 load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Avx512 load_part(const float* from, int64_t n, float rest) {
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first(n), from)};
  }
  void store(float* to) const { _mm512_storeu_ps(to, lanes); }
  void store_part(float* to, int64_t n) const { _mm512_mask_storeu_ps(to, first(n), lanes); }

  struct Eight {
    __m512i keys;
    static Eight load(const int64_t* from) { return {_mm512_loadu_si512(from)}; }
    void store(int64_t* to) const { _mm512_storeu_si512(to, keys); }
    int64_t insert(int64_t key) {
      const __m512i added = _mm512_set1_epi64(key);
      const __m512i left = _mm512_alignr_epi64(keys, _mm512_set1_epi64(INT64_MAX), 7);
      const __m256i high = _mm512_extracti64x4_epi64(keys, 1);
      keys = _mm512_max_epi64(keys, _mm512_min_epi64(left, added));
      return std::min<int64_t>(_mm256_extract_epi64(high, 3), key);
    }
  };
};

inline Avx512 add(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline Avx512 mul(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline Avx512 fma(Avx512 a, Avx512 b, Avx512 c) {
  return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)};
}
inline Avx512 larger(Avx512 a, Avx512 b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
inline Avx512 power_of_two(Avx512 a) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a.lanes), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline Avx512 divide(Avx512 a, Avx512 b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
inline Avx512 with_sign_of(Avx512 a, Avx512 b) {
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(b.lanes), _mm512_set1_epi32(INT32_MIN));
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a.lanes), sign))};
}
inline float sum(Avx512 a) { return _mm512_reduce_add_ps(a.lanes); }
inline uint32_t not_at_most(Avx512 a, Avx512 b) {
  return _mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_NLE_UQ);
}
inline uint32_t unordered(Avx512 a) {
  return _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
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
const RowKernels avx512_rows = kernels_of<Avx512>();
}
#endif
