// Batch and group normalisation of [batch, channels, space]: statistics of planes (one channel of
// one element of the batch) are joined to those of a channel over the batch, or of a group of
// channels.
//
// Ladder: `_plain` gives a thread each statistic and its numbers. The others take planes apart: a
// thread, a warp or a block a plane by its size, mean and sum of squared distances of a pack at a
// time joined by Chan's formula, so that one pass is enough and nothing cancels; then one pass of
// 16-byte reads and writes, most of them from cache. `per` is the channels of a group, 0 for batch
// normalisation; statistic `plane / per`, or the plane's channel.
#include "common/rows.cuh"

namespace channels {

using namespace rows;

struct Moments {
  float n = 0.f, mean = 0.f, m2 = 0.f;  // m2: sum of squared distances from the mean
  // Chan, Golub & LeVeque 1983.
  __device__ __forceinline__ void join(float other_n, float other_mean, float other_m2) {
    float all = n + other_n;
    if (all == 0.f) return;
    float share = other_n / all, d = other_mean - mean;
    mean = fmaf(d, share, mean);
    m2 += fmaf(d * d, n * share, other_m2);
    n = all;
  }
  template <int E>
  __device__ __forceinline__ void take(const float *v) {
    float sum = 0.f, square = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) sum += v[e];
    float m = sum / E;
#pragma unroll
    for (int e = 0; e < E; e++) square = fmaf(v[e] - m, v[e] - m, square);
    join(E, m, square);
  }
  // Lane 0 gets those of the warp.
  __device__ __forceinline__ void join_warp() {
#pragma unroll
    for (int bits = 16; bits; bits >>= 1) {
      float a = __shfl_xor_sync(FULL_WARP, n, bits), b = __shfl_xor_sync(FULL_WARP, mean, bits);
      float c = __shfl_xor_sync(FULL_WARP, m2, bits);
      join(a, b, c);
    }
  }
};

// The planes of this thread's group of `lanes` threads: 1, 32 or all of the block.
struct Walk {
  int lane;
  i64 first, step;
  __device__ __forceinline__ explicit Walk(int lanes) {
    int groups = blockDim.x / lanes;
    lane = threadIdx.x % lanes;
    first = (i64)blockIdx.x * groups + threadIdx.x / lanes;
    step = (i64)gridDim.x * groups;
  }
};

__device__ __forceinline__ i64 divide(i64 a, i64 b) {
  return (u64)a >> 32 ? a / b : (i64)((u32)a / (u32)b);
}

__device__ __forceinline__ i64 statistic(i64 plane, i64 count, i64 per) {
  return per ? divide(plane, per) : plane - divide(plane, count) * count;
}

// What a plane's numbers are scaled by.
struct Scale {
  float mean, rstd, weight;
  i64 channel, at;
  __device__ __forceinline__ Scale(const float *mean_of, const float *spread, const float *weights,
                                   float eps, i64 plane, i64 count, i64 per) {
    channel = plane - divide(plane, count) * count;
    at = per ? divide(plane, per) : channel;
    mean = mean_of[at];
    // Batch normalisation keeps the variance, group normalisation one over the deviation.
    rstd = per ? spread[at] : 1.f / sqrtf(spread[at] + eps);
    weight = weights[channel];
  }
};

}  // namespace channels

