// Products of one to eight rows with a weight matrix: C = activation(X W^T (+ C) + bias) +
// residual.
//
// What a generated token costs is the reading of the weights, once. A warp has RxM results: R rows
// of W, all M of X. Its lanes stride along k by 16 bytes of W, so that 2 to 4 loads of 16 bytes per
// lane are under way; up to eight warps of a block share a row and add their sums in order. X stays
// in L1. Weights are f32, bf16, or int8 with one scale per row; sums are f32.
#include "finish.cuh"

namespace gemv {

// Elements e..e+3 (e a multiple of 4) of 16 bytes of weights.
__device__ __forceinline__ float4 four_of(uint4 w, int, float) {
  return make_float4(__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z),
                     __uint_as_float(w.w));
}
__device__ __forceinline__ float4 four_of(uint4 w, int e, bf16) {
  u32 low = e ? w.z : w.x, high = e ? w.w : w.y;
  return make_float4(low_float(low), high_float(low), low_float(high), high_float(high));
}
// A byte under the exponent of 2^23 is that number plus the byte: no conversion instruction.
template <int SELECT>
__device__ __forceinline__ float byte_of(u32 word) {
  return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 + SELECT)) - 8388736.f;
}
__device__ __forceinline__ float4 four_of(uint4 w, int e, signed char) {
  u32 word = (e == 0 ? w.x : e == 4 ? w.y : e == 8 ? w.z : w.w) ^ 0x80808080u;
  return make_float4(byte_of<0>(word), byte_of<1>(word), byte_of<2>(word), byte_of<3>(word));
}
__device__ __forceinline__ float one_of(float w) { return w; }
__device__ __forceinline__ float one_of(bf16 w) { return to_float(w); }
__device__ __forceinline__ float one_of(signed char w) { return (float)w; }

__device__ __forceinline__ float4 load_x(const float *x) {
  return load_const(reinterpret_cast<const float4 *>(x));
}
__device__ __forceinline__ float4 load_x(const bf16 *x) {
  uint2 words = load_const(reinterpret_cast<const uint2 *>(x));
  return make_float4(low_float(words.x), high_float(words.x), low_float(words.y),
                     high_float(words.y));
}

template <class W, class X, int M, int R>
__device__ __forceinline__ void product(const X *x, const W *w, const float *scales, void *c,
                                        const float *bias, const void *residual, int m, int n,
                                        int k, i64 ldx, i64 ldw, i64 ldc, i64 ld_residual,
                                        int warps_per_row, int flags, int activation, float slope,
                                        int aligned) {
  constexpr int E = 16 / sizeof(W);
  DYN_SMEM(float, parts);
  int warp = warp_id(), lane = lane_id(), part = warp % warps_per_row;
  i64 row = ((i64)blockIdx.x * (blockDim.x / 32 / warps_per_row) + warp / warps_per_row) * R;
  float acc[R][M] = {};
  // In place of rows that do not exist the last one is read, and nothing is written.
  const W *rows[R];
  const X *xs[M];
#pragma unroll
  for (int r = 0; r < R; r++) rows[r] = w + min(row + r, (i64)n - 1) * ldw;
#pragma unroll
  for (int i = 0; i < M; i++) xs[i] = x + min(i, m - 1) * ldx;

  int whole = aligned ? k / E * E : 0;
#pragma unroll(M == 1 ? 2 : 1)
  for (int at = (part * 32 + lane) * E; at < whole; at += warps_per_row * 32 * E) {
    uint4 words[R];
#pragma unroll
    for (int r = 0; r < R; r++)
      words[r] = load_const(reinterpret_cast<const uint4 *>(rows[r] + at));
#pragma unroll
    for (int e = 0; e < E; e += 4) {
      float4 v[R];
#pragma unroll
      for (int r = 0; r < R; r++) v[r] = four_of(words[r], e, W());
#pragma unroll
      for (int i = 0; i < M; i++) {
        float4 y = load_x(xs[i] + at + e);
#pragma unroll
        for (int r = 0; r < R; r++) {
          acc[r][i] = fmaf(v[r].x, y.x, acc[r][i]);
          acc[r][i] = fmaf(v[r].y, y.y, acc[r][i]);
          acc[r][i] = fmaf(v[r].z, y.z, acc[r][i]);
          acc[r][i] = fmaf(v[r].w, y.w, acc[r][i]);
        }
      }
    }
  }
  for (int at = whole + part * 32 + lane; at < k; at += warps_per_row * 32)
#pragma unroll
    for (int r = 0; r < R; r++) {
      float v = one_of(rows[r][at]);
#pragma unroll
      for (int i = 0; i < M; i++) acc[r][i] = fmaf(v, to_float(xs[i][at]), acc[r][i]);
    }

  // Lane r * M + i keeps the sum of row r with x's row i.
  float mine = 0;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < M; i++) {
      float sum = acc[r][i];
#pragma unroll
      for (int bits = 16; bits; bits >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, bits);
      if (lane == r * M + i) mine = sum;
    }
  if (warps_per_row > 1) {
    parts[warp * 32 + lane] = mine;
    __syncthreads();
    if (part) return;
    mine = 0;
    for (int p = 0; p < warps_per_row; p++) mine += parts[(warp + p) * 32 + lane];
  }
  int r = lane / M, i = lane % M;
  if (lane >= R * M || i >= m || row + r >= n) return;
  if (scales) mine *= scales[row + r];
  finish::Epilogue epilogue{c,   bias,        residual, m,          n,
                            ldc, ld_residual, flags,    activation, slope};
  epilogue.finish({{mine, 0, 0, 0}, 1}, i, row + r, false, false);
}

}  // namespace gemv

#define GEMV_KERNEL(name, W, X, M, R)                                                             \
  extern "C" __global__ void __launch_bounds__(256, M == 8 ? 1 : 2)                                \
      name(const X *x, const W *w, const float *scales, void *c, const float *bias,               \
           const void *residual, int m, int n, int k, i64 ldx, i64 ldw, i64 ldc, i64 ld_residual, \
           int warps_per_row, int flags, int activation, float slope, int aligned) {              \
    gemv::product<W, X, M, R>(x, w, scales, c, bias, residual, m, n, k, ldx, ldw, ldc,            \
                              ld_residual, warps_per_row, flags, activation, slope, aligned);     \
  }
GEMV_KERNEL(gemv_f32_1, float, float, 1, 2)
GEMV_KERNEL(gemv_f32_4, float, float, 4, 4)
GEMV_KERNEL(gemv_f32_8, float, float, 8, 4)
GEMV_KERNEL(gemv_bf16_1, bf16, bf16, 1, 2)
GEMV_KERNEL(gemv_bf16_4, bf16, bf16, 4, 4)
GEMV_KERNEL(gemv_bf16_8, bf16, bf16, 8, 4)
GEMV_KERNEL(gemv_f32_bf16_1, bf16, float, 1, 2)
GEMV_KERNEL(gemv_f32_bf16_4, bf16, float, 4, 4)
GEMV_KERNEL(gemv_f32_bf16_8, bf16, float, 8, 4)
GEMV_KERNEL(gemv_f32_int8_1, signed char, float, 1, 2)
GEMV_KERNEL(gemv_f32_int8_4, signed char, float, 4, 4)
GEMV_KERNEL(gemv_f32_int8_8, signed char, float, 8, 4)
