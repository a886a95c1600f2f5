// Attention of one new query of each head against the keys and values that came before.
//
// The time is that of reading the cache once. Steps up from `attention_step_plain`: keys are cut
// into chunks, so that a single sequence fills the chip; eight lanes share a key and read it 16
// bytes at a time, several keys under way at once; the softmax is made as keys come, and chunks
// are joined in their order by a second kernel, so that the result is the same in every run.
//
// Source: Dao, Haziza, Massa & Sizov 2023, Flash-Decoding.
#include "attention_tile.cuh"
#include "common/reduce.cuh"

// The same fields in the same order as `StepArguments` of the launcher.
struct AttentionStep {
  // [batch, heads, head_dim], a batch's rows q_batch numbers apart; k_new and v_new may be null.
  const float *q, *k_new, *v_new;
  // [batch, heads, capacity, head_dim].
  void *k, *v;
  // [heads, max_len, head_dim], numbers as in the cache.
  const void *er;
  // [batch, heads, head_dim].
  float *o;
  // [batch, heads, chunks, head_dim + 2]: a chunk's weighted values, its maximum and its sum.
  float *parts;
  // Rows in the cache with the new one: read on the device, so that a recording serves every
  // step.
  const i32 *len;
  i64 q_batch;
  int heads, capacity, head_dim, max_len, mask, width, stride, chunk, chunks;
  float scale;
};

constexpr int STEP_THREADS = 128, LANES_OF_KEY = 8, MOST_COLUMNS = 128 / LANES_OF_KEY;

template <class T>
__device__ __forceinline__ bool step_sees(const AttentionStep &a, int p, int j) {
  if (a.mask == MASK_WINDOW) return p - j < a.width;
  if (a.mask == MASK_STRIDED) return j / a.width == p / a.width || j % a.stride == a.stride - 1;
  return true;
}

// A lane's columns of a row: of every 8 pieces of 16 bytes its own, or of every 8 numbers its
// own.
template <class T, bool VECTORS>
struct Columns {
  static constexpr int EACH = VECTORS ? 16 / (int)sizeof(T) : 1, PIECES = MOST_COLUMNS / EACH;
  static __device__ __forceinline__ int of(int piece) {
    return (piece * LANES_OF_KEY + threadIdx.x % LANES_OF_KEY) * EACH;
  }
  // Raw pieces, so that loads can be under way before anything is widened.
  struct Row {
    uint4 words[VECTORS ? PIECES : 1];
    T numbers[VECTORS ? 1 : PIECES];
  };
  static __device__ __forceinline__ void load(Row &row, const T *x, int head_dim, bool is_there) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      bool is_inside = is_there && of(i) < head_dim;
      if constexpr (VECTORS) {
        row.words[i] = uint4{0, 0, 0, 0};
        if (is_inside) row.words[i] = *reinterpret_cast<const uint4 *>(x + of(i));
      } else {
        row.numbers[i] = from_float<T>(0.f);
        if (is_inside) row.numbers[i] = x[of(i)];
      }
    }
  }
  static __device__ __forceinline__ float at(const Row &row, int i, int e) {
    if constexpr (!VECTORS) {
      return to_float(row.numbers[i]);
    } else {
      const uint4 &w = row.words[i];
      int word = e * (int)sizeof(T) / 4;
      u32 bits = word == 0 ? w.x : word == 1 ? w.y : word == 2 ? w.z : w.w;
      if (sizeof(T) == 4) return __uint_as_float(bits);
      return e % 2 ? high_float(bits) : low_float(bits);
    }
  }
};

