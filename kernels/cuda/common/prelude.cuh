// What every kernel file starts with: integer names, bf16, vectors of 16 bytes, shared memory.
//
// No CUDA header is included: nvcc needs none for these, and under g++ the emulator stands in.
// Shared memory is dynamic everywhere (DYN_SMEM): the emulator fills it with NaN before each block,
// which it cannot do for a static `__shared__` array.
#pragma once
#include <stdint.h>
#ifdef __CUDACC__
#define DYN_SMEM(T, name)                                          \
  extern __shared__ __align__(1024) unsigned char shared_bytes[]; \
  T *name = reinterpret_cast<T *>(shared_bytes)
#else
#include "../emu/cuda_emu.h"
#define DYN_SMEM(T, name) T *name = reinterpret_cast<T *>(emu::block->smem)
#endif

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = unsigned long long;
using i32 = int32_t;
using i64 = long long;

constexpr u32 FULL_WARP = 0xffffffffu;

// The upper half of an f32.
struct bf16 {
  u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Rounds to the nearest, ties to even; NaN becomes 0x7fff.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
#ifdef __CUDACC__
  asm("cvt.rn.bf16.f32 %0,%1;" : "=h"(y.bits) : "f"(x));
#else
  u32 word = __float_as_uint(x);
  y.bits = x != x ? 0x7fff : (u16)((word + 0x7fff + (word >> 16 & 1)) >> 16);
#endif
  return y;
}

// Two bf16 in one word, `low` in the lower half, as mma and 32-bit stores take them.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
#ifdef __CUDACC__
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_bf16(low).bits | (u32)to_bf16(high).bits << 16;
#endif
}
__device__ __forceinline__ u32 pack_bf16(bf16 low, bf16 high) {
  return low.bits | (u32)high.bits << 16;
}
__device__ __forceinline__ float low_float(u32 word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_float(u32 word) {
  return __uint_as_float(word & 0xffff0000u);
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}

__device__ __forceinline__ i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }
__device__ __forceinline__ int warp_id() { return threadIdx.x >> 5; }
