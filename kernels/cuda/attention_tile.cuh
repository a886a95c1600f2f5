// What the kernels of attention share: their arguments, which keys a query sees, tiles in shared
// memory, fragments and dropout.
#pragma once
#include "common/ptx.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
#define ATTENTION_NONE (-__builtin_inff())

// Distances between elements of [batch, heads, rows, head_dim]; the last axis is contiguous.
struct AttentionRows {
  i64 batch, head, row;
};

enum AttentionMask { MASK_FULL = 0, MASK_CAUSAL = 1, MASK_WINDOW = 2, MASK_STRIDED = 3 };

// The arguments of every kernel but decoding. The same fields in the same order as `Arguments` of
// the launcher. Elements of q, k, v, er, d_o are bf16, or f32 in the plain kernels.
struct Attention {
  const void *q, *k, *v, *er, *d_o;
  void *o, *d_q, *d_k, *d_v, *d_er;
  float *lse, *delta, *parts;
  AttentionRows q_at, k_at, v_at, o_at, d_o_at, d_q_at, d_k_at, d_v_at;
  u64 seed, position;
  int batch, heads, queries, keys, head_dim, max_len;
  // Width of the window, or keys of a block and the stride of the columns.
  int mask, width, stride;
  // Which results are f32 (else bf16), bit 0: o, 1: d_q, 2: d_k and d_v, 3: d_er.
  int wide;
  // The run whose gradients of keys are computed, and whether they are added to what is there.
  int run, accumulate;
  // Parts of the embeddings' gradient for each head.
  int slots;
  u32 stream, threshold;
  float scale, keep_scale;
};

// What a kernel is compiled with: relative logits, dropout, the columns of a strided mask.
constexpr int RELATIVE = 1, DROPOUT = 2, COLUMNS = 4;

constexpr int WIDE_O = 1, WIDE_D_Q = 2, WIDE_D_KV = 4, WIDE_D_ER = 8;

// Keys first, first + step, ..: count of them. Each query sees a range of them, and both ends of
// the range grow with the query's position.
struct Run {
  int first, step, count;
  bool is_far;
};

__device__ __forceinline__ int attention_runs(const Attention &a) {
  return a.mask == MASK_STRIDED && a.stride <= a.keys ? 2 : 1;
}
__device__ __forceinline__ Run attention_run(const Attention &a, int nth) {
  if (nth == 0) return {0, 1, a.keys, false};
  return {a.stride - 1, a.stride, a.keys / a.stride, true};
}
// How far the positions of queries are ahead of their numbers: queries are the last of the keys.
__device__ __forceinline__ int attention_shift(const Attention &a) {
  return a.keys > a.queries ? a.keys - a.queries : 0;
}
__device__ __forceinline__ int run_from(const Attention &a, const Run &run, int p) {
  if (a.mask == MASK_WINDOW) return max(p + 1 - a.width, 0);
  if (a.mask == MASK_STRIDED && !run.is_far) return p / a.width * a.width;
  return 0;
}
__device__ __forceinline__ int run_to(const Attention &a, const Run &run, int p) {
  if (a.mask == MASK_FULL) return run.count;
  if (run.is_far) return min(p / a.width * a.width / a.stride, run.count);
  return min(p + 1, run.count);
}
// The queries that see one of the keys n..n + count - 1 of a run, by their number: from `first`
// on, before `end`.
__device__ __forceinline__ void run_queries(const Attention &a, const Run &run, int n, int count,
                                            int &first, int &end) {
  int shift = attention_shift(a), last = min(n + count, run.count) - 1;
  first = 0;
  end = a.queries;
  if (a.mask == MASK_FULL) return;
  if (run.is_far) {
    // p / width * width / stride > n
    i64 p = ((i64)(n + 1) * a.stride + a.width - 1) / a.width * a.width;
    first = (int)(p - shift > a.queries ? a.queries : p - shift);
  } else {
    first = n - shift;
    if (a.mask == MASK_WINDOW) end = (int)min((i64)last + a.width - shift, (i64)end);
    if (a.mask == MASK_STRIDED)
      end = (int)min((i64)(last / a.width + 1) * a.width - shift, (i64)end);
  }
  first = max(first, 0);
}

// Where 16 bytes of a row lie in a tile of DP numbers a row: their place within the row is mixed
// with the row's number, so that eight rows below each other lie in different banks.
template <int DP>
__device__ __forceinline__ int tile_at(int row, int chunk) {
  constexpr int SHIFT = DP % 64 == 0 ? 0 : 1, MASK = DP % 64 == 0 ? 7 : 3;
  return row * DP + ((chunk ^ ((row >> SHIFT) & MASK)) << 3);
}

