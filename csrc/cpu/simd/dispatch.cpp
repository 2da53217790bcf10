// Which form of the row kernels runs.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>

#include "dispatch.h"

namespace gptx {

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
