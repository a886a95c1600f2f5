// Gradients of attention on bf16: those of queries and of relative embeddings, and delta, without a
// float atomic: the same bits in every run.
//
//     p = exp(scale * (q k^T + r) - lse)
//     d_s = p * (d_o v^T - delta)           delta = row sum of d_o * o
//     d_q = scale * (d_s k + band e)        band = d_s, skewed back
//     d_e = scale * band^T q
//
// A block keeps its queries and meets the keys, as in the forward pass. Its part of the embeddings'
// gradient moves along with the band of embeddings; a second kernel adds up the parts.
//
// Source: Dao 2023, FlashAttention-2; relative logits of Huang et al. 2018.
#include "attention_relative.cuh"

// A band of d_s as bf16: 16 queries, with zeros where no key meets an embedding.
template <int N>
__device__ __forceinline__ void write_gradient_band(u16 *band, const float (&d_s)[N / 8][4]) {
  int l = threadIdx.x % 32;
  // Rows grow one number shorter, as in the skew.
  u16 *at = band + l / 4 * (Band<N>::ROW - 1) + 16 + l % 4 * 2;
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 word = pack_bf16(d_s[n][half * 2], d_s[n][half * 2 + 1]);
      at[n * 8 + half * 8 * (Band<N>::ROW - 1)] = (u16)word;
      at[n * 8 + half * 8 * (Band<N>::ROW - 1) + 1] = (u16)(word >> 16);
    }
}

template <int DP, int BM, int BN, int WARPS, bool HOLD, int WITH>
struct QueriesTile {
  static constexpr bool REL = WITH & RELATIVE;
  static constexpr int STAGE = 2 * BN * DP;
  // Queries in registers leave their tile to the second stage, if it fits and nothing else reads
  // it.
  static constexpr bool SHARES = HOLD && BM <= BN && !REL;
  static constexpr int QUERIES = SHARES ? STAGE : 2 * STAGE;
  static constexpr int RING = SHARES ? 2 * STAGE : 2 * STAGE + 2 * BM * DP;
};

// The gradient of the queries of a block and, with relative logits, what they add to that of the
// embeddings. A warp owns 16 queries; keys come BN at a time.
template <int DP, int BM, int BN, int WARPS, bool HOLD, int WITH>
struct QueriesPass {
  using Tile = QueriesTile<DP, BM, BN, WARPS, HOLD, WITH>;
  static constexpr bool REL = WITH & RELATIVE, DROP = WITH & DROPOUT, FAR = WITH & COLUMNS;
  static constexpr int THREADS = WARPS * 32, NT = BN / 8, DT = DP / 8;
  // Whether what registers have no room for waits in shared memory from tile to tile.
  static constexpr bool CARRIES = REL && DP > 64;
  static_assert(BM == 16 * WARPS, "a warp owns 16 queries");
  static_assert(!REL || (BM == BN && WARPS == 4), "four warps share the embeddings of two tiles");

  struct __align__(16) Quad {
    float x[4];
  };
  template <int N>
  static __device__ __forceinline__ void put(Quad *to, const float (&c)[N][4]) {
#pragma unroll
    for (int d = 0; d < N; d++) to[d * THREADS] = {c[d][0], c[d][1], c[d][2], c[d][3]};
  }
  template <int N>
  static __device__ __forceinline__ void take(const Quad *from, float (&c)[N][4]) {
#pragma unroll
    for (int d = 0; d < N; d++) {
      Quad q = from[d * THREADS];
#pragma unroll
      for (int r = 0; r < 4; r++) c[d][r] = q.x[r];
    }
  }

