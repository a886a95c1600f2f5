// Attention by its definition, for any size, on f32 and bf16: the simplest form, and what runs
// where the tiles of `attention_forward.cu` and `attention_backward.cu` do not fit.
//
// A block of 128 threads owns one row of a result (a query, a key, an embedding) and meets the
// other side 128 at a time: a thread makes one score, then threads share the columns of the row.
#include "attention_tile.cuh"
#include "common/reduce.cuh"

constexpr int PLAIN = 128;

template <class T>
struct PlainRows {
  const T *x;
  i64 row;
  __device__ __forceinline__ PlainRows(const void *p, const AttentionRows &at, int b, int h)
      : x((const T *)p + b * at.batch + h * at.head), row(at.row) {}
  __device__ __forceinline__ float operator()(int i, int d) const {
    return to_float(x[i * row + d]);
  }
};

template <class T>
__device__ __forceinline__ float plain_dot(const Attention &a, const float *x, const T *y) {
  float sum = 0.f;
  for (int d = 0; d < a.head_dim; d++) sum = fmaf(x[d], to_float(y[d]), sum);
  return sum;
}

// Whether the query at position p sees key j.
__device__ __forceinline__ bool plain_sees(const Attention &a, int p, int j) {
  if (a.mask == MASK_FULL) return true;
  if (j > p) return false;
  if (a.mask == MASK_WINDOW) return p - j < a.width;
  if (a.mask == MASK_STRIDED) return j / a.width == p / a.width || j % a.stride == a.stride - 1;
  return true;
}

// The embedding of head h where position p meets key j.
template <class T>
__device__ __forceinline__ const T *plain_embedding(const Attention &a, int h, int p, int j) {
  return (const T *)a.er + ((i64)h * a.max_len + j - p + a.max_len - 1) * a.head_dim;
}

// The scaled score of a query against a key.
template <class T>
__device__ __forceinline__ float plain_score(const Attention &a, const float *q, const T *k, int h,
                                             int p, int j) {
  float s = plain_dot(a, q, k);
  if (a.er) s += plain_dot(a, q, plain_embedding<T>(a, h, p, j));
  return s * a.scale;
}

__device__ __forceinline__ float plain_keep(const Attention &a, int plane, int i, int j) {
  if (!a.threshold) return 1.f;
  return keeps(a, plane, i, j) ? a.keep_scale : 0.f;
}

template <class T>
__device__ __forceinline__ void plain_store(void *y, i64 at, bool wide, float x) {
  if (wide)
    ((float *)y)[at] = x;
  else
    ((bf16 *)y)[at] = to_bf16(x);
}

// Shared memory: a row of head_dim numbers, another one, 128 numbers and 32 for sums.
template <class T>
__device__ __forceinline__ void plain_forward(const Attention &a) {
  DYN_SMEM(float, smem);
  float *q_row = smem, *o_row = q_row + a.head_dim, *p_of = o_row + a.head_dim;
  float *scratch = p_of + PLAIN;
  int i = blockIdx.x, plane = blockIdx.y, b = plane / a.heads, h = plane % a.heads;
  int p = i + attention_shift(a), t = threadIdx.x;
  PlainRows<T> q(a.q, a.q_at, b, h), k(a.k, a.k_at, b, h), v(a.v, a.v_at, b, h);
  for (int d = t; d < a.head_dim; d += PLAIN) {
    q_row[d] = q(i, d);
    o_row[d] = 0.f;
  }
  __syncthreads();
  float top = ATTENTION_NONE, sum = 0.f;
  int end = a.mask == MASK_FULL ? a.keys : min(p + 1, a.keys);
  for (int j0 = 0; j0 < end; j0 += PLAIN) {
    int j = j0 + t;
    bool seen = j < end && plain_sees(a, p, j);
    float s = seen ? plain_score(a, q_row, k.x + j * k.row, h, p, j) : ATTENTION_NONE;
    float most = fmaxf(top, block_max(s, scratch));
    float base = most == ATTENTION_NONE ? 0.f : most, shrink = expf(top - base);
    float weight = seen ? expf(s - base) : 0.f;
    top = most;
    sum = sum * shrink + block_sum(weight, scratch);
    p_of[t] = seen ? weight * plain_keep(a, plane, i, j) : 0.f;
    __syncthreads();
    int count = min(PLAIN, end - j0);
    for (int d = t; d < a.head_dim; d += PLAIN) {
      float o = o_row[d] * shrink;
      for (int n = 0; n < count; n++)
        if (p_of[n] != 0.f) o = fmaf(p_of[n], v(j0 + n, d), o);
      o_row[d] = o;
    }
    __syncthreads();
  }
  for (int d = t; d < a.head_dim; d += PLAIN)
    plain_store<T>(a.o, b * a.o_at.batch + h * a.o_at.head + i * a.o_at.row + d, a.wide & WIDE_O,
                   sum > 0.f ? o_row[d] / sum : 0.f);
  if (t == 0) a.lse[(i64)plane * a.queries + i] = sum > 0.f ? top + logf(sum) : ATTENTION_NONE;
}

