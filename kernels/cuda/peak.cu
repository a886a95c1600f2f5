// The ceilings of arithmetic: tensor cores and multiply-adds that wait for no memory.
#include "common/ptx.cuh"

// Eight independent products of 16x8x16 in each round, so that none waits for the one before it:
// 16384 multiply-adds a warp and round. out [blocks * threads] keeps the compiler from leaving
// them out.
extern "C" __global__ void __launch_bounds__(256) mma_peak_bf16(float *out, i32 rounds) {
  u32 t = threadIdx.x;
  u32 a[4] = {pack_bf16(0.5f, 0.25f), t & 3, 0x3f00u + (t & 7), 0x3e80u};
  u32 b[2] = {pack_bf16(0.125f, -0.5f), 0x3f80u - (t & 15)};
  float c[8][4] = {};
  for (i32 i = 0; i < rounds; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) mma_bf16_16816(c[k], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < 8; k++) sum += c[k][0] + c[k][1] + c[k][2] + c[k][3];
  out[(u64)blockIdx.x * 256 + t] = sum;
}

// The same in tf32: 8192 multiply-adds a warp and round.
extern "C" __global__ void __launch_bounds__(256) mma_peak_tf32(float *out, i32 rounds) {
  u32 t = threadIdx.x;
  u32 a[4] = {to_tf32(0.5f), to_tf32(0.25f + t), to_tf32(1.5f), to_tf32(0.75f)};
  u32 b[2] = {to_tf32(0.125f), to_tf32(-0.5f)};
  float c[8][4] = {};
  for (i32 i = 0; i < rounds; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++) mma_tf32_1688(c[k], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < 8; k++) sum += c[k][0] + c[k][1] + c[k][2] + c[k][3];
  out[(u64)blockIdx.x * 256 + t] = sum;
}

// 16 independent chains of f32 multiply-adds: 16 a thread and round.
extern "C" __global__ void __launch_bounds__(256)
    fma_peak(float *out, float factor, float addend, i32 rounds) {
  float x[16];
#pragma unroll
  for (int k = 0; k < 16; k++) x[k] = threadIdx.x + k;
  for (i32 i = 0; i < rounds; i++) {
#pragma unroll
    for (int k = 0; k < 16; k++) x[k] = fmaf(x[k], factor, addend);
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < 16; k++) sum += x[k];
  out[(u64)blockIdx.x * 256 + threadIdx.x] = sum;
}

// Nothing: what a launch costs.
extern "C" __global__ void __launch_bounds__(32) launch_nothing() {}

// Barriers over the grid and nothing else: what one costs. `count` is zero. Cooperative launch.
extern "C" __global__ void __launch_bounds__(256) grid_barrier_cost(u32 *count, i32 rounds) {
  for (i32 i = 0; i < rounds; i++) grid_barrier(count, (i + 1) * gridDim.x);
}