  // Adds `c` [16 embeddings from u on, head_dim] to the part of this block. The same thread
  // always adds to the same numbers, so that nothing has to be waited for.
  static __device__ __forceinline__ void add_embeddings(const Attention &a, int h, int e,
                                                        const float (&c)[DT][4]) {
    int l = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = e + half * 8 + l / 4;
      if ((unsigned)row >= (unsigned)a.max_len) continue;
      i64 part = (i64)blockIdx.x * a.heads + h;
      float *to = a.parts + (part * a.max_len + row) * a.head_dim + l % 4 * 2;
      // Loads go ahead of stores, as many as registers have room for.
      constexpr int AHEAD = CARRIES ? DT / 4 : DT;
#pragma unroll
      for (int from = 0; from < DT; from += AHEAD) {
        Pair old[AHEAD];
#pragma unroll
        for (int d = 0; d < AHEAD; d++)
          if ((from + d) * 8 < a.head_dim)
            old[d] = *reinterpret_cast<Pair *>(to + (from + d) * 8);
#pragma unroll
        for (int d = 0; d < AHEAD; d++)
          if ((from + d) * 8 < a.head_dim)
            *reinterpret_cast<Pair *>(to + (from + d) * 8) = {
                old[d].x0 + c[from + d][half * 2], old[d].x1 + c[from + d][half * 2 + 1]};
      }
    }
  }

  // Adds band^T q for 16 embeddings: `column` and on of the bands of queries `rows` and on.
  static __device__ __forceinline__ void multiply_band(float (&c)[DT][4], const u16 *bands,
                                                       int rows, int column,
                                                       const u16 *q_tile) {
    int l = threadIdx.x % 32;
    u32 fa[4];
    ldmatrix_x4_trans(fa, bands + (rows + l % 8 + l / 16 * 8) * Band<BN>::ROW + column +
                              l / 8 % 2 * 8);
#pragma unroll
    for (int d = 0; d < DT / 2; d++) {
      u32 fb[4];
      load_b_rows<DP>(fb, q_tile, rows, d);
      mma_pair(c[2 * d], c[2 * d + 1], fa, fb);
    }
  }

  static __device__ __forceinline__ void block(const Attention &a, int m0, int b, int h) {
    DYN_SMEM(u16, smem);
    u16 *q_tile = smem + Tile::QUERIES, *d_o_tile = q_tile + BM * DP;
    int warp = threadIdx.x / 32, l = threadIdx.x % 32, plane = b * a.heads + h;
    int shift = attention_shift(a), row0 = m0 + warp * 16;
    const u16 *q = (const u16 *)a.q + b * a.q_at.batch + h * a.q_at.head;
    const u16 *k = (const u16 *)a.k + b * a.k_at.batch + h * a.k_at.head;
    const u16 *v = (const u16 *)a.v + b * a.v_at.batch + h * a.v_at.head;
    const u16 *d_o = (const u16 *)a.d_o + b * a.d_o_at.batch + h * a.d_o_at.head;

    int p_first = m0 + shift, p_last = min(m0 + BM, a.queries) - 1 + shift;
    Run near = attention_run(a, 0), far = near;
    int near_begin = run_from(a, near, p_first) / BN * BN, far_tiles = 0;
    int near_tiles = (run_to(a, near, p_last) - near_begin + BN - 1) / BN;
    if (FAR && attention_runs(a) == 2) {
      far = attention_run(a, 1);
      far_tiles = (run_to(a, far, p_last) + BN - 1) / BN;
    }
    int tiles = near_tiles + far_tiles;

    Ring<DP, BM, BN, THREADS> ring(smem + Tile::RING, a, h);
    float *skew = reinterpret_cast<float *>(smem + Tile::RING + ring.SIZE * DP);
    u16 *bands = reinterpret_cast<u16 *>(skew + BM * Band<BN>::ROW);
    skew += warp * 16 * Band<BN>::ROW;
    auto load = [&](int t) {
      bool is_far = FAR && t >= near_tiles;
      int n = is_far ? (t - near_tiles) * BN : near_begin + t * BN;
      int first = is_far ? far.first : near.first, step = is_far ? far.step : 1;
      int count = is_far ? far.count : near.count;
      u16 *stage = smem + t % 2 * Tile::STAGE;
      load_rows<DP, BN, THREADS>(stage, 0, k, a.k_at.row, first, step, n, count, a.head_dim);
      load_rows<DP, BN, THREADS>(stage + BN * DP, 0, v, a.v_at.row, first, step, n, count,
                                 a.head_dim);
    };

    // The tiles of the block before are done with.
    if (REL) __syncthreads();
    load_rows<DP, BM, THREADS>(q_tile, 0, q, a.q_at.row, 0, 1, m0, a.queries, a.head_dim);
    load_rows<DP, BM, THREADS>(d_o_tile, 0, d_o, a.d_o_at.row, 0, 1, m0, a.queries, a.head_dim);
    if (REL && tiles > 0) ring.load_window(near_begin, m0);
    if (tiles > 0) load(0);
    cp_async_commit();

    constexpr int HELD = HOLD ? DP / 16 : 1;
    u32 q_frag[HELD][4], d_o_frag[HELD][4];
    if (HOLD) {
      cp_async_wait<0>();
      __syncthreads();
#pragma unroll
      for (int s = 0; s < HELD; s++) {
        load_a<DP>(q_frag[s], q_tile, warp * 16, s);
        load_a<DP>(d_o_frag[s], d_o_tile, warp * 16, s);
      }
    }
    float scale = a.scale * LOG2_E, top[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = row0 + half * 8 + l / 4;
      i64 at = (i64)plane * a.queries + i;
      // Past the end: every weight becomes exp2(-inf) = 0.
      top[half] = i < a.queries ? a.lse[at] * LOG2_E : -ATTENTION_NONE;
      delta[half] = i < a.queries ? a.delta[at] : 0.f;
    }

    float d_q[DT][4], d_e[REL ? DT : 1][4], kept[2][4];
    clear(d_q);
    clear(d_e);
    // From tile to tile the half that is not complete waits here: registers have no room for it.
    Quad *carry = reinterpret_cast<Quad *>(bands + BM * Band<BN>::ROW) + threadIdx.x;
    float of_row[1][4] = {{top[0], top[1], delta[0], delta[1]}};
    if constexpr (CARRIES) {
      put(carry, d_e);
      put(carry + (DT + 2) * THREADS, of_row);
    }
    for (int t = 0; t < tiles; t++) {
      cp_async_wait<0>();
      __syncthreads();
      if (t + 1 < tiles) {
        load(t + 1);
        if (REL) ring.load_next(near_begin + (t + 1) * BN, m0);
      }
      cp_async_commit();
      const u16 *k_tile = smem + t % 2 * Tile::STAGE, *v_tile = k_tile + BN * DP;

      bool is_far = FAR && t >= near_tiles;
      const Run run = is_far ? far : near;
      int n0 = is_far ? (t - near_tiles) * BN : near_begin + t * BN, p = row0 + shift;
      // Drawn first, while registers are free: a bit for each weight.
      u32 stays = 0;
      if constexpr (DROP) {
        static_assert(NT * 4 <= 32, "a bit for each weight of a thread");
#pragma unroll 1
        for (int bit = 0; bit < NT * 4; bit += 2) {
          int i = row0 + bit / 2 % 2 * 8 + l / 4, j = n0 + bit / 4 * 8 + l % 4 * 2;
          bool pair[2];
          if (!FAR || run.step == 1) {
            keeps_pair(a, plane, i, j, pair);
          } else {
            pair[0] = keeps(a, plane, i, run.first + run.step * j);
            pair[1] = keeps(a, plane, i, run.first + run.step * (j + 1));
          }
          stays |= ((u32)pair[0] | (u32)pair[1] << 1) << bit;
        }
      }
      float s[NT][4], d_s[NT][4];
      if constexpr (REL) {
        if (CARRIES && t > 0) take(carry + DT * THREADS, kept);
        auto product = [&](float (&c)[2][4], const u16 *e) {
          multiply_tiles<DP, 16>(c, q_tile, warp * 16, e);
        };
        relative_logits(s, kept, ring, warp * 16, skew, t == 0, product);
        if (CARRIES) put(carry + DT * THREADS, kept);
      } else {
        clear(s);
      }
      if constexpr (HOLD)
        multiply_rows<DP, BN>(s, q_frag, k_tile, 0);
      else
        multiply_tiles<DP, BN>(s, q_tile, warp * 16, k_tile);
      clear(d_s);
      if constexpr (HOLD)
        multiply_rows<DP, BN>(d_s, d_o_frag, v_tile, 0);
      else
        multiply_tiles<DP, BN>(d_s, d_o_tile, warp * 16, v_tile);

      bool is_whole = run_from(a, run, p + 15) <= n0 && run_to(a, run, p) >= n0 + BN;
      if constexpr (CARRIES) take(carry + (DT + 2) * THREADS, of_row);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int i = row0 + half * 8 + l / 4, column = n0 + l % 4 * 2;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &x = s[n][half * 2 + e];
            x = exp2_approx(fmaf(x, scale, -of_row[0][half]));
          }
        if (!is_whole) {
          int from = run_from(a, run, i + shift) - column, to = run_to(a, run, i + shift) - column;
#pragma unroll
          for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
              if (n * 8 + e < from || n * 8 + e >= to) s[n][half * 2 + e] = 0.f;
        }
        if constexpr (DROP) {
#pragma unroll
          for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float &x = d_s[n][half * 2 + e];
              x = stays >> (n * 4 + half * 2 + e) & 1 ? x * a.keep_scale : 0.f;
            }
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &x = d_s[n][half * 2 + e];
            x = s[n][half * 2 + e] * (x - of_row[0][2 + half]);
          }
      }
      multiply_result<DP, BN>(d_q, d_s, k_tile);

      if constexpr (REL) {
        u16 *mine = bands + warp * 16 * Band<BN>::ROW;
        write_gradient_band<BN>(mine, d_s);
        __syncthreads();
        int band = ring.band(warp * 16);
#pragma unroll
        for (int c = 0; c < BN / 16 + 1; c++) {
          u32 fa[4];
          ldmatrix_x4(fa, mine + l % 16 * Band<BN>::ROW + c * 16 + l / 16 * 8);
          const u16 *e_tile = ring.rows + ring.after(band, c * 16) * DP;
#pragma unroll
          for (int d = 0; d < DT / 2; d++) {
            u32 fb[4];
            load_b_rows<DP>(fb, e_tile, 0, d);
            mma_pair(d_q[2 * d], d_q[2 * d + 1], fa, fb);
          }
        }
        ring.move();
        // The window is two tiles of embeddings, of which a warp owns 16 each. The older ones
        // meet no later key of this block.
        if constexpr (CARRIES) take(carry, d_e);
        for (int rows = BM / 16 - 1 - warp; rows < BM / 16; rows++)
          multiply_band(d_e, bands, rows * 16, (warp + rows + 1) * 16 - BM, q_tile);
        add_embeddings(a, h, n0 - m0 - BM + warp * 16 + ring.zero, d_e);
        clear(d_e);
        for (int rows = 0; rows < BM / 16 - warp; rows++)
          multiply_band(d_e, bands, rows * 16, (warp + rows + 1) * 16, q_tile);
        if constexpr (CARRIES) put(carry, d_e);
      }
    }
    if constexpr (CARRIES) take(carry, d_e);
    if constexpr (REL)
      add_embeddings(a, h, near_begin + tiles * BN - m0 - BM + warp * 16 + ring.zero, d_e);

    i64 d_q_plane = b * a.d_q_at.batch + h * a.d_q_at.head;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = row0 + half * 8 + l / 4;
      if (i >= a.queries) continue;
