// Plain C++ in vectors of four, which the compiler maps to whatever the CPU always has.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.h"

namespace gptx {
namespace {

struct Scalar {
  static constexpr int W = 4, kRows = 6, kColumns = 2;
  typedef float Lanes __attribute__((vector_size(W * sizeof(float))));
  Lanes lanes;

  static Scalar fill(float x) { return {Lanes{x, x, x, x}}; }
  static Scalar positions() { return {Lanes{0, 1, 2, 3}}; }
  static Scalar load(const float* from) {
    Scalar out;
    __builtin_memcpy(&out.lanes, from, sizeof out.lanes);
    return out;
  }
  static Scalar load_part(const float* from, int64_t n, float rest) {
    Scalar out = fill(rest);
    for (int64_t i = 0; i < n; ++i) out.lanes[i] = from[i];
    return out;
  }
  void store(float* to) const { __builtin_memcpy(to, &lanes, sizeof lanes); }
  void store_part(float* to, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) to[i] = lanes[i];
  }

  struct Eight {
    int64_t keys[8];
    static Eight load(const int64_t* from) {
      Eight out;
      std::copy(from, from + 8, out.keys);
      return out;
    }
    void store(int64_t* to) const { std::copy(keys, keys + 8, to); }
    int64_t insert(int64_t key) {
      const int64_t last = keys[7];
      for (int m = 7; m > 0; --m) keys[m] = std::max(keys[m], std::min(keys[m - 1], key));
      keys[0] = std::max(keys[0], key);
      return std::min(last, key);
    }
  };
};

inline Scalar add(Scalar a, Scalar b) { return {a.lanes + b.lanes}; }
inline Scalar mul(Scalar a, Scalar b) { return {a.lanes * b.lanes}; }
inline Scalar fma(Scalar a, Scalar b, Scalar c) { return {a.lanes * b.lanes + c.lanes}; }
inline Scalar larger(Scalar a, Scalar b) {
  for (int i = 0; i < Scalar::W; ++i) b.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
  return b;
}
inline Scalar power_of_two(Scalar a) {
  for (int i = 0; i < Scalar::W; ++i) {
    // Converting NaN is undefined. The other factor of the product is NaN too, so the result is NaN.
    const int32_t n = a.lanes[i] == a.lanes[i] ? static_cast<int32_t>(a.lanes[i]) : 0;
    const int32_t bits = (n + 127) << 23;
    __builtin_memcpy(&a.lanes[i], &bits, sizeof bits);
  }
  return a;
}
inline Scalar divide(Scalar a, Scalar b) { return {a.lanes / b.lanes}; }
inline Scalar with_sign_of(Scalar a, Scalar b) {
  for (int i = 0; i < Scalar::W; ++i) a.lanes[i] = std::copysign(a.lanes[i], b.lanes[i]);
  return a;
}
inline float sum(Scalar a) { return (a.lanes[0] + a.lanes[1]) + (a.lanes[2] + a.lanes[3]); }
inline uint32_t not_at_most(Scalar a, Scalar b) {
  uint32_t bits = 0;
  for (int i = 0; i < Scalar::W; ++i) bits |= uint32_t(!(a.lanes[i] <= b.lanes[i])) << i;
  return bits;
}
inline uint32_t unordered(Scalar a) {
  uint32_t bits = 0;
  for (int i = 0; i < Scalar::W; ++i) bits |= uint32_t(a.lanes[i] != a.lanes[i]) << i;
  return bits;
}

}  // namespace
}  // namespace gptx

#include "row_kernels-inl.h"

namespace gptx {
const RowKernels scalar_rows = kernels_of<Scalar>();
}
