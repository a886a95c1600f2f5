// Larger tiles of bf16 products, for large matrices; see gemm_tile.cuh.
#include "gemm_tile.cuh"

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
