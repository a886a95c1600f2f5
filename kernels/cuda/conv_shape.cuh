// A convolution and its two gradients as products of matrices that exist in thought only.
//
// Every element of such a matrix lies at a sum of two offsets, one from its row and one from its
// column, and exists if the sums of two coordinates lie inside three limits (inside the image, or
// inside the kernel). So a row, a column or a place in k is an `int4`: an offset and a coordinate on
// each of three axes.
//
//   forward  y[o][b, q]     = sum over (i, t)  w[o][i, t] * x[i, t][b, q]        image: stride q + dilation t - padding
//   data     d_x[i, r][b, j] = sum over (o, u)  w[i, r][o, u] * d_y[o, u][b, j]
//   filter   d_w[o][i, t]    = sum over (b, q)  d_y[o][b, q] * x[b, q][i, t]
//
// The gradient of the data is the transposed convolution. Its input places are cut by their remainder
// r: place = stride j + r - padding meets the taps r + stride u, and these the output places j - u,
// whatever r is. All remainders of a place j therefore share what they read: r belongs to the rows. A
// dilation needs stride 1 on its axis here (`conv_data_plain` has no such limit).
//
// The second derivative needs no more: each sum is linear in both of its factors, and the gradients
// of each are the other two sums.
#pragma once
#include "common/ptx_gemm.cuh"

namespace conv {

enum Mode { FORWARD, DATA, FILTER };

// A coordinate outside of any limit, whatever is added to it once.
constexpr int OUTSIDE = 1 << 29;

// `cin` and `cout` are channels of a group.
struct Shape {
  int batch, groups, cin, cout;
  int in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];