template <class T, bool VECTORS, int AT_ONCE>
__device__ __forceinline__ void attention_step_chunk(const AttentionStep &a) {
  using C = Columns<T, VECTORS>;
  DYN_SMEM(float, smem);  // [warps, head_dim + 2]
  int len = *a.len, h = blockIdx.y, b = blockIdx.z, d = a.head_dim, p = len - 1;
  int begin = blockIdx.x * a.chunk, end = min(begin + a.chunk, len);
  if (begin >= end && !(blockIdx.x == 0 && a.chunks == 1)) return;
  i64 plane = (i64)b * a.heads + h, cache = plane * a.capacity * d;
  T *k = (T *)a.k + cache, *v = (T *)a.v + cache;
  if (a.k_new && begin <= p && p < end) {
    for (int c = threadIdx.x; c < d; c += STEP_THREADS) {
      k[(i64)p * d + c] = from_float<T>(a.k_new[b * a.q_batch + h * d + c]);
      v[(i64)p * d + c] = from_float<T>(a.v_new[b * a.q_batch + h * d + c]);
    }
    __syncthreads();
  }
  const T *er = (const T *)a.er + ((i64)h * a.max_len + a.max_len - len) * d;
  float q[MOST_COLUMNS], o[MOST_COLUMNS];
#pragma unroll
  for (int i = 0; i < C::PIECES; i++)
#pragma unroll
    for (int e = 0; e < C::EACH; e++) {
      int c = C::of(i) + e;
      q[i * C::EACH + e] = c < d ? a.q[b * a.q_batch + h * d + c] * a.scale * LOG2_E : 0.f;
      o[i * C::EACH + e] = 0.f;
    }
  float top = ATTENTION_NONE, sum = 0.f;
  constexpr int GROUPS = STEP_THREADS / LANES_OF_KEY;
  int group = threadIdx.x / LANES_OF_KEY;
  for (int j0 = begin; j0 < end; j0 += GROUPS * AT_ONCE) {
    typename C::Row k_row[AT_ONCE], v_row[AT_ONCE];
    bool seen[AT_ONCE];
    float s[AT_ONCE];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      int j = j0 + n * GROUPS + group;
      seen[n] = j < end && step_sees<T>(a, p, j);
      C::load(k_row[n], k + (i64)j * d, d, seen[n]);
      C::load(v_row[n], v + (i64)j * d, d, seen[n]);
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      s[n] = 0.f;
#pragma unroll
      for (int i = 0; i < C::PIECES; i++)
#pragma unroll
        for (int e = 0; e < C::EACH; e++)
          s[n] = fmaf(q[i * C::EACH + e], C::at(k_row[n], i, e), s[n]);
    }
    if (a.er) {
#pragma unroll
      for (int n = 0; n < AT_ONCE; n++) {
        C::load(k_row[n], er + (i64)(j0 + n * GROUPS + group) * d, d, seen[n]);
#pragma unroll
        for (int i = 0; i < C::PIECES; i++)
#pragma unroll
          for (int e = 0; e < C::EACH; e++)
            s[n] = fmaf(q[i * C::EACH + e], C::at(k_row[n], i, e), s[n]);
      }
    }
    float most = top;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
      for (int bit = 1; bit < LANES_OF_KEY; bit *= 2)
        s[n] += __shfl_xor_sync(FULL_WARP, s[n], bit);
      if (!seen[n]) s[n] = ATTENTION_NONE;
      most = fmaxf(most, s[n]);
    }
    float base = most == ATTENTION_NONE ? 0.f : most, shrink = exp2_approx(top - base);
    top = most;
    sum *= shrink;
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) o[c] *= shrink;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      float weight = exp2_approx(s[n] - base);
      sum += weight;
#pragma unroll
      for (int i = 0; i < C::PIECES; i++)
#pragma unroll
        for (int e = 0; e < C::EACH; e++)
          o[i * C::EACH + e] = fmaf(weight, C::at(v_row[n], i, e), o[i * C::EACH + e]);
    }
  }
  // The groups of a warp, then the warps.
#pragma unroll
  for (int bit = LANES_OF_KEY; bit < 32; bit *= 2) {
    float most = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, bit));
    float by = exp2_approx(top - (most == ATTENTION_NONE ? 0.f : most));
    top = most;
    sum *= by;
    sum += __shfl_xor_sync(FULL_WARP, sum, bit);
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) {
      o[c] *= by;
      o[c] += __shfl_xor_sync(FULL_WARP, o[c], bit);
    }
  }
  float *mine = smem + warp_id() * (d + 2);
  if (lane_id() < LANES_OF_KEY) {
#pragma unroll
    for (int i = 0; i < C::PIECES; i++)
#pragma unroll
      for (int e = 0; e < C::EACH; e++)
        if (C::of(i) + e < d) mine[C::of(i) + e] = o[i * C::EACH + e];
    if (lane_id() == 0) {
      mine[d] = top;
      mine[d + 1] = sum;
    }
  }
  __syncthreads();
  constexpr int WARPS = STEP_THREADS / 32;
  float most = ATTENTION_NONE, all = 0.f, by[WARPS];
#pragma unroll
  for (int w = 0; w < WARPS; w++) most = fmaxf(most, smem[w * (d + 2) + d]);
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    by[w] = exp2_approx(smem[w * (d + 2) + d] - (most == ATTENTION_NONE ? 0.f : most));
    all += by[w] * smem[w * (d + 2) + d + 1];
  }
  float *part = a.parts + (plane * a.chunks + blockIdx.x) * (d + 2);
  for (int c = threadIdx.x; c < d; c += STEP_THREADS) {
    float x = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) x += by[w] * smem[w * (d + 2) + c];
    if (a.chunks == 1)
      a.o[plane * d + c] = all > 0.f ? x / all : 0.f;
    else
      part[c] = x;
  }
  if (a.chunks > 1 && threadIdx.x == 0) {
    part[d] = most;
    part[d + 1] = all;
  }
}

