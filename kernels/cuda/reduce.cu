// Sums, means and maxima of rows, of any one axis and of everything, in an order that depends on
// the sizes only.
//
// Ladder: `_plain` gives a thread each sum; `sum_rows` a warp or a block; `sum_axis` lets a block
// run down its columns, 16 bytes a thread and four rows in flight, and leaves partial sums where
// one block would be too few: it is run once more over those. `sum_all` sums in two passes, the
// second in f64.
#include "common/rows.cuh"

namespace reduce {

using namespace rows;

enum Kind { SUM, MEAN, MAX };

template <class T, int THREADS>
__device__ __forceinline__ void of_rows(int kind, const T *x, float *y, i64 count, i64 cols,
                                        float *room) {
  constexpr int N = Pack<T>::N;
  Group<THREADS> group(room);
  bool wide = wide_rows(x, cols);
  for (i64 row = group.first(); row < count; row += group.stride()) {
    const T *from = x + row * cols;
    // Four sums that do not wait for one another.
    float part[4];
#pragma unroll
    for (int k = 0; k < 4; k++) part[k] = kind == MAX ? -INFINITY : 0.f;
    auto add = [&](int k, float v) { part[k] = kind == MAX ? fmaxf(part[k], v) : part[k] + v; };
    i64 packs = wide ? cols / N : 0, step = group.threads();
    i64 at = group.thread;
    for (; at + 3 * step < packs; at += 4 * step) {
      float v[4 * N];
#pragma unroll
      for (int u = 0; u < 4; u++) load_pack(from + (at + u * step) * N, v + u * N);
#pragma unroll
      for (int e = 0; e < 4 * N; e++) add(e & 3, v[e]);
    }
    for (; at < packs; at += step) {
      float v[N];
      load_pack(from + at * N, v);
#pragma unroll
      for (int e = 0; e < N; e++) add(e & 3, v[e]);
    }
    for (i64 c = packs * N + group.thread; c < cols; c += step) add(0, load_one(from + c));
    float all = kind == MAX ? group.max(fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3])))
                            : group.sum((part[0] + part[1]) + (part[2] + part[3]));
    if (group.thread == 0) y[row] = kind == MEAN ? all / (float)cols : all;
  }
}

// The larger of two places, the earlier of equal ones.
__device__ __forceinline__ void better(float &x, u32 &at, float other, u32 place) {
  if (other > x || (other == x && place < at)) x = other, at = place;
}

// y[o][i] = sum over d of x[o][d][i], V neighbouring `i` a thread; a block takes `chunk` of the
// `d`.
template <int V>
__device__ __forceinline__ void of_axis(const float *x, float *y, float *second, i64 outer, i64 dim,
                                        i64 inner, int lanes, i64 chunk, int accumulate,
                                        float *room) {
  i64 tiles = ceil_div(inner, (i64)lanes * V), parts = dim ? ceil_div(dim, chunk) : 1;
  i64 tile = blockIdx.x % tiles, part = blockIdx.x / tiles % parts, o = blockIdx.x / tiles / parts;
  int lane = threadIdx.x % lanes, down = threadIdx.x / lanes, height = blockDim.x / lanes;
  i64 i = (tile * lanes + lane) * V;
  i64 end = (part + 1) * chunk < dim ? (part + 1) * chunk : dim;
  float sum[V];
#pragma unroll
  for (int k = 0; k < V; k++) sum[k] = 0.f;
  if (i < inner) {
    const float *from = x + o * dim * inner + i;
    i64 d = part * chunk + down;
    for (; d + 3 * height < end; d += 4 * height) {
      float v[4 * V];
#pragma unroll
      for (int u = 0; u < 4; u++) {
        if constexpr (V == 1) {
          v[u] = from[(d + u * height) * inner];
        } else {
          load_pack(from + (d + u * height) * inner, v + u * V);
        }
      }
#pragma unroll
      for (int k = 0; k < V; k++) sum[k] += (v[k] + v[V + k]) + (v[2 * V + k] + v[3 * V + k]);
    }
    for (; d < end; d += height)
#pragma unroll
      for (int k = 0; k < V; k++) sum[k] += from[d * inner + k];
  }
#pragma unroll
  for (int k = 0; k < V; k++) room[(down * V + k) * lanes + lane] = sum[k];
  __syncthreads();
  if (down || i >= inner) return;
  // Partial sums lie as [part][o][i]; the second half of the results may have a place of its own.
  i64 result = o * inner + i, half = outer * inner / 2;
  float *to = y + result;
  if (parts > 1)
    to += part * outer * inner;
  else if (second && result >= half)
    to = second + (result - half);
  for (int k = 0; k < V; k++) {
    float total = 0.f;
    for (int h = 0; h < height; h++) total += room[(h * V + k) * lanes + lane];
    to[k] = accumulate && parts == 1 ? to[k] + total : total;
  }
}

}  // namespace reduce

