// Relative logits inside of a tile.
//
// Query i and key j meet in embedding j - i + max_len - 1 - shift. 16 queries and N keys need a
// band of N + 16 neighbouring embeddings: column c of the band belongs to u = j - i = c - 16
// counted from the first key and the first query. The product of queries and band goes through
// shared memory, where it is read with rows one number shorter than they were written with: the
// skew.
//
// From one tile of keys to the next the band moves by N: its last 16 columns are the first 16 of
// the next one and are kept, and N new embeddings are loaded into a ring of rows.
#pragma once
#include "attention_tile.cuh"

// Numbers of a row of a skewed band: 8 modulo 16 keeps both the writes and the reads of the skew
// to at most two numbers of a bank, and rows of bf16 in different banks.
template <int N>
struct Band {
  static constexpr int COLUMNS = N + 16, ROW = (N + 16 + 15) / 16 * 16 + 8;
};

// A ring of embeddings for ROWS queries and tiles of N keys; its window has ROWS + N rows.
template <int DP, int ROWS, int N, int THREADS>
struct Ring {
  static constexpr int WINDOW = ROWS + N, SIZE = ROWS + 2 * N;
  u16 *rows;
  const u16 *er;
  int max_len, head_dim;
  // Embedding of u = 0, and where the window begins in the ring.
  int zero, begin;

  __device__ __forceinline__ Ring(u16 *tile, const Attention &a, int h)
      : rows(tile),
        er(reinterpret_cast<const u16 *>(a.er) + (i64)h * a.max_len * a.head_dim),
        max_len(a.max_len),
        head_dim(a.head_dim),
        zero(a.max_len - 1 - attention_shift(a)),
        begin(0) {}

  // Row y of the window.
  __device__ __forceinline__ int slot(int y) const {
    int at = begin + y;
    return at < SIZE ? at : at - SIZE;
  }
  // Begins to load the whole window for keys from n and queries from m.
  __device__ __forceinline__ void load_window(int n, int m) {
    begin = 0;
    load_rows<DP, WINDOW, THREADS>(rows, 0, er, head_dim, 0, 1, n - m - ROWS + zero, max_len,
                                   head_dim);
  }
  // Begins to load what the window holds after its next move, where that will be for n and m.
  __device__ __forceinline__ void load_next(int n, int m) {
    // N divides the ring, so that no tile crosses its end.
    load_rows<DP, N, THREADS>(rows, slot(WINDOW), er, head_dim, 0, 1, n - m + zero, max_len,
                              head_dim);
  }
  __device__ __forceinline__ void move() { begin = slot(N); }
  // Where the band of 16 queries begins that are `row` rows below the first of the block.
  __device__ __forceinline__ int band(int row) const { return slot(ROWS - 16 - row); }
  __device__ __forceinline__ int after(int at, int rows_on) const {
    int next = at + rows_on;
    return next < SIZE ? next : next - SIZE;
  }
};

// Writes two fragments of a band's product, columns 16 n.. of it.
template <int N>
__device__ __forceinline__ void write_band(float *skew, int n, const float (&c0)[4],
                                           const float (&c1)[4]) {
  int l = threadIdx.x % 32;
  float *at = skew + l / 4 * Band<N>::ROW + n * 16 + l % 4 * 2;
  *reinterpret_cast<Pair *>(at) = {c0[0], c0[1]};
  *reinterpret_cast<Pair *>(at + 8 * Band<N>::ROW) = {c0[2], c0[3]};
  *reinterpret_cast<Pair *>(at + 8) = {c1[0], c1[1]};
  *reinterpret_cast<Pair *>(at + 8 * Band<N>::ROW + 8) = {c1[2], c1[3]};
}

// Fills `s` [16 queries, N keys] with the relative logits of a warp's 16 queries, which are `row`
// rows below the first of the block. `kept` holds the last 16 columns of the tile before, unless
// this is the first.
//
// `product(c, rows)` adds the product of the queries and 16 rows of a tile.
template <int DP, int ROWS, int N, int THREADS, class Product>
__device__ __forceinline__ void relative_logits(float (&s)[N / 8][4], float (&kept)[2][4],
                                                const Ring<DP, ROWS, N, THREADS> &ring, int row,
                                                float *skew, bool is_first, Product product) {
  int band = ring.band(row), l = threadIdx.x % 32;
  if (is_first) {
    clear(kept);
    product(kept, ring.rows + band * DP);
  }
  write_band<N>(skew, 0, kept[0], kept[1]);
#pragma unroll
  for (int n = 0; n < N / 16; n++) {
    clear(kept);
    product(kept, ring.rows + ring.after(band, 16 + n * 16) * DP);
    write_band<N>(skew, n + 1, kept[0], kept[1]);
  }
  __syncwarp();
  // Row i is read from column 16 - i on.
  const float *at = skew + l / 4 * (Band<N>::ROW - 1) + 16 + l % 4 * 2;
#pragma unroll
  for (int n = 0; n < N / 8; n++) {
    s[n][0] = at[n * 8];
    s[n][1] = at[n * 8 + 1];
    s[n][2] = at[n * 8 + 8 * (Band<N>::ROW - 1)];
    s[n][3] = at[n * 8 + 8 * (Band<N>::ROW - 1) + 1];
  }
}
