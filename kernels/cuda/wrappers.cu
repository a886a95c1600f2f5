// Every wrapper of common/ptx.cuh once, in kernels whose results are known: they hold the emulator
// and the hardware to the same meaning.
#include "common/reduce.cuh"

// d = a b + 1 for one tile: a [16, 16], b [16, 8] (`transposed`: b as [8, 16]), d [16, 8]; b by
// ldmatrix x2 or x1, plain or transposing. One warp; (16 + 16) * 24 * 2 bytes of shared memory.
extern "C" __global__ void __launch_bounds__(32)
    wrappers_mma_bf16(const bf16 *a, const bf16 *b, float *d, i32 transposed, i32 single) {
  DYN_SMEM(bf16, smem);
  constexpr int LD = 24;  // rows of 48 bytes: aligned to 16
  bf16 *as = smem, *bs = smem + 16 * LD;
  int l = lane_id();
  cp_async16(as + l / 2 * LD + l % 2 * 8, a + l * 8);
  if (l < 16) {
    int row = transposed ? l / 2 : l, column = transposed ? l % 2 * 8 : 0;
    cp_async16(bs + row * LD + column, b + l * 8);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  u32 fa[4], fb[2];
  ldmatrix_x4(fa, as + l % 16 * LD + l / 16 * 8);
  if (single) {
    u32 half[1];
    for (int k = 0; k < 2; k++) {
      if (transposed)
        ldmatrix_x1(half, bs + l % 8 * LD + k * 8);
      else
        ldmatrix_x1_trans(half, bs + (k * 8 + l % 8) * LD);
      if (k == 0)
        fb[0] = half[0];
      else
        fb[1] = half[0];
    }
  } else if (transposed) {
    ldmatrix_x2(fb, bs + l % 8 * LD + l / 8 % 2 * 8);
  } else {
    ldmatrix_x2_trans(fb, bs + l % 16 * LD);
  }
  float c[4] = {1, 1, 1, 1};
  mma_bf16_16816(c, fa, fb);
#pragma unroll
  for (int r = 0; r < 4; r++) d[(l / 4 + (r >> 1) * 8) * 8 + l % 4 * 2 + (r & 1)] = c[r];
}

// The same with a transposed by ldmatrix x4: a as [16 of k, 16 of m].
extern "C" __global__ void __launch_bounds__(32)
    wrappers_mma_bf16_a_transposed(const bf16 *a, const bf16 *b, float *d) {
  DYN_SMEM(bf16, smem);
  constexpr int LD = 24;
  bf16 *as = smem, *bs = smem + 16 * LD;
  int l = lane_id();
  store((uint4 *)(as + l / 2 * LD + l % 2 * 8), load_const((const uint4 *)(a + l * 8)));
  if (l < 16) store((uint4 *)(bs + l * LD), load_const((const uint4 *)(b + l * 8)));
  __syncwarp();
  u32 fa[4], fb[2];
  ldmatrix_x4_trans(fa, as + (l / 16 * 8 + l % 8) * LD + l / 8 % 2 * 8);
  ldmatrix_x2_trans(fb, bs + l % 16 * LD);
  float c[4] = {1, 1, 1, 1};
  mma_bf16_16816(c, fa, fb);
#pragma unroll
  for (int r = 0; r < 4; r++) d[(l / 4 + (r >> 1) * 8) * 8 + l % 4 * 2 + (r & 1)] = c[r];
}

// d = a b + 1 in tf32: a [16, 8], b [8, 8], d [16, 8]. One warp.
extern "C" __global__ void __launch_bounds__(32)
    wrappers_mma_tf32(const float *a, const float *b, float *d) {
  int l = lane_id(), g = l / 4, t = l % 4;
  u32 fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
               to_tf32(a[(g + 8) * 8 + t + 4])};
  u32 fb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
  float c[4] = {1, 1, 1, 1};
  mma_tf32_1688(c, fa, fb);
#pragma unroll
  for (int r = 0; r < 4; r++) d[(g + (r >> 1) * 8) * 8 + t * 2 + (r & 1)] = c[r];
}

