// Attention forward on bf16: o = softmax(scale * (q k^T + r)) v, and the log of each row's sum.
//
// A block keeps BM queries and meets the keys BN at a time; a warp owns 16 or 32 queries whole,
// so that no row of scores leaves its four lanes. Steps up from `attention_forward_plain`: tensor
// cores (mma.sync m16n8k16) on tiles in shared memory; scores stay in registers, where the
// fragments of a result are already the fragments of the next product's A; copies of the next
// tile run while this one is computed; queries stay in registers where a warp owns 16 of them.
//
// Source: Dao 2023, FlashAttention-2; relative logits of Huang et al. 2018.
#include "attention_relative.cuh"

template <int DP, int BM, int BN, int WARPS, int STAGES>
struct ForwardTile {
  static constexpr int STAGE = 2 * BN * DP;
  // 16 queries of a warp fit in its registers; their tile is then free for the last stage.
  static constexpr bool KEEPS_Q = BM == 16 * WARPS;
  static constexpr int QUERIES = KEEPS_Q ? (STAGES - 1) * STAGE : STAGES * STAGE;
  static constexpr int RING = KEEPS_Q ? STAGES * STAGE : STAGES * STAGE + BM * DP;
};

template <int DP, int BM, int BN, int WARPS, int STAGES, int WITH>
__device__ __forceinline__ void attention_forward_tiles(const Attention &a) {
  using Tile = ForwardTile<DP, BM, BN, WARPS, STAGES>;
  constexpr bool REL = WITH & RELATIVE, DROP = WITH & DROPOUT, FAR = WITH & COLUMNS;
  constexpr int THREADS = WARPS * 32, MT = BM / (16 * WARPS), NT = BN / 8, DT = DP / 8;
  static_assert(!REL || (MT == 1 && STAGES == 2), "a warp skews 16 rows, the ring is one ahead");
  static_assert(BM * DP <= Tile::STAGE || !Tile::KEEPS_Q, "queries must fit in a stage");
  DYN_SMEM(u16, smem);
  u16 *q_tile = smem + Tile::QUERIES;
  int warp = threadIdx.x / 32, l = threadIdx.x % 32;
  // The last queries first: under a causal mask they have the most keys.
  int m0 = (gridDim.x - 1 - blockIdx.x) * BM, b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
  int shift = attention_shift(a), row0 = m0 + warp * 16 * MT;
  const u16 *q = (const u16 *)a.q + b * a.q_at.batch + h * a.q_at.head;
  const u16 *k = (const u16 *)a.k + b * a.k_at.batch + h * a.k_at.head;
  const u16 *v = (const u16 *)a.v + b * a.v_at.batch + h * a.v_at.head;

  // Tiles of the first run of keys, then of the second.
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
  float *skew = reinterpret_cast<float *>(smem + Tile::RING + ring.SIZE * DP) +
                warp * 16 * Band<BN>::ROW;
  auto load = [&](int t) {
    bool is_far = FAR && t >= near_tiles;
    int n = is_far ? (t - near_tiles) * BN : near_begin + t * BN;
    int first = is_far ? far.first : near.first, step = is_far ? far.step : 1;
    int count = is_far ? far.count : near.count;
    u16 *stage = smem + t % STAGES * Tile::STAGE;
    load_rows<DP, BN, THREADS>(stage, 0, k, a.k_at.row, first, step, n, count, a.head_dim);
    load_rows<DP, BN, THREADS>(stage + BN * DP, 0, v, a.v_at.row, first, step, n, count,
                               a.head_dim);
  };

  load_rows<DP, BM, THREADS>(q_tile, 0, q, a.q_at.row, 0, 1, m0, a.queries, a.head_dim);
  if (REL && tiles > 0) ring.load_window(near_begin, m0);
#pragma unroll
  for (int t = 0; t < STAGES - 1; t++) {
    if (t < tiles) load(t);
    cp_async_commit();
  }
  u32 q_frag[Tile::KEEPS_Q ? DP / 16 : 1][4];
  if (Tile::KEEPS_Q) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
#pragma unroll
    for (int s = 0; s < (Tile::KEEPS_Q ? DP / 16 : 1); s++)
      load_a<DP>(q_frag[s], q_tile, warp * 16, s);
  }

  float o[MT][DT][4] = {}, kept[2][4] = {};
  // Of the scores before they are scaled.
  float top[MT][2], sum[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      top[m][half] = ATTENTION_NONE;
      sum[m][half] = 0.f;
    }
  float scale = a.scale * LOG2_E;

  for (int t = 0; t < tiles; t++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (t + STAGES - 1 < tiles) {
      load(t + STAGES - 1);
      if (REL) ring.load_next(near_begin + (t + 1) * BN, m0);
    }
    cp_async_commit();
    const u16 *k_tile = smem + t % STAGES * Tile::STAGE, *v_tile = k_tile + BN * DP;

    float s[MT][NT][4];
    if constexpr (REL) {
      auto product = [&](float (&c)[2][4], const u16 *e) {
        multiply_rows<DP, 16>(c, q_frag, e, 0);
      };
      relative_logits(s[0], kept, ring, warp * 16, skew, t == 0, product);
      ring.move();
    } else {
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int r = 0; r < 4; r++) s[m][n][r] = 0.f;
    }
    if constexpr (Tile::KEEPS_Q) {
      multiply_rows<DP, BN>(s[0], q_frag, k_tile, 0);
    } else {
#pragma unroll
      for (int c = 0; c < DP / 16; c++) {
        u32 fa[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load_a<DP>(fa[m], q_tile, (warp * MT + m) * 16, c);
#pragma unroll
        for (int n = 0; n < NT / 2; n++) {
          u32 fb[4];
          load_b<DP>(fb, k_tile, n * 16, c);
#pragma unroll
          for (int m = 0; m < MT; m++) mma_pair(s[m][2 * n], s[m][2 * n + 1], fa[m], fb);
        }
      }
    }

    bool is_far = FAR && t >= near_tiles;
    const Run run = is_far ? far : near;
    int n0 = is_far ? (t - near_tiles) * BN : near_begin + t * BN;
    int p = row0 + shift;
    if (run_from(a, run, p + 16 * MT - 1) > n0 || run_to(a, run, p) < n0 + BN) {
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int at = p + m * 16 + half * 8 + l / 4, column = n0 + l % 4 * 2;
          int from = run_from(a, run, at) - column, to = run_to(a, run, at) - column;
#pragma unroll
          for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
              if (n * 8 + e < from || n * 8 + e >= to) s[m][n][half * 2 + e] = ATTENTION_NONE;
        }
    }