extern "C" __global__ void __launch_bounds__(128)
    sum_rows_plain(const float *x, float *y, i64 rows, i64 cols) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  float sum = 0.f;
  for (i64 c = 0; c < cols; c++) sum += x[row * cols + c];
  y[row] = sum;
}
extern "C" __global__ void __launch_bounds__(128)
    reduce_rows_f32_warp(int kind, const float *x, float *y, i64 rows, i64 cols) {
  reduce::of_rows<float, 32>(kind, x, y, rows, cols, nullptr);
}
extern "C" __global__ void __launch_bounds__(256)
    reduce_rows_f32_block(int kind, const float *x, float *y, i64 rows, i64 cols) {
  DYN_SMEM(float, room);
  reduce::of_rows<float, 256>(kind, x, y, rows, cols, room);
}
extern "C" __global__ void __launch_bounds__(128)
    reduce_rows_bf16_warp(int kind, const bf16 *x, float *y, i64 rows, i64 cols) {
  reduce::of_rows<bf16, 32>(kind, x, y, rows, cols, nullptr);
}
extern "C" __global__ void __launch_bounds__(256)
    reduce_rows_bf16_block(int kind, const bf16 *x, float *y, i64 rows, i64 cols) {
  DYN_SMEM(float, room);
  reduce::of_rows<bf16, 256>(kind, x, y, rows, cols, room);
}

// The place of the largest number of each row, the first of equal ones; NaN is passed over, and a
// row without a number gives 0. A warp a row.
extern "C" __global__ void __launch_bounds__(128)
    argmax_rows_f32(const float *x, u32 *y, i64 rows, i64 cols) {
  i64 warps = (i64)gridDim.x * (blockDim.x >> 5), lane = threadIdx.x & 31;
  for (i64 row = (i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); row < rows;
       row += warps) {
    float top = -INFINITY;
    u32 at = 0xffffffffu;
#pragma unroll 4
    for (i64 c = lane; c < cols; c += 32) {
      float v = x[row * cols + c];
      if (v > top) top = v, at = (u32)c;
    }
#pragma unroll
    for (int bits = 16; bits; bits >>= 1) {
      float other = __shfl_xor_sync(FULL_WARP, top, bits);
      u32 place = __shfl_xor_sync(FULL_WARP, at, bits);
      reduce::better(top, at, other, place);
    }
    if (lane == 0) y[row] = at == 0xffffffffu ? 0 : at;
  }
}

extern "C" __global__ void __launch_bounds__(128)
    sum_axis_plain(const float *x, float *y, i64 outer, i64 dim, i64 inner) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= outer * inner) return;
  float sum = 0.f;
  for (i64 d = 0; d < dim; d++) sum += x[(at / inner * dim + d) * inner + at % inner];
  y[at] = sum;
}
extern "C" __global__ void __launch_bounds__(256)
    sum_axis_f32(const float *x, float *y, float *second, i64 outer, i64 dim, i64 inner, int lanes,
                 i64 chunk, int accumulate, int wide) {
  DYN_SMEM(float, room);
  if (wide)
    reduce::of_axis<4>(x, y, second, outer, dim, inner, lanes, chunk, accumulate, room);
  else
    reduce::of_axis<1>(x, y, second, outer, dim, inner, lanes, chunk, accumulate, room);
}

// One sum a block, in f64 from the threads' sums on.
extern "C" __global__ void __launch_bounds__(256)
    sum_all_f32(const float *x, double *partial, i64 n) {
  DYN_SMEM(double, room);
  i64 packs = rows::on_pack(x) ? n / 4 : 0, threads = (i64)gridDim.x * 256;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x;
  float part[4] = {};
  i64 at = thread;
  for (; at + 3 * threads < packs; at += 4 * threads) {
    float v[16];
#pragma unroll
    for (int u = 0; u < 4; u++) rows::load_pack(x + (at + u * threads) * 4, v + u * 4);
#pragma unroll
    for (int e = 0; e < 16; e++) part[e & 3] += v[e];
  }
  for (; at < packs; at += threads) {
    float v[4];
    rows::load_pack(x + at * 4, v);
#pragma unroll
    for (int e = 0; e < 4; e++) part[e] += v[e];
  }
  for (i64 i = packs * 4 + thread; i < n; i += threads) part[0] += x[i];
  double sum = ((double)part[0] + part[1]) + ((double)part[2] + part[3]);
  sum = rows::warp_sum(sum);
  if (lane_id() == 0) room[warp_id()] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = rows::warp_sum(lane_id() < 8 ? room[lane_id()] : 0.0);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
// y = scale times the sum of what the blocks left, one warp.
extern "C" __global__ void __launch_bounds__(32)
    sum_all_finish(const double *partial, float *y, int count, double scale) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < count; i += 32) sum += partial[i];
  sum = rows::warp_sum(sum);
  if (threadIdx.x == 0) *y = (float)(sum * scale);
}
