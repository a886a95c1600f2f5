// A token from the logits of a row: temperature, min-p, top-k, top-p, grammar mask, repetition
// guard, and the draw, as `models/src/sampling.rs` does it. One block a row, no sort: a cut is a
// threshold on the bits of a probability, found digit by digit among counts and sums of integers,
// which add up to the same in any order.
//
// Ladder: `sample_plain` is one thread that looks for the next likeliest again and again.
#include "common/philox.cuh"

// The controls, as in sampling.rs.
struct Controls {
  float temperature, top_p, min_p;
  u32 top_k;
};

namespace sample {

// Probabilities add up as multiples of 2^-40: exact for those above 2^-17 of the likeliest.
constexpr float FINE = 1099511627776.f;
constexpr int THREADS = 256;

struct Row {
  const float *logits;
  const u32 *allowed;  // a bit a token, or null: all
  u32 vocab, struck;   // struck: a token that may not stand, or 0xffffffff
  __device__ __forceinline__ bool open(u32 token) const {
    return !allowed || (allowed[token >> 5] >> (token & 31) & 1);
  }
  __device__ __forceinline__ bool stands(u32 token) const {
    return token != struck && open(token);
  }
};

// What of a row the draw needs: the probability before the cuts, the likeliest having 1.
struct Shape {
  float top, scale, min_p;
  __device__ __forceinline__ float of(const Row &row, u32 token) const {
    if (!row.stands(token)) return 0.f;
    float p = expf((row.logits[token] - top) * scale);
    return p < min_p || !(p > 0.f) ? 0.f : p;
  }
};
__device__ __forceinline__ u64 fine(float p) { return (u64)(p * FINE); }

__device__ __forceinline__ float unit_of(const float *units, Stream s, const u64 *moved, i64 row) {
  if (units) return units[row];
  if (moved) s.position += *moved;
  return to_unit(philox_block(s, row).x);
}

template <class T>
__device__ __forceinline__ T block_total(T v, T *room) {
#pragma unroll
  for (int bits = 16; bits; bits >>= 1) v += __shfl_xor_sync(FULL_WARP, v, bits);
  if (lane_id() == 0) room[warp_id()] = v;
  __syncthreads();
  v = 0;
  for (int w = 0; w < THREADS / 32; w++) v += room[w];
  __syncthreads();
  return v;
}
// The sum of what the threads before this one have.
template <class T>
__device__ __forceinline__ T block_before(T mine, T *room) {
  T upto = mine;
#pragma unroll
  for (int bits = 1; bits < 32; bits <<= 1) {
    T other = __shfl_up_sync(FULL_WARP, upto, bits);
    if (lane_id() >= bits) upto += other;
  }
  if (lane_id() == 31) room[warp_id()] = upto;
  __syncthreads();
  T before = upto - mine;
  for (int w = 0; w < warp_id(); w++) before += room[w];
  __syncthreads();
  return before;
}

// The smallest set of likeliest tokens whose weight reaches `wanted`, weight being the count or the
// sum: all above `bits`, and of those at `bits` the first `ties`.
struct Cut {
  u32 bits, ties;
};

template <bool SUM>
__device__ __forceinline__ Cut cut(const Row &row, const Shape &shape, u64 wanted, Cut before,
                                   u64 *bins, u64 *place) {
  u32 prefix = 0;
  u64 left = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (u32 t = threadIdx.x; t < row.vocab; t += THREADS) {
      float p = shape.of(row, t);
      u32 bits = __float_as_uint(p);
      if (bits == 0 || bits < before.bits) continue;
      if (shift < 24 && bits >> (shift + 8) != prefix >> (shift + 8)) continue;
      atomicAdd(bins + (bits >> shift & 255), SUM ? fine(p) : 1ull);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      // From the largest digit down, to the one where the weight is reached; else the smallest
      // there is.
      u32 at = 256, found = 0;
      u64 rest = left;
      while (at-- > 0) {
        if (bins[at] == 0) continue;
        found = at;
        place[1] = rest;
        if (bins[at] >= rest) break;
        rest -= bins[at];
      }
      place[0] = found;
    }
    __syncthreads();
    prefix |= (u32)place[0] << shift;
    left = place[1];
    __syncthreads();
  }
  u64 each = SUM ? fine(__uint_as_float(prefix)) : 1;
  u64 ties = each ? (left + each - 1) / each : left;
  return {prefix, ties > 0xffffffffu ? 0xffffffffu : (u32)ties};
}

}  // namespace sample

