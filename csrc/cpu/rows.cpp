#include "rows.h"

#include <algorithm>
#include <cstdlib>
#include <functional>

#include <c10/util/Exception.h>

namespace gptx {

// These two here and not in a body: what the standard library's algorithms become is shared by all
// files, so that no vector instruction may get into it.
void keep_largest(int64_t* keys, int64_t num_keys, int64_t k) {
  std::nth_element(keys, keys + k - 1, keys + num_keys, std::greater<int64_t>());
}

void sort_ascending(int64_t* keys, int64_t num_keys) { std::sort(keys, keys + num_keys); }

std::vector<std::string> row_variants() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) names.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
  names.push_back("default");
  return names;
}

const std::string& cpu_capability() {
  static const std::string chosen = [] {
    const std::vector<std::string> available = row_variants();
    const char* asked = std::getenv("GPTX_CPU_CAPABILITY");
    if (!asked || !*asked) return available.front();
    std::string names;
    for (const std::string& name : available) {
      if (name == asked) return name;
      names += (names.empty() ? "" : ", ") + name;
    }
    const std::vector<std::string> known{"avx512", "avx2", "default"};
    TORCH_CHECK(std::find(known.begin(), known.end(), asked) != known.end(),
                "GPTX_CPU_CAPABILITY must be avx512, avx2 or default, got '", asked, "'");
    TORCH_CHECK(false, "GPTX_CPU_CAPABILITY is ", asked, ", which this CPU lacks; it has ", names);
  }();
  return chosen;
}

const RowKernels& row_kernels(const std::string& variant) {
  static const std::vector<std::string> available = row_variants();
  const std::string& name = variant == "best" ? cpu_capability() : variant;
  TORCH_CHECK(std::find(available.begin(), available.end(), name) != available.end(),
              "this CPU cannot run the variant '", name, "'");
#if defined(__x86_64__)
  if (name == "avx512") return avx512_rows;
  if (name == "avx2") return avx2_rows;
#endif
  return scalar_rows;
}

}  // namespace gptx