#pragma unroll
      for (int d = 0; d < DT; d++) {
        int column = d * 8 + l % 4 * 2;
        if (column < a.head_dim)
          store_pair(a.d_q, d_q_plane + i * a.d_q_at.row + column, a.wide & WIDE_D_Q,
                     d_q[d][half * 2] * a.scale, d_q[d][half * 2 + 1] * a.scale);
      }
    }
  }

  static __device__ __forceinline__ void run(const Attention &a) {
    int blocks = (a.queries + BM - 1) / BM;
    if constexpr (!REL) {
      int m0 = (blocks - 1 - (int)blockIdx.x) * BM;
      return block(a, m0, blockIdx.y / a.heads, blockIdx.y % a.heads);
    }
    // Block (slot, head) takes every slots-th block of queries of its head, and has a part of the
    // embeddings' gradient for itself.
    DYN_SMEM(u16, smem);
    u16 *bands = smem + Tile::RING + Ring<DP, BM, BN, THREADS>::SIZE * DP +
                      2 * BM * Band<BN>::ROW;
    for (int i = threadIdx.x; i < BM * Band<BN>::ROW; i += THREADS) bands[i] = 0;
    i64 size = (i64)a.max_len * a.head_dim;
    float *part = a.parts + ((i64)blockIdx.x * a.heads + blockIdx.y) * size;
    for (i64 i = threadIdx.x; i < size; i += THREADS) part[i] = 0.f;
    for (int item = blockIdx.x; item < blocks * a.batch; item += a.slots)
      block(a, (blocks - 1 - item / a.batch) * BM, item % a.batch, blockIdx.y);
  }
};

