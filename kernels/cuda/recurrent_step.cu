// One step of a recurrent layer for few rows, the way in which a model writes: both products and
// the cell in one kernel that reads every weight once. A warp has one hidden unit with all its
// gates; its lanes take 16 bytes of each row of the weights at a time. `linear` is the output
// layer, without a state. Layers are launched one after another; inside of a graph that costs about
// a microsecond each.
#include "common/reduce.cuh"
#include "recurrent_seq.cuh"

enum class StepCell { LSTM, GRU, RNN, LINEAR };

// 16 bytes of weights as numbers.
template <class W>
struct Sixteen;
template <>
struct Sixteen<float> {
  static constexpr int COUNT = 4;
  __device__ __forceinline__ static void widen(const uint4 &x, float (&w)[4]) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = __uint_as_float(words[i]);
  }
};
template <>
struct Sixteen<bf16> {
  static constexpr int COUNT = 8;
  __device__ __forceinline__ static void widen(const uint4 &x, float (&w)[8]) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
      w[i] = i % 2 ? high_float(words[i / 2]) : low_float(words[i / 2]);
  }
};
template <>
struct Sixteen<signed char> {
  static constexpr int COUNT = 16;
  __device__ __forceinline__ static void widen(const uint4 &x, float (&w)[16]) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 16; i++) w[i] = (float)(signed char)(words[i / 4] >> i % 4 * 8);
  }
};

// Sets `sums` to this lane's part of the sums for each of `G` rows of the weights and each of
// `ROWS` rows of the batch.
template <class W, int G, int ROWS>
__device__ __forceinline__ void add_rows(const W *w, i64 gate_stride, const float *scale,
                                         int scale_stride, int pitch, const float *x, int x_pitch,
                                         float (&sums)[G][ROWS]) {
  constexpr int COUNT = Sixteen<W>::COUNT;
  // Eight loads under way at a time where there are few rows to hold.
  constexpr int UNROLL = ROWS == 1 && COUNT < 16 ? 2 : 1;
#pragma unroll
  for (int i = 0; i < G * ROWS; i++) sums[i / ROWS][i % ROWS] = 0.f;
#pragma unroll UNROLL
  for (int k = lane_id() * COUNT; k < pitch; k += 32 * COUNT) {
    uint4 pieces[G];
#pragma unroll
    for (int g = 0; g < G; g++)
      pieces[g] = load_const(reinterpret_cast<const uint4 *>(w + g * gate_stride + k));
#pragma unroll
    for (int g = 0; g < G; g++) {
      float numbers[COUNT];
      Sixteen<W>::widen(pieces[g], numbers);
#pragma unroll
      for (int row = 0; row < ROWS; row++)
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
          float4 y = *reinterpret_cast<const float4 *>(x + row * x_pitch + k + i);
          sums[g][row] += numbers[i] * y.x + numbers[i + 1] * y.y + numbers[i + 2] * y.z +
                          numbers[i + 3] * y.w;
        }
    }
  }
#pragma unroll
  for (int g = 0; g < G; g++) {
    float by = scale ? scale[g * scale_stride] : 1.f;
#pragma unroll
    for (int row = 0; row < ROWS; row++) sums[g][row] *= by;
  }
}