extern "C" __global__ void __launch_bounds__(256, 2)
    sample_rows(const float *logits, const u32 *allowed, const u32 *struck, const float *units,
                Controls c, u64 seed, u32 stream, u64 position, const u64 *moved, u32 *tokens,
                u32 vocab) {
  using namespace sample;
  DYN_SMEM(u64, room);
  u64 *bins = room, *place = room + 256, *sums = room + 258;
  i64 r = blockIdx.x;
  Row row{logits + r * vocab, allowed ? allowed + r * ((vocab + 31) / 32) : nullptr, vocab,
          struck ? struck[r] : 0xffffffffu};
  // The guard gives way where its token alone is allowed.
  if (row.struck != 0xffffffffu) {
    u32 others = 0;
    for (u32 t = threadIdx.x; t < vocab; t += THREADS) others += row.stands(t);
    if (block_total(others, (u32 *)sums) == 0) row.struck = 0xffffffffu;
  }
  float top = -INFINITY;
  u32 best = 0xffffffffu;
  for (u32 t = threadIdx.x; t < vocab; t += THREADS) {
    float x = row.logits[t];
    if (x > top && row.stands(t)) top = x, best = t;
  }
#pragma unroll
  for (int bits = 16; bits; bits >>= 1) {
    float x = __shfl_xor_sync(FULL_WARP, top, bits);
    u32 t = __shfl_xor_sync(FULL_WARP, best, bits);
    if (x > top || (x == top && t < best)) top = x, best = t;
  }
  if (lane_id() == 0) sums[warp_id()] = (u64)__float_as_uint(top) << 32 | best;
  __syncthreads();
  for (int w = 0; w < THREADS / 32; w++) {
    float x = __uint_as_float((u32)(sums[w] >> 32));
    u32 t = (u32)sums[w];
    if (x > top || (x == top && t < best)) top = x, best = t;
  }
  __syncthreads();
  if (c.temperature == 0.f || top == -INFINITY) {
    if (threadIdx.x == 0) tokens[r] = best == 0xffffffffu ? 0 : best;
    return;
  }
  Shape shape{top, 1.f / c.temperature, c.min_p};
  Cut kept{0, 0xffffffffu};
  if (c.top_k > 0) kept = cut<false>(row, shape, c.top_k, kept, bins, place);
  if (c.top_p < 1.f) {
    u64 mine = 0;
    for (u32 t = threadIdx.x; t < vocab; t += THREADS) mine += fine(shape.of(row, t));
    u64 total = block_total(mine, sums);
    // Never less than the likeliest.
    double wanted = ceil((double)c.top_p * (double)total);
    Cut nucleus = cut<true>(row, shape, wanted < 1.0 ? 1 : (u64)wanted, Cut{0, 0}, bins, place);
    if (nucleus.bits > kept.bits || (nucleus.bits == kept.bits && nucleus.ties < kept.ties))
      kept = nucleus;
  }
  // Threads on neighbouring parts now, so that sums of those before follow the order of the tokens.
  u32 each = (vocab + THREADS - 1) / THREADS, from = threadIdx.x * each;
  u32 end = from + each < vocab ? from + each : vocab;
  u32 ties = 0;
  for (u32 t = from; t < end; t++) ties += __float_as_uint(shape.of(row, t)) == kept.bits;
  u32 rank = block_before(ties, (u32 *)sums);
  auto weight = [&](u32 t, u32 &seen) -> u64 {
    float p = shape.of(row, t);
    u32 bits = __float_as_uint(p);
    if (bits < kept.bits || (bits == kept.bits && seen++ >= kept.ties)) return 0;
    return fine(p);
  };
  u64 mine = 0;
  u32 seen = rank;
  for (u32 t = from; t < end; t++) mine += weight(t, seen);
  u64 before = block_before(mine, sums);
  u64 total = block_total(mine, sums);
  float unit = unit_of(units, Stream{seed, position, stream}, moved, r);
  // A unit below 1 has 24 bits, so the product is below the total.
  u64 left = (u64)((double)unit * (double)total);
  if (left >= total) left = total - 1;
  if (left < before || left >= before + mine) return;
  seen = rank;
  for (u32 t = from; t < end; t++) {
    before += weight(t, seen);
    if (left < before) {
      tokens[r] = t;
      return;
    }
  }
}

extern "C" __global__ void __launch_bounds__(32)
    sample_plain(const float *logits, const u32 *allowed, const float *units, Controls c,
                 float *probs, u32 *tokens, u32 vocab) {
  using namespace sample;
  i64 r = blockIdx.x;
  if (threadIdx.x) return;
  Row row{logits + r * vocab, allowed ? allowed + r * ((vocab + 31) / 32) : nullptr, vocab,
          0xffffffffu};
  float *p = probs + r * vocab, top = -INFINITY;
  u32 best = 0;
  for (u32 t = 0; t < vocab; t++)
    if (row.logits[t] > top && row.stands(t)) top = row.logits[t], best = t;
  tokens[r] = best;
  if (c.temperature == 0.f || top == -INFINITY) return;
  Shape shape{top, 1.f / c.temperature, c.min_p};
  double total = 0.0, sum = 0.0;
  for (u32 t = 0; t < vocab; t++) total += shape.of(row, t), p[t] = 0.f;
  u32 most = c.top_k ? c.top_k : vocab;
  for (u32 rank = 0; rank < most; rank++) {
    if (rank > 0 && c.top_p < 1.f && sum >= (double)c.top_p * total) break;
    float next = 0.f;
    for (u32 t = 0; t < vocab; t++)
      if (p[t] == 0.f && shape.of(row, t) > next) next = shape.of(row, t), best = t;
    if (next == 0.f) break;
    p[best] = next;
    sum += next;
  }
  double left = (double)units[r] * sum;
  for (u32 t = 0; t < vocab; t++) {
    if (p[t] == 0.f) continue;
    tokens[r] = t;
    left -= p[t];
    if (left < 0.0) return;
  }
}
