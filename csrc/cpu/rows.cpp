#include "rows.h"

#include <algorithm>
#include <functional>

#include <c10/util/Exception.h>

namespace gptx {

// Here and not in rows_body.h: what the standard library's algorithms become is shared by all files.
void keep_largest(uint64_t* keys, int64_t num_keys, int64_t k) {
  if (num_keys - k > 16) {
    std::nth_element(keys, keys + k, keys + num_keys, std::greater<uint64_t>());
    std::sort(keys, keys + k, [](uint64_t a, uint64_t b) {
      return static_cast<uint32_t>(a) < static_cast<uint32_t>(b);
    });
    return;
  }
  for (; num_keys > k; --num_keys) {
    int64_t smallest = 0;
    for (int64_t m = 1; m < num_keys; ++m) smallest = keys[m] < keys[smallest] ? m : smallest;
    std::copy(keys + smallest + 1, keys + num_keys, keys + smallest);
  }
}

std::vector<std::string> row_variants() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) names.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
  names.push_back("scalar");
  return names;
}

const RowKernels& row_kernels(const std::string& variant) {
  static const std::vector<std::string> available = row_variants();
  for (const std::string& name : available) {
    if (variant != "best" && variant != name) continue;
#if defined(__x86_64__)
    if (name == "avx512") return avx512_rows;
    if (name == "avx2") return avx2_rows;
#endif
    return scalar_rows;
  }
  TORCH_CHECK(false, "this CPU cannot run the variant '", variant, "'");
}

}  // namespace gptx