// Copies of 16, 8 and 4 bytes whose source ends early: y [3, 32, 4] words get the first `valid`
// words of x [32, 4] and zeros, through groups that are waited for one after the other.
extern "C" __global__ void __launch_bounds__(32)
    wrappers_cp_async(const u32 *x, u32 *y, i32 valid) {
  DYN_SMEM(u32, smem);
  int t = threadIdx.x;
  auto within = [&](int first, int words) {
    int left = valid - first;
    return 4 * (left < 0 ? 0 : left < words ? left : words);
  };
  cp_async16_zfill(smem + t * 4, x + t * 4, within(t * 4, 4));
  cp_async_commit();
  for (int k = 0; k < 4; k += 2)
    cp_async8_zfill(smem + 128 + t * 4 + k, x + t * 4 + k, within(t * 4 + k, 2));
  cp_async_commit();
  for (int k = 0; k < 4; k++)
    cp_async4_zfill(smem + 256 + t * 4 + k, x + t * 4 + k, within(t * 4 + k, 1));
  cp_async_commit();
  cp_async_wait<2>();
  for (int k = 0; k < 4; k++) y[t * 4 + k] = smem[t * 4 + k];
  cp_async_wait<1>();
  for (int k = 0; k < 4; k++) y[128 + t * 4 + k] = smem[128 + t * 4 + k];
  cp_async_wait<0>();
  for (int k = 0; k < 4; k++) y[256 + t * 4 + k] = smem[256 + t * 4 + k];
  // The forms without a size, over the same place, which no other thread looks at.
  cp_async8(smem + t * 4, x + t * 4);
  cp_async4(smem + t * 4 + 2, x + t * 4 + 2);
  cp_async4(smem + t * 4 + 3, x + t * 4 + 3);
  cp_async_commit();
  cp_async_wait<0>();
  for (int k = 0; k < 4; k++) y[384 + t * 4 + k] = smem[t * 4 + k];
}

// Warp operations on x [64]: y [12, 64]. Two warps.
extern "C" __global__ void __launch_bounds__(64) wrappers_warp(const u32 *x, u32 *y) {
  int t = threadIdx.x, l = lane_id();
  u32 v = x[t];
  y[t] = __shfl_xor_sync(FULL_WARP, v, 5);
  y[64 + t] = __shfl_up_sync(FULL_WARP, v, 3, 16);
  y[128 + t] = __shfl_down_sync(FULL_WARP, v, 3, 16);
  y[192 + t] = __shfl_sync(FULL_WARP, v, 9, 8);
  y[256 + t] = __ballot_sync(FULL_WARP, v & 1);
  y[320 + t] = __any_sync(FULL_WARP, v > 250) | __all_sync(FULL_WARP, v < 256) << 1;
  y[384 + t] = __reduce_add_sync(FULL_WARP, v);
  y[448 + t] = __reduce_max_sync(FULL_WARP, v);
  y[512 + t] = __reduce_min_sync(FULL_WARP, v);
  y[576 + t] = __match_any_sync(FULL_WARP, v & 3);
  y[640 + t] = __reduce_or_sync(FULL_WARP, v) | __reduce_and_sync(FULL_WARP, v) << 8;
  y[704 + t] = __popc(v) | __clz((int)v) << 8 | __ffs((int)v) << 16 | l << 24;
}

// The sum of x [256] over a block, the maximum and the sum of the doubles, as each thread has it,
// in y [3, 256]; and atomics: counts [2] f32 and z [4] u32, which start as 0.
extern "C" __global__ void __launch_bounds__(256)
    wrappers_block(const float *x, float *y, float *counts, u32 *z) {
  DYN_SMEM(float, scratch);
  int t = threadIdx.x;
  float v = x[t];
  y[t] = block_sum(v, scratch);
  y[256 + t] = block_max(v, scratch);
  y[512 + t] = block_sum(v + v, scratch);
  atomicAdd(z, (u32)t);
  atomicMax(z + 1, (u32)t);
  atomicAdd((u64 *)(z + 2), (u64)t << 30);
  if (t % 32 == 0) atomicAdd(counts, 1.f);
  u32 *cell = (u32 *)counts + 1;
  for (u32 seen = 0, old; (old = atomicCAS(cell, seen, seen + 1)) != seen;) seen = old;
}