// Begins to copy rows of `x`, of which those outside of 0..count and columns from head_dim on are
// 0. Row r of the tile is row first + step * (begin + r) of `x`, and is stored as tile row `slot
// + r`.
template <int DP, int ROWS, int THREADS>
__device__ __forceinline__ void load_rows(u16 *tile, int slot, const u16 *x,
                                          i64 row_stride, int first, int step, int begin,
                                          int count, int head_dim) {
  // A thread keeps its column and goes down in steps of 8 rows or more, which leave the place in
  // the bank pattern as it is: one address and additions.
  constexpr int CHUNKS = DP / 8, FIT = THREADS / CHUNKS;
  constexpr int DOWN = FIT >= 64 ? 64 : FIT >= 32 ? 32 : FIT >= 16 ? 16 : 8;
  static_assert(FIT >= 8 && ROWS % DOWN == 0, "whole steps of rows");
  int r = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
  if (DOWN * CHUNKS != THREADS && r >= DOWN) return;
  u16 *to = tile + tile_at<DP>(slot + r, chunk);
  int n = begin + r, limit = chunk * 8 < head_dim ? count : 0;
  // The launcher sees to it that a head's rows span less than 2^31 numbers.
  int from = (first + step * n) * (int)row_stride + chunk * 8;
  int down = DOWN * step * (int)row_stride;
#pragma unroll
  for (int i = 0; i < ROWS / DOWN; i++) {
    bool is_there = (unsigned)(n + i * DOWN) < (unsigned)limit;
    cp_async16_zfill(to + i * DOWN * DP, x + (is_there ? from : 0), is_there ? 16 : 0);
    from += down;
  }
}

// Where a lane's row of a fragment lies in a tile, `k` fragments to the right. Rows are multiples
// of 16, so that the bank pattern depends on the lane alone: a few addresses serve all fragments.
template <int DP>
__device__ __forceinline__ int along(int lane_row, int lane_chunk, int k) {
  constexpr int GROUP = DP % 64 == 0 ? 4 : 2;
  return tile_at<DP>(lane_row, k % GROUP * 2 + lane_chunk) + k / GROUP * GROUP * 16;
}
// The fragment of A of 16 rows and 16 columns of a tile.
template <int DP>
__device__ __forceinline__ void load_a(u32 (&r)[4], const u16 *tile, int row, int k) {
  int l = threadIdx.x % 32;
  ldmatrix_x4(r, tile + row * DP + along<DP>(l % 16, l / 16, k));
}
// Two fragments of B = X^T, X 16 rows (columns of B) and 16 columns of a tile.
template <int DP>
__device__ __forceinline__ void load_b(u32 (&r)[4], const u16 *tile, int row, int k) {
  int l = threadIdx.x % 32;
  ldmatrix_x4(r, tile + row * DP + along<DP>(l % 8 + l / 16 * 8, l / 8 % 2, k));
}
// Two fragments of B = X, X 16 rows (the sum runs over them) and 16 columns of a tile.
template <int DP>
__device__ __forceinline__ void load_b_rows(u32 (&r)[4], const u16 *tile, int row, int n) {
  int l = threadIdx.x % 32;
  ldmatrix_x4_trans(r, tile + row * DP + along<DP>(l % 16, l / 16, n));
}
// Multiplies with both fragments that one load gave.
__device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4], const u32 (&a)[4],
                                         const u32 (&b)[4]) {
  const u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  mma_bf16_16816(c0, a, b0);
  mma_bf16_16816(c1, a, b1);
}
// Two neighbouring fragments of a result as the fragment of A whose 16 columns they are.
__device__ __forceinline__ void as_a(u32 (&r)[4], const float (&c0)[4],
                                     const float (&c1)[4]) {
  r[0] = pack_bf16(c0[0], c0[1]);
  r[1] = pack_bf16(c0[2], c0[3]);
  r[2] = pack_bf16(c1[0], c1[1]);
  r[3] = pack_bf16(c1[2], c1[3]);
}

