#include "dispatch.h"

#include <algorithm>
#include <functional>

namespace gptx {

// These two here and not in a body: what the standard library's algorithms become is shared by all
// files, so that no vector instruction may get into it.
void keep_largest(int64_t* keys, int64_t num_keys, int64_t k) {
  std::nth_element(keys, keys + k - 1, keys + num_keys, std::greater<int64_t>());
}

void sort_ascending(int64_t* keys, int64_t num_keys) { std::sort(keys, keys + num_keys); }

}  // namespace gptx
