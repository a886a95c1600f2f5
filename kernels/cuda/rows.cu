// Softmax, log-softmax and cross-entropy over the last axis, forwards and backwards.
//
// Ladder: `_plain` gives a thread each row and reads it three times; `_w1` to `_w8` give a warp
// each row, held in registers (up to so many packs a lane), so that memory sees it once; `_b4`, and
// `_b2` of bf16, give a block each row, with as many threads as a row of up to 8192 numbers wants;
// `_long` joins maximum and sum in one online pass and finds most of the row in cache when it
// writes.
#include "common/rows.cuh"

namespace softmax {

using namespace rows;
constexpr u32 NO_TARGET = 0xffffffffu;

template <class T, int PACKS, int THREADS>
__device__ __forceinline__ void forward(const T *x, T *y, i64 count, int cols, int log,
                                        float *room) {
  constexpr int E = PACKS * Pack<T>::N;
  Group<THREADS> group(room);
  bool wide = wide_rows(x, cols) && on_pack(y);
  for (i64 row = group.first(); row < count; row += group.stride()) {
    float v[E];
    load_row<T, PACKS>(x + row * cols, cols, group.thread, group.threads(), wide, -INFINITY, v);
    float top = -INFINITY;
#pragma unroll
    for (int e = 0; e < E; e++) top = fmaxf(top, v[e]);
    // Subtract the row maximum first: exp overflows f32 above 88.7.
    top = group.max(top);
    float sum = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      float less = v[e] - top, power = expf(less);
      sum += power;
      v[e] = log ? less : power;
    }
    sum = group.sum(sum);
    float scale = log ? 1.f : 1.f / sum, shift = log ? -logf(sum) : 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = fmaf(v[e], scale, shift);
    store_row<T, PACKS>(y + row * cols, cols, group.thread, group.threads(), wide, v);
  }
}

template <class T, int PACKS, int THREADS>
__device__ __forceinline__ void backward(const T *y, const T *d_y, T *d_x, i64 count,
                                         int cols, int log, float *room) {
  constexpr int E = PACKS * Pack<T>::N;
  Group<THREADS> group(room);
  bool wide = wide_rows(y, cols) && on_pack(d_y) && on_pack(d_x);
  for (i64 row = group.first(); row < count; row += group.stride()) {
    float v[E], d[E];
    load_row<T, PACKS>(y + row * cols, cols, group.thread, group.threads(), wide, 0.f, v);
    load_row<T, PACKS>(d_y + row * cols, cols, group.thread, group.threads(), wide, 0.f, d);
    float sum = 0.f;
    if (log) {
#pragma unroll
      for (int e = 0; e < E; e++) sum += d[e];
      sum = group.sum(sum);
#pragma unroll
      for (int e = 0; e < E; e++) d[e] -= expf(v[e]) * sum;
    } else {
#pragma unroll
      for (int e = 0; e < E; e++) sum += v[e] * d[e];
      sum = group.sum(sum);
#pragma unroll
      for (int e = 0; e < E; e++) d[e] = v[e] * (d[e] - sum);
    }
    store_row<T, PACKS>(d_x + row * cols, cols, group.thread, group.threads(), wide, d);
  }
}

// What cross-entropy writes beside its gradient.
struct Targets {
  const u32 *targets;
  float *losses;
  float scale;      // of the gradient
  float smoothing;  // share of the probability that is spread over all tokens
};

__device__ __forceinline__ float smoothed(const Targets &t, float log_sum, float hit, float mean) {
  float loss = log_sum - hit;
  return t.smoothing == 0.f ? loss : loss + t.smoothing * (hit - mean);
}

