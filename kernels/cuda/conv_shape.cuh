// A convolution and its two gradients as products of matrices that exist in thought only.
//
// Every element of such a matrix lies at a sum of two offsets, one from its row and one from its
// column, and exists if the sums of two coordinates lie inside three limits (inside the image, or
// inside the kernel). So a row, a column or a place in k is an `int4`: an offset and a coordinate
// on each of three axes.
//
//   forward  y[o][b, q]      = sum over (i, t)  w[o][i, t] * x[i, t][b, q]
//   data     d_x[i, r][b, j] = sum over (o, u)  w[i, r][o, u] * d_y[o, u][b, j]
//   filter   d_w[o][i, t]    = sum over (b, q)  d_y[o][b, q] * x[b, q][i, t]
//
// Tap t of output place q is input place stride q + dilation t - padding.
//
// The gradient of the data is the transposed convolution. Its input places are cut by their
// remainder r: place = stride j + r - padding meets the taps r + stride u, and these the output
// places j - u, whatever r is. All remainders of a place j therefore share what they read: r
// belongs to the rows. A dilation needs stride 1 on its axis here (`conv_data_plain` has no such
// limit).
//
// The second derivative needs no more: each sum is linear in both of its factors, and the gradients
// of each are the other two sums.
#pragma once
#include "common/ptx_gemm.cuh"

namespace conv {

enum Mode { FORWARD, DATA, FILTER };

// A coordinate outside of any limit, whatever is added to it once.
constexpr int OUTSIDE = 1 << 29;

// Divides numbers below 2^31 by a multiplication: magic = ceil(2^shift / size), and shift is 31
// plus the bits of size - 1, so that n * magic / 2^shift is less than n / size + 1 / size.
struct Size {
  u32 size, magic, shift;

  __device__ __forceinline__ operator int() const { return (int)size; }
  // Leaves the quotient and returns the remainder.
  __device__ __forceinline__ int cut(int &n) const {
    int quotient = (int)((u64)(u32)n * magic >> shift), rest = n - quotient * (int)size;
    n = quotient;
    return rest;
  }
};

// A convolution; `cin` and `cout` are channels of a group, all else per axis. Of the data's
// gradient: `taps` that one remainder meets (kernel / stride, rounded up), the `first` place j and
// the number of `places` (of input place p, j = (p + padding) / stride).
struct Shape {
  int batch, groups, cin, cout;
  Size in[3], out[3], kernel[3], stride[3], taps[3], places[3];
  int padding[3], dilation[3], first[3];

