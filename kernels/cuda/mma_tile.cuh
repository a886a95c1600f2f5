// A block's tile of a matrix product on tensor cores (mma.sync), whatever feeds it.
//
// Loaders (`operand.cuh`, `conv_gather.cuh`) fill stages of shared memory by cp.async. Warps read
// fragments from them, one step of k ahead of the products that use them, so that neither memory is
// waited for. bf16 multiplies 16 deep, tf32 8 deep: both are 32 bytes of k, and addresses are the
// same. tf32 with three passes splits each f32 into two tf32 and keeps nearly all of its bits.
#pragma once
#include "common/ptx_gemm.cuh"

namespace tile {

// Sizes of a tile. An operand is K-major if its neighbours in memory are neighbours in k; in shared
// memory it keeps that: `[rows, BK]`, else `[BK, rows]`.
template <class Element, int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, bool A_KMAJOR_,
          bool B_KMAJOR_, int PASSES_ = 1>
struct Config {
  using T = Element;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_;
  static constexpr bool A_KMAJOR = A_KMAJOR_, B_KMAJOR = B_KMAJOR_;
  static constexpr int PASSES = PASSES_;
  static constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32;
  static constexpr int A_BYTES = BM * BK * sizeof(T), B_BYTES = BN * BK * sizeof(T);
  static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
  // Steps of 32 bytes of k.
  static constexpr int STEPS = BK * sizeof(T) / 32;
  static constexpr int MT = WM / 16, NT = WN / 8;
  static_assert((WM == 16 || WM % 32 == 0) && (WN == 16 || WN % 32 == 0), "tile");
  static_assert(STEPS >= 2 && STEPS % 2 == 0, "steps");
};

// Where 16-byte chunk `chunk` of shared row `row` lies: eight rows that ldmatrix reads at once must
// be in different banks, and so must the four rows of a tf32 fragment that is read by words.
template <class T, int CHUNKS, bool KMAJOR>
__device__ __forceinline__ int swizzle(int row, int chunk) {
  if (!KMAJOR && sizeof(T) == 4) return chunk ^ ((row & 3) << 1);
  if (CHUNKS >= 8) return chunk ^ (row & 7);
  return chunk ^ ((row >> 1) & 3);
}

// Reads fragments of one operand. `ROWS` is its extent in the tile, `FRAGMENTS` the number of
// 16-row fragments of a warp; a B fragment of 16 columns is a pair for two products.
template <class T, int ROWS, int BK, bool KMAJOR, bool IS_A, int FRAGMENTS>
struct Fragments {
  static constexpr int ROW_BYTES = (KMAJOR ? BK : ROWS) * sizeof(T);
  int lane_offset;

  __device__ __forceinline__ Fragments(int first_row, int lane) {
    int quarter = lane / 8, eighth = lane % 8;
    // Lanes 8q..8q+7 address the rows of matrix q. A: matrices go down, then along k; B: along k,
    // then down (a pair of 8-column fragments).
    int down = IS_A ? quarter & 1 : quarter >> 1, along = IS_A ? quarter >> 1 : quarter & 1;
    if (KMAJOR) {
      int row = first_row + down * 8 + eighth;
      lane_offset = row * ROW_BYTES + swizzle<T, ROW_BYTES / 16, true>(row, along) * 16;
    } else if (sizeof(T) == 2) {
      int k = along * 8 + eighth;
      lane_offset =
          k * ROW_BYTES + swizzle<T, ROW_BYTES / 16, false>(k, first_row / 8 + down) * 16;
    } else {
      int k = lane % 4;
      lane_offset = k * ROW_BYTES + (((first_row + lane / 4) * 4) ^ (k << 5));
    }
  }

