// Layer normalisation: y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis.
//
// Ladder: `_plain` gives a thread each row; forwards `_w1` to `_w8` (a warp a row) and `_b2`, `_b4`
// (a block a row) hold the row in registers; backwards a block walks down its share of the rows, a
// thread on the same columns all the way, so that the sums for weight and bias stay in registers
// too, and `R` rows share one barrier. `_long` serves rows beyond 8192 numbers, which come from
// cache again.
#include "common/rows.cuh"

namespace layer_norm {

using namespace rows;

template <class T, int PACKS, int THREADS>
__device__ __forceinline__ void forward(const T *x, const float *weight, const float *bias, T *y,
                                        float *mean, float *rstd, float eps, i64 count, int cols,
                                        float *room) {
  constexpr int N = Pack<T>::N, E = PACKS * N;
  Group<THREADS> group(room);
  bool wide = wide_rows(x, cols) && on_pack(y) && on_pack(weight) && on_pack(bias);
  for (i64 row = group.first(); row < count; row += group.stride()) {
    float v[E];
    load_row<T, PACKS>(x + row * cols, cols, group.thread, group.threads(), wide, 0.f, v);
    float sum = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) sum += v[e];
    // Two passes over registers: E(x^2) - E(x)^2 would cancel.
    float m = group.sum(sum) / (float)cols;
    float square = 0.f;
    int inside = held<T>(cols, group.thread, group.threads(), wide);
#pragma unroll
    for (int e = 0; e < E; e++) {
      v[e] -= m;
      square += e < inside ? v[e] * v[e] : 0.f;
    }
    float r = 1.f / sqrtf(group.sum(square) / (float)cols + eps);
    if (group.thread == 0) mean[row] = m, rstd[row] = r;
    if (wide) {
#pragma unroll
      for (int p = 0; p < PACKS; p++) {
        int at = (p * group.threads() + group.thread) * N;
        if (at >= cols) continue;
        float w[N], b[N];
#pragma unroll
        for (int k = 0; k < N; k += 4) {
          load_pack(weight + at + k, w + k);
          load_pack(bias + at + k, b + k);
        }
#pragma unroll
        for (int k = 0; k < N; k++) v[p * N + k] = fmaf(v[p * N + k] * r, w[k], b[k]);
        store_pack(y + row * cols + at, v + p * N);
      }
    } else {
#pragma unroll
      for (int e = 0; e < E; e++) {
        int at = e * group.threads() + group.thread;
        if (at < cols) store_one(y + row * cols + at, fmaf(v[e] * r, weight[at], bias[at]));
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void forward_long(const T *x, const float *weight, const float *bias,
                                             T *y, float *mean, float *rstd, float eps, i64 count,
                                             i64 cols, float *room) {
  Group<512> group(room);
  for (i64 row = blockIdx.x; row < count; row += gridDim.x) {
    const T *from = x + row * cols;
    float sum = 0.f, square = 0.f;
#pragma unroll 8
    for (i64 c = threadIdx.x; c < cols; c += 512) sum += load_one(from + c);
    float m = group.sum(sum) / (float)cols;
#pragma unroll 8
    for (i64 c = threadIdx.x; c < cols; c += 512) {
      float d = load_one(from + c) - m;
      square += d * d;
    }
    float r = 1.f / sqrtf(group.sum(square) / (float)cols + eps);
    if (threadIdx.x == 0) mean[row] = m, rstd[row] = r;
#pragma unroll 4
    for (i64 c = threadIdx.x; c < cols; c += 512)
      store_one(y + row * cols + c, fmaf((load_one(from + c) - m) * r, weight[c], bias[c]));
  }
}

// d_x = rstd (d w - a - hat b) with a = mean(d w), b = mean(d w hat); the block's sums of d hat and
// of d go to its rows of `partial` [2, blocks, cols].
template <class T, int PACKS, int R>
__device__ __forceinline__ void backward(const T *x, const float *weight, const float *mean,
                                         const float *rstd, const T *d_y, T *d_x, float *partial,
                                         i64 count, int cols, float *room) {
  constexpr int N = Pack<T>::N, E = PACKS * N;
  Group<0> group(room);
  int t = threadIdx.x, threads = blockDim.x;
  bool wide = wide_rows(x, cols) && on_pack(d_y) && on_pack(d_x);
  float w[E], d_weight[E], d_bias[E];
#pragma unroll
  for (int e = 0; e < E; e++) {
    int at = place<T>(e, t, threads, wide);
    w[e] = at < cols ? weight[at] : 0.f;
    d_weight[e] = d_bias[e] = 0.f;
  }
  for (i64 row = (i64)blockIdx.x * R; row < count; row += (i64)gridDim.x * R) {
    float v[R][E], d[R][E], sums[2 * R], m[R], r[R];
    // All loads before the first use.
#pragma unroll
    for (int k = 0; k < R; k++) {
      bool here = row + k < count;
      i64 from = here ? (row + k) * cols : 0;
      int width = here ? cols : 0;
      load_row<T, PACKS>(x + from, width, t, threads, wide, 0.f, v[k]);
      load_row<T, PACKS>(d_y + from, width, t, threads, wide, 0.f, d[k]);
      m[k] = here ? mean[row + k] : 0.f;
      r[k] = here ? rstd[row + k] : 0.f;
    }
#pragma unroll
    for (int k = 0; k < R; k++) {
      sums[2 * k] = sums[2 * k + 1] = 0.f;
#pragma unroll
      for (int e = 0; e < E; e++) {
        // Where there is no number, d is 0: nothing is added.
        float hat = (v[k][e] - m[k]) * r[k], scaled = d[k][e] * w[e];
        v[k][e] = hat;
        d_weight[e] = fmaf(d[k][e], hat, d_weight[e]);
        d_bias[e] += d[k][e];
        sums[2 * k] += scaled;
        sums[2 * k + 1] = fmaf(scaled, hat, sums[2 * k + 1]);
        d[k][e] = scaled;
      }
    }
    group.sums(sums);
#pragma unroll
    for (int k = 0; k < R; k++) {
      float a = sums[2 * k] / (float)cols, b = sums[2 * k + 1] / (float)cols;
#pragma unroll
      for (int e = 0; e < E; e++) d[k][e] = r[k] * fmaf(-v[k][e], b, d[k][e] - a);
      if (row + k < count)
        store_row<T, PACKS>(d_x + (row + k) * cols, cols, t, threads, wide, d[k]);
    }
  }
  float *to_weight = partial + (i64)blockIdx.x * cols;
  float *to_bias = partial + ((i64)gridDim.x + blockIdx.x) * cols;
#pragma unroll
  for (int e = 0; e < E; e++) {
    int at = place<T>(e, t, threads, wide);
    if (at < cols) to_weight[at] = d_weight[e], to_bias[at] = d_bias[e];
  }
}

template <class T>
__device__ __forceinline__ void backward_long(const T *x, const float *weight, const float *mean,
                                              const float *rstd, const T *d_y, T *d_x, i64 count,
                                              i64 cols, float *room) {
  Group<512> group(room);
  for (i64 row = blockIdx.x; row < count; row += gridDim.x) {
    const T *v = x + row * cols, *d = d_y + row * cols;
    float m = mean[row], r = rstd[row], sums[2] = {0.f, 0.f};
#pragma unroll 4
    for (i64 c = threadIdx.x; c < cols; c += 512) {
      float scaled = load_one(d + c) * weight[c];
      sums[0] += scaled;
      sums[1] = fmaf(scaled, (load_one(v + c) - m) * r, sums[1]);
    }
    group.sums(sums);
    float a = sums[0] / (float)cols, b = sums[1] / (float)cols;
#pragma unroll 4
    for (i64 c = threadIdx.x; c < cols; c += 512) {
      float hat = (load_one(v + c) - m) * r;
      store_one(d_x + row * cols + c, r * fmaf(-hat, b, load_one(d + c) * weight[c] - a));
    }
  }
}

// A thread a column, down `chunk` rows: sums of d hat and of d to `partial` [2, parts, cols].
template <class T>
__device__ __forceinline__ void weights(const T *x, const float *mean, const float *rstd,
                                        const T *d_y, float *partial, i64 rows, i64 cols,
                                        i64 chunk) {
  i64 tiles = ceil_div(cols, blockDim.x), parts = ceil_div(rows, chunk);
  i64 c = (i64)(blockIdx.x % tiles) * blockDim.x + threadIdx.x, part = blockIdx.x / tiles;
  if (c >= cols) return;
  i64 end = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;
  float d_weight = 0.f, d_bias = 0.f;
#pragma unroll 4
  for (i64 row = part * chunk; row < end; row++) {
    float d = load_one(d_y + row * cols + c);
    d_weight = fmaf(d, (load_one(x + row * cols + c) - mean[row]) * rstd[row], d_weight);
    d_bias += d;
  }
  partial[part * cols + c] = d_weight;
  partial[(parts + part) * cols + c] = d_bias;
}

}  // namespace layer_norm

extern "C" __global__ void __launch_bounds__(128)
    layer_norm_forward_plain(const float *x, const float *weight, const float *bias, float *y,
                             float *mean, float *rstd, float eps, i64 rows, i64 cols) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *v = x + row * cols;
  float sum = 0.f, square = 0.f;
  for (i64 c = 0; c < cols; c++) sum += v[c];
  float m = sum / (float)cols;
  for (i64 c = 0; c < cols; c++) square += (v[c] - m) * (v[c] - m);
  float r = 1.f / sqrtf(square / (float)cols + eps);
  for (i64 c = 0; c < cols; c++) y[row * cols + c] = (v[c] - m) * r * weight[c] + bias[c];
  mean[row] = m;
  rstd[row] = r;
}
// The gradient of x alone; `layer_norm_weights` gives the others.
extern "C" __global__ void __launch_bounds__(128)
    layer_norm_backward_plain(const float *x, const float *weight, const float *mean,
                              const float *rstd, const float *d_y, float *d_x, i64 rows,
                              i64 cols) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *v = x + row * cols, *d = d_y + row * cols;
  float m = mean[row], r = rstd[row], a = 0.f, b = 0.f;
  for (i64 c = 0; c < cols; c++) {
    a += d[c] * weight[c] / (float)cols;
    b += d[c] * weight[c] * (v[c] - m) * r / (float)cols;
  }
  for (i64 c = 0; c < cols; c++)
    d_x[row * cols + c] = r * (d[c] * weight[c] - a - (v[c] - m) * r * b);
}

#define FORWARD(T, name, bounds, packs, threads, room)                                            \
  extern "C" __global__ void __launch_bounds__ bounds name(                                       \
      const T *x, const float *weight, const float *bias, T *y, float *mean, float *rstd,         \
      float eps, i64 rows, int cols) {                                                            \
    room;                                                                                         \
    layer_norm::forward<T, packs, threads>(x, weight, bias, y, mean, rstd, eps, rows, cols,       \
                                           place);                                                \
  }
#define NO_ROOM float *place = nullptr
#define ROOM DYN_SMEM(float, place)
FORWARD(float, layer_norm_forward_f32_w2, (128, 12), 2, 32, NO_ROOM)
FORWARD(float, layer_norm_forward_f32_w8, (128, 6), 8, 32, NO_ROOM)
FORWARD(float, layer_norm_forward_f32_b4, (512, 2), 4, 0, ROOM)
FORWARD(bf16, layer_norm_forward_bf16_w1, (128, 12), 1, 32, NO_ROOM)
FORWARD(bf16, layer_norm_forward_bf16_w4, (128, 8), 4, 32, NO_ROOM)
FORWARD(bf16, layer_norm_forward_bf16_b2, (512, 2), 2, 0, ROOM)

extern "C" __global__ void __launch_bounds__(512, 2)
    layer_norm_forward_f32_long(const float *x, const float *weight, const float *bias, float *y,
                                float *mean, float *rstd, float eps, i64 rows, i64 cols) {
  ROOM;
  layer_norm::forward_long(x, weight, bias, y, mean, rstd, eps, rows, cols, place);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    layer_norm_forward_bf16_long(const bf16 *x, const float *weight, const float *bias, bf16 *y,
                                 float *mean, float *rstd, float eps, i64 rows, i64 cols) {
  ROOM;
  layer_norm::forward_long(x, weight, bias, y, mean, rstd, eps, rows, cols, place);
}

#define BACKWARD(T, name, bounds, packs, rows_at_once)                                            \
  extern "C" __global__ void __launch_bounds__ bounds name(                                       \
      const T *x, const float *weight, const float *mean, const float *rstd, const T *d_y,        \
      T *d_x, float *partial, i64 rows, int cols) {                                               \
    ROOM;                                                                                         \
    layer_norm::backward<T, packs, rows_at_once>(x, weight, mean, rstd, d_y, d_x, partial, rows,  \
                                                 cols, place);                                    \
  }
BACKWARD(float, layer_norm_backward_f32_p1r2, (1024, 1), 1, 2)
BACKWARD(float, layer_norm_backward_f32_p2r1, (1024, 1), 2, 1)
BACKWARD(bf16, layer_norm_backward_bf16_p1r1, (1024, 1), 1, 1)
BACKWARD(bf16, layer_norm_backward_bf16_p1r2, (512, 1), 1, 2)

extern "C" __global__ void __launch_bounds__(512, 2)
    layer_norm_backward_f32_long(const float *x, const float *weight, const float *mean,
                                 const float *rstd, const float *d_y, float *d_x, i64 rows,
                                 i64 cols) {
  ROOM;
  layer_norm::backward_long(x, weight, mean, rstd, d_y, d_x, rows, cols, place);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    layer_norm_backward_bf16_long(const bf16 *x, const float *weight, const float *mean,
                                  const float *rstd, const bf16 *d_y, bf16 *d_x, i64 rows,
                                  i64 cols) {
  ROOM;
  layer_norm::backward_long(x, weight, mean, rstd, d_y, d_x, rows, cols, place);
}
extern "C" __global__ void __launch_bounds__(256)
    layer_norm_weights_f32(const float *x, const float *mean, const float *rstd, const float *d_y,
                           float *partial, i64 rows, i64 cols, i64 chunk) {
  layer_norm::weights(x, mean, rstd, d_y, partial, rows, cols, chunk);
}
extern "C" __global__ void __launch_bounds__(256)
    layer_norm_weights_bf16(const bf16 *x, const float *mean, const float *rstd, const bf16 *d_y,
                            float *partial, i64 rows, i64 cols, i64 chunk) {
  layer_norm::weights(x, mean, rstd, d_y, partial, rows, cols, chunk);
}
