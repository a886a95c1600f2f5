// Matrix products without tensor cores: sums and factors in f32.
#include "common/ptx_gemm.cuh"
#include "finish.cuh"

namespace simt {

// The definition: 16x16 results per block, a thread for each, tiles of A and B in shared memory.
// Any strides, any sizes.
template <class T>
__device__ __forceinline__ void plain(const T *a, const T *b, void *c, const float *bias,
                                      const void *residual, int m, int n, int k, i64 a_row,
                                      i64 a_col, i64 b_row, i64 b_col, i64 ldc, i64 ld_residual,
                                      i64 stride_a, i64 stride_b, i64 stride_c,
                                      i64 stride_residual, int flags, int activation,
                                      float slope) {
  DYN_SMEM(float, smem);
  float *tile_a = smem, *tile_b = smem + 256;
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  int tiles_n = (n + 15) / 16;
  i64 row = (i64)blockIdx.x / tiles_n * 16 + ty, col = (i64)(blockIdx.x % tiles_n) * 16 + tx;
  a += blockIdx.y * stride_a;
  b += blockIdx.y * stride_b;
  float sum = 0;
  for (int k0 = 0; k0 < k; k0 += 16) {
    tile_a[threadIdx.x] = row < m && k0 + tx < k ? to_float(a[row * a_row + (k0 + tx) * a_col]) : 0;
    tile_b[threadIdx.x] = col < n && k0 + ty < k ? to_float(b[(k0 + ty) * b_row + col * b_col]) : 0;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 16; e++) sum += tile_a[ty * 16 + e] * tile_b[e * 16 + tx];
    __syncthreads();
  }
  auto epilogue =
      finish::of_batch(c, bias, residual, m, n, ldc, ld_residual, blockIdx.y * stride_c,
                       blockIdx.y * stride_residual, flags, activation, slope);
  if (row < m && col < n) epilogue.finish({{sum, 0, 0, 0}, 1}, row, col, false, false);
}

// A block of 128 threads has 128x64 results: three such blocks leave 168 registers to a thread,
// which 64 sums, fragments and addresses need.
constexpr int THREADS = 128, DEPTH = 8, STAGES = 3;

// Copies EXTENT by 8 of one operand. In shared memory k goes down whichever way it lies outside,
// since threads read along rows of A and columns of B.
template <int EXTENT, bool KMAJOR>
struct Side {
  static constexpr int LINE = EXTENT + 4, FLOATS = DEPTH * LINE;
  // Pieces of four of a thread, and how far apart.
  static constexpr int WIDE = KMAJOR ? DEPTH / 4 : EXTENT / 4;
  static constexpr int STEP = THREADS / WIDE, COUNT = (KMAJOR ? EXTENT : DEPTH) / STEP;
  const float *from;
  i64 stride;
  int left;
  bool aligned;

  __device__ __forceinline__ static int slow() { return threadIdx.x / WIDE; }
  __device__ __forceinline__ static int fast() { return threadIdx.x % WIDE * 4; }

  __device__ __forceinline__ Side(const float *matrix, i64 row_stride, i64 count, int first)
      : stride(row_stride) {
    from = KMAJOR ? matrix + slow() * stride + first + fast()
                  : matrix + (first + slow()) * stride + fast();
    left = (int)max(min(count - (KMAJOR ? slow() : fast()), (i64)EXTENT), (i64)0);
    aligned = !KMAJOR && ((u64)matrix & 15) == 0 && stride % 4 == 0;
  }
  // `k_left` of the sum remain.
  __device__ __forceinline__ void fill(SharedAddr lines, int k_left) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
      int at = slow() + j * STEP;
      int valid = KMAJOR ? (j * STEP < left ? k_left - fast() : 0) : (at < k_left ? left : 0);
      const float *piece = from + j * STEP * stride;
      if (aligned) {
        shared_copy_async<16>(lines + (at * LINE + fast()) * 4, piece,
                              4 * max(min(valid, 4), 0));
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          shared_copy_async<4>(
              lines + (KMAJOR ? (fast() + e) * LINE + at : at * LINE + fast() + e) * 4, piece + e,
              e < valid ? 4 : 0);
      }
    }
    from += KMAJOR ? DEPTH : DEPTH * stride;
  }
};

// 8x8 results per thread as four 4x4 pieces; tiles are copied two ahead.
template <bool TA, bool TB>
__device__ __forceinline__ void product(const float *a, const float *b, void *c, const float *bias,
                                        const void *residual, int m, int n, int k, i64 lda,
                                        i64 ldb, i64 ldc, i64 ld_residual, i64 stride_a,
                                        i64 stride_b, i64 stride_c, i64 stride_residual,
                                        i64 stride_split, int split_k, int flags, int activation,
                                        float slope) {
  DYN_SMEM(float, smem);
  constexpr int BM = 128, BN = 64;
  using SideA = Side<BM, !TA>;
  using SideB = Side<BN, TB>;
  constexpr int STAGE = SideA::FLOATS + SideB::FLOATS;
  int tiles_m = (m + BM - 1) / BM;
  i64 row = (i64)(blockIdx.x % tiles_m) * BM, col = (i64)blockIdx.x / tiles_m * BN;
  int first = blockIdx.z * split_k, end = (int)min((i64)first + split_k, (i64)k);

  // A warp has 32x64: four threads down, eight across.
  int warp = warp_id(), lane = lane_id();
  int at_a = warp * 32 + lane / 8 * 4, at_b = lane % 8 * 4;
  float acc[8][8] = {};
  SideA side_a(a + blockIdx.y * stride_a + (TA ? row : row * lda), lda, m - row, first);
  SideB side_b(b + blockIdx.y * stride_b + (TB ? col * ldb : col), ldb, n - col, first);
  int tiles = (end - first + DEPTH - 1) / DEPTH;
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < tiles) {
      side_a.fill(to_shared(smem + stage * STAGE), end - first - stage * DEPTH);
      side_b.fill(to_shared(smem + stage * STAGE + SideA::FLOATS), end - first - stage * DEPTH);
    }
    cp_async_commit();
  }