// Mean and m2 of each plane.
extern "C" __global__ void __launch_bounds__(256)
    plane_moments_f32(const float *x, float *mean, float *m2, i64 planes, i64 space, int lanes) {
  using namespace channels;
  DYN_SMEM(float, room);
  Walk walk(lanes);
  bool wide = wide_rows(x, space);
  for (i64 plane = walk.first; plane < planes; plane += walk.step) {
    const float *from = x + plane * space;
    Moments mine;
    i64 packs = wide ? space / 4 : 0, at = walk.lane;
    for (; at + 3 * lanes < packs; at += 4 * lanes) {
      float v[16];
#pragma unroll
      for (int u = 0; u < 4; u++) load_pack(from + (at + u * lanes) * 4, v + u * 4);
      mine.take<16>(v);
    }
    for (; at < packs; at += lanes) {
      float v[4];
      load_pack(from + at * 4, v);
      mine.take<4>(v);
    }
    for (at = packs * 4 + walk.lane; at < space; at += lanes) mine.join(1.f, from[at], 0.f);
    if (lanes > 1) mine.join_warp();
    if (lanes > 32) {
      if (lane_id() == 0) {
        room[warp_id()] = mine.n, room[8 + warp_id()] = mine.mean, room[16 + warp_id()] = mine.m2;
      }
      __syncthreads();
      if (threadIdx.x == 0)
        for (int w = 1; w < 8; w++) mine.join(room[w], room[8 + w], room[16 + w]);
      __syncthreads();
    }
    if (walk.lane == 0) mean[plane] = mine.mean, m2[plane] = mine.m2;
  }
}
// Joins planes `first + k * stride`, k < count, to statistics; a warp each. With `eps` below 0 the
// variance is written, else one over the deviation.
extern "C" __global__ void __launch_bounds__(128)
    join_moments(const float *plane_mean, const float *plane_m2, float *mean, float *spread,
                 i64 statistics, i64 first, i64 stride, i64 count, i64 space, float eps) {
  using namespace channels;
  Walk walk(32);
  for (i64 s = walk.first; s < statistics; s += walk.step) {
    Moments mine;
    for (i64 k = walk.lane; k < count; k += 32) {
      i64 plane = s * first + k * stride;
      mine.join((float)space, plane_mean[plane], plane_m2[plane]);
    }
    mine.join_warp();
    if (walk.lane) continue;
    float var = mine.m2 / ((float)count * (float)space);
    mean[s] = mine.mean;
    spread[s] = eps < 0.f ? var : 1.f / sqrtf(var + eps);
  }
}
// y = (x - mean) rstd weight + bias
extern "C" __global__ void __launch_bounds__(256)
    channel_norm_f32(const float *x, const float *weight, const float *bias, float *y,
                     const float *mean, const float *spread, float eps, i64 n, i64 count,
                     i64 space, i64 per) {
  using namespace channels;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  if (wide_rows(x, space) && on_pack(y)) {
#pragma unroll 2
    for (i64 pack = thread; pack < n / 4; pack += threads) {
      float v[4];
      load_pack(x + pack * 4, v);
      Scale s(mean, spread, weight, eps, divide(pack, space / 4), count, per);
      float b = bias[s.channel];
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] = fmaf((v[e] - s.mean) * s.rstd, s.weight, b);
      store_pack(y + pack * 4, v);
    }
  } else {
    for (i64 at = thread; at < n; at += threads) {
      Scale s(mean, spread, weight, eps, divide(at, space), count, per);
      y[at] = fmaf((x[at] - s.mean) * s.rstd, s.weight, bias[s.channel]);
    }
  }
}
// y = x scale + shift with one of each a channel.
extern "C" __global__ void __launch_bounds__(256)
    channel_affine_f32(const float *x, const float *scale, const float *shift, float *y, i64 n,
                       i64 count, i64 space) {
  using namespace channels;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  if (wide_rows(x, space) && on_pack(y)) {
#pragma unroll 2
    for (i64 pack = thread; pack < n / 4; pack += threads) {
      float v[4];
      load_pack(x + pack * 4, v);
      i64 c = statistic(divide(pack, space / 4), count, 0);
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] = fmaf(v[e], scale[c], shift[c]);
      store_pack(y + pack * 4, v);
    }
  } else {
    for (i64 at = thread; at < n; at += threads) {
      i64 c = statistic(divide(at, space), count, 0);
      y[at] = fmaf(x[at], scale[c], shift[c]);
    }
  }
}
// Sums of d_y and of d_y hat over each plane: sums [2, planes].
extern "C" __global__ void __launch_bounds__(256)
    plane_sums_f32(const float *x, const float *mean, const float *spread, const float *d_y,
                   float *sums, float eps, i64 planes, i64 count, i64 space, i64 per, int lanes) {
  using namespace channels;
  DYN_SMEM(float, room);
  Walk walk(lanes);
  bool wide = wide_rows(x, space) && on_pack(d_y);
  for (i64 plane = walk.first; plane < planes; plane += walk.step) {
    const float *from = x + plane * space, *d = d_y + plane * space;
    i64 s = statistic(plane, count, per);
    float m = mean[s], r = per ? spread[s] : 1.f / sqrtf(spread[s] + eps);
    float sum = 0.f, dot = 0.f;
    i64 packs = wide ? space / 4 : 0;
#pragma unroll 4
    for (i64 at = walk.lane; at < packs; at += lanes) {
      float v[4], w[4];
      load_pack(from + at * 4, v);
      load_pack(d + at * 4, w);
#pragma unroll
      for (int e = 0; e < 4; e++) sum += w[e], dot = fmaf(w[e], (v[e] - m) * r, dot);
    }
    for (i64 at = packs * 4 + walk.lane; at < space; at += lanes) {
      sum += d[at];
      dot = fmaf(d[at], (from[at] - m) * r, dot);
    }
    if (lanes > 1) sum = warp_sum(sum), dot = warp_sum(dot);
    if (lanes > 32) {
      if (lane_id() == 0) room[warp_id()] = sum, room[8 + warp_id()] = dot;
      __syncthreads();
      if (threadIdx.x == 0)
        for (int w = 1; w < 8; w++) sum += room[w], dot += room[8 + w];
      __syncthreads();
    }
    if (walk.lane == 0) sums[plane] = sum, sums[planes + plane] = dot;
  }
}
// a = mean(d_y w) and b = mean(d_y w hat) of each statistic: means [2, statistics]; a warp each.
// For batch normalisation the sums of a channel are its gradients, too.
extern "C" __global__ void __launch_bounds__(128)
    join_sums(const float *sums, const float *weight, float *means, float *d_weight,
              float *d_bias, i64 statistics, i64 first, i64 stride, i64 count, i64 planes,
              i64 space, i64 channel_count, i64 per) {
  using namespace channels;
  Walk walk(32);
  for (i64 s = walk.first; s < statistics; s += walk.step) {
    double a = 0.0, b = 0.0;
    for (i64 k = walk.lane; k < count; k += 32) {
      i64 plane = s * first + k * stride;
      double w = per ? (double)weight[plane - divide(plane, channel_count) * channel_count] : 1.0;
      a += w * sums[plane];
      b += w * sums[planes + plane];
    }
    a = rows::warp_sum(a), b = rows::warp_sum(b);
    if (walk.lane) continue;
    if (!per) {
      d_bias[s] += (float)a;
      d_weight[s] += (float)b;
      a *= weight[s], b *= weight[s];
    }
    double n = (double)count * (double)space;
    means[s] = (float)(a / n);
    means[statistics + s] = (float)(b / n);
  }
}
// d_x = rstd (weight d_y - a - hat b)
extern "C" __global__ void __launch_bounds__(256)
    channel_norm_backward_f32(const float *x, const float *weight, const float *mean,
                              const float *spread, const float *d_y, float *d_x,
                              const float *means, float eps, i64 n, i64 count, i64 space, i64 per,
                              i64 statistics) {
  using namespace channels;
  i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, threads = (i64)gridDim.x * 256;
  if (wide_rows(x, space) && on_pack(d_y) && on_pack(d_x)) {
#pragma unroll 2
    for (i64 pack = thread; pack < n / 4; pack += threads) {
      float v[4], d[4];
      load_pack(x + pack * 4, v);
      load_pack(d_y + pack * 4, d);
      Scale s(mean, spread, weight, eps, divide(pack, space / 4), count, per);
      float a = means[s.at], b = means[statistics + s.at];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float hat = (v[e] - s.mean) * s.rstd;
        d[e] = s.rstd * fmaf(-hat, b, fmaf(d[e], s.weight, -a));
      }
      store_pack(d_x + pack * 4, d);
    }
  } else {
    for (i64 at = thread; at < n; at += threads) {
      Scale s(mean, spread, weight, eps, divide(at, space), count, per);
      float a = means[s.at], b = means[statistics + s.at];
      float hat = (x[at] - s.mean) * s.rstd;
      d_x[at] = s.rstd * fmaf(-hat, b, fmaf(d_y[at], s.weight, -a));
    }
  }
}
// running = running + momentum (new - running); the running variance is that of the population.
extern "C" __global__ void __launch_bounds__(128)
    update_statistics_f32(const float *mean, const float *var, float *running_mean,
                          float *running_var, i64 count, float unbiased, float momentum) {
  i64 c = (i64)blockIdx.x * 128 + threadIdx.x;
  if (c >= count) return;
  running_mean[c] += momentum * (mean[c] - running_mean[c]);
  running_var[c] += momentum * (var[c] * unbiased - running_var[c]);
}

