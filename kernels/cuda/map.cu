// Functions of one and two numbers, element by element; activations with bias and residual, and
// their gradients; casts, fills and copies between layouts.
//
// Ladder: `_plain` gives a thread each number; the others read and write 16 bytes at a time, `U`
// packs of a thread in flight before the first is used, and run on over the grid's width. The
// function is chosen once for all numbers of a thread, so one kernel serves them all.
#include "common/rows_math.cuh"

namespace map {

using namespace rows;

// Runs `f(values, count of them that lie side by side from `at` on)` over n numbers: U packs a
// thread at a time, then what is left one by one.
template <class T, int U, class Load, class Body>
__device__ __forceinline__ void over(i64 n, bool wide, Load load, Body body) {
  constexpr int N = Pack<T>::N;
  i64 packs = wide ? n / N : 0;
  i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  i64 threads = (i64)gridDim.x * blockDim.x;
  for (i64 first = (i64)blockIdx.x * blockDim.x * U; first < packs;
       first += threads * U) {
    load(first + threadIdx.x, packs);
  }
  for (i64 at = packs * N + thread; at < n; at += threads) body(at);
}

// y = f(x), or y = f(x) d where `d` is given.
template <class T, int U, class F>
__device__ __forceinline__ void unary(const T *x, T *y, i64 n, F f) {
  constexpr int N = Pack<T>::N;
  over<T, U>(
      n, on_pack(x) && on_pack(y),
      [&](i64 first, i64 packs) {
        float v[U * N];
#pragma unroll
        for (int u = 0; u < U; u++)
          if (first + u * blockDim.x < packs)
            load_pack(x + (first + u * blockDim.x) * N, v + u * N);
        f.template apply<U * N>(v);
#pragma unroll
        for (int u = 0; u < U; u++)
          if (first + u * blockDim.x < packs)
            store_pack(y + (first + u * blockDim.x) * N, v + u * N);
      },
      [&](i64 at) {
        float v[1] = {load_one(x + at)};
        f.template apply<1>(v);
        store_one(y + at, v[0]);
      });
}

template <class T, int U, class F>
__device__ __forceinline__ void binary(const T *a, const T *b, T *y, i64 n, F f) {
  constexpr int N = Pack<T>::N;
  over<T, U>(
      n, on_pack(a) && on_pack(b) && on_pack(y),
      [&](i64 first, i64 packs) {
        float v[U * N], w[U * N];
#pragma unroll
        for (int u = 0; u < U; u++)
          if (first + u * blockDim.x < packs) {
            load_pack(a + (first + u * blockDim.x) * N, v + u * N);
            load_pack(b + (first + u * blockDim.x) * N, w + u * N);
          }
        f.template apply<U * N>(v, w);
#pragma unroll
        for (int u = 0; u < U; u++)
          if (first + u * blockDim.x < packs)
            store_pack(y + (first + u * blockDim.x) * N, w + u * N);
      },
      [&](i64 at) {
        float v[1] = {load_one(a + at)}, w[1] = {load_one(b + at)};
        f.template apply<1>(v, w);
        store_one(y + at, w[0]);
      });
}

struct Unary {
  int op;
  float p, q;
  template <int E>
  __device__ __forceinline__ void apply(float *v) const {
    apply_unary<E>(op, p, q, v);
  }
};
struct Slope {
  int op;
  float p;
  template <int E>
  __device__ __forceinline__ void apply(const float *x, float *d) const {
    apply_slope<E>(op, p, x, d);
  }
};

// In the order of `elementwise::Binary`; `b` takes the result.
enum BinaryOp { ADD, SUB, MUL, DIV, MAX, MIN };

__device__ __forceinline__ float two(int op, float a, float b) {
  switch (op) {
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL: return a * b;
    case DIV: return a / b;
    case MAX: return a != a ? a : (a > b ? a : b);  // NaN where either is NaN
    default: return a != a ? a : (a < b ? a : b);
  }
}
struct Binary {
  int op;
  template <int E>
  __device__ __forceinline__ void apply(const float *a, float *b) const {
#pragma unroll
    for (int e = 0; e < E; e++) b[e] = two(op, a[e], b[e]);
  }
};
struct With {
  int op;
  float b;
  template <int E>
  __device__ __forceinline__ void apply(float *v) const {
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = two(op, v[e], b);
  }
};
struct Axpy {
  float scale;
  template <int E>
  __device__ __forceinline__ void apply(const float *x, float *y) const {
#pragma unroll
    for (int e = 0; e < E; e++) y[e] = fmaf(scale, x[e], y[e]);
  }
};

// A block's place in a matrix of rows: `lanes` threads (a power of two) side by side on columns,
// the others on the next rows.
struct Tile {
  i64 column;  // the first of V columns
  i64 row, step;
  __device__ __forceinline__ Tile(int lanes, int v, i64 tiles) {
    i64 tile = blockIdx.x % tiles, part = blockIdx.x / tiles, parts = gridDim.x / tiles;
    int down = threadIdx.x / lanes, height = blockDim.x / lanes;
    column = (tile * lanes + threadIdx.x % lanes) * v;
    row = part * height + down;
    step = parts * height;
  }
};

template <class T, int V>
__device__ __forceinline__ void load_some(const T *p, float *v) {
  if constexpr (V == 1) {
    v[0] = load_one(p);
  } else {
    load_pack(p, v);
  }
}
template <class T, int V>
__device__ __forceinline__ void store_some(T *p, const float *v) {
  if constexpr (V == 1) {
    store_one(p, v[0]);
  } else {
    store_pack(p, v);
  }
}

// y = f(x + bias) + residual: a thread keeps its columns of the bias, U rows in flight.
template <class T, int V, int U>
__device__ __forceinline__ void bias_forward(int op, float p, const T *x, const T *bias,
                                             const T *residual, T *y, i64 rows,
                                             i64 cols, int lanes) {
  Tile at(lanes, V, (cols + (i64)lanes * V - 1) / ((i64)lanes * V));
  if (at.column >= cols) return;
  float b[V];
  load_some<T, V>(bias + at.column, b);
  for (i64 row = at.row; row < rows; row += at.step * U) {
    float v[U * V], r[U * V];
#pragma unroll
    for (int u = 0; u < U; u++) {
      i64 from = (row + u * at.step) * cols + at.column;
      if (row + u * at.step < rows) {
        load_some<T, V>(x + from, v + u * V);
        if (residual) load_some<T, V>(residual + from, r + u * V);
      }
    }
#pragma unroll
    for (int e = 0; e < U * V; e++) v[e] += b[e % V];
    apply_activation<U * V>(op, p, v);
    if (residual) {
#pragma unroll
      for (int e = 0; e < U * V; e++) v[e] += r[e];
    }
#pragma unroll
    for (int u = 0; u < U; u++)
      if (row + u * at.step < rows)
        store_some<T, V>(y + (row + u * at.step) * cols + at.column, v + u * V);
  }
}

// d_x = f'(x + bias) d_y; each row of blocks leaves the sums of its columns in a row of `partial`.
template <class T, int V, int U>
__device__ __forceinline__ void bias_backward(int op, float p, const T *x, const T *bias,
                                              const T *d_y, T *d_x, float *partial, i64 rows,
                                              i64 cols, int lanes, float *room) {
  i64 tiles = (cols + (i64)lanes * V - 1) / ((i64)lanes * V);
  Tile at(lanes, V, tiles);
  bool inside = at.column < cols;
  float b[V], sum[V];
#pragma unroll
  for (int k = 0; k < V; k++) b[k] = sum[k] = 0.f;
  if (inside) load_some<T, V>(bias + at.column, b);
  for (i64 row = at.row; inside && row < rows; row += at.step * U) {
    float v[U * V], d[U * V];
#pragma unroll
    for (int u = 0; u < U; u++) {
      i64 from = (row + u * at.step) * cols + at.column;
      if (row + u * at.step < rows) {
        load_some<T, V>(x + from, v + u * V);
        load_some<T, V>(d_y + from, d + u * V);
      } else {
#pragma unroll
        for (int k = 0; k < V; k++) v[u * V + k] = d[u * V + k] = 0.f;
      }
    }
#pragma unroll
    for (int e = 0; e < U * V; e++) v[e] += b[e % V];
    apply_slope<U * V>(op, p, v, d);
#pragma unroll
    for (int e = 0; e < U * V; e++) sum[e % V] += d[e];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (row + u * at.step < rows)
        store_some<T, V>(d_x + (row + u * at.step) * cols + at.column, d + u * V);
  }
  // Rows of the block, one below the other.
  int height = blockDim.x / lanes, down = threadIdx.x / lanes, lane = threadIdx.x % lanes;
#pragma unroll
  for (int k = 0; k < V; k++) room[(down * V + k) * lanes + lane] = sum[k];
  __syncthreads();
  if (down || !inside) return;
  float *to = partial + blockIdx.x / tiles * cols + at.column;
#pragma unroll
  for (int k = 0; k < V; k++) {
    float total = 0.f;
    for (int h = 0; h < height; h++) total += room[(h * V + k) * lanes + lane];
    to[k] = total;
  }
}

template <int V, int U>
__device__ __forceinline__ void binary_rows(int op, const float *a, const float *b, float *y,
                                            i64 rows, i64 cols, int lanes) {
  Tile at(lanes, V, (cols + (i64)lanes * V - 1) / ((i64)lanes * V));
  if (at.column >= cols) return;
  float w[V];
  load_some<float, V>(b + at.column, w);
  for (i64 row = at.row; row < rows; row += at.step * U) {
    float v[U * V];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (row + u * at.step < rows)
        load_some<float, V>(a + (row + u * at.step) * cols + at.column, v + u * V);
#pragma unroll
    for (int e = 0; e < U * V; e++) v[e] = two(op, v[e], w[e % V]);
#pragma unroll
    for (int u = 0; u < U; u++)
      if (row + u * at.step < rows)
        store_some<float, V>(y + (row + u * at.step) * cols + at.column, v + u * V);
  }
}

}  // namespace map