// delta = the sum of d_o * o of each row: a warp for a row.
extern "C" __global__ void __launch_bounds__(256) attention_delta(Attention a) {
  i64 row = (i64)blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= (i64)a.batch * a.heads * a.queries) return;
  int plane = (int)(row / a.queries), i = (int)(row % a.queries);
  int b = plane / a.heads, h = plane % a.heads, l = threadIdx.x % 32;
  i64 o = b * a.o_at.batch + h * a.o_at.head + i * a.o_at.row;
  i64 d_o = b * a.d_o_at.batch + h * a.d_o_at.head + i * a.d_o_at.row;
  float sum = 0.f;
  for (int d = l * 2; d < a.head_dim; d += 64) {
    float x0, x1, y0, y1;
    load_pair(a.o, o + d, a.wide & WIDE_O, x0, x1);
    load_pair(a.d_o, d_o + d, false, y0, y1);
    sum += x0 * y0 + x1 * y1;
  }
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
  if (l == 0) a.delta[row] = sum;
}

// The gradient of the embeddings from its parts, in the order of the parts.
extern "C" __global__ void __launch_bounds__(256) attention_add_parts(Attention a) {
  i64 size = (i64)a.heads * a.max_len * a.head_dim;
  i64 at = ((i64)blockIdx.x * 256 + threadIdx.x) * 2;
  if (at >= size) return;
  float x0 = 0.f, x1 = 0.f;
  for (int slot = 0; slot < a.slots; slot++) {
    Pair x = *reinterpret_cast<const Pair *>(a.parts + slot * size + at);
    x0 += x.x0;
    x1 += x.x1;
  }
  store_pair(a.d_er, at, a.wide & WIDE_D_ER, x0 * a.scale, x1 * a.scale);
}

