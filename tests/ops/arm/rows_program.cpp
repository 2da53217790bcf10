// Prints the bits that the plain C++ form of every row kernel computes, a line for each.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/simd/dispatch.h"

namespace {

using Floats = std::vector<float>;

uint64_t state = 1;

// In [-2, 2).
Floats draw(int64_t n) {
  Floats found(n);
  for (float& x : found) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = float(int32_t(state >> 32)) / float(1 << 30);
  }
  return found;
}

template <class T>
void show(const char* name, const std::vector<T>& found) {
  static_assert(sizeof(T) == 4);
  uint64_t sum = 14695981039346656037u;
  for (const T& x : found) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    sum = (sum ^ bits) * 1099511628211u;
  }
  std::printf("%s %zu %016llx\n", name, found.size(), static_cast<unsigned long long>(sum));
}

void choose(const gptx::RowKernels& rows, int64_t top_k) {
  const int64_t s = 50, t = 70, d = 13;
  const Floats q = draw(s * d), k = draw(t * d), v = draw(t * d), x = draw(d);
  Floats carry = draw(s * t), weights(s * top_k);
  std::vector<int32_t> kept(s * top_k);
  gptx::Panels panels(t, d);
  rows.pack(k.data(), d, t, d, panels);
  gptx::ChoiceScratch scratch(top_k);
  const gptx::Queries queries{q.data(), d,     s,     t - s,        nullptr,      d,
                              0.25f,    0.03f, top_k, carry.data(), carry.data(), false};
  rows.choose(queries, panels, t, top_k, scratch, kept.data(), weights.data());
  show("pack", panels.data);
  show("carry", carry);
  show("kept", kept);
  show("weights", weights);
  Floats sum(d), products(top_k), grown = v;
  const int32_t* last = kept.data() + (s - 1) * top_k;
  rows.weighted_sum(v.data(), d, last, weights.data(), top_k, d, sum.data());
  rows.dot_products(v.data(), d, last, x.data(), top_k, d, products.data());
  rows.add_multiples(grown.data(), d, last, weights.data(), x.data(), top_k, d);
  show("weighted_sum", sum);
  show("dot_products", products);
  show("add_multiples", grown);
}

}  // namespace

int main() {
  const gptx::RowKernels& rows = gptx::scalar_rows;
  choose(rows, 8);
  choose(rows, 66);  // more than a sorted list holds

  const int64_t n = 131, m = 37, f = 45;
  const Floats x = draw(n * m), grad = draw(n * f), bias = draw(f);
  Floats weight = draw(f * m), sums(f), copied(n * m), out(n * f), scratch(gptx::WeightGradient::kScratch);
  rows.copy_rows(x.data(), m, n, m, copied.data(), m);
  show("copy_rows", copied);
  for (const bool turned : {false, true}) {
    const gptx::LinearProduct sought{x.data(), m, n,           weight.data(), turned ? 1 : m, turned ? f : 1,
                                     f,        m, bias.data(), out.data()};
    const int64_t panels = (f + rows.panel_width - 1) / rows.panel_width;
    Floats packed(panels * rows.panel_width * m);
    for (int64_t panel = 0; panel < panels; ++panel) rows.pack_weight(sought, panel, packed.data());
    rows.multiply_rows(sought, packed.data(), 0, n);
    show("multiply_rows", out);
  }
  rows.add_products(grad.data(), f, 1, n, weight.data(), m, f, m, 0.5f, copied.data(), m);
  show("add_products", copied);
  rows.add_weight_gradient({grad.data(), x.data(), n, f, m, weight.data(), sums.data()}, 0, f,
                           scratch.data());
  show("add_weight_gradient", weight);
  show("bias", sums);
  Floats row = draw(301), before = draw(301), after(301);
  const gptx::ExpSum found = rows.softmax(row.data(), 301);
  show("softmax", row);
  show("sums", Floats{found.largest, found.sum});
  rows.add_gelu(before.data(), row.data(), 301, after.data());
  show("add_gelu", after);
  rows.gelu_gradient(before.data(), row.data(), 301, after.data());
  show("gelu_gradient", after);
}