#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float most = top[m][half];
#pragma unroll
        for (int n = 0; n < NT; n++)
          most = fmaxf(most, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        // A row that has seen no key yet has no largest score to subtract.
        float base = most == ATTENTION_NONE ? 0.f : most * scale;
        float shrink = exp2_approx(fmaf(top[m][half], scale, -base));
        top[m][half] = most;
        float added = 0.f;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &x = s[m][n][half * 2 + e];
            x = exp2_approx(fmaf(x, scale, -base));
            added += x;
          }
        sum[m][half] = fmaf(sum[m][half], shrink, added);
#pragma unroll
        for (int d = 0; d < DT; d++) {
          o[m][d][half * 2] *= shrink;
          o[m][d][half * 2 + 1] *= shrink;
        }
        if constexpr (DROP) {
          int i = row0 + m * 16 + half * 8 + l / 4;
#pragma unroll
          for (int n = 0; n < NT; n++) {
            int j = n0 + n * 8 + l % 4 * 2;
            bool kept_pair[2];
            if (!FAR || run.step == 1) {
              keeps_pair(a, blockIdx.y, i, j, kept_pair);
            } else {
              kept_pair[0] = keeps(a, blockIdx.y, i, run.first + run.step * j);
              kept_pair[1] = keeps(a, blockIdx.y, i, run.first + run.step * (j + 1));
            }
            if (!kept_pair[0]) s[m][n][half * 2] = 0.f;
            if (!kept_pair[1]) s[m][n][half * 2 + 1] = 0.f;
          }
        }
      }

