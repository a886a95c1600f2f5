// What becomes of a finished sum: C = activation(sum (+ C) + bias) + residual.
#pragma once
#include "common/ptx.cuh"

namespace finish {

// Numbers of the activations in a launch.
enum Activation { IDENTITY, RELU, LEAKY_RELU, GELU, GELU_TANH, SILU, TANH, SIGMOID, ELU, SOFTPLUS };
// Bits of `flags` in a launch.
enum Flags { ACCUMULATE = 1, OUT_BF16 = 2 };

__device__ __forceinline__ float activate(float x, int activation, float slope) {
  switch (activation) {
    case RELU: return fmaxf(x, 0.f);
    case LEAKY_RELU: return x > 0.f ? x : slope * x;
    case GELU: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case SILU: return x / (1.f + expf(-x));
    case TANH: return tanhf(x);
    case SIGMOID: return 1.f / (1.f + expf(-x));
    case ELU: return x > 0.f ? x : slope * expm1f(x);
    case SOFTPLUS: return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x)));
    default: return x;
  }
}

// Four neighbours of a row, of which `count` exist.
struct Four {
  float v[4];
  int count;

  // Adds elements `at`.. of `from`; `wide` if they may be read at once.
  __device__ __forceinline__ void add(const void *from, i64 at, bool is_bf16, bool wide) {
    if (is_bf16) {
      const bf16 *p = static_cast<const bf16 *>(from) + at;
      if (wide) {
        uint2 x = load(reinterpret_cast<const uint2 *>(p));
        v[0] += low_float(x.x), v[1] += high_float(x.x);
        v[2] += low_float(x.y), v[3] += high_float(x.y);
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < count) v[e] += to_float(p[e]);
      }
    } else {
      const float *p = static_cast<const float *>(from) + at;
      if (wide) {
        float4 x = load(reinterpret_cast<const float4 *>(p));
        v[0] += x.x, v[1] += x.y, v[2] += x.z, v[3] += x.w;
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < count) v[e] += p[e];
      }
    }
  }
  // One copy of the function's code: the four take turns in the first place.
  __device__ __forceinline__ void activate(int activation, float slope) {
    if (activation == IDENTITY) return;
#pragma unroll 1
    for (int e = 0; e < 4; e++) {
      float y = finish::activate(v[0], activation, slope);
      v[0] = v[1], v[1] = v[2], v[2] = v[3], v[3] = y;
    }
  }
  __device__ __forceinline__ void write(void *to, i64 at, bool is_bf16, bool wide) const {
    if (is_bf16) {
      bf16 *p = static_cast<bf16 *>(to) + at;
      if (wide) {
        store(reinterpret_cast<uint2 *>(p),
              make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])));
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < count) p[e] = to_bf16(v[e]);
      }
    } else {
      float *p = static_cast<float *>(to) + at;
      if (wide) {
        store(reinterpret_cast<float4 *>(p), make_float4(v[0], v[1], v[2], v[3]));
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < count) p[e] = v[e];
      }
    }
  }
};

// The end of a product with an `[m, n]` result. The residual has the result's type.
struct Epilogue {
  void *c;
  const float *bias;
  const void *residual;
  i64 m, n, ldc, ld_residual;
  int flags, activation;
  float slope;

  // Whether four neighbours of a row of `matrix` lie together in one aligned piece.
  __device__ __forceinline__ bool aligned(const void *matrix, i64 row_stride) const {
    return ((u64)matrix & (flags & OUT_BF16 ? 7 : 15)) == 0 && row_stride % 4 == 0;
  }
  // Finishes sums that start at (row, col) and exist.
  __device__ __forceinline__ void finish(Four x, i64 row, i64 col, bool c_aligned,
                                         bool residual_aligned) const {
    bool is_bf16 = flags & OUT_BF16, whole = x.count == 4;
    if (flags & ACCUMULATE) x.add(c, row * ldc + col, is_bf16, c_aligned && whole);
    if (bias) x.add(bias, col, false, false);
    x.activate(activation, slope);
    if (residual)
      x.add(residual, row * ld_residual + col, is_bf16, residual_aligned && whole);
    x.write(c, row * ldc + col, is_bf16, c_aligned && whole);
  }
  // Finishes the sums of columns col..col+3, a multiple of 4, as many as there are.
  __device__ __forceinline__ void write(float4 sums, i64 row, i64 col, bool c_aligned,
                                        bool residual_aligned) const {
    if (row < m && col < n)
      finish({{sums.x, sums.y, sums.z, sums.w}, (int)min((i64)4, n - col)}, row, col, c_aligned,
             residual_aligned);
  }
};

// The epilogue of one product of a batch; offsets are in elements.
__device__ __forceinline__ Epilogue of_batch(void *c, const float *bias, const void *residual,
                                             int m, int n, i64 ldc, i64 ld_residual, i64 offset_c,
                                             i64 offset_residual, int flags, int activation,
                                             float slope) {
  int bytes = flags & OUT_BF16 ? 2 : 4;
  c = static_cast<char *>(c) + offset_c * bytes;
  if (residual) residual = static_cast<const char *>(residual) + offset_residual * bytes;
  return {c, bias, residual, m, n, ldc, ld_residual, flags, activation, slope};
}

}  // namespace finish
