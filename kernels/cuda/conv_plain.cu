// Convolution by its definition, one sum per thread or warp: any sizes, strides and dilations, sums
// in f32. And what stands beside the tiled kernels: the sum of split parts, the gradient of the
// bias.
#include "common/reduce.cuh"
#include "conv_shape.cuh"

namespace conv {

// The input place of output place `q` and tap `t` along axis `a`, outside of the image or not.
__device__ __forceinline__ int input_place(const Shape &s, int a, int q, int t) {
  return s.stride[a] * q + s.dilation[a] * t - s.padding[a];
}
// The output place whose tap `t` meets input place `p` along axis `a`, or -1.
__device__ __forceinline__ int output_place(const Shape &s, int a, int p, int t) {
  int at = p + s.padding[a] - s.dilation[a] * t;
  return at < 0 || at % s.stride[a] || at / s.stride[a] >= s.out[a] ? -1 : at / s.stride[a];
}
__device__ __forceinline__ bool inside(const Shape &s, int a, int p) {
  return p >= 0 && p < s.in[a];
}

// Where thread `i` of a result `[batch, channels, places]` writes.
struct Element {
  i64 b;
  int channel, at[3];
};
__device__ __forceinline__ Element element_of(i64 i, int channels, const Size (&size)[3]) {
  Element e;
#pragma unroll
  for (int a = 2; a >= 0; a--) e.at[a] = (int)(i % size[a].size), i /= size[a].size;
  e.channel = (int)(i % channels);
  e.b = i / channels;
  return e;
}

}  // namespace conv

extern "C" __global__ void __launch_bounds__(256)
    conv_forward_plain(const float *x, const float *w, const float *bias, float *y, conv::Shape s) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= (i64)s.batch * s.groups * s.cout * s.outputs()) return;
  conv::Element e = conv::element_of(i, s.groups * s.cout, s.out);
  x += (e.b * s.groups + e.channel / s.cout) * s.cin * s.inputs();
  w += (i64)e.channel * s.cin * s.kernel_size();
  float sum = 0;
  for (int c = 0; c < s.cin; c++)
    for (int t0 = 0; t0 < s.kernel[0]; t0++)
      for (int t1 = 0; t1 < s.kernel[1]; t1++)
        for (int t2 = 0; t2 < s.kernel[2]; t2++) {
          int p0 = conv::input_place(s, 0, e.at[0], t0), p1 = conv::input_place(s, 1, e.at[1], t1);
          int p2 = conv::input_place(s, 2, e.at[2], t2);
          if (conv::inside(s, 0, p0) && conv::inside(s, 1, p1) && conv::inside(s, 2, p2))
            sum += x[(i64)c * s.inputs() + conv::offset_of(s.in, p0, p1, p2)] *
                   w[c * s.kernel_size() + conv::offset_of(s.kernel, t0, t1, t2)];
        }
  y[i] = sum + (bias ? bias[e.channel] : 0.f);
}

extern "C" __global__ void __launch_bounds__(256)
    conv_data_plain(const float *d_y, const float *w, const float *bias, float *d_x,
                    conv::Shape s) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= (i64)s.batch * s.groups * s.cin * s.inputs()) return;
  conv::Element e = conv::element_of(i, s.groups * s.cin, s.in);
  int group = e.channel / s.cin, c = e.channel % s.cin;
  d_y += (e.b * s.groups + group) * s.cout * s.outputs();
  w += (i64)group * s.cout * s.cin * s.kernel_size();
  float sum = 0;
  for (int t0 = 0; t0 < s.kernel[0]; t0++)
    for (int t1 = 0; t1 < s.kernel[1]; t1++)
      for (int t2 = 0; t2 < s.kernel[2]; t2++) {
        int q0 = conv::output_place(s, 0, e.at[0], t0), q1 = conv::output_place(s, 1, e.at[1], t1);
        int q2 = conv::output_place(s, 2, e.at[2], t2);
        if ((q0 | q1 | q2) < 0) continue;
        i64 from = conv::offset_of(s.out, q0, q1, q2);
        int tap = conv::offset_of(s.kernel, t0, t1, t2);
        for (int o = 0; o < s.cout; o++)
          sum += d_y[o * (i64)s.outputs() + from] * w[((i64)o * s.cin + c) * s.kernel_size() + tap];
      }
  d_x[i] = sum + (bias ? bias[e.channel] : 0.f);
}

// A warp per element of the filter; its lanes share samples and output places in a fixed order.
extern "C" __global__ void __launch_bounds__(256)
    conv_filter_plain(const float *x, const float *d_y, float *d_w, conv::Shape s) {
  i64 i = (i64)blockIdx.x * 8 + warp_id();
  if (i >= (i64)s.groups * s.cout * s.cin * s.kernel_size()) return;
  conv::Element e = conv::element_of(i, s.cin, s.kernel);
  int group = (int)(e.b / s.cout);
  float sum = 0;
  for (i64 j = lane_id(); j < (i64)s.batch * s.outputs(); j += 32) {
    conv::Element q = conv::element_of(j, 1, s.out);
    int p[3];
    bool all = true;
#pragma unroll
    for (int a = 0; a < 3; a++) {
      p[a] = conv::input_place(s, a, q.at[a], e.at[a]);
      all = all && conv::inside(s, a, p[a]);
    }
    if (all)
      sum += x[((q.b * s.groups + group) * s.cin + e.channel) * s.inputs() +
               conv::offset_of(s.in, p[0], p[1], p[2])] *
             d_y[(q.b * s.groups * s.cout + e.b) * s.outputs() + j % s.outputs()];
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) d_w[i] = sum;
}

// Adds parts of a result `[.., channels, places]`, `stride_split` apart, in order, and the bias.
extern "C" __global__ void __launch_bounds__(256)
    conv_finish(const float *parts, const float *bias, float *out, i64 length, int splits,
                i64 stride_split, int channels, int places) {
  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  if (i >= length) return;
  float sum = 0;
#pragma unroll 4
  for (int part = 0; part < splits; part++) sum += load_const(parts + part * stride_split + i);
  out[i] = sum + (bias ? bias[i / places % channels] : 0.f);
}

// Sums d_y `[batch, channels, places]` over samples and places: block (channel, part) a share of
// the samples. With one part `d_bias` is the result; else parts lie `channels` apart for
// `conv_finish`.
extern "C" __global__ void __launch_bounds__(256)
    conv_bias_backward(const float *d_y, float *d_bias, int batch, int channels, int places) {
  DYN_SMEM(float, scratch);
  i64 total = (i64)batch * places, share = ceil_div(total, gridDim.y);
  i64 end = min(total, share * (blockIdx.y + 1));
  float sum = 0;
  for (i64 i = share * blockIdx.y + threadIdx.x; i < end; i += 256)
    sum += load_const(d_y + (i / places * channels + blockIdx.x) * places + i % places);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) d_bias[blockIdx.y * channels + blockIdx.x] = sum;
}