  __device__ __forceinline__ int inputs() const { return in[0] * in[1] * in[2]; }
  __device__ __forceinline__ int outputs() const { return out[0] * out[1] * out[2]; }
  __device__ __forceinline__ int kernel_size() const { return kernel[0] * kernel[1] * kernel[2]; }
  __device__ __forceinline__ int remainders() const { return stride[0] * stride[1] * stride[2]; }
};

// An element of an array `[.., size[0], size[1], size[2]]`.
struct Place {
  int first, at[3];
};
__device__ __forceinline__ Place place_of(int index, const Size (&size)[3]) {
  Place p;
#pragma unroll
  for (int a = 2; a >= 0; a--) p.at[a] = size[a].cut(index);
  p.first = index;
  return p;
}
__device__ __forceinline__ int offset_of(const Size (&size)[3], int a0, int a1, int a2) {
  return (a0 * size[1] + a1) * size[2] + a2;
}

// An output place of the image: where its window starts.
__device__ __forceinline__ int4 window(const Shape &s, int index) {
  Place q = place_of(index, s.out);
  int c[3];
#pragma unroll
  for (int a = 0; a < 3; a++) c[a] = s.stride[a] * q.at[a] - s.padding[a];
  return make_int4(q.first * s.groups * s.cin * s.inputs() + offset_of(s.in, c[0], c[1], c[2]),
                   c[0], c[1], c[2]);
}
// A channel and a tap: what it adds to the start of a window.
__device__ __forceinline__ int4 tap(const Shape &s, int index) {
  Place t = place_of(index, s.kernel);
  int c[3];
#pragma unroll
  for (int a = 0; a < 3; a++) c[a] = s.dilation[a] * t.at[a];
  return make_int4(t.first * s.inputs() + offset_of(s.in, c[0], c[1], c[2]), c[0], c[1], c[2]);
}
// A sample and a place of the output, group and channel 0.
__device__ __forceinline__ int4 output(const Shape &s, int index) {
  Place q = place_of(index, s.out);
  return make_int4(q.first * s.groups * s.cout * s.outputs() +
                       offset_of(s.out, q.at[0], q.at[1], q.at[2]),
                   0, 0, 0);
}
__device__ __forceinline__ int3 limits(const Size (&size)[3]) {
  return make_int3(size[0], size[1], size[2]);
}

// The product of matrices that MODE is: sizes, and the entries of rows, columns and places in k.
template <int MODE>
struct Product;

template <>
struct Product<FORWARD> {
  static constexpr bool A_KMAJOR = true, B_KMAJOR = false, GATHERS_A = false;
  const Shape &s;
  __device__ __forceinline__ int rows() const { return s.cout; }
  __device__ __forceinline__ int cols() const { return s.batch * s.outputs(); }
  __device__ __forceinline__ int depth() const { return s.cin * s.kernel_size(); }
  __device__ __forceinline__ int4 row_a(int) const { return make_int4(0, 0, 0, 0); }
  __device__ __forceinline__ int4 col_b(int n) const { return window(s, n); }
  __device__ __forceinline__ void along(int k, int4 &, int4 &b) const { b = tap(s, k); }
  __device__ __forceinline__ int3 limits_a() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int3 limits_b() const { return limits(s.in); }
  __device__ __forceinline__ int4 row_out(int m) const {
    return make_int4(m * s.outputs(), 0, 0, 0);
  }
  __device__ __forceinline__ int4 col_out(int n) const { return output(s, n); }
  __device__ __forceinline__ int3 limits_out() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int channel(int m) const { return m; }
  __device__ __forceinline__ int rows_side_by_side() const { return 1; }
};

template <>
struct Product<DATA> {
  static constexpr bool A_KMAJOR = false, B_KMAJOR = false, GATHERS_A = true;
  const Shape &s;
  __device__ __forceinline__ int rows() const { return s.cin * s.remainders(); }
  __device__ __forceinline__ int cols() const {
    return s.batch * s.places[0] * s.places[1] * s.places[2];
  }
  __device__ __forceinline__ int depth() const {
    return s.cout * s.taps[0] * s.taps[1] * s.taps[2];
  }
  // Of the filter: channel i and remainder r.
  __device__ __forceinline__ int4 row_a(int m) const {
    Place r = place_of(m, s.stride);
    return make_int4(r.first * s.kernel_size() + offset_of(s.kernel, r.at[0], r.at[1], r.at[2]),
                     r.at[0], r.at[1], r.at[2]);
  }
  // Of the output's gradient: place j.
  __device__ __forceinline__ Place place_j(int n) const {
    Place j = place_of(n, s.places);
#pragma unroll
    for (int a = 0; a < 3; a++) j.at[a] += s.first[a];
    return j;
  }
  __device__ __forceinline__ int4 col_b(int n) const {
    Place j = place_j(n);
    return make_int4(j.first * s.groups * s.cout * s.outputs() +
                         offset_of(s.out, j.at[0], j.at[1], j.at[2]),
                     j.at[0], j.at[1], j.at[2]);
  }
  // Channel o and tap u of a remainder: steps on in the filter, back in the output.
  __device__ __forceinline__ void along(int k, int4 &a, int4 &b) const {
    Place u = place_of(k, s.taps);
    int c[3], d[3];
#pragma unroll
    for (int e = 0; e < 3; e++) {
      c[e] = s.stride[e] * u.at[e];
      d[e] = -s.dilation[e] * u.at[e];
    }
    a = make_int4(u.first * s.cin * s.kernel_size() + offset_of(s.kernel, c[0], c[1], c[2]), c[0],
                  c[1], c[2]);
    b = make_int4(u.first * s.outputs() + offset_of(s.out, d[0], d[1], d[2]), d[0], d[1], d[2]);
  }
  __device__ __forceinline__ int3 limits_a() const { return limits(s.kernel); }
  __device__ __forceinline__ int3 limits_b() const { return limits(s.out); }
  __device__ __forceinline__ int4 row_out(int m) const {
    Place r = place_of(m, s.stride);
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
  __device__ __forceinline__ int3 limits_out() const { return limits(s.in); }
  __device__ __forceinline__ int channel(int m) const { return place_of(m, s.stride).first; }
  // Remainders of the last axis are neighbours in memory.
  __device__ __forceinline__ int rows_side_by_side() const { return s.stride[2]; }
};

template <>
struct Product<FILTER> {
  static constexpr bool A_KMAJOR = true, B_KMAJOR = true, GATHERS_A = true;
  const Shape &s;
  __device__ __forceinline__ int rows() const { return s.cout; }
  __device__ __forceinline__ int cols() const { return s.cin * s.kernel_size(); }
  __device__ __forceinline__ int depth() const { return s.batch * s.outputs(); }
  __device__ __forceinline__ int4 row_a(int m) const {
    return make_int4(m * s.outputs(), 0, 0, 0);
  }
  __device__ __forceinline__ int4 col_b(int n) const { return tap(s, n); }
  __device__ __forceinline__ void along(int k, int4 &a, int4 &b) const {
    a = output(s, k);
    b = window(s, k);
  }
  __device__ __forceinline__ int3 limits_a() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int3 limits_b() const { return limits(s.in); }
  __device__ __forceinline__ int4 row_out(int m) const { return make_int4(m * cols(), 0, 0, 0); }
  __device__ __forceinline__ int4 col_out(int n) const { return make_int4(n, 0, 0, 0); }
  __device__ __forceinline__ int3 limits_out() const { return make_int3(1, 1, 1); }
  __device__ __forceinline__ int channel(int m) const { return m; }
  __device__ __forceinline__ int rows_side_by_side() const { return 1; }
};

}  // namespace conv
