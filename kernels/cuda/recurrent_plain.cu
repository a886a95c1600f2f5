// Recurrent sequences one step and one kernel at a time: what runs where a persistent kernel finds
// no room for its weights, and the form to read first. Each step is a product
// (`recurrent_product*`) and a pointwise kernel (`*_cell_*_plain`); the launcher calls them in
// turn.
//
// The step up, in recurrent_seq.cuh: one launch for the whole sequence, weights loaded once.
#include "recurrent_seq.cuh"

// Makes the exchange of a persistent kernel ready: `filler` is filled with 0xff, `slot` [batch,
// pitch] takes h0 [batch, hidden] (zero if null) if it is there, `counters` become zero.
template <class T>
__device__ __forceinline__ void prepare_exchange(uint4 *filler, i64 pieces, T *slot,
                                                 const float *h0, int batch,
                                                 int hidden, int pitch, u32 *counters,
                                                 int counts) {
  i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x, all = (i64)gridDim.x * blockDim.x;
  for (i64 i = first; i < pieces; i += all) filler[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
  if (slot)
    for (i64 i = first; i < (i64)batch * pitch; i += all) {
      int row = i / pitch, unit = i % pitch;
      float x = unit < hidden && h0 ? h0[(i64)row * hidden + unit] : 0.f;
      // Of NaN there is one that means "not yet written".
      slot[i] = from_float<T>(x == x ? x : __uint_as_float(0x7fffffff));
    }
  for (i64 i = first; i < counts; i += all) counters[i] = 0;
}
extern "C" __global__ void recurrent_prepare_bf16(uint4 *filler, i64 pieces, bf16 *slot,
                                                  const float *h0, int batch, int hidden, int pitch,
                                                  u32 *counters, int counts) {
  prepare_exchange(filler, pieces, slot, h0, batch, hidden, pitch, counters, counts);
}
extern "C" __global__ void recurrent_prepare_f32(uint4 *filler, i64 pieces, float *slot,
                                                 const float *h0, int batch, int hidden, int pitch,
                                                 u32 *counters, int counts) {
  prepare_exchange(filler, pieces, slot, h0, batch, hidden, pitch, counters, counts);
}

// w_hh [gates * hidden, hidden] in the order in which a persistent kernel reads it. A block's row m
// is gate m / units of its unit m % units, and k is a hidden unit; if `turned`, m is a unit and k
// a gate's row at [gates, pitch].
template <class T>
struct Weight {
  const T *w;
  int gates, hidden, pitch, units, turned;

  __device__ __forceinline__ T at(int slice, int m, int k) const {
    int unit = slice * units + (turned ? m : m % units);
    int gate = turned ? k / pitch : m / units, from = turned ? k % pitch : k;
    if (unit >= hidden || from >= hidden || gate >= gates) return T{};
    return turned ? w[((i64)gate * hidden + from) * hidden + unit]
                  : w[((i64)gate * hidden + unit) * hidden + from];
  }
};

// packed [slices][warp][chunk][tile][half][lane]: the four words of an mma A fragment. `span`
// chunks of 32 k belong to a warp; lane t of a quad has k = 8t..8t+7 of each, four in each half.
extern "C" __global__ void recurrent_weights_bf16(const bf16 *w, uint4 *packed, i64 pieces,
                                                  int gates, int hidden, int pitch, int units,
                                                  int tiles, int span, int turned) {
  Weight<bf16> weight{w, gates, hidden, pitch, units, turned};
  i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pieces) return;
  int lane = i % 32, half = i / 32 % 2;
  i64 rest = i / 64;
  int tile = rest % tiles;
  rest /= tiles;
  // Chunks of all warps follow each other.
  int chunk = rest % (span * SEQ_WARPS), slice = rest / (span * SEQ_WARPS);
  int m = tile * 16 + lane / 4, k = chunk * 32 + lane % 4 * 8 + half * 4;
  auto pair = [&](int m, int k) {
    return pack_bf16(weight.at(slice, m, k), weight.at(slice, m, k + 1));
  };
  packed[i] = make_uint4(pair(m, k), pair(m + 8, k), pair(m, k + 2), pair(m + 8, k + 2));
}

// packed [slices][length][m_count].
extern "C" __global__ void recurrent_weights_f32(const float *w, float *packed, i64 pieces,
                                                 int gates, int hidden, int pitch, int units,
                                                 int m_count, int length, int turned) {
  Weight<float> weight{w, gates, hidden, pitch, units, turned};
  i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pieces) return;
  i64 rest = i / m_count;
  packed[i] = weight.at(rest / length, i % m_count, rest % length);
}