// Half of the block hands x [64] to the other half through shared memory: y = x turned around. The
// second half writes; named barriers 1 (full) and 2 (empty) pass a stage of 64 words to and fro.
// compute-sanitizer's racecheck reports the stage's reads against its writes. It is no race: each
// half only arrives at the barrier at which the other waits, all 128 threads count, and PTX orders
// what a thread did before `bar.arrive` (the readers have used what they read) before what follows
// `bar.sync`. Racecheck seems not to count an arrival without waiting as an order; no other kernel
// has one.
extern "C" __global__ void __launch_bounds__(128)
    wrappers_named_barriers(const u32 *x, u32 *y, i32 rounds) {
  DYN_SMEM(u32, stage);
  int t = threadIdx.x;
  for (int i = 0; i < rounds; i++) {
    if (t < 64) {
      if (i > 0) named_barrier_sync(2, 128);
      stage[t] = x[i * 64 + t];
      named_barrier_arrive(1, 128);
    } else {
      named_barrier_sync(1, 128);
      y[i * 64 + t - 64] = stage[127 - t];
      if (i + 1 < rounds) named_barrier_arrive(2, 128);
    }
  }
}

// Each block adds to the next one's cell what it read from its own, `rounds` times, with a barrier
// over the grid between: cells [2, blocks] u32, `count` zero. Cooperative launch.
extern "C" __global__ void __launch_bounds__(64)
    wrappers_grid_barrier(u32 *cells, u32 *count, i32 rounds) {
  u32 blocks = gridDim.x, me = blockIdx.x, next = (me + 1) % blocks;
  for (int i = 0; i < rounds; i++) {
    if (threadIdx.x == 40) {
      u32 mine = load_l2(cells + (i & 1) * blocks + me);
      store_l2(cells + ((i + 1) & 1) * blocks + next, mine + me);
    }
    grid_barrier(count, (i + 1) * blocks);
  }
}

// Block 0 passes x [rounds] one by one to block 1 through one cell and two flags: y [rounds].
// flags [2] and cell [1] are zero. Cooperative launch of two blocks.
extern "C" __global__ void __launch_bounds__(32)
    wrappers_flags(const u32 *x, u32 *y, u32 *cell, u32 *flags, i32 rounds) {
  if (threadIdx.x) return;
  for (u32 i = 0; i < (u32)rounds; i++) {
    if (blockIdx.x == 0) {
      while (load_acquire(flags + 1) < i) {
      }
      store_volatile(cell, x[i]);
      store_release(flags, i + 1);
    } else {
      while (load_acquire(flags) < i + 1) {
      }
      y[i] = load_volatile(cell);
      store_release(flags + 1, i + 1);
    }
  }
}

// The approximations and the roundings of x [count]: y [9, count] as bits.
extern "C" __global__ void __launch_bounds__(128)
    wrappers_math(const float *x, u32 *y, i32 count) {
  int i = blockIdx.x * 128 + threadIdx.x;
  if (i >= count) return;
  float v = load_stream(x + i);
  prefetch_l2(x);
  auto put = [&](int row, u32 bits) { store_stream(y + (u64)row * count + i, bits); };
  put(0, __float_as_uint(exp2_approx(v)));
  put(1, __float_as_uint(log2_approx(fabsf(v))));
  put(2, __float_as_uint(tanh_approx(v)));
  put(3, __float_as_uint(rcp_approx(v)));
  put(4, __float_as_uint(rsqrt_approx(fabsf(v))));
  put(5, __float_as_uint(sqrt_approx(fabsf(v))));
  put(6, to_bf16(v).bits);
  put(7, to_tf32(v));
  put(8, pack_bf16(v, -v));
}
