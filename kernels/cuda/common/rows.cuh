// What the memory-bound families share: 16-byte packs of f32 or bf16, rows held in registers, sums
// and maxima over a warp or a block in a fixed order.
//
// A row is read once: each thread keeps `PACKS` packs of it. Rows whose packs would straddle a
// 16-byte border (an odd number of columns, a slice) are read one number at a time, neighbours by
// neighbouring threads.
#pragma once
#include "common/reduce.cuh"

namespace rows {

// Numbers in 16 bytes.
template <class T>
struct Pack;
template <>
struct Pack<float> {
  static constexpr int N = 4;
};
template <>
struct Pack<bf16> {
  static constexpr int N = 8;
};

__device__ __forceinline__ void load_pack(const float *p, float *v) {
  float4 a = load(reinterpret_cast<const float4 *>(p));
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}
__device__ __forceinline__ void load_pack(const bf16 *p, float *v) {
  uint4 a = load(reinterpret_cast<const uint4 *>(p));
  v[0] = low_float(a.x), v[1] = high_float(a.x), v[2] = low_float(a.y), v[3] = high_float(a.y);
  v[4] = low_float(a.z), v[5] = high_float(a.z), v[6] = low_float(a.w), v[7] = high_float(a.w);
}
__device__ __forceinline__ void store_pack(float *p, const float *v) {
  store(reinterpret_cast<float4 *>(p), float4{v[0], v[1], v[2], v[3]});
}
__device__ __forceinline__ void store_pack(bf16 *p, const float *v) {
  store(reinterpret_cast<uint4 *>(p), uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                            pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])});
}
template <class T>
__device__ __forceinline__ float load_one(const T *p) {
  return to_float(*p);
}
template <class T>
__device__ __forceinline__ void store_one(T *p, float v) {
  *p = from_float<T>(v);
}

// Whether an address lies on 16 bytes.
__device__ __forceinline__ bool on_pack(const void *p) { return ((u64)p & 15) == 0; }

// Whether rows of `cols` numbers from `p` on begin and end on 16 bytes.
template <class T>
__device__ __forceinline__ bool wide_rows(const T *p, i64 cols) {
  return on_pack(p) && cols % Pack<T>::N == 0;
}

// The column of number `e` of thread `t`.
template <class T>
__device__ __forceinline__ int place(int e, int t, int threads, bool wide) {
  constexpr int N = Pack<T>::N;
  return wide ? (e / N * threads + t) * N + e % N : e * threads + t;
}

// How many of a thread's numbers lie within `cols` columns; they come first.
template <class T>
__device__ __forceinline__ int held(int cols, int t, int threads, bool wide) {
  constexpr int N = Pack<T>::N;
  int units = ((wide ? cols / N : cols) - t + threads - 1) / threads;
  return wide ? units * N : units;
}

// Which of a thread's numbers lies at a column; -1 where another thread has it.
template <class T>
__device__ __forceinline__ int number_at(int column, int t, int threads, bool wide) {
  constexpr int N = Pack<T>::N;
  int unit = wide ? column / N : column, turn = unit / threads;
  if (unit - turn * threads != t) return -1;
  return wide ? turn * N + column % N : turn;
}

template <class T, int PACKS>
__device__ __forceinline__ void load_row(const T *x, int cols, int t, int threads, bool wide,
                                         float fill, float (&v)[PACKS * Pack<T>::N]) {
  constexpr int N = Pack<T>::N;
  if (wide) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      int at = (p * threads + t) * N;
      if (at < cols) {
        load_pack(x + at, v + p * N);
      } else {
#pragma unroll
        for (int e = 0; e < N; e++) v[p * N + e] = fill;
      }
    }
  } else {
#pragma unroll
    for (int e = 0; e < PACKS * N; e++) {
      int at = e * threads + t;
      v[e] = at < cols ? load_one(x + at) : fill;
    }
  }
}

template <class T, int PACKS>
__device__ __forceinline__ void store_row(T *y, int cols, int t, int threads, bool wide,
                                          const float (&v)[PACKS * Pack<T>::N]) {
  constexpr int N = Pack<T>::N;
  if (wide) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
      int at = (p * threads + t) * N;
      if (at < cols) store_pack(y + at, v + p * N);
    }
  } else {
#pragma unroll
    for (int e = 0; e < PACKS * N; e++) {
      int at = e * threads + t;
      if (at < cols) store_one(y + at, v[e]);
    }
  }
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int bits = 16; bits; bits >>= 1) v += __shfl_xor_sync(FULL_WARP, v, bits);
  return v;
}
using ::warp_max;
using ::warp_sum;

// The threads that work on one row: a warp, or a block of `THREADS` (of any size where that is 0).
// A block's reductions take turns between two places of 32 numbers, so that one barrier each is
// enough.
template <int THREADS>
struct Group {
  static constexpr bool WARP = THREADS == 32;
  float *room;
  int turn = 0;
  int thread, any;

  __device__ __forceinline__ explicit Group(float *room) : room(room) {
    thread = WARP ? threadIdx.x & 31 : threadIdx.x;
    any = blockDim.x;
  }
  __device__ __forceinline__ int threads() const { return THREADS ? THREADS : any; }
  __device__ __forceinline__ i64 first() const {
    return WARP ? (i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5) : blockIdx.x;
  }
  __device__ __forceinline__ i64 stride() const {
    return WARP ? (i64)gridDim.x * (blockDim.x >> 5) : gridDim.x;
  }
  __device__ __forceinline__ float sum(float v) {
    v = warp_sum(v);
    if (WARP || threads() == 32) return v;
    return warp_sum(meet(v, 0.f));
  }
  __device__ __forceinline__ float max(float v) {
    v = warp_max(v);
    if (WARP || threads() == 32) return v;
    return warp_max(meet(v, -INFINITY));
  }
  // K sums with one barrier; `room` holds 2 * K * 32 numbers then.
  template <int K>
  __device__ __forceinline__ void sums(float (&v)[K]) {
#pragma unroll
    for (int k = 0; k < K; k++) v[k] = warp_sum(v[k]);
    if (WARP || threads() == 32) return;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float *place = room + turn * K * 32;
    turn ^= 1;
#pragma unroll
    for (int k = 0; k < K; k++)
      if (lane == 0) place[k * 32 + warp] = v[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++)
      v[k] = warp_sum(lane < threads() >> 5 ? place[k * 32 + lane] : 0.f);
  }

 private:
  // One number of each warp; lane `l` gets that of warp `l`.
  __device__ __forceinline__ float meet(float v, float fill) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float *place = room + turn * 32;
    turn ^= 1;
    if (lane == 0) place[warp] = v;
    __syncthreads();
    return lane < threads() >> 5 ? place[lane] : fill;
  }
};

}  // namespace rows
