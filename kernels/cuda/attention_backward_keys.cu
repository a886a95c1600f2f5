// Gradients of attention on bf16: those of keys and values, without a float atomic.
//
//     p = exp(scale * (q k^T + r) - lse)
//     d_s = p * (d_o v^T - delta)           delta = row sum of d_o * o
//     d_v = p^T d_o      d_k = scale * d_s^T q
//
// A block keeps its keys and meets the queries. Scores are made transposed, keys as rows, so that
// p^T and d_s^T leave the tensor cores as the fragments that the next products want. The queries'
// side is `attention_backward_queries.cu`: together they make the scores twice, 7 products instead
// of the 5 of one pass that adds up d_q in memory, but need neither atomics nor a buffer of parts.
//
// Source: Dao 2023, FlashAttention-2; relative logits of Huang et al. 2018.
#include "attention_relative.cuh"

// The keys of a block and their gradients. A warp owns 16 keys; queries come BQ at a time, the
// last ones first, so that the band of embeddings moves forward.
template <int DP, int BQ, int WARPS, int WITH>
struct KeysTile {
  static constexpr int BK = 16 * WARPS, STAGE = 2 * BQ * DP;
  static constexpr int STAGES = 2 * BK * DP;  // behind the keys and the values
  static constexpr int STATISTICS = STAGES + 2 * STAGE;
  // {lse, delta} and {from, to} of each query, of two stages.
  static constexpr int RING = STATISTICS + 2 * BQ * 8;
};

