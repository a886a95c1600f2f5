// Matrix products on tensor cores: C = activation(A B (+ C) + bias) + residual.
//
// The ladder: `gemm_*_plain` (gemm_simt.cu) is the definition with tiles in shared memory;
// `gemm_f32_128x64x8` there keeps 8x8 sums in registers; the kernels made from this file multiply
// 16x8x16 pieces in one instruction, copy ahead by cp.async through three or four stages, and
// permute shared memory so that no two rows of a fragment meet in one bank. The names tell tile and
// layout: `n` as the product reads it, `t` transposed, so that `nt` is X W^T, a linear layer.
//
// Layouts are stored row-major: A is [m, k] (`n`) or [k, m] (`t`), B is [k, n] or [n, k]. `lda` and
// their like are elements from row to row. blockIdx.x walks through tiles, y through a batch of
// products, z through pieces of k (`split_k` each, a multiple of the tile's), whose sums go to
// places `stride_split` apart and are added by `gemm_split_finish` in order.
#pragma once
#include "finish.cuh"
#include "operand.cuh"

#define GEMM_PARAMETERS(T)                                                                       \
  const T *a, const T *b, void *c, const float *bias, const void *residual, int m, int n, int k, \
      i64 lda, i64 ldb, i64 ldc, i64 ld_residual, i64 stride_a, i64 stride_b, i64 stride_c,      \
      i64 stride_residual, i64 stride_split, int split_k, int flags, int activation, float slope, \
      int alignment_a, int alignment_b
#define GEMM_ARGUMENTS                                                                            \
  a, b, c, bias, residual, m, n, k, lda, ldb, ldc, ld_residual, stride_a, stride_b, stride_c,     \
      stride_residual, stride_split, split_k, flags, activation, slope, alignment_a, alignment_b

namespace gemm {

// Walks down eight rows of tiles before it goes right: blocks that run together share rows of A and
// columns of B in L2.
__device__ __forceinline__ void tile_of_block(int tiles_m, int tiles_n, int &tile_m, int &tile_n) {
  constexpr int GROUP = 8;
  int block = blockIdx.x, first = block / (GROUP * tiles_n) * GROUP;
  int rows = min(tiles_m - first, GROUP), within = block % (GROUP * tiles_n);
  tile_m = first + within % rows;
  tile_n = within / rows;
}

template <class C, bool LOOSE>
__device__ __forceinline__ void product(GEMM_PARAMETERS(typename C::T)) {
  using T = typename C::T;
  DYN_SMEM(float, smem);
  int tile_m, tile_n;
  tile_of_block((int)ceil_div(m, C::BM), (int)ceil_div(n, C::BN), tile_m, tile_n);
  i64 row = (i64)tile_m * C::BM, col = (i64)tile_n * C::BN, first_k = (i64)blockIdx.z * split_k;
  int depth = (int)min((i64)split_k, k - first_k);
  a += blockIdx.y * stride_a + (C::A_KMAJOR ? row * lda + first_k : first_k * lda + row);
  b += blockIdx.y * stride_b + (C::B_KMAJOR ? col * ldb + first_k : first_k * ldb + col);

  float acc[C::MT][C::NT][4] = {};
  {
    tile::Operand<T, C::BM, C::BK, C::THREADS, C::A_KMAJOR, LOOSE> load_a(a, lda, m - row, depth,
                                                                          alignment_a);
    tile::Operand<T, C::BN, C::BK, C::THREADS, C::B_KMAJOR, LOOSE> load_b(b, ldb, n - col, depth,
                                                                          alignment_b);
    tile::sum_tiles<C>(load_a, load_b, tile::NothingToPrepare{}, to_shared(smem),
                       (depth + C::BK - 1) / C::BK, acc);
  }
  tile::stage_sums<C>(smem, acc);

  auto epilogue = finish::of_batch(c, bias, residual, m, n, ldc, ld_residual,
                                   blockIdx.y * stride_c + blockIdx.z * stride_split,
                                   blockIdx.y * stride_residual, flags, activation, slope);
  bool c_aligned = epilogue.aligned(epilogue.c, ldc);
  bool residual_aligned = epilogue.aligned(epilogue.residual, ld_residual);
#pragma unroll 1
  for (int i = threadIdx.x; i < C::BM * C::BN / 4; i += C::THREADS) {
    int r = i / (C::BN / 4), col4 = i % (C::BN / 4) * 4;
    float4 sums = load(reinterpret_cast<const float4 *>(smem + tile::staged<C::BN>(r, col4)));
    epilogue.write(sums, row + r, col + col4, c_aligned, residual_aligned);
  }
}

template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES, bool TA, bool TB,
          int PASSES = 1>
using Tile = tile::Config<T, BM, BN, BK, WM, WN, STAGES, !TA, TB, PASSES>;

}  // namespace gemm

#define GEMM_KERNEL(name, T, threads, blocks, loose, ...)                     \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(GEMM_PARAMETERS(T)) { \
    gemm::product<gemm::Tile<T, __VA_ARGS__>, loose>(GEMM_ARGUMENTS);         \
  }