// w_ih     [G * hidden, pitch_ih], w_hh [G * hidden, pitch_hh]: rows as PyTorch has them, padded
//          with zeros to a multiple of 16 bytes; int8 with a scale for each row
// b_ih     [G * hidden] (of an LSTM or RNN: the sum of both biases), b_hh of a GRU
// ids      [batch, ids_a_row] choose rows of `table` [inputs, G * hidden] instead of w_ih and x
//          (0xffffffff is none); null: x [batch, inputs]
// h_prev, c_prev [batch, hidden]; h, c likewise, written, not the same memory as what is read
// Blocks of whole warps: blockDim / 32 units each; the grid's y goes through the batch by ROWS.
// Shared memory: ROWS * (pitch_ih + pitch_hh) floats, without pitch_ih if there are ids.
template <StepCell CELL, class W, int ROWS>
__device__ __forceinline__ void recurrent_step(
    const W *w_ih, const float *scale_ih, const W *w_hh, const float *scale_hh, const float *b_ih,
    const float *b_hh, const float *table, const u32 *ids, int ids_a_row, const float *x,
    const float *h_prev, const float *c_prev, float *h, float *c, int batch, int inputs, int hidden,
    int pitch_ih, int pitch_hh, int relu) {
  constexpr int G = CELL == StepCell::LSTM ? 4 : CELL == StepCell::GRU ? 3 : 1;
  DYN_SMEM(float, smem);
  if (ids) pitch_ih = 0;
  int width = pitch_ih + pitch_hh, base = blockIdx.y * ROWS;
  for (int i = threadIdx.x; i < ROWS * width; i += blockDim.x) {
    int row = base + i / width, k = i % width;
    bool of_x = k < pitch_ih;
    if (!of_x) k -= pitch_ih;
    bool inside = row < batch && k < (of_x ? inputs : hidden);
    smem[i] = inside ? (of_x ? x[(i64)row * inputs + k] : h_prev[(i64)row * hidden + k]) : 0.f;
  }
  __syncthreads();
  int unit = blockIdx.x * (blockDim.x / 32) + warp_id();
  if (unit >= hidden) return;

  // Of a GRU, what the reset gate meets is summed for itself: one more row.
  constexpr int SUMS = CELL == StepCell::GRU ? 4 : G;
  float sums[SUMS][ROWS];
#pragma unroll
  for (int i = 0; i < SUMS * ROWS; i++) sums[i / ROWS][i % ROWS] = 0.f;
#pragma unroll 1
  for (int of_state = ids ? 1 : 0; of_state < (CELL == StepCell::LINEAR ? 1 : 2); of_state++) {
    const W *w = of_state ? w_hh : w_ih;
    const float *scale = of_state ? scale_hh : scale_ih;
    int pitch = of_state ? pitch_hh : pitch_ih;
    float part[G][ROWS];
    add_rows<W, G, ROWS>(w + (i64)unit * pitch, (i64)hidden * pitch, scale ? scale + unit : nullptr,
                         hidden, pitch, smem + (of_state ? pitch_ih : 0), width, part);
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
      for (int row = 0; row < ROWS; row++) {
        bool apart = CELL == StepCell::GRU && g == 2 && of_state;
        sums[g][row] += apart ? 0.f : part[g][row];
        if (CELL == StepCell::GRU && g == 2) sums[SUMS - 1][row] += apart ? part[g][row] : 0.f;
      }
  }
  // Lane `row` takes the cell of that row.
  float v[SUMS];
#pragma unroll
  for (int g = 0; g < SUMS; g++) {
    v[g] = 0.f;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      float sum = warp_sum(sums[g][row]);
      if (lane_id() == row) v[g] = sum;
    }
  }
  int row = base + lane_id();
  if (lane_id() >= ROWS || row >= batch) return;
#pragma unroll
  for (int g = 0; g < G; g++) {
    v[g] += b_ih ? b_ih[g * hidden + unit] : 0.f;
    for (int i = 0; ids && i < ids_a_row; i++) {
      u32 id = ids[(i64)row * ids_a_row + i];
      if (id != 0xffffffffu) v[g] += table[((i64)id * G + g) * hidden + unit];
    }
  }
  i64 at = (i64)row * hidden + unit;
  if constexpr (CELL == StepCell::LSTM) {
    float i = sigmoid(v[0]), f = sigmoid(v[1]);
    float cell = f * c_prev[at] + i * tanh_by_exp(v[2]);
    c[at] = cell;
    h[at] = sigmoid(v[3]) * tanh_by_exp(cell);
  } else if constexpr (CELL == StepCell::GRU) {
    float r = sigmoid(v[0] + b_hh[unit]), z = sigmoid(v[1] + b_hh[hidden + unit]);
    float n = tanh_by_exp(v[2] + r * (v[SUMS - 1] + b_hh[2 * hidden + unit]));
    h[at] = n + z * (h_prev[at] - n);
  } else if constexpr (CELL == StepCell::RNN) {
    float sum = v[0];
    h[at] = relu ? (sum < 0.f ? 0.f : sum) : tanh_by_exp(sum);
  } else {
    h[at] = v[0];
  }
}

#define STEP(NAME, CELL, SUFFIX, W, ROWS)                                                         \
  extern "C" __global__ void __launch_bounds__(128, 1)                                             \
      NAME##_step_##SUFFIX##_r##ROWS(                                                             \
          const W *w_ih, const float *scale_ih, const W *w_hh, const float *scale_hh,             \
          const float *b_ih, const float *b_hh, const float *table, const u32 *ids,               \
          int ids_a_row, const float *x, const float *h_prev, const float *c_prev, float *h,      \
          float *c, int batch, int inputs, int hidden, int pitch_ih, int pitch_hh, int relu) {    \
    recurrent_step<StepCell::CELL, W, ROWS>(w_ih, scale_ih, w_hh, scale_hh, b_ih, b_hh, table,    \
                                            ids, ids_a_row, x, h_prev, c_prev, h, c, batch,       \
                                            inputs, hidden, pitch_ih, pitch_hh, relu);            \
  }
#define STEPS(NAME, CELL)                       \
  STEP(NAME, CELL, f32, float, 1)               \
  STEP(NAME, CELL, f32, float, 4)               \
  STEP(NAME, CELL, bf16, bf16, 1)               \
  STEP(NAME, CELL, bf16, bf16, 4)               \
  STEP(NAME, CELL, int8, signed char, 1)        \
  STEP(NAME, CELL, int8, signed char, 4)
STEPS(lstm, LSTM)
STEPS(gru, GRU)
STEPS(rnn, RNN)
STEPS(linear, LINEAR)