// The weight of a pair before dropout, and the gradient of its score before scaling.
template <class T>
__device__ __forceinline__ void plain_pair(const Attention &a, int plane, int h, int i, int j,
                                           const float *q, const T *k, const float *d_o,
                                           const T *v, float &p, float &d_s) {
  i64 at = (i64)plane * a.queries + i;
  float keep = plain_keep(a, plane, i, j);
  float weight = expf(plain_score(a, q, k, h, i + attention_shift(a), j) - a.lse[at]);
  d_s = weight * (keep * plain_dot(a, d_o, v) - a.delta[at]);
  p = weight * keep;
}

// Shared memory: two rows read, one written, 128 numbers.
template <class T>
__device__ __forceinline__ void plain_backward_queries(const Attention &a) {
  DYN_SMEM(float, smem);
  float *q_row = smem, *d_o_row = q_row + a.head_dim, *d_q_row = d_o_row + a.head_dim;
  float *d_s_of = d_q_row + a.head_dim;
  int i = blockIdx.x, plane = blockIdx.y, b = plane / a.heads, h = plane % a.heads;
  int p = i + attention_shift(a), t = threadIdx.x;
  PlainRows<T> q(a.q, a.q_at, b, h), k(a.k, a.k_at, b, h), v(a.v, a.v_at, b, h);
  PlainRows<T> d_o(a.d_o, a.d_o_at, b, h);
  for (int d = t; d < a.head_dim; d += PLAIN) {
    q_row[d] = q(i, d);
    d_o_row[d] = d_o(i, d);
    d_q_row[d] = 0.f;
  }
  __syncthreads();
  int end = a.mask == MASK_FULL ? a.keys : min(p + 1, a.keys);
  for (int j0 = 0; j0 < end; j0 += PLAIN) {
    int j = j0 + t;
    float weight, d_s = 0.f;
    if (j < end && plain_sees(a, p, j))
      plain_pair<T>(a, plane, h, i, j, q_row, k.x + j * k.row, d_o_row, v.x + j * v.row, weight,
                    d_s);
    d_s_of[t] = d_s;
    __syncthreads();
    int count = min(PLAIN, end - j0);
    for (int d = t; d < a.head_dim; d += PLAIN) {
      float sum = d_q_row[d];
      for (int n = 0; n < count; n++) {
        if (d_s_of[n] == 0.f) continue;
        sum = fmaf(d_s_of[n], k(j0 + n, d), sum);
        if (a.er) sum = fmaf(d_s_of[n], to_float(plain_embedding<T>(a, h, p, j0 + n)[d]), sum);
      }
      d_q_row[d] = sum;
    }
    __syncthreads();
  }
  for (int d = t; d < a.head_dim; d += PLAIN)
    plain_store<T>(a.d_q, b * a.d_q_at.batch + h * a.d_q_at.head + i * a.d_q_at.row + d,
                   a.wide & WIDE_D_Q, d_q_row[d] * a.scale);
}