extern "C" __global__ void __launch_bounds__(256)
    unary_forward_plain(int op, float p, float q, const float *x, float *y, i64 n) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= n) return;
  float v[1] = {x[at]};
  if (rows::is_rare(op))
    v[0] = rows::rare(op, v[0]);
  else
    rows::apply_unary<1>(op, p, q, v);
  y[at] = v[0];
}
extern "C" __global__ void __launch_bounds__(256)
    unary_rare_f32(int op, const float *x, float *y, i64 n) {
  i64 threads = (i64)gridDim.x * 256;
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < n; at += threads)
    y[at] = rows::rare(op, x[at]);
}
extern "C" __global__ void __launch_bounds__(256)
    unary_rare_bf16(int op, const bf16 *x, bf16 *y, i64 n) {
  i64 threads = (i64)gridDim.x * 256;
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < n; at += threads)
    y[at] = to_bf16(rows::rare(op, to_float(x[at])));
}
extern "C" __global__ void __launch_bounds__(256)
    unary_forward_f32(int op, float p, float q, const float *x, float *y, i64 n) {
  map::unary<float, 2>(x, y, n, map::Unary{op, p, q});
}
extern "C" __global__ void __launch_bounds__(256)
    unary_forward_bf16(int op, float p, float q, const bf16 *x, bf16 *y, i64 n) {
  map::unary<bf16, 1>(x, y, n, map::Unary{op, p, q});
}
// By way of f64, as on the CPU: every special case of the standard, half an ulp.
extern "C" __global__ void __launch_bounds__(256)
    pow_forward_f32(float p, const float *x, float *y, i64 n) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at < n) y[at] = (float)pow((double)x[at], (double)p);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_backward_plain(int op, float p, const float *x, const float *d_y, float *d_x,
                              i64 n) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= n) return;
  float v[1] = {x[at]}, d[1] = {d_y[at]};
  rows::apply_slope<1>(op, p, v, d);
  d_x[at] = d[0];
}
extern "C" __global__ void __launch_bounds__(256)
    activation_backward_f32(int op, float p, const float *x, const float *d_y, float *d_x,
                            i64 n) {
  map::binary<float, 2>(x, d_y, d_x, n, map::Slope{op, p});
}
extern "C" __global__ void __launch_bounds__(256)
    activation_backward_bf16(int op, float p, const bf16 *x, const bf16 *d_y,
                             bf16 *d_x, i64 n) {
  map::binary<bf16, 1>(x, d_y, d_x, n, map::Slope{op, p});
}

