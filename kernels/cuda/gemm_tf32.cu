// Products of f32 matrices on tensor cores; see gemm_tile.cuh.
#include "gemm_tile.cuh"

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
