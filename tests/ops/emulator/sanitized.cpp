// Runs every kernel over rows of many sizes, on memory of exactly their size. Whatever the sanitizers
// find ends the program; it also checks that each row is a distribution over the keys it sees.
#include <cstdio>
#include <cstdlib>

#include "emulated_launch.h"

namespace {

using namespace gptx;

void require(bool holds, const char* what, const Rows& rows) {
  if (holds) return;
  std::fprintf(stderr, "%s: s=%d t=%d width=%d\n", what, rows.num_queries, rows.num_keys, rows.width);
  std::exit(1);
}

// Values of exactly their size, in pieces of 16 bytes and in others.
template <class T>
void over_kept(Number type, const Rows& rows, const int32_t* starts, const int32_t* kept,
               const float* weights) {
  using Bits = typename T::Bits;
  const int64_t b = rows.num_rows / rows.num_heads / rows.num_queries;
  const std::unique_ptr<float[]> grads(new float[rows.num_rows * rows.width]);
  for (const int head_dim : {3, 16}) {
    const bool whole = head_dim == 16;
    const auto strides = [&](int64_t s) {
      return Strides{rows.num_heads * s * head_dim, s * head_dim, head_dim};
    };
    const auto buffer = [&](int64_t s) {
      return std::unique_ptr<Bits[]>(new Bits[b * strides(s).of_batch]());
    };
    const auto values = buffer(rows.num_keys), out = buffer(rows.num_queries);
    const int log_lanes = whole ? 1 : 2;
    emulate_over_kept(SumArguments{rows, head_dim, log_lanes, kept, weights, values.get(),
                                   strides(rows.num_keys), out.get(), strides(rows.num_queries)},
                      type, whole);
    emulate_over_kept(KeptGradientArguments{rows, head_dim, log_lanes, kept, weights, values.get(),
                                            strides(rows.num_keys), out.get(),
                                            strides(rows.num_queries), grads.get()},
                      type, whole);
  }
  const std::unique_ptr<float[]> pairs(new float[rows.num_rows * rows.num_keys]());
  emulate(AddArguments{rows, starts, kept, grads.get(), pairs.get()});
}

template <class T>
void run(Number type, int num_queries, int num_keys, int top_k, int levels, bool documents,
         std::mt19937& random) {
  using Bits = typename T::Bits;
  const int b = 2, h = 1, width = top_k < num_keys ? top_k : num_keys;
  const Rows rows{int64_t{b} * h * num_queries, h, num_queries, num_keys, width, 1u << 30, 4.0f / 3, 9};
  const size_t num_pairs = rows.num_rows * num_keys, num_kept = rows.num_rows * width;
  const auto buffer = [&] { return std::unique_ptr<Bits[]>(new Bits[num_pairs]()); };
  const auto scores = buffer(), probs = buffer(), grad_probs = buffer(), grad_scores = buffer();
  const std::unique_ptr<int32_t[]> kept(new int32_t[num_kept]), starts(new int32_t[b * num_queries]);
  const std::unique_ptr<float[]> weights(new float[num_kept]), slopes(new float[h]{0.01f});
  for (size_t i = 0; i < num_pairs; ++i) {
    scores[i] = T::store(levels ? static_cast<float>(random() % levels) : static_cast<float>(random()) * 1e-9f);
    grad_probs[i] = T::store(static_cast<float>(random() % 100));
  }
  for (int i = 0; i < b * num_queries; ++i) starts[i] = static_cast<int>(random() % (num_keys + 1));

  const int32_t* row_start = documents ? starts.get() : nullptr;
  Bits* cleared = levels ? scores.get() : nullptr;
  emulate(ForwardArguments{rows, scores.get(), cleared, slopes.get(), row_start, probs.get(), kept.get(),
                           weights.get()}, type);
  emulate(BackwardArguments{rows, grad_probs.get(), kept.get(), weights.get(), grad_scores.get()}, type);
  // Wider rows only take longer.
  if (width <= 64) over_kept<T>(type, rows, row_start, kept.get(), weights.get());
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const int position = num_keys - num_queries + static_cast<int>(row % num_queries);
    const int start = documents ? starts[row / num_queries * num_queries + row % num_queries] : 0;
    const int seen = std::max(position - start + 1, 0);
    float sum = 0;
    for (int m = 0; m < width; ++m) {
      const int key = kept[row * width + m];
      require((key >= 0) == (m < seen), "a row keeps another number of keys", rows);
      if (key < 0) continue;
      require(start <= key && key <= position, "a key is kept that is not seen", rows);
      require(m == 0 || key > kept[row * width + m - 1], "kept keys are out of order", rows);
      sum += weights[row * width + m];
    }
    require(seen == 0 || std::fabs(sum - 1) < 1e-3f, "weights do not add up to one", rows);
  }
}

}  // namespace

// Given anything, it runs every case in every type; given nothing, every case in one of them.
int main(int num_arguments, char**) {
  std::mt19937 random(1);
  const emulator::Schedule schedules[] = {emulator::Schedule::kAscending, emulator::Schedule::kDescending,
                                          emulator::Schedule::kShuffled};
  const int sizes[][2] = {{5, 5}, {3, 37}, {9, 256}, {2, 515}, {3, 1024}, {2, 2047}, {2, 2048},
                          {2, 2052}, {1, 4097}, {1, 8192}, {1, 16384}};
  int turn = 0;
  for (const auto& [num_queries, num_keys] : sizes) {
    for (const int top_k : {1, 8, 33, 20000}) {
      const int levels = turn % 2 * 3;
      schedule = schedules[turn / 3 % 3];
      ++turn;
      // Eleven sizes by four widths: each type meets each kernel, and each width.
      const auto in_turn = [&](int number) { return num_arguments > 1 || turn % 3 == number; };
      if (in_turn(0)) run<Float32>(Number::kFloat32, num_queries, num_keys, top_k, levels, turn % 4 < 2, random);
      if (in_turn(1)) run<BFloat16>(Number::kBFloat16, num_queries, num_keys, top_k, levels, turn % 4 > 2, random);
      if (in_turn(2)) run<Float16>(Number::kFloat16, num_queries, num_keys, top_k, 3 - levels, turn % 4 < 2, random);
    }
  }
  std::puts("nothing found");
}