// Adds A * X^T for A 16 rows of DP numbers (fragments), X ROWS rows of a tile.
template <int DP, int ROWS>
__device__ __forceinline__ void multiply_rows(float (&c)[ROWS / 8][4],
                                              const u32 (&a)[DP / 16][4],
                                              const u16 *tile, int row) {
#pragma unroll
  for (int k = 0; k < DP / 16; k++)
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++) {
      u32 b[4];
      load_b<DP>(b, tile, row + n * 16, k);
      mma_pair(c[2 * n], c[2 * n + 1], a[k], b);
    }
}

// The same with A in a tile as well, 16 rows from `a_row` on.
template <int DP, int ROWS>
__device__ __forceinline__ void multiply_tiles(float (&c)[ROWS / 8][4], const u16 *a_tile,
                                               int a_row, const u16 *tile) {
#pragma unroll
  for (int k = 0; k < DP / 16; k++) {
    u32 a[4];
    load_a<DP>(a, a_tile, a_row, k);
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++) {
      u32 b[4];
      load_b<DP>(b, tile, n * 16, k);
      mma_pair(c[2 * n], c[2 * n + 1], a, b);
    }
  }
}
// Adds A * X for A a result of 16 rows and ROWS columns, X ROWS rows of a tile.
template <int DP, int ROWS>
__device__ __forceinline__ void multiply_result(float (&c)[DP / 8][4],
                                                const float (&x)[ROWS / 8][4],
                                                const u16 *tile) {
#pragma unroll
  for (int k = 0; k < ROWS / 16; k++) {
    u32 a[4];
    as_a(a, x[2 * k], x[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < DP / 16; n++) {
      u32 b[4];
      load_b_rows<DP>(b, tile, k * 16, n);
      mma_pair(c[2 * n], c[2 * n + 1], a, b);
    }
  }
}
template <int N>
__device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int r = 0; r < 4; r++) c[n][r] = 0.f;
}

// Philox4x32-10, the words that the CPU draws.
__device__ __forceinline__ void attention_philox(u32 (&c)[4], u64 seed, u32 stream,
                                                 u64 position) {
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
  c[0] = (u32)position;
  c[1] = (u32)(position >> 32);
  c[2] = stream;
  c[3] = 0;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u64 a = (u64)c[0] * 0xD2511F53u, b = (u64)c[2] * 0xCD9E8D57u;
    u32 c0 = (u32)(b >> 32) ^ c[1] ^ k0, c2 = (u32)(a >> 32) ^ c[3] ^ k1;
    c[1] = (u32)b;
    c[3] = (u32)a;
    c[0] = c0;
    c[2] = c2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}
// The block of words of weight (plane, i, j); its word j % 4 decides.
__device__ __forceinline__ u64 weight_block(const Attention &a, int plane, int i, int j) {
  u64 row = (u64)plane * a.queries + i;
  return a.position + row * ((a.keys + 3) / 4) + j / 4;
}
__device__ __forceinline__ bool keeps(const Attention &a, int plane, int i, int j) {
  u32 words[4];
  attention_philox(words, a.seed, a.stream, weight_block(a, plane, i, j));
  u32 low = j & 1 ? words[1] : words[0], high = j & 1 ? words[3] : words[2];
  return (j & 2 ? high : low) >= a.threshold;
}
// Both of weights j and j + 1, j even.
__device__ __forceinline__ void keeps_pair(const Attention &a, int plane, int i, int j,
                                           bool (&kept)[2]) {
  u32 words[4];
  attention_philox(words, a.seed, a.stream, weight_block(a, plane, i, j));
  kept[0] = (j & 2 ? words[2] : words[0]) >= a.threshold;
  kept[1] = (j & 2 ? words[3] : words[1]) >= a.threshold;
}

struct __align__(8) Pair {
  float x0, x1;
};

// Stores two neighbouring numbers, as f32 or bf16.
__device__ __forceinline__ void store_pair(void *y, i64 at, bool wide, float x0, float x1) {
  if (wide) {
    *reinterpret_cast<Pair *>(reinterpret_cast<float *>(y) + at) = {x0, x1};
  } else {
    *reinterpret_cast<u32 *>(reinterpret_cast<u16 *>(y) + at) = pack_bf16(x0, x1);
  }
}
__device__ __forceinline__ void load_pair(const void *y, i64 at, bool wide, float &x0,
                                          float &x1) {
  if (wide) {
    x0 = reinterpret_cast<const float *>(y)[at];
    x1 = reinterpret_cast<const float *>(y)[at + 1];
  } else {
    u32 word =
        *reinterpret_cast<const u32 *>(reinterpret_cast<const u16 *>(y) + at);
    x0 = low_float(word);
    x1 = high_float(word);
  }
}
