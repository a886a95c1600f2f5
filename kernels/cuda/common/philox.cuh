// Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011): the words of `kernels/src/philox.rs`, bit for
// bit. Element e of a stream is word e % 4 of block e / 4.
#pragma once
#include "common/reduce.cuh"

struct Stream {
  u64 seed;
  u64 position;  // the first block
  u32 stream;
};

__device__ __forceinline__ uint4 philox(uint4 c, u32 k0, u32 k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u32 high0 = __umulhi(c.x, 0xD2511F53u), low0 = c.x * 0xD2511F53u;
    u32 high1 = __umulhi(c.z, 0xCD9E8D57u), low1 = c.z * 0xCD9E8D57u;
    c = uint4{high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}
// Block `at` of those from the stream's position on.
__device__ __forceinline__ uint4 philox_block(const Stream &s, u64 at) {
  u64 position = s.position + at;
  return philox(uint4{(u32)position, (u32)(position >> 32), s.stream, 0}, (u32)s.seed,
                (u32)(s.seed >> 32));
}
// Uniform in [0, 1) with 24 bits.
__device__ __forceinline__ float to_unit(u32 word) {
  return (float)(word >> 8) * (1.f / 16777216.f);
}
