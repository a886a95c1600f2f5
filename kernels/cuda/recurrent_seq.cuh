// What the persistent kernels of recurrent sequences share.
//
// One launch runs a whole sequence. The grid is [slices, groups]: a block owns `UNITS` hidden units
// (all their gates) of one group's rows of the batch, and keeps their weights on the chip: as
// mma.sync A fragments in registers (bf16), or as f32 in shared memory. Eight rows, the n of an mma
// tile, are a pass; a group runs through its passes at every step, so one pass's exchange hides
// behind the others.
//
// Blocks hand each other what a step needs (h forwards, d_gates backwards) through a buffer with a
// place for every step that is filled with 0xff before: a word that is still 0xffffffff has not
// arrived, for no conversion ever makes that NaN. So the data is its own flag: a step costs one
// store and one load through L2, no barrier over the grid, no counter, and no place is used twice.
// A counter for every block (`BY_COUNTER`), the step below it, is kept to be timed against it. On
// an H200 it took 1.4 to 1.9 times as long in bf16 and 1.1 to 1.8 times as long in f32.
#pragma once
#include "common/ptx_recurrent.cuh"

constexpr int SEQ_WARPS = 8;
constexpr int SEQ_THREADS = 32 * SEQ_WARPS;
constexpr int SEQ_ROWS = 8;

// Bits of `flags`.
constexpr int BACKWARDS_IN_TIME = 1;  // the sequence is read from its end
constexpr int BY_COUNTER = 2;         // wait for counters, not for the data itself
constexpr int WITHOUT_GATES = 4;      // activated gates are not stored (nobody will go back)
constexpr int RECTIFIER = 8;          // of an RNN; else tanh

// Steps ahead at which a block asks for what it will read and write to come into L2. Without that,
// a look at a place of the exchange that is not written yet waits for device memory, and so does
// everything that the same warp loads after it.
constexpr int AHEAD = 8;

enum class Cell { LSTM, GRU, RNN };
__host__ __device__ constexpr int gates_of(Cell cell) {
  return cell == Cell::LSTM ? 4 : cell == Cell::GRU ? 3 : 1;
}

// Both are off by about 1e-7: exp2 and the reciprocal by 2 units in the last place each.
__device__ __forceinline__ float sigmoid(float x) {
  return rcp_approx(1.f + exp2_approx(-1.4426950409f * x));
}
__device__ __forceinline__ float tanh_by_exp(float x) {
  return 1.f - 2.f * rcp_approx(1.f + exp2_approx(2.8853900818f * x));
}

// `status` is a word for the host: 1 if a wait took so long that something must have gone wrong.
// All blocks then run to their end without waiting, so that the launch ends, with numbers of no
// use. A try takes a round trip to L2, 0.3 to 0.7 us: two seconds or so.
#ifdef __CUDACC__
constexpr u32 MOST_TRIES = 1u << 22;
#else
constexpr u32 MOST_TRIES = 1u << 23;  // of 6 us or more: many blocks share a core
#endif
struct Patience {
  u32 *status;
  bool lost = false;
  u32 tries = 0;

  __device__ __forceinline__ void begin() { tries = 0; }

  // Between two tries of one wait, for all lanes of a warp together.
  __device__ __forceinline__ void again() {
    between_polls();
    if ((++tries & 1023) != 0) return;
    if (tries >= MOST_TRIES) store_volatile(status, 1);
    lost = __any_sync(FULL_WARP, load_volatile(status) != 0);
  }
};

__device__ __forceinline__ bool missing(const uint4 &x) {
  return max(max(x.x, x.y), max(x.z, x.w)) == 0xffffffffu;
}

// Fills `chunk` with the first `count` pieces of 16 bytes at `at`, `stride` bytes apart, the rest
// with zero, once another block has written them. All lanes of a warp call it together.
//
// Only what is missing is asked for again.
template <int N>
__device__ __forceinline__ void receive(uint4 (&chunk)[N], const char *at, int stride, int count,
                                        Patience &patience) {
#pragma unroll
  for (int j = 0; j < N; j++) {
    chunk[j] = make_uint4(0, 0, 0, 0);
    if (j < count) chunk[j] = exchange_load(at + j * stride);
  }
  patience.begin();
  while (!patience.lost) {
    bool wait = false;
#pragma unroll
    for (int j = 0; j < N; j++)
      if (missing(chunk[j])) {
        wait = true;
        chunk[j] = exchange_load(at + j * stride);
      }
    if (!__any_sync(FULL_WARP, wait)) break;
    patience.again();
  }
}

