// Random numbers as a function of their position, and dropout, whose mask is never stored: its
// gradient is the same kernel on d_y.
//
// Ladder: `dropout_plain` gives a thread each number and throws three of four words away; the
// others make a block of four words once, for four numbers side by side, two blocks of a thread
// under way. Where `moved` is given, it counts blocks that the stream has gone on since the launch
// was recorded.
#include "common/philox.cuh"
#include "common/rows.cuh"

namespace draws {

using namespace rows;

__device__ __forceinline__ Stream at_place(Stream s, const u64 *moved) {
  if (moved) s.position += *moved;
  return s;
}

// Numbers of a block of words.
struct Uniform {
  __device__ __forceinline__ void draw(uint4 w, float *v) const {
    v[0] = to_unit(w.x), v[1] = to_unit(w.y), v[2] = to_unit(w.z), v[3] = to_unit(w.w);
  }
};
// 1 where the word is below the threshold, else 0.
struct Bernoulli {
  u64 threshold;
  __device__ __forceinline__ void draw(uint4 w, float *v) const {
    v[0] = w.x < threshold ? 1.f : 0.f, v[1] = w.y < threshold ? 1.f : 0.f;
    v[2] = w.z < threshold ? 1.f : 0.f, v[3] = w.w < threshold ? 1.f : 0.f;
  }
};
// sqrt(-2 ln u) (cos, sin)(2 pi v) of words 0, 1 and 2, 3 (Box & Muller 1958).
struct Normal {
  __device__ __forceinline__ static void pair(u32 a, u32 b, float *v) {
    // u in (0, 1]: the logarithm of 0 must not come up.
    float radius = sqrtf(-2.f * logf(to_unit(a) + 1.f / 16777216.f));
    // Quarter turns are exact: 4 v - n has no rounding.
    float turns = to_unit(b) * 4.f, n = rintf(turns);
    float r = (turns - n) * 1.57079633f, z = r * r;
    float s = fmaf(2.8373952e-6f, z, -1.9853505e-4f);
    s = fmaf(fmaf(s, z, 0.00833338f), z, -0.16666667f);
    s = fmaf(s * z, r, r);
    float c = fmaf(fmaf(2.4432553e-5f, z, -0.001388731f), z, 0.041666646f);
    c = fmaf(fmaf(c, z, -0.5f), z, 1.f);
    int quarter = (int)n;
    float sine = quarter & 1 ? c : s, cosine = quarter & 1 ? s : c;
    v[0] = radius * ((quarter + 1) & 2 ? -cosine : cosine);
    v[1] = radius * (quarter & 2 ? -sine : sine);
  }
  __device__ __forceinline__ void draw(uint4 w, float *v) const {
    pair(w.x, w.y, v);
    pair(w.z, w.w, v + 2);
  }
};

template <class D>
__device__ __forceinline__ void fill(float *y, D draw, Stream s, const u64 *moved, i64 n) {
  s = at_place(s, moved);
  bool wide = on_pack(y);
  i64 blocks = ceil_div(n, 4);
#pragma unroll 2
  for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < blocks; at += (i64)gridDim.x * 256) {
    float v[4];
    draw.draw(philox_block(s, at), v);
    if (wide && at * 4 + 4 <= n) {
      store_pack(y + at * 4, v);
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (at * 4 + e < n) y[at * 4 + e] = v[e];
    }
  }
}

struct Drop {
  u64 threshold;  // 2^32 drops everything: no word reaches it
  float scale;
  __device__ __forceinline__ float keep(float x, u32 word) const {
    return word < threshold ? 0.f : x * scale;
  }
  __device__ __forceinline__ void four(float *v, uint4 w) const {
    v[0] = keep(v[0], w.x), v[1] = keep(v[1], w.y), v[2] = keep(v[2], w.z), v[3] = keep(v[3], w.w);
  }
};

template <class T>
__device__ __forceinline__ void dropout(const T *x, T *y, Drop drop, Stream s, const u64 *moved,
                                        i64 n) {
  constexpr int N = Pack<T>::N, U = 2;
  s = at_place(s, moved);
  i64 packs = on_pack(x) && on_pack(y) ? n / N : 0;
  for (i64 first = (i64)blockIdx.x * 256 * U + threadIdx.x; first < packs;
       first += (i64)gridDim.x * 256 * U) {
    float v[U * N];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (first + u * 256 < packs) load_pack(x + (first + u * 256) * N, v + u * N);
#pragma unroll
    for (int u = 0; u < U; u++) {
#pragma unroll
      for (int q = 0; q < N / 4; q++)
        drop.four(v + u * N + 4 * q, philox_block(s, (first + u * 256) * (N / 4) + q));
      if (first + u * 256 < packs) store_pack(y + (first + u * 256) * N, v + u * N);
    }
  }
  // Whole blocks of words: what is left begins at one.
  i64 blocks = ceil_div(n, 4);
  for (i64 at = packs * (N / 4) + (i64)blockIdx.x * 256 + threadIdx.x; at < blocks;
       at += (i64)gridDim.x * 256) {
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = at * 4 + e < n ? load_one(x + at * 4 + e) : 0.f;
    drop.four(v, philox_block(s, at));
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (at * 4 + e < n) store_one(y + at * 4 + e, v[e]);
  }
}

}  // namespace draws

extern "C" __global__ void __launch_bounds__(256)
    uniform_f32(float *y, u64 seed, u32 stream, u64 position, const u64 *moved, i64 n) {
  draws::fill(y, draws::Uniform{}, Stream{seed, position, stream}, moved, n);
}
extern "C" __global__ void __launch_bounds__(256)
    normal_f32(float *y, u64 seed, u32 stream, u64 position, const u64 *moved, i64 n) {
  draws::fill(y, draws::Normal{}, Stream{seed, position, stream}, moved, n);
}
extern "C" __global__ void __launch_bounds__(256)
    bernoulli_f32(float *y, u64 threshold, u64 seed, u32 stream, u64 position, const u64 *moved,
                  i64 n) {
  draws::fill(y, draws::Bernoulli{threshold}, Stream{seed, position, stream}, moved, n);
}
extern "C" __global__ void __launch_bounds__(256)
    dropout_plain(const float *x, float *y, u64 threshold, float scale, u64 seed, u32 stream,
                  u64 position, const u64 *moved, i64 n) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= n) return;
  uint4 w = philox_block(draws::at_place(Stream{seed, position, stream}, moved), at / 4);
  u32 word = at % 4 == 0 ? w.x : at % 4 == 1 ? w.y : at % 4 == 2 ? w.z : w.w;
  y[at] = draws::Drop{threshold, scale}.keep(x[at], word);
}
extern "C" __global__ void __launch_bounds__(256)
    dropout_f32(const float *x, float *y, u64 threshold, float scale, u64 seed, u32 stream,
                u64 position, const u64 *moved, i64 n) {
  draws::Drop drop{threshold, scale};
  draws::dropout(x, y, drop, Stream{seed, position, stream}, moved, n);
}
extern "C" __global__ void __launch_bounds__(256)
    dropout_bf16(const bf16 *x, bf16 *y, u64 threshold, float scale, u64 seed, u32 stream,
                 u64 position, const u64 *moved, i64 n) {
  draws::Drop drop{threshold, scale};
  draws::dropout(x, y, drop, Stream{seed, position, stream}, moved, n);
}