template <int DP, int BQ, int SUB, int WARPS, int WITH>
__device__ __forceinline__ void attention_backward_keys_tiles(const Attention &a) {
  using Tile = KeysTile<DP, BQ, WARPS, WITH>;
  constexpr bool REL = WITH & RELATIVE, DROP = WITH & DROPOUT;
  constexpr int THREADS = WARPS * 32, BK = Tile::BK, NT = SUB / 8, DT = DP / 8;
  static_assert(!REL || BQ == BK, "the ring moves by as much as there are keys");
  static_assert(BQ <= THREADS, "a thread for the statistics of each query");
  DYN_SMEM(u16, smem);
  u16 *k_tile = smem, *v_tile = smem + BK * DP;
  int warp = threadIdx.x / 32, l = threadIdx.x % 32;
  int n0 = blockIdx.x * BK, plane = blockIdx.y, b = plane / a.heads, h = plane % a.heads;
  int shift = attention_shift(a);
  Run run = attention_run(a, a.run);
  const u16 *q = (const u16 *)a.q + b * a.q_at.batch + h * a.q_at.head;
  const u16 *k = (const u16 *)a.k + b * a.k_at.batch + h * a.k_at.head;
  const u16 *v = (const u16 *)a.v + b * a.v_at.batch + h * a.v_at.head;
  const u16 *d_o = (const u16 *)a.d_o + b * a.d_o_at.batch + h * a.d_o_at.head;
  const float *lse = a.lse + (i64)plane * a.queries;
  const float *delta = a.delta + (i64)plane * a.queries;

  int first, end;
  run_queries(a, run, n0, BK, first, end);
  int first_tile = first / BQ, tiles = (end + BQ - 1) / BQ - first_tile;
  if (end <= first) tiles = 0;

  Ring<DP, BQ, BK, THREADS> ring(smem + Tile::RING, a, h);
  float *skew = reinterpret_cast<float *>(smem + Tile::RING + ring.SIZE * DP);
  auto tile_of = [&](int t) { return (first_tile + tiles - 1 - t) * BQ; };
  auto load = [&](int t) {
    u16 *stage = smem + Tile::STAGES + t % 2 * Tile::STAGE;
    load_rows<DP, BQ, THREADS>(stage, 0, q, a.q_at.row, 0, 1, tile_of(t), a.queries, a.head_dim);
    load_rows<DP, BQ, THREADS>(stage + BQ * DP, 0, d_o, a.d_o_at.row, 0, 1, tile_of(t), a.queries,
                               a.head_dim);
  };
  // What a query brings beside its rows: fetched early, stored when the tile before it is done.
  Pair brought = {0.f, 0.f};
  auto fetch = [&](int t) {
    int i = tile_of(t) + threadIdx.x;
    // Past the end: every weight becomes exp2(-inf) = 0.
    brought = {-ATTENTION_NONE, 0.f};
    if (threadIdx.x < BQ && i < a.queries) brought = {lse[i] * LOG2_E, delta[i]};
  };
  auto store = [&](int t) {
    if (threadIdx.x >= BQ) return;
    int p = tile_of(t) + threadIdx.x + shift;
    float *statistics = reinterpret_cast<float *>(smem + Tile::STATISTICS) + t % 2 * BQ * 4;
    reinterpret_cast<Pair *>(statistics)[threadIdx.x] = brought;
    int *range = reinterpret_cast<int *>(statistics + BQ * 2) + threadIdx.x * 2;
    range[0] = run_from(a, run, p);
    range[1] = run_to(a, run, p);
  };

  if (tiles > 0) {
    load_rows<DP, BK, THREADS>(k_tile, 0, k, a.k_at.row, run.first, run.step, n0, run.count,
                               a.head_dim);
    load_rows<DP, BK, THREADS>(v_tile, 0, v, a.v_at.row, run.first, run.step, n0, run.count,
                               a.head_dim);
    if (REL) ring.load_window(n0, tile_of(0));
    load(0);
    fetch(0);
    store(0);
  }
  cp_async_commit();

  float d_k[DT][4], d_v[DT][4], scale = a.scale * LOG2_E;
  clear(d_k);
  clear(d_v);
  for (int t = 0; t < tiles; t++) {
    cp_async_wait<0>();
    __syncthreads();
    bool is_last = t + 1 == tiles;
    if (!is_last) {
      load(t + 1);
      if (REL) ring.load_next(n0, tile_of(t + 1));
      fetch(t + 1);
    }
    cp_async_commit();
    const u16 *q_tile = smem + Tile::STAGES + t % 2 * Tile::STAGE;
    const u16 *d_o_tile = q_tile + BQ * DP;
    const float *statistics =
        reinterpret_cast<const float *>(smem + Tile::STATISTICS) + t % 2 * BQ * 4;

    if constexpr (REL) {
      // A warp makes the logits of 16 queries, and reads those of 16 keys.
      float *mine = skew + warp * 16 * Band<BK>::ROW;
      int band = ring.band(warp * 16);
#pragma unroll
      for (int n = 0; n < BK / 16 + 1; n++) {
        float c[2][4];
        clear(c);
        int at = ring.after(band, n * 16);
        multiply_tiles<DP, 16>(c, q_tile, warp * 16, ring.rows + at * DP);
        write_band<BK>(mine, n, c[0], c[1]);
      }
      __syncthreads();
      ring.move();
    }
    // SUB queries at a time, as many as registers have room for.
#pragma unroll 1
    for (int part = 0; part < BQ; part += SUB) {
      const u16 *q_part = q_tile + part * DP, *d_o_part = d_o_tile + part * DP;
      const float *of = statistics + part * 2;
      int i0 = tile_of(t) + part;
      // Drawn first, while registers are free: a bit for each weight.
      u32 stays = 0;
      if constexpr (DROP) {
        static_assert(NT * 4 <= 32, "a bit for each weight of a thread");
#pragma unroll 1
        for (int bit = 0; bit < NT * 4; bit++) {
          int i = i0 + bit / 4 * 8 + l % 4 * 2 + bit % 2;
          int key = n0 + warp * 16 + l / 4 + bit / 2 % 2 * 8;
          stays |= (u32)keeps(a, plane, i, run.first + run.step * key) << bit;
        }
      }
      float s[NT][4];
      if constexpr (REL) {
        const float *from = skew + part * Band<BK>::ROW + 16 + warp * 16 + l / 4;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int r = 0; r < 4; r++) {
            int i = n * 8 + l % 4 * 2 + r % 2;
            s[n][r] = from[i * Band<BK>::ROW - i % 16 + r / 2 * 8];
          }
      } else {
        clear(s);
      }
      multiply_tiles<DP, SUB>(s, k_tile, warp * 16, q_part);

      bool is_whole = run_from(a, run, i0 + SUB - 1 + shift) <= n0 &&
                      run_to(a, run, i0 + shift) >= n0 + BK;
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float top = of[(n * 8 + l % 4 * 2 + e) * 2];
          s[n][e] = exp2_approx(fmaf(s[n][e], scale, -top));
          s[n][2 + e] = exp2_approx(fmaf(s[n][2 + e], scale, -top));
        }
      if (!is_whole) {
        const int *range = reinterpret_cast<const int *>(of + BQ * 2);
        int key = n0 + warp * 16 + l / 4;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            int i = n * 8 + l % 4 * 2 + e, from = range[i * 2], to = range[i * 2 + 1];
            if (key < from || key >= to) s[n][e] = 0.f;
            if (key + 8 < from || key + 8 >= to) s[n][2 + e] = 0.f;
          }
      }

      float d_s[NT][4];
      clear(d_s);
      multiply_tiles<DP, SUB>(d_s, v_tile, warp * 16, d_o_part);
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
          int i = n * 8 + l % 4 * 2 + r % 2;
          float delta_i = of[i * 2 + 1];
          if constexpr (DROP) {
            bool is_kept = stays >> (n * 4 + r) & 1;
            d_s[n][r] = s[n][r] * ((is_kept ? d_s[n][r] * a.keep_scale : 0.f) - delta_i);
            if (!is_kept) s[n][r] = 0.f;
          } else {
            d_s[n][r] = s[n][r] * (d_s[n][r] - delta_i);
          }
        }
      multiply_result<DP, SUB>(d_v, s, d_o_part);
      multiply_result<DP, SUB>(d_k, d_s, q_part);
    }
    if (!is_last) store(t + 1);
  }

  float by = DROP ? a.keep_scale : 1.f;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int n = n0 + warp * 16 + half * 8 + l / 4;
    if (n >= run.count) continue;
    i64 key = run.first + (i64)run.step * n;
    i64 to_k = b * a.d_k_at.batch + h * a.d_k_at.head + key * a.d_k_at.row;
    i64 to_v = b * a.d_v_at.batch + h * a.d_v_at.head + key * a.d_v_at.row;