// BY_COUNTER: each of a group's `slices` blocks adds 1 for each of its warps when a pass is stored.
__device__ __forceinline__ void await_counters(const u32 *counters, int slices, u32 target,
                                               Patience &patience) {
  patience.begin();
#pragma unroll 1
  for (int i = lane_id(); i - lane_id() < slices; i += 32)
    while (!patience.lost) {
      bool wait = i < slices && load_acquire(counters + i) < target;
      if (!__any_sync(FULL_WARP, wait)) break;
      patience.again();
    }
}

// Where the partial sums of a pass lie in shared memory: [warp][row][m]. The paddings keep the
// stores of accumulators and the loads of the pointwise part free of bank conflicts.
template <int M>
struct Partial {
  static constexpr int ROW = M + 4;
  static constexpr int WARP = SEQ_ROWS * ROW + 4;
  static constexpr int FLOATS = SEQ_WARPS * WARP;
};

// A block's weights as mma A fragments, and their product with eight rows of bf16. `M` rows of A,
// multiples of 16; the k of the sum is cut over the warps, `chunks` pieces of 32 each: `KR` of
// them in registers and, if MORE, the others in shared memory. Within a piece lane t of a quad
// takes k = 8t..8t+7, so that its part of B is 16 bytes of memory; A is packed in the same order,
// which a sum does not mind.
template <int M, int KR, bool MORE>
struct Bf16Product {
  using Element = bf16;
  using Weights = uint4;
  static constexpr int TILES = M / 16;
  // Accumulators enough that mma's latency (about 33 clocks) overlaps.
  static constexpr int CHAINS = TILES >= 4 ? 1 : 4 / TILES;

  u32 a[TILES][KR][2][4];
  uint4 *spilled;  // [warp][chunk - KR][tile][half][lane]
  int chunks, limit;

  __device__ __forceinline__ static constexpr int stage_bytes() { return 0; }

  // `packed` [slice][warp][chunk][tile][half][lane] by recurrent_weights_bf16, zeros where nothing
  // is; `length` is how long the sum is.
  __device__ __forceinline__ void load(unsigned char *room, int chunks_of_warp, int length,
                                       const uint4 *packed) {
    spilled = reinterpret_cast<uint4 *>(room);
    chunks = chunks_of_warp;
    limit = length;
    packed += ((i64)blockIdx.x * SEQ_WARPS + warp_id()) * chunks * TILES * 64 + lane_id();
#pragma unroll
    for (int i = 0; i < KR * TILES * 2; i++) {
      uint4 x = make_uint4(0, 0, 0, 0);
      if (i < chunks * TILES * 2) x = load_const(packed + i * 32);
      u32(&to)[4] = a[i / 2 % TILES][i / 2 / TILES][i % 2];
      to[0] = x.x;
      to[1] = x.y;
      to[2] = x.z;
      to[3] = x.w;
    }
#pragma unroll 1
    for (int i = KR * TILES * 2; MORE && i < chunks * TILES * 2; i++)
      *place(KR, 0, i - KR * TILES * 2) = load_const(packed + i * 32);
  }

  __device__ __forceinline__ uint4 *place(int j, int tile, int half) const {
    int piece = ((warp_id() * (chunks - KR) + j - KR) * TILES + tile) * 2 + half;
    return spilled + piece * 32 + lane_id();
  }