// Joins the chunks of a head: grid [heads, batch].
extern "C" __global__ void __launch_bounds__(128) attention_step_join(AttentionStep a) {
  int d = a.head_dim, chunks = (*a.len + a.chunk - 1) / a.chunk;
  i64 plane = (i64)blockIdx.y * a.heads + blockIdx.x;
  const float *parts = a.parts + plane * a.chunks * (d + 2);
  float most = ATTENTION_NONE;
  for (int n = 0; n < chunks; n++) most = fmaxf(most, parts[n * (d + 2) + d]);
  for (int c = threadIdx.x; c < d; c += 128) {
    float o = 0.f, sum = 0.f;
    for (int n = 0; n < chunks; n++) {
      const float *part = parts + n * (d + 2);
      float by = most == ATTENTION_NONE ? 0.f : exp2_approx(part[d] - most);
      o = fmaf(by, part[c], o);
      sum = fmaf(by, part[d + 1], sum);
    }
    a.o[plane * d + c] = sum > 0.f ? o / sum : 0.f;
  }
}

// By its definition: a block for a head, grid [heads, batch]. Shared memory: capacity numbers, 32
// for sums.
template <class T>
__device__ __forceinline__ void step_plain(const AttentionStep &a) {
  DYN_SMEM(float, smem);
  float *weights = smem, *scratch = smem + a.capacity;
  int len = *a.len, h = blockIdx.x, b = blockIdx.y, d = a.head_dim, p = len - 1;
  i64 plane = (i64)b * a.heads + h, cache = plane * a.capacity * d;
  T *k = (T *)a.k + cache, *v = (T *)a.v + cache;
  const float *q = a.q + b * a.q_batch + h * d;
  if (a.k_new && len > 0) {
    for (int c = threadIdx.x; c < d; c += STEP_THREADS) {
      k[(i64)p * d + c] = from_float<T>(a.k_new[b * a.q_batch + h * d + c]);
      v[(i64)p * d + c] = from_float<T>(a.v_new[b * a.q_batch + h * d + c]);
    }
    __syncthreads();
  }
  float most = ATTENTION_NONE, sum = 0.f;
  for (int j = threadIdx.x; j < len; j += STEP_THREADS) {
    weights[j] = ATTENTION_NONE;
    if (!step_sees<T>(a, p, j)) continue;
    float s = 0.f;
    for (int c = 0; c < d; c++) s = fmaf(q[c], to_float(k[(i64)j * d + c]), s);
    if (a.er) {
      const T *e = (const T *)a.er + ((i64)h * a.max_len + j + a.max_len - len) * d;
      for (int c = 0; c < d; c++) s = fmaf(q[c], to_float(e[c]), s);
    }
    weights[j] = s * a.scale;
    most = fmaxf(most, weights[j]);
  }
  most = block_max(most, scratch);
  for (int j = threadIdx.x; j < len; j += STEP_THREADS) {
    weights[j] = weights[j] == ATTENTION_NONE ? 0.f : expf(weights[j] - most);
    sum += weights[j];
  }
  sum = block_sum(sum, scratch);
  for (int c = threadIdx.x; c < d; c += STEP_THREADS) {
    float o = 0.f;
    for (int j = 0; j < len; j++)
      if (weights[j] != 0.f) o = fmaf(weights[j], to_float(v[(i64)j * d + c]), o);
    a.o[plane * d + c] = sum > 0.f ? o / sum : 0.f;
  }
}

#define ATTENTION_STEP(NAME, BODY)                                                     \
  extern "C" __global__ void __launch_bounds__(STEP_THREADS) NAME(AttentionStep a) { \
    BODY(a);                                                                           \
  }

ATTENTION_STEP(attention_step_f32, (attention_step_chunk<float, true, 2>))
ATTENTION_STEP(attention_step_bf16, (attention_step_chunk<bf16, true, 4>))
ATTENTION_STEP(attention_step_any_f32, (attention_step_chunk<float, false, 2>))
ATTENTION_STEP(attention_step_any_bf16, (attention_step_chunk<bf16, false, 2>))
ATTENTION_STEP(attention_step_plain_f32, step_plain<float>)
ATTENTION_STEP(attention_step_plain_bf16, step_plain<bf16>)
