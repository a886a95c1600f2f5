// One wrapper per PTX instruction (sm_80 and newer): the instruction itself under nvcc, its meaning
// under g++. A kernel calls the wrappers and holds no inline assembly. What one family alone needs
// stands in ptx_<family>.cuh; Hopper's own instructions (wgmma, TMA, clusters) in hopper.cuh.
#pragma once
#include "prelude.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ u32 shared_address(const void *p) {
  return (u32)__cvta_generic_to_shared(p);
}

// --- Global loads and stores. `V` is float4, uint4, int4, float2, uint2, float, u32 ...
// Through the read-only path: for memory that nobody writes while the kernel runs.
template <class V>
__device__ __forceinline__ V load_const(const V *p) {
  return __ldg(p);
}
// Read once, written once: first out of the cache.
template <class V>
__device__ __forceinline__ V load_stream(const V *p) {
  return __ldcs(p);
}
template <class V>
__device__ __forceinline__ void store_stream(V *p, V v) {
  __stcs(p, v);
}
// Past L1: for memory that other blocks write while this kernel runs.
template <class V>
__device__ __forceinline__ V load_l2(const V *p) {
  return __ldcg(p);
}
template <class V>
__device__ __forceinline__ void store_l2(V *p, V v) {
  __stcg(p, v);
}
// Plain ones, shared or global; under g++ they check the alignment.
template <class V>
__device__ __forceinline__ V load(const V *p) {
  return *p;
}
template <class V>
__device__ __forceinline__ void store(V *p, V v) {
  *p = v;
}
__device__ __forceinline__ void prefetch_l2(const void *p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// --- Between blocks.
__device__ __forceinline__ u32 load_acquire(const u32 *p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(u32 *p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void add_release(u32 *p, u32 v) {
  asm volatile("red.release.gpu.global.add.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ u32 load_volatile(const u32 *p) {
  u32 v;
  asm volatile("ld.volatile.global.u32 %0,[%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_volatile(u32 *p, u32 v) {
  asm volatile("st.volatile.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}

// --- Barriers over a part of a block: ids 1..15; `threads` is a multiple of 32.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0,%1;" ::"r"(id), "r"(threads) : "memory");
}

// --- Asynchronous copies from global to shared memory. What lies past `source_bytes` becomes zero.
__device__ __forceinline__ void cp_async16(void *smem, const void *gmem) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(shared_address(smem)), "l"(gmem));
}
__device__ __forceinline__ void cp_async8(void *smem, const void *gmem) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],8;" ::"r"(shared_address(smem)), "l"(gmem));
}
__device__ __forceinline__ void cp_async4(void *smem, const void *gmem) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4;" ::"r"(shared_address(smem)), "l"(gmem));
}
__device__ __forceinline__ void cp_async16_zfill(void *smem, const void *gmem, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(smem)), "l"(gmem),
               "r"(source_bytes));
}
__device__ __forceinline__ void cp_async8_zfill(void *smem, const void *gmem, int source_bytes) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],8,%2;" ::"r"(shared_address(smem)), "l"(gmem),
               "r"(source_bytes));
}
__device__ __forceinline__ void cp_async4_zfill(void *smem, const void *gmem, int source_bytes) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4,%2;" ::"r"(shared_address(smem)), "l"(gmem),
               "r"(source_bytes));
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;"); }
// Until at most N of this thread's newest groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// --- Matrices of 8x8 16-bit elements. Lanes 8q..8q+7 give the addresses of the rows of matrix q;
// lane l receives, of each, the elements (l / 4, 2 * (l % 4) + {0, 1}), or of the transpose.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(smem)));
}
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(smem)));
}
__device__ __forceinline__ void ldmatrix_x1(u32 (&r)[1], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0},[%1];"
               : "=r"(r[0])
               : "r"(shared_address(smem)));
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(smem)));
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(smem)));
}
__device__ __forceinline__ void ldmatrix_x1_trans(u32 (&r)[1], const void *smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0},[%1];"
               : "=r"(r[0])
               : "r"(shared_address(smem)));
}

// --- Tensor cores: c += a b. With g = lane / 4 and t = lane % 4, `c` holds (row, column)
// (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1) of 16x8.
// bf16: a (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..) of 16x16; b (2t.., g), (2t+8.., g) of
// 16x8.
__device__ __forceinline__ void mma_bf16_16816(float (&c)[4], const u32 (&a)[4],
                                               const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// tf32: a (g, t), (g+8, t), (g, t+4), (g+8, t+4) of 16x8; b (t, g), (t+4, g) of 8x8.
__device__ __forceinline__ void mma_tf32_1688(float (&c)[4], const u32 (&a)[4],
                                              const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The bits of x rounded to tf32 (10 bits behind the point, ties away from zero).
__device__ __forceinline__ u32 to_tf32(float x) {
  u32 y;
  asm("cvt.rna.tf32.f32 %0,%1;" : "=r"(y) : "f"(x));
  return y;
}

// --- Approximations: one instruction each, denormals are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sqrt_approx(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

#else
#include "../emu/ptx_emu.h"
#endif

// Barrier over all blocks of a cooperative launch. `count` is zero before the launch and only
// grows: the i-th barrier, from 1, waits for `target` = i * blocks. What any thread wrote before it,
// every thread of every block sees after it, if it reads past L1 (load_l2, cp_async16).
__device__ __forceinline__ void grid_barrier(u32 *count, u32 target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    add_release(count, 1);
    while (load_acquire(count) < target) {
    }
    __threadfence();
  }
  __syncthreads();
}