#pragma unroll
    for (int d = 0; d < DT; d++) {
      int column = d * 8 + l % 4 * 2;
      if (column >= a.head_dim) continue;
      float k0 = d_k[d][half * 2] * a.scale, k1 = d_k[d][half * 2 + 1] * a.scale;
      float v0 = d_v[d][half * 2] * by, v1 = d_v[d][half * 2 + 1] * by;
      if ((WITH & COLUMNS) && a.accumulate) {
        float x0, x1;
        load_pair(a.d_k, to_k + column, a.wide & WIDE_D_KV, x0, x1);
        k0 += x0;
        k1 += x1;
        load_pair(a.d_v, to_v + column, a.wide & WIDE_D_KV, x0, x1);
        v0 += x0;
        v1 += x1;
      }
      store_pair(a.d_k, to_k + column, a.wide & WIDE_D_KV, k0, k1);
      store_pair(a.d_v, to_v + column, a.wide & WIDE_D_KV, v0, v1);
    }
  }
}

#define ATTENTION_KEYS(NAME, DP, BQ, SUB, WARPS, BLOCKS, WITH)                         \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) NAME(Attention a) { \
    attention_backward_keys_tiles<DP, BQ, SUB, WARPS, WITH>(a);                        \
  }

ATTENTION_KEYS(attention_backward_keys_d32, 32, 64, 64, 4, 2, COLUMNS)
ATTENTION_KEYS(attention_backward_keys_d64, 64, 64, 64, 4, 2, COLUMNS)
ATTENTION_KEYS(attention_backward_keys_d128, 128, 64, 32, 4, 2, COLUMNS)
ATTENTION_KEYS(attention_backward_keys_relative_d32, 32, 64, 64, 4, 2, RELATIVE)
ATTENTION_KEYS(attention_backward_keys_relative_d64, 64, 64, 64, 4, 2, RELATIVE)
ATTENTION_KEYS(attention_backward_keys_relative_d128, 128, 64, 32, 4, 1, RELATIVE)
ATTENTION_KEYS(attention_backward_keys_dropout_d32, 32, 64, 32, 4, 2, DROPOUT | COLUMNS)
ATTENTION_KEYS(attention_backward_keys_dropout_d64, 64, 64, 32, 4, 2, DROPOUT | COLUMNS)
ATTENTION_KEYS(attention_backward_keys_dropout_d128, 128, 64, 16, 4, 1, DROPOUT | COLUMNS)
ATTENTION_KEYS(attention_backward_keys_relative_dropout_d32, 32, 64, 32, 4, 2, RELATIVE | DROPOUT)
ATTENTION_KEYS(attention_backward_keys_relative_dropout_d64, 64, 64, 32, 4, 2, RELATIVE | DROPOUT)
ATTENTION_KEYS(attention_backward_keys_relative_dropout_d128, 128, 64, 16, 4, 1,
               RELATIVE | DROPOUT)