template <class T, int PACKS, int THREADS>
__device__ __forceinline__ void cross_entropy(const T *x, Targets t, T *d_x, i64 count,
                                              int vocab, float *room) {
  constexpr int E = PACKS * Pack<T>::N;
  Group<THREADS> group(room);
  bool wide = wide_rows(x, vocab) && on_pack(d_x);
  for (i64 row = group.first(); row < count; row += group.stride()) {
    float v[E];
    // The row is under way while its target comes.
    load_row<T, PACKS>(x + row * vocab, vocab, group.thread, group.threads(), wide, -INFINITY, v);
    u32 target = t.targets[row];
    if (target == NO_TARGET) {
      if (group.thread == 0) t.losses[row] = 0.f;
#pragma unroll
      for (int e = 0; e < E; e++) v[e] = 0.f;
      if (d_x)
        store_row<T, PACKS>(d_x + row * vocab, vocab, group.thread, group.threads(), wide, v);
      continue;
    }
    float hit = load_one(x + row * vocab + target);
    float top = -INFINITY, mean = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) top = fmaxf(top, v[e]);
    top = group.max(top);
    if (t.smoothing != 0.f) {
      int inside = held<T>(vocab, group.thread, group.threads(), wide);
#pragma unroll
      for (int e = 0; e < E; e++) mean += e < inside ? v[e] - top : 0.f;
      mean = group.sum(mean) / vocab;
    }
    float sum = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      v[e] = expf(v[e] - top);
      sum += v[e];
    }
    sum = group.sum(sum);
    if (group.thread == 0) t.losses[row] = smoothed(t, logf(sum), hit - top, mean);
    if (!d_x) continue;
    float share = t.scale / sum, even = t.scale * t.smoothing / vocab;
    float hot = t.scale * (1.f - t.smoothing);
    int at_target = number_at<T>((int)target, group.thread, group.threads(), wide);
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = v[e] * share - even - (e == at_target ? hot : 0.f);
    store_row<T, PACKS>(d_x + row * vocab, vocab, group.thread, group.threads(), wide, v);
  }
}

// Maximum and the sum of exp(x - maximum), of what a thread has seen so far.
struct Online {
  float top = -INFINITY, sum = 0.f;
  __device__ __forceinline__ void add(float x) {
    if (x > top) {
      sum *= expf(top - x);
      top = x;
    }
    // An infinite maximum of nothing but -inf: the difference would be NaN.
    sum += top == -INFINITY ? (x == x ? 0.f : x) : expf(x - top);
  }
};

// Runs `f(column, value)` over a row, packs where they fit.
template <class T, class F>
__device__ __forceinline__ void over_row(const T *x, i64 cols, bool wide, F f) {
  constexpr int N = Pack<T>::N;
  if (wide) {
#pragma unroll 1
    for (i64 at = (i64)threadIdx.x * N; at < cols; at += (i64)blockDim.x * N) {
      float v[N];
      load_pack(x + at, v);
#pragma unroll
      for (int e = 0; e < N; e++) f(at + e, v[e]);
    }
  } else {
#pragma unroll 1
    for (i64 at = threadIdx.x; at < cols; at += blockDim.x) f(at, load_one(x + at));
  }
}

// Writes `f(column, value)` of each number of a row.
template <class T, class F>
__device__ __forceinline__ void map_row(const T *x, T *y, i64 cols, bool wide, F f) {
  constexpr int N = Pack<T>::N;
  if (wide) {
#pragma unroll 1
    for (i64 at = (i64)threadIdx.x * N; at < cols; at += (i64)blockDim.x * N) {
      float v[N];
      load_pack(x + at, v);
#pragma unroll
      for (int e = 0; e < N; e++) v[e] = f(at + e, v[e]);
      store_pack(y + at, v);
    }
  } else {
#pragma unroll 1
    for (i64 at = threadIdx.x; at < cols; at += blockDim.x)
      store_one(y + at, f(at, load_one(x + at)));
  }
}

// Maximum and sum of a row of any length; NaN anywhere makes the sum NaN.
template <class T>
__device__ __forceinline__ Online online(Group<0> &group, const T *x, i64 cols,
                                         bool wide) {
  Online mine;
  over_row(x, cols, wide, [&](i64, float v) { mine.add(v); });
  Online all;
  all.top = group.max(mine.top);
  float scaled = mine.top == -INFINITY ? mine.sum : mine.sum * expf(mine.top - all.top);
  all.sum = group.sum(scaled);
  if (all.top == -INFINITY) all.sum = 0.f;
  return all;
}

