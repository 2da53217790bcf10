// What every op that selects keys is told, and the dropping of weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../include/philox.h"

namespace gptx {

struct Selection {
  std::optional<at::Tensor> slopes;     // (h) float32
  int64_t top_k;
  std::optional<at::Tensor> row_start;  // (b, s) int32
  double dropout_p;
  int64_t seed;
  std::string variant;

  std::vector<float> slope_of_heads(int64_t num_heads) const {
    std::vector<float> values(num_heads, 0.0f);
    if (slopes) {
      const at::Tensor dense = slopes->contiguous();
      std::copy_n(dense.data_ptr<float>(), num_heads, values.begin());
    }
    return values;
  }
};

// First visible keys, (b, s), or null pointers for the first of all. Those before the first key or
// behind the last mean all keys or none.
class RowStarts {
 public:
  RowStarts(const std::optional<at::Tensor>& row_start, int64_t num_keys)
      : tensor_(row_start ? at::clamp(*row_start, 0, num_keys).contiguous() : at::Tensor()) {}
  const int32_t* batch(int64_t index) const {
    return tensor_.defined() ? tensor_.data_ptr<int32_t>() + index * tensor_.size(1) : nullptr;
  }

 private:
  at::Tensor tensor_;
};

class Dropout {
 public:
  explicit Dropout(double dropout_p, int64_t seed)
      : below_(drop_below(dropout_p)),
        factor_(static_cast<float>(1 / (1 - dropout_p))),
        seed_(static_cast<uint64_t>(seed)) {}

  // out[m] = values[m], times 0 or 1 / (1 - dropout_p); out may be values.
  void apply(int64_t batch, int64_t head, int64_t position, const int32_t* kept, const float* values,
             int64_t num_kept, float* out) const {
    if (below_ == 0) {
      if (out != values) std::copy_n(values, num_kept, out);
      return;
    }
    for (int64_t m = 0; m < num_kept; ++m) {
      const bool dropped = philox(seed_, static_cast<uint32_t>(batch), static_cast<uint32_t>(head),
                                  static_cast<uint32_t>(position),
                                  static_cast<uint32_t>(kept[m])) < below_;
      out[m] = values[m] * (dropped ? 0.0f : factor_);
    }
  }

 private:
  uint32_t below_;
  float factor_;
  uint64_t seed_;
};

// How many of a row's slots hold a key.
inline int64_t num_used(const int32_t* kept, int64_t width) {
  while (width > 0 && kept[width - 1] < 0) --width;
  return width;
}

// Blocks of queries are handed out first, last, second, last but one, ...: later queries see more
// keys, and so every range of tasks has its share of both.
inline int64_t interleave(int64_t task, int64_t num_blocks) {
  return task % 2 ? num_blocks - 1 - task / 2 : task / 2;
}

}  // namespace gptx
