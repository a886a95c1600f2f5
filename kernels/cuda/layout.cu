// Other layouts and other types for the same numbers: copies between strides (permutations, slices,
// joins, paddings), transposes, casts, fills, choices by a mask, functions of two numbers that
// broadcast.
//
// Ladder: `copy_strided` gives a thread each word, or four where both sides have them side by side;
// `copy_transposed` turns 32x32 tiles in shared memory, so that both sides are read and written in
// runs.
#include "common/rows.cuh"

// Sizes and strides of up to six axes, the last the fastest; unused ones in front have size 1.
struct Axes {
  i64 dims[6], a[6], b[6], c[6];
};

namespace layout {

using namespace rows;

struct Place {
  i64 a = 0, b = 0, c = 0;
};
__device__ __forceinline__ Place place_of(const Axes &axes, i64 at) {
  Place place;
  // 32-bit division is several times faster.
  if ((u64)at >> 32) {
#pragma unroll
    for (int d = 5; d >= 0; d--) {
      i64 k = at % axes.dims[d];
      at /= axes.dims[d];
      place.a += k * axes.a[d], place.b += k * axes.b[d], place.c += k * axes.c[d];
    }
    return place;
  }
  u32 left = (u32)at;
#pragma unroll
  for (int d = 5; d >= 0; d--) {
    u32 k = left, dim = (u32)axes.dims[d];
    if (dim == 1) continue;
    left /= dim;
    k -= left * dim;
    place.a += k * axes.a[d], place.b += k * axes.b[d], place.c += k * axes.c[d];
  }
  return place;
}

template <class T>
__device__ __forceinline__ void copy(const T *x, T *y, const Axes &axes, i64 n) {
#pragma unroll 2
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < n; at += (i64)gridDim.x * 256) {
    Place place = place_of(axes, at);
    y[place.b] = x[place.a];
  }
}

}  // namespace layout

// y[b strides] = x[a strides], n places, words of 2, 4 or 16 bytes (strides count words).
extern "C" __global__ void __launch_bounds__(256)
    copy_strided_2(const u16 *x, u16 *y, Axes axes, i64 n) {
  layout::copy(x, y, axes, n);
}
extern "C" __global__ void __launch_bounds__(256)
    copy_strided_4(const u32 *x, u32 *y, Axes axes, i64 n) {
  layout::copy(x, y, axes, n);
}
extern "C" __global__ void __launch_bounds__(256)
    copy_strided_16(const uint4 *x, uint4 *y, Axes axes, i64 n) {
  layout::copy(x, y, axes, n);
}
// y [batch, cols, rows] = the transposes of x [batch, rows, cols], words of 4 bytes; blocks of
// 32x8.
extern "C" __global__ void __launch_bounds__(256)
    copy_transposed_4(const u32 *x, u32 *y, i64 rows, i64 cols, i64 tiles_down, i64 tiles) {
  DYN_SMEM(u32, tile);  // 32 rows of 33: a column's words lie in different banks
  i64 image = blockIdx.x / tiles, at = blockIdx.x % tiles;
  i64 row = at % tiles_down * 32, col = at / tiles_down * 32;
  int lane = threadIdx.x & 31, down = threadIdx.x >> 5;
  x += image * rows * cols;
  y += image * rows * cols;
#pragma unroll
  for (int k = 0; k < 32; k += 8)
    if (row + down + k < rows && col + lane < cols)
      tile[(down + k) * 33 + lane] = x[(row + down + k) * cols + col + lane];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 32; k += 8)
    if (col + down + k < cols && row + lane < rows)
      y[(col + down + k) * rows + row + lane] = tile[lane * 33 + down + k];
}

// y = f(a, b) with strides of their own: an axis that repeats has stride 0; y lies in order.
extern "C" __global__ void __launch_bounds__(256)
    binary_strided_f32(int op, const float *a, const float *b, float *y, Axes axes, i64 n) {
#pragma unroll 2
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < n; at += (i64)gridDim.x * 256) {
    layout::Place place = layout::place_of(axes, at);
    float v = a[place.a], w = b[place.b], z;
    switch (op) {
      case 0: z = v + w; break;
      case 1: z = v - w; break;
      case 2: z = v * w; break;
      case 3: z = v / w; break;
      case 4: z = v != v ? v : (v > w ? v : w); break;  // NaN where either is NaN
      default: z = v != v ? v : (v < w ? v : w); break;
    }
    y[at] = z;
  }
}
// y = a where the mask is not 0, else b; strides as above, the mask's in `c`.
extern "C" __global__ void __launch_bounds__(256)
    where_mask_f32(const float *mask, const float *a, const float *b, float *y, Axes axes, i64 n) {
#pragma unroll 2
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < n; at += (i64)gridDim.x * 256) {
    layout::Place place = layout::place_of(axes, at);
    y[at] = mask[place.c] != 0.f ? a[place.a] : b[place.b];
  }
}

extern "C" __global__ void __launch_bounds__(256)
    fill_4(u32 *y, u32 value, i64 n) {
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  i64 packs = rows::on_pack(y) ? n / 4 : 0;
  for (i64 at = thread; at < packs; at += threads)
    store(reinterpret_cast<uint4 *>(y) + at, uint4{value, value, value, value});
  for (i64 at = packs * 4 + thread; at < n; at += threads) y[at] = value;
}
// 8 numbers a thread: 16 bytes of bf16, 32 of f32.
extern "C" __global__ void __launch_bounds__(256)
    cast_f32_bf16(const float *x, bf16 *y, i64 n) {
  using namespace rows;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  i64 packs = on_pack(x) && on_pack(y) ? n / 8 : 0;
#pragma unroll 2
  for (i64 at = thread; at < packs; at += threads) {
    float v[8];
    load_pack(x + at * 8, v);
    load_pack(x + at * 8 + 4, v + 4);
    store_pack(y + at * 8, v);
  }
  for (i64 at = packs * 8 + thread; at < n; at += threads) y[at] = to_bf16(x[at]);
}
extern "C" __global__ void __launch_bounds__(256)
    cast_bf16_f32(const bf16 *x, float *y, i64 n) {
  using namespace rows;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  i64 packs = on_pack(x) && on_pack(y) ? n / 8 : 0;
#pragma unroll 2
  for (i64 at = thread; at < packs; at += threads) {
    float v[8];
    load_pack(x + at * 8, v);
    store_pack(y + at * 8, v);
    store_pack(y + at * 8 + 4, v + 4);
  }
  for (i64 at = packs * 8 + thread; at < n; at += threads) y[at] = to_float(x[at]);
}