// A thread's own query against the key of the block: rows are read where they lie.
template <class T>
__device__ __forceinline__ void plain_pair_of_key(const Attention &a, int plane, int h, int i,
                                                  int j, const T *q, const float *k, const T *d_o,
                                                  const float *v, float &p, float &d_s) {
  i64 at = (i64)plane * a.queries + i;
  float s = plain_dot(a, k, q), keep = plain_keep(a, plane, i, j);
  if (a.er) {
    const T *e = plain_embedding<T>(a, h, i + attention_shift(a), j);
    for (int d = 0; d < a.head_dim; d++) s = fmaf(to_float(q[d]), to_float(e[d]), s);
  }
  float weight = expf(s * a.scale - a.lse[at]);
  d_s = weight * (keep * plain_dot(a, v, d_o) - a.delta[at]);
  p = weight * keep;
}

// Shared memory: two rows read, two written, twice 128 numbers.
template <class T>
__device__ __forceinline__ void plain_backward_keys(const Attention &a) {
  DYN_SMEM(float, smem);
  float *k_row = smem, *v_row = k_row + a.head_dim, *d_k_row = v_row + a.head_dim;
  float *d_v_row = d_k_row + a.head_dim, *p_of = d_v_row + a.head_dim, *d_s_of = p_of + PLAIN;
  int j = blockIdx.x, plane = blockIdx.y, b = plane / a.heads, h = plane % a.heads;
  int shift = attention_shift(a), t = threadIdx.x;
  PlainRows<T> q(a.q, a.q_at, b, h), k(a.k, a.k_at, b, h), v(a.v, a.v_at, b, h);
  PlainRows<T> d_o(a.d_o, a.d_o_at, b, h);
  for (int d = t; d < a.head_dim; d += PLAIN) {
    k_row[d] = k(j, d);
    v_row[d] = v(j, d);
    d_k_row[d] = d_v_row[d] = 0.f;
  }
  __syncthreads();
  int first = a.mask == MASK_FULL ? 0 : max(j - shift, 0);
  for (int i0 = first; i0 < a.queries; i0 += PLAIN) {
    int i = i0 + t;
    float weight = 0.f, d_s = 0.f;
    if (i < a.queries && plain_sees(a, i + shift, j))
      plain_pair_of_key<T>(a, plane, h, i, j, q.x + i * q.row, k_row, d_o.x + i * d_o.row, v_row,
                           weight, d_s);
    p_of[t] = weight;
    d_s_of[t] = d_s;
    __syncthreads();
    int count = min(PLAIN, a.queries - i0);
    for (int d = t; d < a.head_dim; d += PLAIN) {
      float d_k = d_k_row[d], d_v = d_v_row[d];
      for (int n = 0; n < count; n++) {
        d_k = fmaf(d_s_of[n], q(i0 + n, d), d_k);
        d_v = fmaf(p_of[n], d_o(i0 + n, d), d_v);
      }
      d_k_row[d] = d_k;
      d_v_row[d] = d_v;
    }
    __syncthreads();
  }
  for (int d = t; d < a.head_dim; d += PLAIN) {
    plain_store<T>(a.d_k, b * a.d_k_at.batch + h * a.d_k_at.head + j * a.d_k_at.row + d,
                   a.wide & WIDE_D_KV, d_k_row[d] * a.scale);
    plain_store<T>(a.d_v, b * a.d_v_at.batch + h * a.d_v_at.head + j * a.d_v_at.row + d,
                   a.wide & WIDE_D_KV, d_v_row[d]);
  }
}

