// Loops over rows: what a few queries need of their keys, the choice of the best ones and sums over
// those; what the loss needs of a token's logits; and GELU.
//
// Every vector width has its own copy of these functions; the widest that the CPU runs is chosen, or the
// one that GPTX_CPU_CAPABILITY names. All of them take float32 and rows that lie `stride` floats apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gptx {

// Keys lie in panels of this many, element by element: the lanes of a vector are neighbouring keys.
constexpr int64_t kPanel = 32;

inline int64_t num_panels(int64_t num_keys) { return (num_keys + kPanel - 1) / kPanel; }

// The keys of one head, transposed panel by panel, and the length of the longest in each panel.
struct Panels {
  Panels(int64_t num_keys, int64_t d)
      : data(num_panels(num_keys) * kPanel * d), longest(num_panels(num_keys)) {}
  std::vector<float> data;
  std::vector<double> longest;
};

// Consecutive queries of one head and what they may look at. The score of query i for key j is
// scale * q_i . k_j + prev_ij, and z adds slope * (j - i) to it.
struct Queries {
  const float* rows;        // (num_rows, d); with d = 0 the scores are the previous ones
  int64_t stride;
  int64_t num_rows;
  int64_t position;         // of the first one, among the keys
  const int32_t* row_start; // (num_rows) first visible key of each, or null for the first of all
  int64_t d;
  float scale;
  float slope;
  int64_t top_k;
  const float* prev;        // (num_rows, num_keys), or null
  float* carry;             // takes the scores of visible keys; may be prev; or null
  bool skip;                // pass over panels in which no key can be among the best
};

// Whether so many best keys are held as a sorted list.
inline bool is_sorted(int64_t top_k) { return top_k <= 64; }

// Room for the best keys of as many queries as any variant takes at a time.
struct ChoiceScratch {
  static constexpr int64_t kMostRows = 16;
  explicit ChoiceScratch(int64_t top_k)
      // A sorted list fills whole vectors.
      : capacity(is_sorted(top_k) ? (top_k + 7) / 8 * 8 : 2 * top_k), keys(kMostRows * capacity) {}
  int64_t capacity;  // of one query
  std::vector<int64_t> keys;
};

// Adds to the gradients of a projection from m inputs to f outputs.
struct WeightGradient {
  // Rows per turn: few enough that their sums stay accurate. Inputs per turn: their packed rows fit into a
  // core's second-level cache. Outputs per turn: a multiple of every variant's kRows.
  static constexpr int64_t kTerms = 256, kInputs = 256, kOutputs = 84;
  static constexpr int64_t kScratch = kTerms * (kInputs + kOutputs);
  const float* grad;  // (num_rows, num_outputs)
  const float* x;     // (num_rows, num_inputs)
  int64_t num_rows;
  int64_t num_outputs;
  int64_t num_inputs;
  float* weight;      // (num_outputs, num_inputs)
  float* bias;        // (num_outputs), or null
};

// out (num_rows, num_outputs) = x (num_rows, num_inputs) times a weight, whose element (output, input) lies
// output * output_step + input * input_step after its first; one of the steps is 1.
struct LinearProduct {
  // Terms per turn: few enough that their sums stay accurate.
  static constexpr int64_t kTerms = 256;
  // Of two vectors, whatever their width.
  static constexpr int64_t kWidestPanel = 32;
  const float* x;
  int64_t x_stride;
  int64_t num_rows;
  const float* weight;
  int64_t output_step;
  int64_t input_step;
  int64_t num_outputs;
  int64_t num_inputs;
  const float* bias;  // (num_outputs), or null
  float* out;
};

struct ExpSum {
  float largest, sum;
};

struct RowKernels {
  // Transposes (num_keys, d) rows, filling the last panel up with zeros.
  void (*pack)(const float* rows, int64_t stride, int64_t num_keys, int64_t d, Panels& panels);
  // Writes, for each query, its min(top_k, visible) keys with the largest z in ascending order, and
  // their softmax; (num_rows, width) each, where unused slots become -1 and 0. Of equal z the larger
  // j wins. Where a visible z is NaN all weights are, and where no z is above -inf all are 0.
  void (*choose)(const Queries& queries, const Panels& panels, int64_t num_keys, int64_t width,
                 ChoiceScratch& scratch, int32_t* kept, float* weights);
  // out = sum over m of weights[m] * rows[kept[m]]
  void (*weighted_sum)(const float* rows, int64_t stride, const int32_t* kept,
                       const float* weights, int64_t num_kept, int64_t d, float* out);
  // out[m] = x . rows[kept[m]]
  void (*dot_products)(const float* rows, int64_t stride, const int32_t* kept, const float* x,
                       int64_t num_kept, int64_t d, float* out);
  // rows[kept[m]] += weights[m] * x
  void (*add_multiples)(float* rows, int64_t stride, const int32_t* kept, const float* weights,
                        const float* x, int64_t num_kept, int64_t d);
  // Rows of a few floats each: one memcpy per row would be slower.
  void (*copy_rows)(const float* from, int64_t from_stride, int64_t num_rows, int64_t d, float* to,
                    int64_t to_stride);
  // out[m] += sum over n of scale * a(m, n) * rows[n], (num_out, d), where a(m, n) lies m * out_step +
  // n * row_step after a.
  void (*add_products)(const float* a, int64_t out_step, int64_t row_step, int64_t num_out,
                       const float* rows, int64_t stride, int64_t num_rows, int64_t d, float scale,
                       float* out, int64_t out_stride);
  // The gradients of the outputs from begin to end.
  void (*add_weight_gradient)(const WeightGradient& sought, int64_t begin, int64_t end, float* scratch);
  // Writes one panel of the weight's outputs, of which there are panel_width each.
  void (*pack_weight)(const LinearProduct& sought, int64_t panel, float* packed);
  // The products of the rows from begin to end with all panels.
  void (*multiply_rows)(const LinearProduct& sought, const float* packed, int64_t begin, int64_t end);
  // row = softmax(row); returns its largest element of before and the sum over exp(row - largest). The
  // sum and the row become NaN where the row holds NaN or +inf, or only -inf.
  ExpSum (*softmax)(float* row, int64_t n);
  // row += bias, unless that is null; out = gelu(row)
  void (*add_gelu)(float* row, const float* bias, int64_t n, float* out);
  // out = grad * gelu'(row)
  void (*gelu_gradient)(const float* row, const float* grad, int64_t n, float* out);
  int64_t panel_width;
};

// Moves the k largest of the keys to the front, the smallest of them last.
void keep_largest(int64_t* keys, int64_t num_keys, int64_t k);

void sort_ascending(int64_t* keys, int64_t num_keys);

extern const RowKernels scalar_rows;
#if defined(__x86_64__)
extern const RowKernels avx2_rows;
extern const RowKernels avx512_rows;
#endif

// The names that this CPU can run, the quickest first.
std::vector<std::string> row_variants();

// The name that "best" stands for in this process: the one in GPTX_CPU_CAPABILITY, or else the
// quickest; throws where the variable holds anything that the CPU cannot run.
const std::string& cpu_capability();

// The functions of one variant, or of cpu_capability() for "best"; throws if the CPU lacks it.
const RowKernels& row_kernels(const std::string& variant);

}  // namespace gptx
