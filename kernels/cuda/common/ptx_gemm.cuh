// Wrappers that take addresses of shared memory as such: 32 bits, so that an inner loop adds and
// combines them with single instructions. Under g++ such an address is a pointer.
#pragma once
#include "ptx.cuh"

#ifdef __CUDACC__

using SharedAddr = u32;
__device__ __forceinline__ SharedAddr to_shared(const void *p) { return shared_address(p); }

__device__ __forceinline__ void shared_ldmatrix_x4(u32 (&r)[4], SharedAddr at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ void shared_ldmatrix_x4_trans(u32 (&r)[4], SharedAddr at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ u32 shared_load_u32(SharedAddr at) {
  u32 x;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(x) : "r"(at));
  return x;
}
__device__ __forceinline__ void shared_store_u32(SharedAddr at, u32 x) {
  asm volatile("st.shared.u32 [%0],%1;" ::"r"(at), "r"(x) : "memory");
}
// Copies `source_bytes` of BYTES bytes and fills up with zeros.
template <int BYTES>
__device__ __forceinline__ void shared_copy_async(SharedAddr to, const void *from,
                                                  int source_bytes) {
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from),
                 "r"(source_bytes));
  else
    asm volatile("cp.async.ca.shared.global [%0],[%1],%3,%2;" ::"r"(to), "l"(from),
                 "r"(source_bytes), "n"(BYTES));
}

#else

using SharedAddr = char *;
inline SharedAddr to_shared(const void *p) { return (char *)p; }
inline void shared_ldmatrix_x4(u32 (&r)[4], SharedAddr at) { ldmatrix_x4(r, at); }
inline void shared_ldmatrix_x4_trans(u32 (&r)[4], SharedAddr at) { ldmatrix_x4_trans(r, at); }
inline u32 shared_load_u32(SharedAddr at) { return load((const u32 *)at); }
inline void shared_store_u32(SharedAddr at, u32 x) { store((u32 *)at, x); }
template <int BYTES>
inline void shared_copy_async(SharedAddr to, const void *from, int source_bytes) {
  if (BYTES == 16)
    cp_async16_zfill(to, from, source_bytes);
  else if (BYTES == 8)
    cp_async8_zfill(to, from, source_bytes);
  else
    cp_async4_zfill(to, from, source_bytes);
}

#endif