template <class T>
__device__ __forceinline__ void forward_long(const T *x, T *y, i64 count, i64 cols,
                                             int log, float *room) {
  Group<0> group(room);
  bool wide = wide_rows(x, cols) && on_pack(y);
  for (i64 row = blockIdx.x; row < count; row += gridDim.x) {
    const T *from = x + row * cols;
    Online all = online(group, from, cols, wide);
    float shift = logf(all.sum), scale = 1.f / all.sum;
    map_row(from, y + row * cols, cols, wide, [&](i64, float v) {
      return log ? v - all.top - shift : expf(v - all.top) * scale;
    });
  }
}

template <class T>
__device__ __forceinline__ void backward_long(const T *y, const T *d_y, T *d_x, i64 count,
                                              i64 cols, int log, float *room) {
  constexpr int N = Pack<T>::N;
  Group<0> group(room);
  bool wide = wide_rows(y, cols) && on_pack(d_y) && on_pack(d_x);
  i64 packs = wide ? cols / N : 0, rest = packs * N;
  for (i64 row = blockIdx.x; row < count; row += gridDim.x) {
    const T *v = y + row * cols, *d = d_y + row * cols;
    T *to = d_x + row * cols;
    float sum = 0.f;
#pragma unroll 2
    for (i64 pack = threadIdx.x; pack < packs; pack += blockDim.x) {
      float p[N], g[N];
      load_pack(v + pack * N, p);
      load_pack(d + pack * N, g);
#pragma unroll
      for (int e = 0; e < N; e++) sum += log ? g[e] : g[e] * p[e];
    }
    for (i64 at = rest + threadIdx.x; at < cols; at += blockDim.x)
      sum += log ? load_one(d + at) : load_one(d + at) * load_one(v + at);
    sum = group.sum(sum);
#pragma unroll 1
    for (i64 pack = threadIdx.x; pack < packs; pack += blockDim.x) {
      float p[N], g[N];
      load_pack(v + pack * N, p);
      load_pack(d + pack * N, g);
#pragma unroll
      for (int e = 0; e < N; e++) g[e] = log ? g[e] - expf(p[e]) * sum : p[e] * (g[e] - sum);
      store_pack(to + pack * N, g);
    }
    for (i64 at = rest + threadIdx.x; at < cols; at += blockDim.x) {
      float p = load_one(v + at), g = load_one(d + at);
      store_one(to + at, log ? g - expf(p) * sum : p * (g - sum));
    }
  }
}

template <class T>
__device__ __forceinline__ void cross_entropy_long(const T *x, Targets t, T *d_x, i64 count,
                                                   i64 vocab, float *room) {
  Group<0> group(room);
  bool wide = wide_rows(x, vocab) && on_pack(d_x);
  for (i64 row = blockIdx.x; row < count; row += gridDim.x) {
    const T *from = x + row * vocab;
    T *to = d_x + row * vocab;
    u32 target = t.targets[row];
    if (target == NO_TARGET) {
      if (threadIdx.x == 0) t.losses[row] = 0.f;
      if (d_x) map_row(from, to, vocab, wide, [](i64, float) { return 0.f; });
      continue;
    }
    float hit = load_one(from + target);
    Online all = online(group, from, vocab, wide);
    float mean = 0.f;
    if (t.smoothing != 0.f) {
      over_row(from, vocab, wide, [&](i64, float v) { mean += v - all.top; });
      mean = group.sum(mean) / vocab;
    }
    if (threadIdx.x == 0) t.losses[row] = smoothed(t, logf(all.sum), hit - all.top, mean);
    if (!d_x) continue;
    float share = t.scale / all.sum, even = t.scale * t.smoothing / vocab;
    float hot = t.scale * (1.f - t.smoothing);
    map_row(from, to, vocab, wide, [&](i64 at, float v) {
      return expf(v - all.top) * share - even - (at == target ? hot : 0.f);
    });
  }
}

}  // namespace softmax