#pragma unroll
    for (int c = 0; c < BN / 16; c++) {
      u32 fa[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++) as_a(fa[m], s[m][2 * c], s[m][2 * c + 1]);
#pragma unroll
      for (int d = 0; d < DT / 2; d++) {
        u32 fb[4];
        load_b_rows<DP>(fb, v_tile, c * 16, d);
#pragma unroll
        for (int m = 0; m < MT; m++) mma_pair(o[m][2 * d], o[m][2 * d + 1], fa[m], fb);
      }
    }
  }

  i64 o_plane = b * a.o_at.batch + h * a.o_at.head;
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = sum[m][half];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      int i = row0 + m * 16 + half * 8 + l / 4;
      if (i >= a.queries) continue;
      float by = all > 0.f ? 1.f / all : 0.f;
      if (DROP) by *= a.keep_scale;
      if (l % 4 == 0)
        a.lse[(i64)blockIdx.y * a.queries + i] =
            all > 0.f ? fmaf(top[m][half], a.scale, logf(all)) : ATTENTION_NONE;
#pragma unroll
      for (int d = 0; d < DT; d++) {
        int column = d * 8 + l % 4 * 2;
        if (column < a.head_dim)
          store_pair(a.o, o_plane + i * a.o_at.row + column, a.wide & WIDE_O,
                     o[m][d][half * 2] * by, o[m][d][half * 2 + 1] * by);
      }
    }
}

#define ATTENTION_FORWARD(NAME, DP, BM, BN, WARPS, BLOCKS, STAGES, WITH)               \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) NAME(Attention a) { \
    attention_forward_tiles<DP, BM, BN, WARPS, STAGES, WITH>(a);                       \
  }

ATTENTION_FORWARD(attention_forward_d32, 32, 64, 64, 4, 4, 2, 0)
ATTENTION_FORWARD(attention_forward_d64, 64, 64, 64, 4, 3, 2, 0)
ATTENTION_FORWARD(attention_forward_d64_128x64, 64, 128, 64, 4, 2, 2, 0)
ATTENTION_FORWARD(attention_forward_d128, 128, 64, 64, 4, 3, 2, 0)
ATTENTION_FORWARD(attention_forward_d128_128x48, 128, 128, 48, 4, 2, 2, 0)
ATTENTION_FORWARD(attention_forward_strided_d32, 32, 64, 64, 4, 3, 2, COLUMNS)
ATTENTION_FORWARD(attention_forward_strided_d64, 64, 64, 64, 4, 3, 2, COLUMNS)
ATTENTION_FORWARD(attention_forward_strided_d128, 128, 64, 64, 4, 2, 2, COLUMNS)
ATTENTION_FORWARD(attention_forward_relative_d32, 32, 64, 64, 4, 3, 2, RELATIVE)
ATTENTION_FORWARD(attention_forward_relative_d64, 64, 64, 64, 4, 3, 2, RELATIVE)
ATTENTION_FORWARD(attention_forward_relative_d128_128x64x8, 128, 128, 64, 8, 1, 2, RELATIVE)
ATTENTION_FORWARD(attention_forward_dropout_d32, 32, 64, 64, 4, 2, 2, DROPOUT | COLUMNS)
ATTENTION_FORWARD(attention_forward_dropout_d64, 64, 64, 64, 4, 2, 2, DROPOUT | COLUMNS)
ATTENTION_FORWARD(attention_forward_dropout_d128, 128, 64, 64, 4, 2, 2, DROPOUT | COLUMNS)
ATTENTION_FORWARD(attention_forward_relative_dropout_d32, 32, 64, 64, 4, 2, 2, RELATIVE | DROPOUT)
ATTENTION_FORWARD(attention_forward_relative_dropout_d64, 64, 64, 64, 4, 2, 2, RELATIVE | DROPOUT)
ATTENTION_FORWARD(attention_forward_relative_dropout_d128, 128, 64, 64, 4, 1, 2, RELATIVE | DROPOUT)