  __device__ __forceinline__ int inputs() const { return in[0] * in[1] * in[2]; }
  __device__ __forceinline__ int outputs() const { return out[0] * out[1] * out[2]; }
  __device__ __forceinline__ int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// `index` of a row-major array whose sizes along all axes but the first are `size[1]`, `size[2]`.
struct Place {
  int first, at[3];
};
__device__ __forceinline__ Place place_of(int index, int size0, int size1, int size2) {
  int a2 = index % size2, rest = index / size2;
  int a1 = rest % size1;
  rest /= size1;
  return {rest / size0, {rest % size0, a1, a2}};
}
__device__ __forceinline__ int offset_of(const int (&size)[3], int a0, int a1, int a2) {
  return (a0 * size[1] + a1) * size[2] + a2;
}

// Remainders, taps of one remainder, and input places of remainder 0, along axis `a`.
__device__ __forceinline__ int remainders(const Shape &s, int a) { return s.stride[a]; }
__device__ __forceinline__ int taps_of_remainder(const Shape &s, int a) {
  return (s.kernel[a] + s.stride[a] - 1) / s.stride[a];
}
__device__ __forceinline__ int first_place(const Shape &s, int a) {
  return s.padding[a] / s.stride[a];
}
__device__ __forceinline__ int places(const Shape &s, int a) {
  return (s.in[a] - 1 + s.padding[a]) / s.stride[a] - first_place(s, a) + 1;
}

// An output place of the image: where its window starts. `plane` is the size of a sample.
__device__ __forceinline__ int4 window(const Shape &s, int index, i64 plane) {
  Place q = place_of(index, s.out[0], s.out[1], s.out[2]);
  int c[3];
#pragma unroll
  for (int a = 0; a < 3; a++) c[a] = s.stride[a] * q.at[a] - s.padding[a];
  return make_int4((int)(q.first * plane) + offset_of(s.in, c[0], c[1], c[2]), c[0], c[1], c[2]);
}
// A channel and a tap: what it adds to the start of a window.
__device__ __forceinline__ int4 tap(const Shape &s, int index) {
  Place t = place_of(index, s.kernel[0], s.kernel[1], s.kernel[2]);
  int c[3];
#pragma unroll
  for (int a = 0; a < 3; a++) c[a] = s.dilation[a] * t.at[a];
  return make_int4(t.first * s.inputs() + offset_of(s.in, c[0], c[1], c[2]), c[0], c[1], c[2]);
}

// The product of matrices that MODE is: sizes, and the entries of rows, columns and places in k.
template <int MODE>
struct Product;

template <>
struct Product<FORWARD> {
  static constexpr bool A_KMAJOR = true, B_KMAJOR = false, GATHERS_A = false;
  Shape s;
  __device__ __forceinline__ int rows() const { return s.cout; }
  __device__ __forceinline__ int cols() const { return s.batch * s.outputs(); }
  __device__ __forceinline__ int depth() const { return s.cin * s.taps(); }
  __device__ __forceinline__ int4 row_a(int) const { return make_int4(0, 0, 0, 0); }
  __device__ __forceinline__ int4 k_a(int) const { return make_int4(0, 0, 0, 0); }
  __device__ __forceinline__ int3 limits_a() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int4 col_b(int n) const {
    return window(s, n, (i64)s.groups * s.cin * s.inputs());
  }
  __device__ __forceinline__ int4 k_b(int k) const { return tap(s, k); }
  __device__ __forceinline__ int3 limits_b() const {
    return make_int3(s.in[0], s.in[1], s.in[2]);
  }
  __device__ __forceinline__ int4 row_out(int m) const {
    return make_int4(m * s.outputs(), 0, 0, 0);
  }
  __device__ __forceinline__ int4 col_out(int n) const {
    int places = s.outputs(), b = n / places;
    return make_int4(b * s.groups * s.cout * places + n % places, 0, 0, 0);
  }
  __device__ __forceinline__ int3 limits_out() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int channel(int m) const { return m; }
  __device__ __forceinline__ int rows_side_by_side() const { return 1; }
};

template <>
struct Product<DATA> {
  static constexpr bool A_KMAJOR = false, B_KMAJOR = false, GATHERS_A = true;
  Shape s;
  __device__ __forceinline__ int rows() const {
    return s.cin * s.stride[0] * s.stride[1] * s.stride[2];
  }
  __device__ __forceinline__ int cols() const {
    return s.batch * places(s, 0) * places(s, 1) * places(s, 2);
  }
  __device__ __forceinline__ int depth() const {
    return s.cout * taps_of_remainder(s, 0) * taps_of_remainder(s, 1) * taps_of_remainder(s, 2);
  }
  // Of the filter: channel i and remainder r; channel o and tap u of the remainder.
  __device__ __forceinline__ int4 row_a(int m) const {
    Place r = place_of(m, s.stride[0], s.stride[1], s.stride[2]);
    return make_int4(r.first * s.taps() + offset_of(s.kernel, r.at[0], r.at[1], r.at[2]), r.at[0],
                     r.at[1], r.at[2]);
  }
  __device__ __forceinline__ Place tap_of(int k) const {
    return place_of(k, taps_of_remainder(s, 0), taps_of_remainder(s, 1), taps_of_remainder(s, 2));
  }
  __device__ __forceinline__ int4 k_a(int k) const {
    Place u = tap_of(k);
    int c[3];
#pragma unroll
    for (int a = 0; a < 3; a++) c[a] = s.stride[a] * u.at[a];
    return make_int4(u.first * s.cin * s.taps() + offset_of(s.kernel, c[0], c[1], c[2]), c[0],
                     c[1], c[2]);
  }
  __device__ __forceinline__ int3 limits_a() const {
    return make_int3(s.kernel[0], s.kernel[1], s.kernel[2]);
  }
  // Of the output's gradient: place j; channel o and the step back that u is.
  __device__ __forceinline__ Place place_j(int n) const {
    Place j = place_of(n, places(s, 0), places(s, 1), places(s, 2));
#pragma unroll
    for (int a = 0; a < 3; a++) j.at[a] += first_place(s, a);
    return j;
  }
  __device__ __forceinline__ int4 col_b(int n) const {
    Place j = place_j(n);
    return make_int4(j.first * s.groups * s.cout * s.outputs() +
                         offset_of(s.out, j.at[0], j.at[1], j.at[2]),
                     j.at[0], j.at[1], j.at[2]);
  }
  __device__ __forceinline__ int4 k_b(int k) const {
    Place u = tap_of(k);
    int c[3];
#pragma unroll
    for (int a = 0; a < 3; a++) c[a] = -s.dilation[a] * u.at[a];
    return make_int4(u.first * s.outputs() + offset_of(s.out, c[0], c[1], c[2]), c[0], c[1], c[2]);
  }
  __device__ __forceinline__ int3 limits_b() const {
    return make_int3(s.out[0], s.out[1], s.out[2]);
  }
  // Of the input's gradient.
  __device__ __forceinline__ int4 row_out(int m) const {
    Place r = place_of(m, s.stride[0], s.stride[1], s.stride[2]);
    return make_int4(r.first * s.inputs() + offset_of(s.in, r.at[0], r.at[1], r.at[2]), r.at[0],
                     r.at[1], r.at[2]);
  }
  __device__ __forceinline__ int4 col_out(int n) const {
    Place j = place_j(n);
    int c[3];
#pragma unroll
    for (int a = 0; a < 3; a++) c[a] = s.stride[a] * j.at[a] - s.padding[a];
    return make_int4(j.first * s.groups * s.cin * s.inputs() + offset_of(s.in, c[0], c[1], c[2]),
                     c[0], c[1], c[2]);
  }
  __device__ __forceinline__ int3 limits_out() const {
    return make_int3(s.in[0], s.in[1], s.in[2]);
  }
  __device__ __forceinline__ int channel(int m) const {
    return m / (s.stride[0] * s.stride[1] * s.stride[2]);
  }
  // Remainders of the last axis are neighbours in memory.
  __device__ __forceinline__ int rows_side_by_side() const { return s.stride[2]; }
};

template <>
struct Product<FILTER> {
  static constexpr bool A_KMAJOR = true, B_KMAJOR = true, GATHERS_A = true;
  Shape s;
  __device__ __forceinline__ int rows() const { return s.cout; }
  __device__ __forceinline__ int cols() const { return s.cin * s.taps(); }
  __device__ __forceinline__ int depth() const { return s.batch * s.outputs(); }
  __device__ __forceinline__ int4 row_a(int m) const {
    return make_int4(m * s.outputs(), 0, 0, 0);
  }
  __device__ __forceinline__ int4 k_a(int k) const {
    int places = s.outputs(), b = k / places;
    return make_int4(b * s.groups * s.cout * places + k % places, 0, 0, 0);
  }
  __device__ __forceinline__ int3 limits_a() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int4 col_b(int n) const { return tap(s, n); }
  __device__ __forceinline__ int4 k_b(int k) const {
    return window(s, k, (i64)s.groups * s.cin * s.inputs());
  }
  __device__ __forceinline__ int3 limits_b() const {
    return make_int3(s.in[0], s.in[1], s.in[2]);
  }
  __device__ __forceinline__ int4 row_out(int m) const { return make_int4(m * cols(), 0, 0, 0); }
  __device__ __forceinline__ int4 col_out(int n) const { return make_int4(n, 0, 0, 0); }
  __device__ __forceinline__ int3 limits_out() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int channel(int m) const { return m; }
  __device__ __forceinline__ int rows_side_by_side() const { return 1; }
};

}  // namespace conv