// A thread a row, by the definition.
extern "C" __global__ void __launch_bounds__(128, 8)
    softmax_forward_plain(const float *x, float *y, i64 rows, int cols, int log) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *v = x + row * cols;
  float top = -INFINITY, sum = 0.f;
  for (int c = 0; c < cols; c++) top = fmaxf(top, v[c]);
  for (int c = 0; c < cols; c++) sum += expf(v[c] - top);
  float log_sum = logf(sum);
  for (int c = 0; c < cols; c++)
    y[row * cols + c] = log ? v[c] - top - log_sum : expf(v[c] - top) / sum;
}
extern "C" __global__ void __launch_bounds__(128)
    softmax_backward_plain(const float *y, const float *d_y, float *d_x, i64 rows, int cols,
                           int log) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *v = y + row * cols, *d = d_y + row * cols;
  float sum = 0.f;
  for (int c = 0; c < cols; c++) sum += log ? d[c] : d[c] * v[c];
  for (int c = 0; c < cols; c++)
    d_x[row * cols + c] = log ? d[c] - expf(v[c]) * sum : v[c] * (d[c] - sum);
}
extern "C" __global__ void __launch_bounds__(128)
    cross_entropy_forward_plain(const float *x, const u32 *targets, float *losses, float *d_x,
                                float scale, float smoothing, i64 rows, int vocab) {
  i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *v = x + row * vocab;
  u32 target = targets[row];
  bool none = target == softmax::NO_TARGET;
  float top = -INFINITY, sum = 0.f, mean = 0.f;
  for (int c = 0; c < vocab; c++) top = fmaxf(top, v[c]);
  for (int c = 0; c < vocab; c++) sum += expf(v[c] - top);
  for (int c = 0; c < vocab; c++) mean += (v[c] - top) / vocab;
  softmax::Targets t{targets, losses, scale, smoothing};
  losses[row] = none ? 0.f : softmax::smoothed(t, logf(sum), v[target] - top, mean);
  if (!d_x) return;
  for (int c = 0; c < vocab; c++) {
    float p = expf(v[c] - top) / sum - smoothing / vocab;
    if (c == (int)target) p -= 1.f - smoothing;
    d_x[row * vocab + c] = none ? 0.f : p * scale;
  }
}

#define ROOM DYN_SMEM(float, room)

