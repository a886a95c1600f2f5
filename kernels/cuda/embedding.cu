// Rows of a table by id, and the gradient of that without float atomics.
//
// Ladder: `embedding_backward_plain` gives a thread each column and lets it walk all rows, as the
// CPU does. The others sort the slots by id first, in a stable radix sort of 8 bits a pass
// (integers alone are counted, so the order is the same every time), and add up runs of equal ids:
// a block takes `RUN` slots, writes runs that lie within, and leaves the sums at its two ends for
// `embedding_join`.
#include "common/rows.cuh"

namespace embedding {

using namespace rows;

constexpr u32 NO_ID = 0xffffffffu;
__device__ __forceinline__ u32 digit(u32 id, int shift) { return id >> shift & 255; }

}  // namespace embedding

// y[r] = bias + sum over j of table[ids[r][j]]; `lanes` threads (a power of two) a row.
extern "C" __global__ void __launch_bounds__(256, 5)
    embedding_forward_f32(const float *table, const u32 *ids, const float *bias, float *y, i64 rows,
                          i64 active, i64 width, int lanes) {
  using namespace rows;
  bool wide = wide_rows(table, width) && on_pack(y) && on_pack(bias);
  int lane = threadIdx.x % lanes, height = blockDim.x / lanes;
  for (i64 row = (i64)blockIdx.x * height + threadIdx.x / lanes; row < rows;
       row += (i64)gridDim.x * height) {
    const u32 *hot = ids + row * active;
    if (wide) {
#pragma unroll 2
      for (i64 c = lane * 4; c < width; c += lanes * 4) {
        float sum[4] = {}, v[4];
        if (bias) load_pack(bias + c, sum);
        for (i64 j = 0; j < active; j++) {
          u32 id = hot[j];
          if (id == embedding::NO_ID) continue;
          load_pack(table + id * width + c, v);
#pragma unroll
          for (int e = 0; e < 4; e++) sum[e] += v[e];
        }
        store_pack(y + row * width + c, sum);
      }
    } else {
      for (i64 c = lane; c < width; c += lanes) {
        float sum = bias ? bias[c] : 0.f;
        for (i64 j = 0; j < active; j++)
          if (hot[j] != embedding::NO_ID) sum += table[hot[j] * width + c];
        y[row * width + c] = sum;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_plain(const u32 *ids, const float *d_y, float *d_table, i64 rows, i64 active,
                             i64 width) {
  i64 c = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= width) return;
  for (i64 slot = 0; slot < rows * active; slot++)
    if (ids[slot] != embedding::NO_ID)
      d_table[ids[slot] * width + c] += d_y[slot / active * width + c];
}

// Counts the digits of each chunk: counts [256, chunks], a digit's chunks side by side.
extern "C" __global__ void __launch_bounds__(256)
    embedding_count(const u32 *keys, u32 *counts, i64 slots, i64 chunks, int shift) {
  DYN_SMEM(u32, room);
  room[threadIdx.x] = 0;
  __syncthreads();
  i64 slot = (i64)blockIdx.x * 256 + threadIdx.x;
  if (slot < slots) atomicAdd(room + embedding::digit(keys[slot], shift), 1u);
  __syncthreads();
  counts[threadIdx.x * chunks + blockIdx.x] = room[threadIdx.x];
}
// Replaces counts by the sums of those before: one block of 1024, its threads on neighbouring
// parts.
extern "C" __global__ void __launch_bounds__(1024)
    embedding_scan(u32 *counts, i64 n) {
  DYN_SMEM(u32, room);
  i64 each = ceil_div(n, 1024), from = threadIdx.x * each;
  i64 end = from + each < n ? from + each : n;
  u32 sum = 0;
  for (i64 i = from; i < end; i++) sum += counts[i];
  u32 upto = sum;
#pragma unroll
  for (int bits = 1; bits < 32; bits <<= 1) {
    u32 other = __shfl_up_sync(FULL_WARP, upto, bits);
    if (lane_id() >= bits) upto += other;
  }
  if (lane_id() == 31) room[warp_id()] = upto;
  __syncthreads();
  u32 before = upto - sum;
  for (int w = 0; w < warp_id(); w++) before += room[w];
  for (i64 i = from; i < end; i++) {
    u32 count = counts[i];
    counts[i] = before;
    before += count;
  }
}
// Puts each slot behind those of smaller digits and, of the same, those before it. Without
// `slots_in` the slots are numbered.
extern "C" __global__ void __launch_bounds__(256)
    embedding_scatter(const u32 *keys, const u32 *slots_in, const u32 *offsets, u32 *keys_out,
                      u32 *slots_out, i64 slots, i64 chunks, int shift) {
  DYN_SMEM(u32, digits);
  i64 slot = (i64)blockIdx.x * 256 + threadIdx.x;
  u32 key = slot < slots ? keys[slot] : embedding::NO_ID;
  u32 mine = embedding::digit(key, shift);
  digits[threadIdx.x] = mine;
  __syncthreads();
  if (slot >= slots) return;
  u32 rank = 0;
  for (int i = 0; i < (int)threadIdx.x; i++) rank += digits[i] == mine;
  u32 to = offsets[mine * chunks + blockIdx.x] + rank;
  keys_out[to] = key;
  slots_out[to] = slots_in ? slots_in[slot] : (u32)slot;
}

// Adds up runs of equal ids among `run` sorted slots. A run that goes on beyond the block's slots,
// or came from before them, goes to `edges` [blocks, 2, width] (first the one that came), else it
// is added to the table.
extern "C" __global__ void __launch_bounds__(128)
    embedding_runs(const u32 *keys, const u32 *slots, const float *d_y, float *d_table,
                   float *edges, i64 count, i64 active, i64 width, int run, int tiles) {
  i64 block = blockIdx.x / tiles, c = (i64)(blockIdx.x % tiles) * blockDim.x + threadIdx.x;
  i64 from = block * run, end = from + run < count ? from + run : count;
  if (c >= width) return;
  float *edge = edges + block * 2 * width + c;
  i64 at = from;
  while (at < end) {
    u32 key = keys[at];
    i64 first = at;
    float sum = 0.f;
    while (at < end && keys[at] == key) {
      // Four rows under way, added in their order.
      int more = 1;
      while (more < 4 && at + more < end && keys[at + more] == key) more++;
      float v[4];
#pragma unroll
      for (int u = 0; u < 4; u++)
        v[u] = u < more ? d_y[slots[at + u] / active * width + c] : 0.f;
#pragma unroll
      for (int u = 0; u < 4; u++) sum += v[u];
      at += more;
    }
    if (key == embedding::NO_ID) return;  // the largest of all: nothing comes behind
    bool came = first == from && from > 0 && keys[from - 1] == key;
    bool goes = at == end && end < count && keys[end] == key;
    if (came)
      edge[0] = sum;
    else if (goes)
      edge[width] = sum;
    else
      d_table[key * width + c] += sum;
  }
}
// Joins runs that several blocks have a part of: the block where a run began adds up the rest of
// it.
extern "C" __global__ void __launch_bounds__(128)
    embedding_join(const u32 *keys, float *d_table, const float *edges, i64 count, i64 width,
                   int run, int tiles) {
  i64 block = blockIdx.x / tiles, c = (i64)(blockIdx.x % tiles) * blockDim.x + threadIdx.x;
  i64 from = block * run, end = from + run;
  if (c >= width || end >= count) return;
  u32 key = keys[end - 1];
  if (key == embedding::NO_ID || keys[end] != key) return;
  // Began before this block: then it is not the one that joins.
  if (from > 0 && keys[from] == key && keys[from - 1] == key) return;
  float sum = edges[(block * 2 + 1) * width + c];
  for (; end < count && keys[end] == key; end += run) {
    block++;
    sum += edges[block * 2 * width + c];
  }
  d_table[key * width + c] += sum;
}