// Shared memory: a row written, 128 numbers.
template <class T>
__device__ __forceinline__ void plain_backward_relative(const Attention &a) {
  DYN_SMEM(float, smem);
  float *d_e_row = smem, *d_s_of = d_e_row + a.head_dim;
  int e = blockIdx.x, h = blockIdx.y, shift = attention_shift(a), t = threadIdx.x;
  // Keys that are this many steps before the position of their query.
  int back = a.max_len - 1 - e;
  for (int d = t; d < a.head_dim; d += PLAIN) d_e_row[d] = 0.f;
  __syncthreads();
  for (int b = 0; b < a.batch; b++) {
    PlainRows<T> q(a.q, a.q_at, b, h), k(a.k, a.k_at, b, h), v(a.v, a.v_at, b, h);
    PlainRows<T> d_o(a.d_o, a.d_o_at, b, h);
    int plane = b * a.heads + h;
    for (int i0 = max(back - shift, 0); i0 < a.queries; i0 += PLAIN) {
      int i = i0 + t, j = i + shift - back;
      float d_s = 0.f;
      if (i < a.queries && j < a.keys && plain_sees(a, i + shift, j)) {
        i64 at = (i64)plane * a.queries + i;
        float s = 0.f, d_p = 0.f;
        const T *row = (const T *)a.er + ((i64)h * a.max_len + e) * a.head_dim;
        for (int d = 0; d < a.head_dim; d++) {
          s = fmaf(q(i, d), k(j, d) + to_float(row[d]), s);
          d_p = fmaf(d_o(i, d), v(j, d), d_p);
        }
        d_s = expf(s * a.scale - a.lse[at]) * (plain_keep(a, plane, i, j) * d_p - a.delta[at]);
      }
      d_s_of[t] = d_s;
      __syncthreads();
      int count = min(PLAIN, a.queries - i0);
      for (int d = t; d < a.head_dim; d += PLAIN) {
        float sum = d_e_row[d];
        for (int n = 0; n < count; n++) sum = fmaf(d_s_of[n], q(i0 + n, d), sum);
        d_e_row[d] = sum;
      }
      __syncthreads();
    }
  }
  for (int d = t; d < a.head_dim; d += PLAIN)
    plain_store<T>(a.d_er, ((i64)h * a.max_len + e) * a.head_dim + d, a.wide & WIDE_D_ER,
                   d_e_row[d] * a.scale);
}

// delta = the sum of d_o * o of each row: a warp for a row.
template <class T>
__device__ __forceinline__ void plain_delta(const Attention &a) {
  i64 row = (i64)blockIdx.x * 8 + warp_id();
  if (row >= (i64)a.batch * a.heads * a.queries) return;
  int plane = (int)(row / a.queries), i = (int)(row % a.queries);
  int b = plane / a.heads, h = plane % a.heads;
  i64 o = b * a.o_at.batch + h * a.o_at.head + i * a.o_at.row;
  PlainRows<T> d_o(a.d_o, a.d_o_at, b, h);
  float sum = 0.f;
  for (int d = lane_id(); d < a.head_dim; d += 32) {
    float x = a.wide & WIDE_O ? ((const float *)a.o)[o + d] : to_float(((const bf16 *)a.o)[o + d]);
    sum = fmaf(x, d_o(i, d), sum);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) a.delta[row] = sum;
}

#define ATTENTION_PLAIN(NAME, BODY, THREADS)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME##_f32(Attention a) {             \
    BODY<float>(a);                                                                           \
  }                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME##_bf16(Attention a) {            \
    BODY<bf16>(a);                                                                            \
  }

ATTENTION_PLAIN(attention_forward_plain, plain_forward, 128)
ATTENTION_PLAIN(attention_delta_plain, plain_delta, 256)
ATTENTION_PLAIN(attention_backward_queries_plain, plain_backward_queries, 128)
ATTENTION_PLAIN(attention_backward_keys_plain, plain_backward_keys, 128)
ATTENTION_PLAIN(attention_backward_relative_plain, plain_backward_relative, 128)