  // Adds this warp's part of the sums of eight rows at `rows` (`pitch` elements apart, `valid` of
  // them there) to nothing and stores it at `partial`.
  __device__ __forceinline__ void run(const bf16 *rows, i64 pitch, int valid, float *partial,
                                      unsigned char *, Patience &patience) const {
    int g = lane_id() / 4, t = lane_id() % 4;
    int k = warp_id() * chunks * 32 + 8 * t;
    // Pieces of this lane that lie below `limit`.
    int there = g < valid ? min(chunks, max(0, (limit - k + 31) / 32)) : 0;
    const char *at = reinterpret_cast<const char *>(rows + (g < valid ? g * pitch + k : 0));
    float sums[CHAINS][TILES][4];
#pragma unroll
    for (int i = 0; i < CHAINS * TILES * 4; i++) sums[i / (TILES * 4)][i / 4 % TILES][i % 4] = 0.f;
    uint4 b[KR];
    receive<KR>(b, at, 64, there, patience);
#pragma unroll
    for (int j = 0; j < KR; j++) {
      u32 low[2] = {b[j].x, b[j].y}, high[2] = {b[j].z, b[j].w};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        mma_bf16_16816(sums[2 * j % CHAINS][tile], a[tile][j][0], low);
        mma_bf16_16816(sums[(2 * j + 1) % CHAINS][tile], a[tile][j][1], high);
      }
    }
#pragma unroll 1
    for (int first = KR; MORE && first < chunks; first += 2) {
      uint4 more[2];
      receive<2>(more, at + first * 64, 64, there - first, patience);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        if (first + j >= chunks) break;
        u32 low[2] = {more[j].x, more[j].y}, high[2] = {more[j].z, more[j].w};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          uint4 x = *place(first + j, tile, 0), y = *place(first + j, tile, 1);
          mma_bf16_16816(sums[0][tile], {x.x, x.y, x.z, x.w}, low);
          mma_bf16_16816(sums[CHAINS - 1][tile], {y.x, y.y, y.z, y.w}, high);
        }
      }
    }
    float *mine = partial + warp_id() * Partial<M>::WARP + 2 * t * Partial<M>::ROW + g;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float sum = sums[0][tile][e];
#pragma unroll
        for (int chain = 1; chain < CHAINS; chain++) sum += sums[chain][tile][e];
        mine[e % 2 * Partial<M>::ROW + tile * 16 + e / 2 * 8] = sum;
      }
  }

  // Stores the numbers of units u and u + 1 as one word, from the lane of the even one.
  __device__ __forceinline__ static void send(bf16 *at, float mine, bool is_there) {
    float next = __shfl_down_sync(FULL_WARP, mine, 1);
    if (is_there && lane_id() % 2 == 0) exchange_store(at, pack_bf16(mine, next));
  }
};

// The same in f32: weights [k][M] in shared memory. A lane sums 4 x 8 products at a time; those
// lanes that are left when M / 4 of them have all of A take other k, and are summed at the end.
template <int M>
struct F32Product {
  using Element = float;
  using Weights = float;
  static constexpr int QUADS = M / 4;
  static constexpr int SPLIT = QUADS > 16 ? 1 : QUADS > 8 ? 2 : QUADS > 4 ? 4 : QUADS > 2 ? 8 : 16;
  static constexpr int PIECE = 64;        // k of a warp that are staged at once
  static constexpr int STAGED = 12;       // floats from one k to the next: eight rows and a padding
  static constexpr int STAGE_FLOATS = PIECE * STAGED;
  __device__ __forceinline__ static constexpr int stage_bytes() {
    return SEQ_WARPS * STAGE_FLOATS * 4;
  }

  float *w;
  int span, limit;