  __device__ __forceinline__ void load(u32 (&out)[FRAGMENTS][4], SharedAddr base, int step) const {
#pragma unroll
    for (int i = 0; i < FRAGMENTS; i++) {
      if (KMAJOR) {
        shared_ldmatrix_x4(out[i], base + ((lane_offset ^ (step * 32)) + i * 16 * ROW_BYTES));
      } else if (sizeof(T) == 2) {
        // The rows of four fragments lie within one 128-byte line, whose chunks are permuted.
        int at = (lane_offset ^ ((i & 3) * 32)) + (i >> 2) * 128;
        shared_ldmatrix_x4_trans(out[i], base + (at + step * 16 * ROW_BYTES));
      } else {
#pragma unroll
        for (int r = 0; r < 4; r++) {
          int down = IS_A ? r & 1 : r >> 1, along = IS_A ? r >> 1 : r & 1;
          int at = (lane_offset ^ (((i & 1) * 2 + down) << 5)) + (i >> 1) * 128;
          out[i][r] = shared_load_u32(base + (at + (step * 8 + along * 4) * ROW_BYTES));
        }
      }
    }
  }
};

// The nearest tf32 of each word, and what is left of it, as tf32.
template <int FRAGMENTS>
__device__ __forceinline__ void round_tf32(u32 (&x)[FRAGMENTS][4]) {
#pragma unroll
  for (int i = 0; i < FRAGMENTS; i++)
#pragma unroll
    for (int r = 0; r < 4; r++) x[i][r] = to_tf32(__uint_as_float(x[i][r]));
}
template <int FRAGMENTS>
__device__ __forceinline__ void split_tf32(u32 (&x)[FRAGMENTS][4], u32 (&rest)[FRAGMENTS][4]) {
#pragma unroll
  for (int i = 0; i < FRAGMENTS; i++)
#pragma unroll
    for (int r = 0; r < 4; r++) {
      float value = __uint_as_float(x[i][r]);
      x[i][r] = to_tf32(value);
      rest[i][r] = to_tf32(value - __uint_as_float(x[i][r]));
    }
}

template <class C>
__device__ __forceinline__ void multiply(float (&acc)[C::MT][C::NT][4], const u32 (&a)[C::MT][4],
                                         const u32 (&b)[C::NT / 2][4]) {
#pragma unroll
  for (int i = 0; i < C::MT; i++)
#pragma unroll
    for (int j = 0; j < C::NT; j++) {
      // Every other row runs backwards: the B fragment of its first product was just used.
      int at = i & 1 ? C::NT - 1 - j : j;
      const u32 pair[2] = {b[at / 2][at % 2 * 2], b[at / 2][at % 2 * 2 + 1]};
      if (sizeof(typename C::T) == 2)
        mma_bf16_16816(acc[i][at], a[i], pair);
      else
        mma_tf32_1688(acc[i][at], a[i], pair);
    }
}

template <class C>
__device__ __forceinline__ void multiply_step(float (&acc)[C::MT][C::NT][4], u32 (&a)[C::MT][4],
                                              u32 (&b)[C::NT / 2][4]) {
  if (sizeof(typename C::T) == 2) {
    multiply<C>(acc, a, b);
  } else if (C::PASSES == 1) {
    round_tf32(a);
    round_tf32(b);
    multiply<C>(acc, a, b);
  } else {
    u32 a_rest[C::MT][4], b_rest[C::NT / 2][4];
    split_tf32(a, a_rest);
    split_tf32(b, b_rest);
    // Small products first: they would be lost beside the large ones' rounding.
    multiply<C>(acc, a_rest, b);
    multiply<C>(acc, a, b_rest);
    multiply<C>(acc, a, b);
  }
}

// For `sum_tiles`, where loaders need no tables.
struct NothingToPrepare {
  static constexpr bool ACTIVE = false;
  __device__ __forceinline__ void operator()(int) const {}
};

// Sums the tile over `tiles` pieces of k. `load_a.fill(stage, kt)` and `load_b.fill(stage, kt)`
// write piece kt by cp.async, for kt = 0, 1, 2..; `prepare(kt)` writes what they need into slot kt
// % STAGES of a table, at least one barrier ahead of them.
template <class C, class LoadA, class LoadB, class Prepare>
__device__ __forceinline__ void sum_tiles(LoadA &load_a, LoadB &load_b, const Prepare &prepare,
                                          SharedAddr smem, int tiles,
                                          float (&acc)[C::MT][C::NT][4]) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Fragments<typename C::T, C::BM, C::BK, C::A_KMAJOR, true, C::MT> read_a(
      warp / C::WARPS_N * C::WM, lane);
  Fragments<typename C::T, C::BN, C::BK, C::B_KMAJOR, false, C::NT / 2> read_b(
      warp % C::WARPS_N * C::WN, lane);

  if (Prepare::ACTIVE) {
    for (int s = 0; s < C::STAGES; s++) prepare(s);
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < C::STAGES - 1; s++) {
    if (s < tiles) {
      load_a.fill(smem + s * C::STAGE_BYTES, s);
      load_b.fill(smem + (s * C::STAGE_BYTES + C::A_BYTES), s);
    }
    cp_async_commit();
  }
  cp_async_wait<C::STAGES - 2>();
  __syncthreads();

  u32 a[2][C::MT][4], b[2][C::NT / 2][4];
  read_a.load(a[0], smem, 0);
  read_b.load(b[0], smem + C::A_BYTES, 0);
  int read_stage = 0, write_stage = C::STAGES - 1;
#pragma unroll 1
  for (int kt = 0; kt < tiles; kt++) {
#pragma unroll
    for (int step = 0; step < C::STEPS; step++) {
      if (step == C::STEPS - 1) {
        // All warps have their last fragments of this stage in registers after the barrier.
        cp_async_wait<C::STAGES - 2>();
        __syncthreads();
        read_stage = read_stage + 1 == C::STAGES ? 0 : read_stage + 1;
      }
      int next = (step + 1) % C::STEPS;
      SharedAddr stage = smem + read_stage * C::STAGE_BYTES;
      read_a.load(a[(step + 1) & 1], stage, next);
      read_b.load(b[(step + 1) & 1], stage + C::A_BYTES, next);
      if (step == 0) {
        int ahead = kt + C::STAGES - 1;
        if (ahead < tiles) {
          load_a.fill(smem + write_stage * C::STAGE_BYTES, ahead);
          load_b.fill(smem + (write_stage * C::STAGE_BYTES + C::A_BYTES), ahead);
        }
        cp_async_commit();
        prepare(ahead + 1);
        write_stage = write_stage + 1 == C::STAGES ? 0 : write_stage + 1;
      }
      multiply_step<C>(acc, a[step & 1], b[step & 1]);
    }
  }
  // The last pass has read a stage ahead for nothing; the caller may now write over it.
  __syncthreads();
}

// Where element (row, col) of a finished tile lies in shared memory, in floats: 8-column pieces are
// permuted by row, so that the fragments' rows meet different banks.
template <int BN>
__device__ __forceinline__ int staged(int row, int col) {
  return row * BN + (col ^ ((row & 7) << 3));
}

// Puts the sums into shared memory as `[BM, BN]` in the order of `staged`.
template <class C>
__device__ __forceinline__ void stage_sums(float *out, const float (&acc)[C::MT][C::NT][4]) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = warp / C::WARPS_N * C::WM + lane / 4, col = warp % C::WARPS_N * C::WN + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < C::MT; i++)
#pragma unroll
    for (int j = 0; j < C::NT; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float *at = out + staged<C::BN>(row + i * 16 + half * 8, col + j * 8);
        at[0] = acc[i][j][half * 2];
        at[1] = acc[i][j][half * 2 + 1];
      }
  __syncthreads();
}

}  // namespace tile