extern "C" __global__ void __launch_bounds__(256)
    binary_forward_f32(int op, const float *a, const float *b, float *y, i64 n) {
  map::binary<float, 2>(a, b, y, n, map::Binary{op});
}
extern "C" __global__ void __launch_bounds__(256)
    binary_scalar_forward_f32(int op, const float *a, float b, float *y, i64 n) {
  map::unary<float, 4>(a, y, n, map::With{op, b});
}
extern "C" __global__ void __launch_bounds__(256)
    binary_row_forward_f32(int op, const float *a, const float *b, float *y, i64 rows,
                           i64 cols, int lanes, int wide) {
  if (wide)
    map::binary_rows<4, 4>(op, a, b, y, rows, cols, lanes);
  else
    map::binary_rows<1, 4>(op, a, b, y, rows, cols, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    axpy_f32(float scale, const float *x, float *y, i64 n) {
  map::binary<float, 4>(x, y, y, n, map::Axpy{scale});
}

extern "C" __global__ void __launch_bounds__(256)
    bias_activation_forward_f32(int op, float p, const float *x, const float *bias,
                                const float *residual, float *y, i64 rows, i64 cols,
                                int lanes, int wide) {
  if (wide)
    map::bias_forward<float, 4, 2>(op, p, x, bias, residual, y, rows, cols, lanes);
  else
    map::bias_forward<float, 1, 1>(op, p, x, bias, residual, y, rows, cols, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    bias_activation_forward_bf16(int op, float p, const bf16 *x, const bf16 *bias,
                                 const bf16 *residual, bf16 *y, i64 rows,
                                 i64 cols, int lanes, int wide) {
  if (wide)
    map::bias_forward<bf16, 8, 1>(op, p, x, bias, residual, y, rows, cols, lanes);
  else
    map::bias_forward<bf16, 1, 1>(op, p, x, bias, residual, y, rows, cols, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    bias_activation_backward_f32(int op, float p, const float *x, const float *bias,
                                 const float *d_y, float *d_x, float *partial, i64 rows,
                                 i64 cols, int lanes, int wide) {
  DYN_SMEM(float, room);
  if (wide)
    map::bias_backward<float, 4, 2>(op, p, x, bias, d_y, d_x, partial, rows, cols, lanes, room);
  else
    map::bias_backward<float, 1, 1>(op, p, x, bias, d_y, d_x, partial, rows, cols, lanes, room);
}
extern "C" __global__ void __launch_bounds__(256, 4)
    bias_activation_backward_bf16(int op, float p, const bf16 *x, const bf16 *bias,
                                  const bf16 *d_y, bf16 *d_x, float *partial,
                                  i64 rows, i64 cols, int lanes, int wide) {
  DYN_SMEM(float, room);
  if (wide)
    map::bias_backward<bf16, 8, 1>(op, p, x, bias, d_y, d_x, partial, rows, cols, lanes, room);
  else
    map::bias_backward<bf16, 1, 1>(op, p, x, bias, d_y, d_x, partial, rows, cols, lanes, room);
}
