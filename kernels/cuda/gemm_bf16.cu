// Products of bf16 matrices; see gemm_tile.cuh.
#include "gemm_tile.cuh"

// Two blocks of four warps on a multiprocessor, each warp 64x64: one block computes while the
// other waits or writes.
GEMM_KERNEL(gemm_bf16_128x128x32_nn, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, false, false)
GEMM_KERNEL(gemm_bf16_128x128x32_nt, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, false, true)
GEMM_KERNEL(gemm_bf16_128x128x32_tn, bf16, 128, 2, false, 128, 128, 32, 64, 64, 4, true, false)
// A block of eight warps per multiprocessor, and twice the k between barriers: a quarter less to
// read from L2.
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