  // `packed` [slice][k][M] by recurrent_weights_f32.
  __device__ __forceinline__ void load(unsigned char *room, int span_of_warp, int length,
                                       const float *packed) {
    w = reinterpret_cast<float *>(room);
    span = span_of_warp;
    limit = length;
    packed += (i64)blockIdx.x * limit * M;
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < limit * M; i += SEQ_THREADS * 4)
      *reinterpret_cast<float4 *>(w + i) = load_const(reinterpret_cast<const float4 *>(packed + i));
  }

  __device__ __forceinline__ void run(const float *rows, i64 pitch, int valid, float *partial,
                                      unsigned char *stages, Patience &patience) const {
    float *stage = reinterpret_cast<float *>(stages) + warp_id() * STAGE_FLOATS;
    int lane = lane_id(), row = lane % 8, q = lane % QUADS, part = lane / QUADS;
    int begin = min(warp_id() * span, limit), end = min(begin + span, limit);
    float sums[4][8];
#pragma unroll
    for (int i = 0; i < 32; i++) sums[i / 8][i % 8] = 0.f;
    // Lane takes 16 bytes, four k, of row lane % 8 at k = 4 * (lane / 8) + 16 j of the piece.
    constexpr int TAKES = PIECE / 16;
    uint4 next[TAKES];
    auto fetch = [&](int k0) {
      int k = k0 + lane / 8 * 4;
      int there = row < valid ? min(TAKES, max(0, (end - k + 15) / 16)) : 0;
      const float *from = rows + (row < valid ? row * pitch + k : 0);
      receive<TAKES>(next, reinterpret_cast<const char *>(from), 64, there, patience);
    };
    // Each piece is fetched while the one before is multiplied; `k0` begins before the first.
#pragma unroll 1
    for (int k0 = begin - PIECE; k0 < end; k0 += PIECE) {
      if (k0 >= begin) {
#pragma unroll
        for (int j = 0; j < TAKES; j++) {
          float *to = stage + (lane / 8 * 4 + 16 * j) * STAGED + row;
          to[0] = __uint_as_float(next[j].x);
          to[STAGED] = __uint_as_float(next[j].y);
          to[2 * STAGED] = __uint_as_float(next[j].z);
          to[3 * STAGED] = __uint_as_float(next[j].w);
        }
      }
      __syncwarp();
      if (k0 + PIECE < end) fetch(k0 + PIECE);
      int count = k0 < begin ? 0 : min(PIECE, end - k0);
      if (part < SPLIT)
#pragma unroll 1
        for (int k = part; k < count; k += SPLIT) {
          float4 x = *reinterpret_cast<const float4 *>(w + (i64)(k0 + k) * M + 4 * q);
          float4 y = *reinterpret_cast<const float4 *>(stage + k * STAGED);
          float4 z = *reinterpret_cast<const float4 *>(stage + k * STAGED + 4);
          float a[4] = {x.x, x.y, x.z, x.w}, b[8] = {y.x, y.y, y.z, y.w, z.x, z.y, z.z, z.w};
#pragma unroll
          for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] += a[i] * b[j];
        }
      __syncwarp();
    }
#pragma unroll 1
    for (int apart = SPLIT / 2; apart; apart /= 2)
#pragma unroll
      for (int i = 0; i < 32; i++)
        sums[i / 8][i % 8] += __shfl_down_sync(FULL_WARP, sums[i / 8][i % 8], apart * QUADS);
    if (part == 0) {
      float *mine = partial + warp_id() * Partial<M>::WARP + 4 * q;
#pragma unroll
      for (int j = 0; j < 8; j++)
        *reinterpret_cast<float4 *>(mine + j * Partial<M>::ROW) =
            make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
    }
  }

  __device__ __forceinline__ static void send(float *at, float mine, bool is_there) {
    u32 word = __float_as_uint(mine);
    if (is_there) exchange_store(at, word == 0xffffffffu ? 0x7fffffffu : word);
  }
};

// A thread's place in the pointwise part: row and unit of its cell. With fewer cells than threads,
// PARTS threads of a warp share one: each sums the partial sums of some warps, and the work of
// loading and storing is divided among them.
template <int UNITS>
struct Place {
  static constexpr int PARTS = 32 / UNITS;
  static_assert(UNITS == 8 || UNITS == 16 || UNITS == 32, "a warp is a row");
  int row, unit, part;
  __device__ __forceinline__ Place()
      : row(warp_id()), unit(lane_id() % UNITS), part(lane_id() / UNITS) {}

  // The sum over all warps of `m` = g * UNITS + unit for each g, in the same order always. What
  // `sum` holds on entry is added once from every part.
  template <int M, int G>
  __device__ __forceinline__ void collect(const float *partial, float (&sum)[G]) const {
    const float *mine = partial + part * (SEQ_WARPS / PARTS) * Partial<M>::WARP +
                        row * Partial<M>::ROW + unit;
#pragma unroll
    for (int w = 0; w < SEQ_WARPS / PARTS; w++)
#pragma unroll
      for (int g = 0; g < G; g++) sum[g] += mine[w * Partial<M>::WARP + g * UNITS];
#pragma unroll
    for (int apart = UNITS; apart < 32; apart *= 2)
#pragma unroll
      for (int g = 0; g < G; g++) sum[g] += __shfl_xor_sync(FULL_WARP, sum[g], apart);
  }
};