// Rows of `width` floats to rows of `pitch` elements, zero behind: what a persistent kernel would
// have left in its exchange.
template <class T>
__device__ __forceinline__ void pack_rows(const float *x, T *y, i64 rows, int width, int pitch) {
  i64 all = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * pitch; i += all)
    y[i] = from_float<T>(i % pitch < width ? x[i / pitch * width + i % pitch] : 0.f);
}
extern "C" __global__ void recurrent_pack_bf16_plain(const float *x, bf16 *y, i64 rows, int width,
                                                     int pitch) {
  pack_rows(x, y, rows, width, pitch);
}
extern "C" __global__ void recurrent_pack_f32_plain(const float *x, float *y, i64 rows, int width,
                                                    int pitch) {
  pack_rows(x, y, rows, width, pitch);
}

// c [m, n] (+)= a [m, k] w (+ bias): w is [n, k], or [k, n] if TURNED; `a` is rounded to the
// numbers of `w`. 256 threads, a tile of 16 x 64.
template <class T, bool TURNED>
__device__ __forceinline__ void product_plain(const float *a, const T *w, const float *bias,
                                              float *c, int m, int n, int k, int add) {
  constexpr int ROWS = 16, COLUMNS = 64, DEPTH = 32;
  DYN_SMEM(float, smem);
  float *a_tile = smem, *w_tile = smem + DEPTH * (ROWS + 1);  // [k][m + 1], [k][n + 1]
  int row0 = blockIdx.y * ROWS, column0 = blockIdx.x * COLUMNS;
  int row = threadIdx.x / 16, column = threadIdx.x % 16;
  float sums[4] = {};
  for (int k0 = 0; k0 < k; k0 += DEPTH) {
    for (int i = threadIdx.x; i < ROWS * DEPTH; i += 256) {
      int r = row0 + i / DEPTH, at = k0 + i % DEPTH;
      a_tile[i % DEPTH * (ROWS + 1) + i / DEPTH] =
          r < m && at < k ? to_float(from_float<T>(a[(i64)r * k + at])) : 0.f;
    }
    for (int i = threadIdx.x; i < COLUMNS * DEPTH; i += 256) {
      int j = TURNED ? i % COLUMNS : i / DEPTH, p = TURNED ? i / COLUMNS : i % DEPTH;
      bool inside = column0 + j < n && k0 + p < k;
      i64 at = TURNED ? (i64)(k0 + p) * n + column0 + j : (i64)(column0 + j) * k + k0 + p;
      w_tile[p * (COLUMNS + 1) + j] = inside ? to_float(w[at]) : 0.f;
    }
    __syncthreads();
    for (int p = 0; p < DEPTH; p++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        sums[j] += a_tile[p * (ROWS + 1) + row] * w_tile[p * (COLUMNS + 1) + column + 16 * j];
    __syncthreads();
  }
  if (row0 + row >= m) return;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int to = column0 + column + 16 * j;
    if (to >= n) continue;
    float *at = c + (i64)(row0 + row) * n + to;
    *at = sums[j] + (bias ? bias[to] : 0.f) + (add ? *at : 0.f);
  }
}
#define PRODUCT(NAME, T, TURNED)                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      NAME(const float *a, const T *w, const float *bias, float *c, int m, int n, int k,          \
           int add) {                                                                             \
    product_plain<T, TURNED>(a, w, bias, c, m, n, k, add);                                        \
  }
PRODUCT(recurrent_product_f32_plain, float, false)
PRODUCT(recurrent_product_bf16_plain, bf16, false)
PRODUCT(recurrent_product_turned_f32_plain, float, true)
PRODUCT(recurrent_product_turned_bf16_plain, bf16, true)

// One thread for each cell of [batch, hidden]; `at` is the cell, `row` its row of gates.
#define FOR_CELL(G)                                                         \
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;                      \
  if (at >= (i64)batch * hidden) return;                                    \
  i64 row = at / hidden * (G) * (i64)hidden + at % hidden;

