// What blocks of one launch need to hand numbers to each other: loads and stores that go past L1,
// of which (by the PTX memory model) each aligned 32-bit word is seen whole.
#pragma once
#include "ptx.cuh"

// 16 bytes as four words, each of them whole; never from L1.
__device__ __forceinline__ uint4 exchange_load(const void *at) {
  uint4 x;
#ifdef __CUDACC__
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(at)
               : "memory");
#else
  if ((uintptr_t)at & 15) emu::die("exchange_load: misaligned address");
  u32 *word = (u32 *)const_cast<void *>(at);
  x.x = std::atomic_ref<u32>(word[0]).load(std::memory_order_relaxed);
  x.y = std::atomic_ref<u32>(word[1]).load(std::memory_order_relaxed);
  x.z = std::atomic_ref<u32>(word[2]).load(std::memory_order_relaxed);
  x.w = std::atomic_ref<u32>(word[3]).load(std::memory_order_relaxed);
#endif
  return x;
}

__device__ __forceinline__ void exchange_store(void *at, u32 word) {
#ifdef __CUDACC__
  asm volatile("st.relaxed.gpu.global.u32 [%0],%1;" ::"l"(at), "r"(word) : "memory");
#else
  if ((uintptr_t)at & 3) emu::die("exchange_store: misaligned address");
  std::atomic_ref<u32>(*(u32 *)at).store(word, std::memory_order_relaxed);
#endif
}

// Between two looks at something that another block writes. The emulator's blocks share few cores.
__device__ __forceinline__ void between_polls() {
#ifndef __CUDACC__
  emu::yield();
  std::this_thread::yield();
#endif
}