extern "C" __global__ void __launch_bounds__(128, 12)
    softmax_forward_f32_w2(const float *x, float *y, i64 rows, int cols, int log) {
  softmax::forward<float, 2, 32>(x, y, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 6)
    softmax_forward_f32_w8(const float *x, float *y, i64 rows, int cols, int log) {
  softmax::forward<float, 8, 32>(x, y, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_forward_f32_b4(const float *x, float *y, i64 rows, int cols, int log) {
  ROOM;
  softmax::forward<float, 4, 0>(x, y, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_forward_f32_long(const float *x, float *y, i64 rows, i64 cols, int log) {
  ROOM;
  softmax::forward_long(x, y, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(128, 12)
    softmax_forward_bf16_w1(const bf16 *x, bf16 *y, i64 rows, int cols, int log) {
  softmax::forward<bf16, 1, 32>(x, y, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 8)
    softmax_forward_bf16_w4(const bf16 *x, bf16 *y, i64 rows, int cols, int log) {
  softmax::forward<bf16, 4, 32>(x, y, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_forward_bf16_b2(const bf16 *x, bf16 *y, i64 rows, int cols, int log) {
  ROOM;
  softmax::forward<bf16, 2, 0>(x, y, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_forward_bf16_long(const bf16 *x, bf16 *y, i64 rows, i64 cols,
                              int log) {
  ROOM;
  softmax::forward_long(x, y, rows, cols, log, room);
}

extern "C" __global__ void __launch_bounds__(128, 12)
    softmax_backward_f32_w2(const float *y, const float *d_y, float *d_x, i64 rows, int cols,
                            int log) {
  softmax::backward<float, 2, 32>(y, d_y, d_x, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 5)
    softmax_backward_f32_w8(const float *y, const float *d_y, float *d_x, i64 rows, int cols,
                            int log) {
  softmax::backward<float, 8, 32>(y, d_y, d_x, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_backward_f32_b4(const float *y, const float *d_y, float *d_x, i64 rows, int cols,
                            int log) {
  ROOM;
  softmax::backward<float, 4, 512>(y, d_y, d_x, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_backward_f32_long(const float *y, const float *d_y, float *d_x, i64 rows,
                              i64 cols, int log) {
  ROOM;
  softmax::backward_long(y, d_y, d_x, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(128, 12)
    softmax_backward_bf16_w1(const bf16 *y, const bf16 *d_y, bf16 *d_x, i64 rows,
                             int cols, int log) {
  softmax::backward<bf16, 1, 32>(y, d_y, d_x, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 5)
    softmax_backward_bf16_w4(const bf16 *y, const bf16 *d_y, bf16 *d_x, i64 rows,
                             int cols, int log) {
  softmax::backward<bf16, 4, 32>(y, d_y, d_x, rows, cols, log, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_backward_bf16_b2(const bf16 *y, const bf16 *d_y, bf16 *d_x, i64 rows,
                             int cols, int log) {
  ROOM;
  softmax::backward<bf16, 2, 0>(y, d_y, d_x, rows, cols, log, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    softmax_backward_bf16_long(const bf16 *y, const bf16 *d_y, bf16 *d_x,
                               i64 rows, i64 cols, int log) {
  ROOM;
  softmax::backward_long(y, d_y, d_x, rows, cols, log, room);
}

extern "C" __global__ void __launch_bounds__(128, 12)
    cross_entropy_forward_f32_w2(const float *x, const u32 *targets, float *losses, float *d_x,
                                 float scale, float smoothing, i64 rows, int vocab) {
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<float, 2, 32>(x, t, d_x, rows, vocab, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 5)
    cross_entropy_forward_f32_w8(const float *x, const u32 *targets, float *losses, float *d_x,
                                 float scale, float smoothing, i64 rows, int vocab) {
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<float, 8, 32>(x, t, d_x, rows, vocab, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    cross_entropy_forward_f32_b4(const float *x, const u32 *targets, float *losses, float *d_x,
                                 float scale, float smoothing, i64 rows, int vocab) {
  ROOM;
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<float, 4, 0>(x, t, d_x, rows, vocab, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    cross_entropy_forward_f32_long(const float *x, const u32 *targets, float *losses,
                                   float *d_x, float scale, float smoothing, i64 rows,
                                   i64 vocab) {
  ROOM;
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy_long(x, t, d_x, rows, vocab, room);
}
extern "C" __global__ void __launch_bounds__(128, 12)
    cross_entropy_forward_bf16_w1(const bf16 *x, const u32 *targets, float *losses,
                                  bf16 *d_x, float scale, float smoothing, i64 rows,
                                  int vocab) {
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<bf16, 1, 32>(x, t, d_x, rows, vocab, nullptr);
}
extern "C" __global__ void __launch_bounds__(128, 8)
    cross_entropy_forward_bf16_w4(const bf16 *x, const u32 *targets, float *losses,
                                  bf16 *d_x, float scale, float smoothing, i64 rows,
                                  int vocab) {
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<bf16, 4, 32>(x, t, d_x, rows, vocab, nullptr);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    cross_entropy_forward_bf16_b2(const bf16 *x, const u32 *targets, float *losses,
                                  bf16 *d_x, float scale, float smoothing, i64 rows,
                                  int vocab) {
  ROOM;
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy<bf16, 2, 0>(x, t, d_x, rows, vocab, room);
}
extern "C" __global__ void __launch_bounds__(512, 2)
    cross_entropy_forward_bf16_long(const bf16 *x, const u32 *targets, float *losses,
                                    bf16 *d_x, float scale, float smoothing, i64 rows,
                                    i64 vocab) {
  ROOM;
  softmax::Targets t{targets, losses, scale, smoothing};
  softmax::cross_entropy_long(x, t, d_x, rows, vocab, room);
}
#undef ROOM
