// Fills the shared tile of one operand of a matrix product from a matrix in global memory.
#pragma once
#include "mma_tile.cuh"

namespace tile {

__device__ __forceinline__ int clamp(i64 x, int high) {
  return x < 0 ? 0 : x > high ? high : (int)x;
}

// Copies the first `valid` (0..16 / sizeof(T)) elements of a 16-byte chunk, zeros the rest.
// `alignment` (in bytes) is a divisor of all source addresses: 16 or less.
template <class T, bool LOOSE>
__device__ __forceinline__ void copy_chunk(SharedAddr to, const T *from, int valid, int alignment) {
  int bytes = valid * (int)sizeof(T);
  if (!LOOSE || alignment == 16) {
    shared_copy_async<16>(to, from, bytes);
  } else if (sizeof(T) == 2 && alignment == 8) {
#pragma unroll
    for (int at = 0; at < 2; at++)
      shared_copy_async<8>(to + at * 8, from + at * (8 / sizeof(T)), clamp(bytes - at * 8, 8));
  } else if (sizeof(T) == 4 || alignment == 4) {
#pragma unroll
    for (int at = 0; at < 4; at++)
      shared_copy_async<4>(to + at * 4, from + at * (4 / sizeof(T)), clamp(bytes - at * 4, 4));
  } else {
    // Only bf16 can be aligned to 2 bytes, and cp.async moves no less than 4.
#pragma unroll
    for (int at = 0; at < 4; at++) {
      const u16 *pair = reinterpret_cast<const u16 *>(from) + at * 2;
      u32 low = at * 2 < valid ? pair[0] : 0, high = at * 2 + 1 < valid ? pair[1] : 0;
      shared_store_u32(to + at * 4, low | high << 16);
    }
  }
}

// One operand of a tile: `EXTENT` rows of A or columns of B, `BK` of k. A thread copies the same
// 16-byte column of every STEP-th shared row.
template <class T, int EXTENT, int BK, int THREADS, bool KMAJOR, bool LOOSE>
struct Operand {
  static constexpr int E = 16 / sizeof(T), CHUNKS = (KMAJOR ? BK : EXTENT) / E;
  static constexpr int STEP = THREADS / CHUNKS, COUNT = (KMAJOR ? EXTENT : BK) / STEP;
  static_assert(THREADS % CHUNKS == 0 && COUNT * STEP == (KMAJOR ? EXTENT : BK), "operand");
  static_assert(STEP % (KMAJOR || sizeof(T) == 2 ? 8 : 4) == 0, "a step keeps the swizzle");

  const T *source;
  i64 row_stride, per_tile;
  int offset, along, down_left, along_left, k_left, alignment;

  // `matrix` points at k = `first_k`; `left` rows (columns) and `k_left` of k remain from there.
  __device__ __forceinline__ Operand(const T *matrix, i64 stride, i64 left, int k_count,
                                     int alignment_)
      : row_stride(stride * STEP), k_left(k_count), alignment(alignment_) {
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    along = chunk * E;
    source = matrix + row * stride + along;
    offset = row * CHUNKS * 16 + swizzle<T, CHUNKS, KMAJOR>(row, chunk) * 16;
    per_tile = KMAJOR ? BK : BK * stride;
    // Along the chunk, the other extent bounds a whole column of chunks, rows are bounded one by
    // one.
    down_left = KMAJOR ? clamp(left - row, EXTENT) : row;
    along_left = KMAJOR ? 0 : clamp(left - along, E);
  }

  __device__ __forceinline__ void fill(SharedAddr stage, int kt) {
    int left = k_left - kt * BK;
    int valid = KMAJOR ? clamp(left - along, E) : along_left;
    int rows = KMAJOR ? down_left : left - down_left;
    const T *from = source;
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
      copy_chunk<T, LOOSE>(stage + (offset + j * STEP * CHUNKS * 16), from,
                           j * STEP < rows ? valid : 0, alignment);
      from += row_stride;
    }
    source += per_tile;
  }
};

}  // namespace tile
