// What nvcc knows without a header: vector types, barriers, shuffles, votes, atomics, intrinsics.
#pragma once

using std::max;
using std::min;

#define EMU_VECTOR(T, name, align)                                          \
  struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };       \
  struct name##3 { T x, y, z; };                                            \
  struct __attribute__((aligned(align))) name##4 { T x, y, z, w; };         \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }        \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(float, float, 16)
EMU_VECTOR(int, int, 16)
EMU_VECTOR(unsigned, uint, 16)
EMU_VECTOR(unsigned short, ushort, 8)
EMU_VECTOR(unsigned char, uchar, 4)
#undef EMU_VECTOR
struct __attribute__((aligned(16))) double2 {
  double x, y;
};
struct __attribute__((aligned(16))) ulonglong2 {
  unsigned long long x, y;
};

inline void __syncthreads() { emu::barrier(0, 0, true); }
inline void __syncwarp(unsigned mask = ~0u) {
  emu::collective(emu::OP_SYNCWARP, 32, mask, nullptr, [](void **) {});
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) { emu::yield(); }

namespace emu {
template <class T>
struct Shuffle {
  T in, out;
  int source;
};
template <class T>
inline T shfl(unsigned mask, T value, int source) {
  Shuffle<T> mine{value, value, source};
  collective(OP_SHFL, 32, mask, &mine, [mask](void **arguments) {
    for (int lane = 0; lane < 32; lane++) {
      if (!(mask >> lane & 1)) continue;
      auto *a = (Shuffle<T> *)arguments[lane];
      if (!(mask >> a->source & 1)) die("a shuffle reads a lane outside of its mask");
      a->out = ((Shuffle<T> *)arguments[a->source])->in;
    }
  });
  return mine.out;
}
// One value in, one out for every lane: `combine` makes the whole warp's result.
template <class T, class F>
inline T reduce_lanes(int op, unsigned mask, T value, F combine) {
  struct Lane {
    T in, out;
  } mine{value, value};
  collective(op, 32, mask, &mine, [&](void **arguments) {
    bool first = true;
    T result{};
    for (int lane = 0; lane < 32; lane++) {
      if (!(mask >> lane & 1)) continue;
      T in = ((Lane *)arguments[lane])->in;
      result = first ? in : combine(result, in);
      first = false;
    }
    for (int lane = 0; lane < 32; lane++)
      if (mask >> lane & 1) ((Lane *)arguments[lane])->out = result;
  });
  return mine.out;
}
}  // namespace emu

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int lane = emu::self->linear & 31, source = lane ^ bits;
  if ((source & ~(width - 1)) > (lane & ~(width - 1))) source = lane;
  return emu::shfl(mask, value, source);
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int index, int width = 32) {
  int lane = emu::self->linear & 31;
  return emu::shfl(mask, value, (lane & ~(width - 1)) | (index & (width - 1)));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emu::self->linear & 31, source = lane + (int)delta;
  if ((lane & (width - 1)) + (int)delta >= width) source = lane;
  return emu::shfl(mask, value, source);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = emu::self->linear & 31, source = lane - (int)delta;
  if ((lane & (width - 1)) < (int)delta) source = lane;
  return emu::shfl(mask, value, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned mine = predicate ? 1u << (emu::self->linear & 31) : 0;
  auto either = [](unsigned a, unsigned b) { return a | b; };
  return emu::reduce_lanes(emu::OP_BALLOT, mask, mine, either);
}
inline int __any_sync(unsigned mask, int predicate) {
  return emu::reduce_lanes(emu::OP_ANY, mask, (int)!!predicate, [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int predicate) {
  return emu::reduce_lanes(emu::OP_ALL, mask, (int)!!predicate, [](int a, int b) { return a & b; });
}
// The lanes that hold the same value as this one.
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
  struct Lane {
    T in;
    unsigned out;
  } mine{value, 0};
  emu::collective(emu::OP_MATCH, 32, mask, &mine, [mask](void **arguments) {
    for (int lane = 0; lane < 32; lane++)
      for (int other = 0; other < 32; other++)
        if ((mask >> lane & 1) && (mask >> other & 1) &&
            ((Lane *)arguments[lane])->in == ((Lane *)arguments[other])->in)
          ((Lane *)arguments[lane])->out |= 1u << other;
  });
  return mine.out;
}
#define EMU_REDUX(name, op, T, expression)                                      \
  inline T name(unsigned mask, T value) {                                       \
    return emu::reduce_lanes(op, mask, value, [](T a, T b) -> T { return expression; }); \
  }
EMU_REDUX(__reduce_add_sync, emu::OP_REDUX_ADD, unsigned, a + b)
EMU_REDUX(__reduce_add_sync, emu::OP_REDUX_ADD, int, (int)((unsigned)a + (unsigned)b))
EMU_REDUX(__reduce_min_sync, emu::OP_REDUX_MIN, unsigned, a < b ? a : b)
EMU_REDUX(__reduce_min_sync, emu::OP_REDUX_MIN, int, a < b ? a : b)
EMU_REDUX(__reduce_max_sync, emu::OP_REDUX_MAX, unsigned, a > b ? a : b)
EMU_REDUX(__reduce_max_sync, emu::OP_REDUX_MAX, int, a > b ? a : b)
EMU_REDUX(__reduce_and_sync, emu::OP_REDUX_AND, unsigned, a &b)
EMU_REDUX(__reduce_or_sync, emu::OP_REDUX_OR, unsigned, a | b)
EMU_REDUX(__reduce_xor_sync, emu::OP_REDUX_XOR, unsigned, a ^ b)
#undef EMU_REDUX

namespace emu {
// Replaces *p by f(*p) in one step; returns what was there.
template <class T, class F>
inline T atomic_update(T *p, F f) {
  std::atomic_ref<T> cell(*p);
  T seen = cell.load();
  while (!cell.compare_exchange_weak(seen, f(seen))) {
  }
  wake(p);
  return seen;
}
}  // namespace emu
#define EMU_ATOMIC(T)                                                                           \
  inline T atomicAdd(T *p, T v) { return emu::atomic_update(p, [v](T x) { return (T)(x + v); }); } \
  inline T atomicSub(T *p, T v) { return emu::atomic_update(p, [v](T x) { return (T)(x - v); }); } \
  inline T atomicMax(T *p, T v) { return emu::atomic_update(p, [v](T x) { return max(x, v); }); } \
  inline T atomicMin(T *p, T v) { return emu::atomic_update(p, [v](T x) { return min(x, v); }); } \
  inline T atomicAnd(T *p, T v) { return emu::atomic_update(p, [v](T x) { return (T)(x & v); }); } \
  inline T atomicOr(T *p, T v) { return emu::atomic_update(p, [v](T x) { return (T)(x | v); }); }  \
  inline T atomicExch(T *p, T v) { return emu::atomic_update(p, [v](T) { return v; }); }        \
  inline T atomicCAS(T *p, T old, T v) {                                                        \
    return emu::atomic_update(p, [old, v](T x) { return x == old ? v : x; });                   \
  }
EMU_ATOMIC(unsigned)
EMU_ATOMIC(int)
EMU_ATOMIC(unsigned long long)
#undef EMU_ATOMIC
inline float atomicAdd(float *p, float v) {
  return emu::atomic_update(p, [v](float x) { return x + v; });
}
inline float atomicExch(float *p, float v) {
  return emu::atomic_update(p, [v](float) { return v; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  uint64_t both = (uint64_t)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= (unsigned)(both >> (s >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return (unsigned)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }

namespace emu {
template <class To, class From>
inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
}  // namespace emu
inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
inline int __float_as_int(float x) { return emu::bits<int>(x); }
inline float __int_as_float(int x) { return emu::bits<float>(x); }

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.f) : 0.f; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