#define ATTENTION_QUERIES(NAME, DP, BM, BN, WARPS, BLOCKS, HOLD, WITH)                 \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) NAME(Attention a) { \
    QueriesPass<DP, BM, BN, WARPS, HOLD, WITH>::run(a);                                \
  }

ATTENTION_QUERIES(attention_backward_queries_d32, 32, 64, 64, 4, 3, true, COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_d64, 64, 64, 64, 4, 2, true, COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_d64_64x64x4, 64, 64, 64, 4, 3, false, 0)
ATTENTION_QUERIES(attention_backward_queries_d128, 128, 64, 64, 4, 2, false, COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_relative_d32, 32, 64, 64, 4, 2, false, RELATIVE)
ATTENTION_QUERIES(attention_backward_queries_relative_d64, 64, 64, 64, 4, 2, false, RELATIVE)
ATTENTION_QUERIES(attention_backward_queries_relative_d128, 128, 64, 64, 4, 1, false, RELATIVE)
ATTENTION_QUERIES(attention_backward_queries_dropout_d32, 32, 64, 64, 4, 2, false,
                  DROPOUT | COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_dropout_d64, 64, 64, 64, 4, 2, false,
                  DROPOUT | COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_dropout_d128, 128, 64, 64, 4, 1, false,
                  DROPOUT | COLUMNS)
ATTENTION_QUERIES(attention_backward_queries_relative_dropout_d32, 32, 64, 64, 4, 2, false,
                  RELATIVE | DROPOUT)
ATTENTION_QUERIES(attention_backward_queries_relative_dropout_d64, 64, 64, 64, 4, 2, false,
                  RELATIVE | DROPOUT)
ATTENTION_QUERIES(attention_backward_queries_relative_dropout_d128, 128, 64, 64, 4, 1, false,
                  RELATIVE | DROPOUT)