#pragma unroll 1
  for (int kt = 0; kt < tiles; kt++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    int ahead = kt + STAGES - 1;
    if (ahead < tiles) {
      float *lines = smem + ahead % STAGES * STAGE;
      side_a.fill(to_shared(lines), end - first - ahead * DEPTH);
      side_b.fill(to_shared(lines + SideA::FLOATS), end - first - ahead * DEPTH);
    }
    cp_async_commit();
    const float *lines_a = smem + kt % STAGES * STAGE;
    const float *lines_b = lines_a + SideA::FLOATS;
#pragma unroll
    for (int e = 0; e < DEPTH; e++) {
      float4 q0 = load(reinterpret_cast<const float4 *>(lines_b + e * SideB::LINE + at_b));
      float4 q1 = load(reinterpret_cast<const float4 *>(lines_b + e * SideB::LINE + at_b + 32));
      float y[8] = {q0.x, q0.y, q0.z, q0.w, q1.x, q1.y, q1.z, q1.w};
#pragma unroll
      for (int part = 0; part < 2; part++) {
        const float *from = lines_a + e * SideA::LINE + at_a + part * 16;
        float4 p = load(reinterpret_cast<const float4 *>(from));
        float x[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 8; j++)
            acc[part * 4 + i][j] = fmaf(x[i], y[j], acc[part * 4 + i][j]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int part = 0; part < 2; part++) {
      int at = (at_a + i / 4 * 16 + i % 4) * BN + at_b + part * 32;
      store(reinterpret_cast<float4 *>(smem + at),
            make_float4(acc[i][part * 4], acc[i][part * 4 + 1], acc[i][part * 4 + 2],
                        acc[i][part * 4 + 3]));
    }
  __syncthreads();
  auto epilogue = finish::of_batch(c, bias, residual, m, n, ldc, ld_residual,
                                   blockIdx.y * stride_c + blockIdx.z * stride_split,
                                   blockIdx.y * stride_residual, flags, activation, slope);
  bool c_aligned = epilogue.aligned(epilogue.c, ldc);
  bool residual_aligned = epilogue.aligned(epilogue.residual, ld_residual);
#pragma unroll 1
  for (int i = threadIdx.x; i < BM * BN / 4; i += THREADS)
    epilogue.write(load(reinterpret_cast<const float4 *>(smem + i * 4)), row + i / (BN / 4),
                   col + i % (BN / 4) * 4, c_aligned, residual_aligned);
}

}  // namespace simt

#define PLAIN_KERNEL(name, T)                                                                     \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      name(const T *a, const T *b, void *c, const float *bias, const void *residual, int m,       \
           int n, int k, i64 a_row, i64 a_col, i64 b_row, i64 b_col, i64 ldc, i64 ld_residual,    \
           i64 stride_a, i64 stride_b, i64 stride_c, i64 stride_residual, int flags,              \
           int activation, float slope) {                                                         \
    simt::plain(a, b, c, bias, residual, m, n, k, a_row, a_col, b_row, b_col, ldc, ld_residual,   \
                stride_a, stride_b, stride_c, stride_residual, flags, activation, slope);         \
  }
PLAIN_KERNEL(gemm_f32_plain, float)
PLAIN_KERNEL(gemm_bf16_plain, bf16)

// The parameters of the tensor-core kernels (gemm_tile.cuh); alignment is looked up here.
#define SIMT_KERNEL(name, ta, tb)                                                                 \
  extern "C" __global__ void __launch_bounds__(128, 3)                                            \
      name(const float *a, const float *b, void *c, const float *bias, const void *residual,      \
           int m, int n, int k, i64 lda, i64 ldb, i64 ldc, i64 ld_residual, i64 stride_a,         \
           i64 stride_b, i64 stride_c, i64 stride_residual, i64 stride_split, int split_k,        \
           int flags, int activation, float slope, int, int) {                                    \
    simt::product<ta, tb>(a, b, c, bias, residual, m, n, k, lda, ldb, ldc, ld_residual, stride_a, \
                          stride_b, stride_c, stride_residual, stride_split, split_k, flags,      \
                          activation, slope);                                                     \
  }
SIMT_KERNEL(gemm_f32_128x64x8_nn, false, false)
SIMT_KERNEL(gemm_f32_128x64x8_nt, false, true)
SIMT_KERNEL(gemm_f32_128x64x8_tn, true, false)
SIMT_KERNEL(gemm_f32_128x64x8_tt, true, true)

// Adds the sums of all pieces of k, in order, and finishes them. A thread has four neighbours in a
// row.
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
  auto epilogue = finish::of_batch(c, bias, residual, m, n, ldc, ld_residual,
                                   blockIdx.y * stride_c, blockIdx.y * stride_residual, flags,
                                   activation, slope);
  epilogue.finish(total, row, col, epilogue.aligned(epilogue.c, ldc),
                  epilogue.aligned(epilogue.residual, ld_residual));
}
