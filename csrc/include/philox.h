// The counter-based random bits that decide which attention weights are dropped: the same ones for
// the same (seed, b, h, i, j) in every kernel and in plain PyTorch (megatron_gptx/ops/attention/dropout.py).
//
// Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3,
// Philox-4x32 of 10 rounds.
#pragma once

#include "device.h"

namespace gptx {

// The first of the four words of counter (j, i, head, batch) under the two halves of the seed.
GPTX_HOST_DEVICE uint32_t philox(uint64_t seed, uint32_t batch, uint32_t head, uint32_t i, uint32_t j) {
  uint32_t c0 = j, c1 = i, c2 = head, c3 = batch;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

// A weight is dropped where its word is below this.
GPTX_HOST_DEVICE uint32_t drop_below(double dropout_p) {
  return static_cast<uint32_t>(dropout_p * 4294967296.0);
}

}  // namespace gptx
