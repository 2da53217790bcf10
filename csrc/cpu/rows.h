// What one query needs of its keys: the choice of k of them, and sums over those.
//
// Every vector width has its own copy of these functions; the widest that the CPU runs is chosen
// when the program starts. All of them take float32 and rows that lie `stride` floats apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gptx {

// Room that `choose` works in; t floats and t keys, rounded up to a whole vector.
struct RowScratch {
  explicit RowScratch(int64_t num_keys) : z(num_keys + 16), keys(num_keys) {}
  std::vector<float> z;
  std::vector<uint64_t> keys;
};

struct RowKernels {
  // Writes the min(top_k, count) keys with the largest z = score + slope * (j - (count - 1)), in
  // ascending order, and their softmax. Of equal z the larger j wins. Where a z is NaN, the weights
  // are NaN.
  void (*choose)(const float* scores, int64_t count, float slope, int64_t top_k,
                 RowScratch& scratch, int32_t* kept, float* weights);
  // out = sum over m of weights[m] * rows[kept[m]]
  void (*weighted_sum)(const float* rows, int64_t stride, const int32_t* kept,
                       const float* weights, int64_t num_kept, int64_t d, float* out);
  // out[m] = x . rows[kept[m]]
  void (*dot_products)(const float* rows, int64_t stride, const int32_t* kept, const float* x,
                       int64_t num_kept, int64_t d, float* out);
  // rows[kept[m]] += weights[m] * x
  void (*add_multiples)(float* rows, int64_t stride, const int32_t* kept, const float* weights,
                        const float* x, int64_t num_kept, int64_t d);
};

// Leaves the k largest of the keys, in ascending order of their low 32 bits, which is how they come.
void keep_largest(uint64_t* keys, int64_t num_keys, int64_t k);

extern const RowKernels scalar_rows;
#if defined(__x86_64__)
extern const RowKernels avx2_rows;
extern const RowKernels avx512_rows;
#endif

// The names that this CPU can run, the quickest first.
std::vector<std::string> row_variants();

// The functions of one variant, or of the quickest for "best"; throws where the CPU has it not.
const RowKernels& row_kernels(const std::string& variant);

}  // namespace gptx
