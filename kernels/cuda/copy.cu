// y = a * x + y, the smallest kernel there is, and the copy that gives the memory's ceiling.
#include "common/ptx.cuh"

// x, y [count], f32.
extern "C" __global__ void __launch_bounds__(256)
    axpy_plain(const float *x, float *y, float a, u64 count) {
  u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i < count) y[i] = a * x[i] + y[i];
}

// 16 bytes a thread and four loads under way before the first store: a quarter of the requests.
// `words` counts 16-byte words. Launch with any grid of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    copy_16(const uint4 *x, uint4 *y, u64 words) {
  u64 step = (u64)gridDim.x * 1024;
  for (u64 i = (u64)blockIdx.x * 1024 + threadIdx.x; i < words; i += step) {
    uint4 held[4];
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k * 256 < words) held[k] = load_stream(x + i + k * 256);
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k * 256 < words) store_stream(y + i + k * 256, held[k]);
  }
}