// gates [batch, 4 * hidden]: finished sums on entry, activated i, f, g, o on return.
extern "C" __global__ void lstm_cell_forward_plain(float *gates, const float *c_prev, float *c,
                                                   float *h, int batch, int hidden) {
  FOR_CELL(4)
  float i = sigmoid(gates[row]), f = sigmoid(gates[row + hidden]);
  float g = tanh_by_exp(gates[row + 2 * hidden]), o = sigmoid(gates[row + 3 * hidden]);
  float cell = f * c_prev[at] + i * g;
  gates[row] = i;
  gates[row + hidden] = f;
  gates[row + 2 * hidden] = g;
  gates[row + 3 * hidden] = o;
  c[at] = cell;
  h[at] = o * tanh_by_exp(cell);
}

// gates: activated on entry, the gradient of the sums on return; d_c_next is read and written; d_c
// may be null. d_h_next is what the step after sends.
extern "C" __global__ void lstm_cell_backward_plain(float *gates, const float *c_prev,
                                                    const float *c, const float *d_h,
                                                    const float *d_c, const float *d_h_next,
                                                    float *d_c_next, int batch, int hidden) {
  FOR_CELL(4)
  float i = gates[row], f = gates[row + hidden], g = gates[row + 2 * hidden];
  float o = gates[row + 3 * hidden];
  float tanh_c = tanh_by_exp(c[at]), dh = d_h[at] + d_h_next[at];
  float dc = d_c_next[at] + (d_c ? d_c[at] : 0.f) + dh * o * (1.f - tanh_c * tanh_c);
  gates[row] = dc * g * i * (1.f - i);
  gates[row + hidden] = dc * c_prev[at] * f * (1.f - f);
  gates[row + 2 * hidden] = dc * i * (1.f - g * g);
  gates[row + 3 * hidden] = dh * tanh_c * o * (1.f - o);
  d_c_next[at] = dc * f;
}

// gates [batch, 3 * hidden]: the input part on entry, activated r, z, n on return; rec likewise,
// the recurrent part with its bias; h_n takes that of n.
extern "C" __global__ void gru_cell_forward_plain(float *gates, const float *rec,
                                                  const float *h_prev, float *h, float *h_n,
                                                  int batch, int hidden) {
  FOR_CELL(3)
  float r = sigmoid(gates[row] + rec[row]);
  float z = sigmoid(gates[row + hidden] + rec[row + hidden]);
  float of_n = rec[row + 2 * hidden];
  float n = tanh_by_exp(gates[row + 2 * hidden] + r * of_n);
  gates[row] = r;
  gates[row + hidden] = z;
  gates[row + 2 * hidden] = n;
  h_n[at] = of_n;
  h[at] = n + z * (h_prev[at] - n);
}

// gates: activated on entry, the gradient of the input part on return; d_rec that of the recurrent
// part. d_h_next: on entry what the step after sends, on return z d_h, to which d_rec W_hh is
// added.
extern "C" __global__ void gru_cell_backward_plain(float *gates, float *d_rec, const float *h_prev,
                                                   const float *h_n, const float *d_h,
                                                   float *d_h_next, int batch, int hidden) {
  FOR_CELL(3)
  float r = gates[row], z = gates[row + hidden], n = gates[row + 2 * hidden];
  float dh = d_h[at] + d_h_next[at];
  float d_new = dh * (1.f - z) * (1.f - n * n);
  float d_r = d_new * h_n[at] * r * (1.f - r), d_z = dh * (h_prev[at] - n) * z * (1.f - z);
  gates[row] = d_rec[row] = d_r;
  gates[row + hidden] = d_rec[row + hidden] = d_z;
  gates[row + 2 * hidden] = d_new;
  d_rec[row + 2 * hidden] = d_new * r;
  d_h_next[at] = dh * z;
}

// h [batch, hidden]: finished sums on entry, states on return. `relu`: else tanh.
extern "C" __global__ void rnn_cell_forward_plain(float *h, int relu, int batch, int hidden) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (i64)batch * hidden) return;
  h[at] = relu ? (h[at] < 0.f ? 0.f : h[at]) : tanh_by_exp(h[at]);
}

// d_h: the gradient that reaches each output on entry, of the sums on return.
extern "C" __global__ void rnn_cell_backward_plain(const float *h, float *d_h,
                                                   const float *d_h_next, int relu, int batch,
                                                   int hidden) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= (i64)batch * hidden) return;
  float y = h[at], dh = d_h[at] + d_h_next[at];
  d_h[at] = !relu ? dh * (1.f - y * y) : y > 0.f ? dh : 0.f;
}
