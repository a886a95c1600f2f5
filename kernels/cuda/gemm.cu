// Matrix products on tensor cores: C = activation(A B (+ C) + bias) + residual.
//
// The ladder: `gemm_*_plain` is the definition with tiles in shared memory; `gemm_f32_simt` (in
// gemm_simt.cu) keeps 8x8 sums in registers; the kernels here multiply 16x8x16 pieces in one
// instruction, copy ahead by cp.async through three or four stages, and permute shared memory so that
// no two rows of a fragment meet in one bank. The names tell tile and layout: `n` as the product
// reads it, `t` transposed, so that `nt` is X W^T, a linear layer.
//
// Layouts are stored row-major: A is [m, k] (`n`) or [k, m] (`t`), B is [k, n] or [n, k]. `lda` and
// its like are elements from row to row. blockIdx.x walks through tiles, y through a batch of
// products, z through pieces of k (`split_k` each, a multiple of the tile's), whose sums go to places
// `stride_split` apart and are added by `gemm_split_finish` in order.
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

__device__ __forceinline__ finish::Epilogue epilogue_of_batch(
    void *c, const float *bias, const void *residual, int m, int n, i64 ldc, i64 ld_residual,
    i64 offset_c, i64 offset_residual, int flags, int activation, float slope) {
  int bytes = flags & finish::OUT_BF16 ? 2 : 4;
  c = static_cast<char *>(c) + offset_c * bytes;
  if (residual) residual = static_cast<const char *>(residual) + offset_residual * bytes;
  return {c, bias, residual, m, n, ldc, ld_residual, flags, activation, slope};
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

  auto epilogue = epilogue_of_batch(c, bias, residual, m, n, ldc, ld_residual,
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

// bf16. Two blocks of four warps on a multiprocessor, each warp 64x64: one block computes while the
// other waits or writes.
GEMM_KERNEL(gemm_bf16_128x128x32_nn, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, false, false)
GEMM_KERNEL(gemm_bf16_128x128x32_nt, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, false, true)
GEMM_KERNEL(gemm_bf16_128x128x32_tn, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, true, false)
// Twice the k between barriers, and whole cache lines of K-major operands.
GEMM_KERNEL(gemm_bf16_128x128x64_nn, bf16, 128, 2, false, 128, 128, 64, 64, 64, 3, false, false)
GEMM_KERNEL(gemm_bf16_128x128x64_nt, bf16, 128, 2, false, 128, 128, 64, 64, 64, 3, false, true)
GEMM_KERNEL(gemm_bf16_128x128x64_tn, bf16, 128, 2, false, 128, 128, 64, 64, 64, 3, true, false)
// A block of eight warps per multiprocessor: a quarter less to read from L2.
GEMM_KERNEL(gemm_bf16_128x256x32_nn, bf16, 256, 1, false, 128, 256, 32, 64, 64, 4, false, false)
GEMM_KERNEL(gemm_bf16_128x256x32_nt, bf16, 256, 1, false, 128, 256, 32, 64, 64, 4, false, true)
GEMM_KERNEL(gemm_bf16_128x256x32_tn, bf16, 256, 1, false, 128, 256, 32, 64, 64, 4, true, false)
GEMM_KERNEL(gemm_bf16_256x128x32_nn, bf16, 256, 1, false, 256, 128, 32, 64, 64, 4, false, false)
GEMM_KERNEL(gemm_bf16_256x128x32_nt, bf16, 256, 1, false, 256, 128, 32, 64, 64, 4, false, true)
GEMM_KERNEL(gemm_bf16_256x128x32_tn, bf16, 256, 1, false, 256, 128, 32, 64, 64, 4, true, false)
GEMM_KERNEL(gemm_bf16_128x256x64_nn, bf16, 256, 1, false, 128, 256, 64, 64, 64, 3, false, false)
GEMM_KERNEL(gemm_bf16_128x256x64_nt, bf16, 256, 1, false, 128, 256, 64, 64, 64, 3, false, true)
GEMM_KERNEL(gemm_bf16_128x256x64_tn, bf16, 256, 1, false, 128, 256, 64, 64, 64, 3, true, false)
// Small tiles, for products that would not fill the chip, and for rows at any address.
GEMM_KERNEL(gemm_bf16_64x64x32_nn, bf16, 128, 4, false, 64, 64, 32, 32, 32, 4, false, false)
GEMM_KERNEL(gemm_bf16_64x64x32_nt, bf16, 128, 4, false, 64, 64, 32, 32, 32, 4, false, true)
GEMM_KERNEL(gemm_bf16_64x64x32_tn, bf16, 128, 4, false, 64, 64, 32, 32, 32, 4, true, false)
GEMM_KERNEL(gemm_bf16_64x64x32_tt, bf16, 128, 4, false, 64, 64, 32, 32, 32, 4, true, true)
GEMM_KERNEL(gemm_bf16_loose_nn, bf16, 128, 3, true, 64, 64, 32, 32, 32, 4, false, false)
GEMM_KERNEL(gemm_bf16_loose_nt, bf16, 128, 3, true, 64, 64, 32, 32, 32, 4, false, true)
GEMM_KERNEL(gemm_bf16_loose_tn, bf16, 128, 3, true, 64, 64, 32, 32, 32, 4, true, false)
GEMM_KERNEL(gemm_bf16_loose_tt, bf16, 128, 3, true, 64, 64, 32, 32, 32, 4, true, true)

// f32 operands rounded to tf32 (10 bits behind the point), sums in f32.
GEMM_KERNEL(gemm_tf32_128x128x16_nn, float, 128, 2, false, 128, 128, 16, 64, 64, 4, false, false)
GEMM_KERNEL(gemm_tf32_128x128x16_nt, float, 128, 2, false, 128, 128, 16, 64, 64, 4, false, true)
GEMM_KERNEL(gemm_tf32_128x128x16_tn, float, 128, 2, false, 128, 128, 16, 64, 64, 4, true, false)
GEMM_KERNEL(gemm_tf32_loose_nn, float, 128, 3, true, 64, 64, 16, 32, 32, 4, false, false)
GEMM_KERNEL(gemm_tf32_loose_nt, float, 128, 3, true, 64, 64, 16, 32, 32, 4, false, true)
GEMM_KERNEL(gemm_tf32_loose_tn, float, 128, 3, true, 64, 64, 16, 32, 32, 4, true, false)
GEMM_KERNEL(gemm_tf32_loose_tt, float, 128, 3, true, 64, 64, 16, 32, 32, 4, true, true)
// Each f32 as a sum of two tf32: three products, and about 21 bits.
GEMM_KERNEL(gemm_f32x3_128x64x16_nn, float, 128, 2, false, 128, 64, 16, 64, 32, 4, false, false, 3)
GEMM_KERNEL(gemm_f32x3_128x64x16_nt, float, 128, 2, false, 128, 64, 16, 64, 32, 4, false, true, 3)
GEMM_KERNEL(gemm_f32x3_128x64x16_tn, float, 128, 2, false, 128, 64, 16, 64, 32, 4, true, false, 3)

// Adds the sums of all pieces of k, in order, and finishes them. A thread has four neighbours in a row.
extern "C" __global__ void __launch_bounds__(256)
    gemm_split_finish(const float *sums, void *c, const float *bias, const void *residual, int m,
                      int n, i64 ldc, i64 ld_residual, i64 stride_c, i64 stride_residual,
                      i64 stride_split, int splits, int flags, int activation, float slope) {
  i64 per_row = ceil_div(n, 4), i = (i64)blockIdx.x * 256 + threadIdx.x;
  i64 row = i / per_row, col = i % per_row * 4;
  if (row >= m) return;
  sums += blockIdx.y * (i64)m * n + row * n + col;
  finish::Four total{{}, (int)min((i64)4, n - col)};
  for (int s = 0; s < splits; s++) total.add(sums, s * stride_split, false, n % 4 == 0);
  auto epilogue = gemm::epilogue_of_batch(c, bias, residual, m, n, ldc, ld_residual,
                                          blockIdx.y * stride_c, blockIdx.y * stride_residual,
                                          flags, activation, slope);
  epilogue.write(make_float4(total.v[0], total.v[1], total.v[2], total.v[3]), row, col,
                 epilogue.aligned(epilogue.c, ldc),
                 epilogue.aligned(epilogue.residual, ld_residual));
}