// A thread a statistic: its planes are `first + k * stride`.
extern "C" __global__ void __launch_bounds__(128)
    channel_norm_forward_plain(const float *x, const float *weight, const float *bias, float *y,
                               float *mean, float *spread, float eps, i64 statistics, i64 first,
                               i64 stride, i64 planes, i64 count, i64 space, i64 per) {
  i64 s = (i64)blockIdx.x * 128 + threadIdx.x;
  if (s >= statistics) return;
  float sum = 0.f, square = 0.f, n = (float)planes * (float)space;
  for (i64 k = 0; k < planes; k++)
    for (i64 i = 0; i < space; i++) sum += x[(s * first + k * stride) * space + i];
  float m = sum / n;
  for (i64 k = 0; k < planes; k++)
    for (i64 i = 0; i < space; i++) {
      float d = x[(s * first + k * stride) * space + i] - m;
      square += d * d;
    }
  float r = 1.f / sqrtf(square / n + eps);
  mean[s] = m;
  spread[s] = per ? r : square / n;
  for (i64 k = 0; k < planes; k++)
    for (i64 i = 0; i < space; i++) {
      i64 plane = s * first + k * stride, at = plane * space + i;
      y[at] = (x[at] - m) * r * weight[plane % count] + bias[plane % count];
    }
}
