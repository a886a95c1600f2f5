// Sums and maxima over a warp and over a block, in an order that never changes.
#pragma once
#include "ptx.cuh"

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int bits = 16; bits; bits >>= 1) x += __shfl_xor_sync(FULL_WARP, x, bits);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int bits = 16; bits; bits >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, bits));
  return x;
}

// Over all threads of a block of whole warps (at most 1024), along x alone; every thread gets the
// result. `scratch` holds 32 floats of shared memory and may be used again right after.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
  x = warp_sum(x);
  if (blockDim.x == 32) return x;
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = warp_sum(lane_id() < (int)blockDim.x / 32 ? scratch[lane_id()] : 0.f);
  __syncthreads();
  return x;
}
__device__ __forceinline__ float block_max(float x, float *scratch) {
  x = warp_max(x);
  if (blockDim.x == 32) return x;
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = warp_max(lane_id() < (int)blockDim.x / 32 ? scratch[lane_id()] : -INFINITY);
  __syncthreads();
  return x;
}
