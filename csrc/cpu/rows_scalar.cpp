// Plain C++, four lanes at a time so that the compiler may use whatever the CPU always has.
#include <algorithm>
#include <cmath>

#include "rows.h"

namespace gptx {
namespace {

struct Scalar {
  static constexpr int W = 4;
  float lane[W];

  template <class F>
  static Scalar each(F f) {
    Scalar out;
    for (int i = 0; i < W; ++i) out.lane[i] = f(i);
    return out;
  }
  static Scalar fill(float x) {
    return each([=](int) { return x; });
  }
  static Scalar positions() {
    return each([](int i) { return static_cast<float>(i); });
  }
  static Scalar load(const float* from) {
    return each([=](int i) { return from[i]; });
  }
  static Scalar load_part(const float* from, int64_t n, float rest) {
    return each([=](int i) { return i < n ? from[i] : rest; });
  }
  void store(float* to) const { std::copy(lane, lane + W, to); }
  void store_part(float* to, int64_t n) const { std::copy(lane, lane + n, to); }
};

inline Scalar add(Scalar a, Scalar b) {
  return Scalar::each([=](int i) { return a.lane[i] + b.lane[i]; });
}
inline Scalar mul(Scalar a, Scalar b) {
  return Scalar::each([=](int i) { return a.lane[i] * b.lane[i]; });
}
inline Scalar max(Scalar a, Scalar b) {
  return Scalar::each([=](int i) { return std::max(a.lane[i], b.lane[i]); });
}
inline Scalar fma(Scalar a, Scalar b, Scalar c) { return add(mul(a, b), c); }
inline float sum(Scalar a) { return (a.lane[0] + a.lane[1]) + (a.lane[2] + a.lane[3]); }
inline uint32_t at_least(Scalar a, Scalar b) {
  uint32_t bits = 0;
  for (int i = 0; i < Scalar::W; ++i) bits |= uint32_t(a.lane[i] >= b.lane[i]) << i;
  return bits;
}
inline uint32_t unordered(Scalar a) {
  uint32_t bits = 0;
  for (float x : a.lane) bits |= x != x;
  return bits;
}

}  // namespace
}  // namespace gptx

#include "rows_body.h"

namespace gptx {
const RowKernels scalar_rows = kernels_of<Scalar>();
}
