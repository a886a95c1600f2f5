// Parameter updates over all tensors of a model in one launch, and the norm of all their gradients.
//
// A table of pieces lies on the device: each names up to `PIECE` numbers of one tensor with its
// gradient and moments. A step is three launches that a graph can record, since all that changes
// from step to step lies on the device: `squares_all` leaves one sum of squares a piece,
// `step_begin` adds them up in their order, clips and corrects the bias, `adam_all` or `sgd_all`
// updates. Ladder: `adam_plain` updates one tensor, a thread a number; `adam_all` takes 16 bytes of
// each of four arrays at a time.
#include "common/rows.cuh"

// What a thread block updates. Addresses are 0 where there is none.
struct Piece {
  float *param;
  const float *grad;
  float *m;  // or `u`, the momentum of gradient descent
  float *v;
  bf16 *shadow;  // the parameters again, rounded, for products in bf16
  u64 count;
};

// What stays from step to step, and what a step hands to the update; as in optim.rs.
struct State {
  // Set by the host when they change.
  float lr, beta1, beta2, eps, weight_decay, momentum;
  float max_norm;  // 0: no clipping
  float pad;
  u64 step;
  // Set by `step_begin`.
  double norm;
  float grad_scale, step_size, root, decay;
  u32 finite, pad2;
};

namespace optim {

using namespace rows;

struct Adam {
  float scale, beta1, less1, beta2, less2, decay, step_size, root, eps;
  __device__ __forceinline__ void step(float &p, float &m, float &v, float grad) const {
    float g = grad * scale;
    m = fmaf(beta1, m, less1 * g);
    v = fmaf(beta2, v, less2 * g * g);
    // Rounded as on the CPU: a division and a root to the last bit.
    p = p * decay - step_size * m / fmaf(sqrtf(v), root, eps);
  }
};

__device__ __forceinline__ Adam constants(const State &s) {
  return {s.grad_scale, s.beta1,     1.f - s.beta1, s.beta2, 1.f - s.beta2,
          s.decay,      s.step_size, s.root,        s.eps};
}

// Addresses come from a table, so only these tell the compiler that they are global ones; each
// number is read once and written once.
__device__ __forceinline__ void load_four(const float *p, float *v) {
  float4 a = load_stream(reinterpret_cast<const float4 *>(p));
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
}
__device__ __forceinline__ void store_four(float *p, const float *v) {
  store_stream(reinterpret_cast<float4 *>(p), float4{v[0], v[1], v[2], v[3]});
}
__device__ __forceinline__ void store_shadow(bf16 *p, const float *v) {
  store_l2(reinterpret_cast<uint2 *>(p), uint2{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])});
}

__device__ __forceinline__ void adam(Piece piece, Adam adam) {
  int packs = on_pack(piece.param) && on_pack(piece.grad) && on_pack(piece.m) &&
                      on_pack(piece.v) && ((u64)piece.shadow & 7) == 0
                  ? (int)piece.count / 4
                  : 0;
  for (int at = threadIdx.x * 4; at < packs * 4; at += 256 * 4) {
    float p[4], g[4], m[4], v[4];
    load_four(piece.param + at, p);
    load_four(piece.grad + at, g);
    load_four(piece.m + at, m);
    load_four(piece.v + at, v);
#pragma unroll
    for (int e = 0; e < 4; e++) adam.step(p[e], m[e], v[e], g[e]);
    store_four(piece.param + at, p);
    store_four(piece.m + at, m);
    store_four(piece.v + at, v);
    if (piece.shadow) store_shadow(piece.shadow + at, p);
  }
  for (int at = packs * 4 + threadIdx.x; at < (int)piece.count; at += 256) {
    float p = piece.param[at], m = piece.m[at], v = piece.v[at];
    adam.step(p, m, v, piece.grad[at]);
    piece.param[at] = p, piece.m[at] = m, piece.v[at] = v;
    if (piece.shadow) piece.shadow[at] = to_bf16(p);
  }
}

}  // namespace optim

extern "C" __global__ void __launch_bounds__(256)
    adam_plain(float *param, float *m, float *v, const float *grad, const State *state, i64 n) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= n || !state->finite) return;
  optim::constants(*state).step(param[at], m[at], v[at], grad[at]);
}
// Nothing changes where a gradient is not finite.
extern "C" __global__ void __launch_bounds__(256, 4)
    adam_all(const Piece *pieces, const State *state, int count) {
  if (!state->finite) return;
  optim::Adam adam = optim::constants(*state);
  for (int i = blockIdx.x; i < count; i += gridDim.x) optim::adam(pieces[i], adam);
}
// u = momentum u + g; p = p - lr u
extern "C" __global__ void __launch_bounds__(256)
    sgd_all(const Piece *pieces, const State *state, int count) {
  if (!state->finite) return;
  float lr = state->lr, momentum = state->momentum, scale = state->grad_scale;
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    Piece piece = pieces[i];
    int packs = rows::on_pack(piece.param) && rows::on_pack(piece.grad) &&
                        rows::on_pack(piece.m) && ((u64)piece.shadow & 7) == 0
                    ? (int)piece.count / 4
                    : 0;
#pragma unroll 2
    for (int pack = threadIdx.x; pack < packs; pack += 256) {
      float p[4], g[4], m[4];
      optim::load_four(piece.param + pack * 4, p);
      optim::load_four(piece.grad + pack * 4, g);
      optim::load_four(piece.m + pack * 4, m);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        m[e] = fmaf(momentum, m[e], g[e] * scale);
        p[e] = fmaf(-lr, m[e], p[e]);
      }
      optim::store_four(piece.param + pack * 4, p);
      optim::store_four(piece.m + pack * 4, m);
      if (piece.shadow) optim::store_shadow(piece.shadow + pack * 4, p);
    }
    for (int at = packs * 4 + threadIdx.x; at < (int)piece.count; at += 256) {
      float u = fmaf(momentum, piece.m[at], piece.grad[at] * scale);
      float p = fmaf(-lr, u, piece.param[at]);
      piece.m[at] = u, piece.param[at] = p;
      if (piece.shadow) piece.shadow[at] = to_bf16(p);
    }
  }
}

// The sum of the squares of each piece's gradient: f32 in a thread, f64 from there on.
extern "C" __global__ void __launch_bounds__(256)
    squares_all(const Piece *pieces, double *squares, int count) {
  DYN_SMEM(double, room);
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    const float *grad = pieces[i].grad;
    int n = (int)pieces[i].count, packs = rows::on_pack(grad) ? n / 4 : 0;
    float part[4] = {};
#pragma unroll 4
    for (int at = threadIdx.x; at < packs; at += 256) {
      // Not past the cache: the update reads it again.
      float4 four = load_const(reinterpret_cast<const float4 *>(grad + at * 4));
      float g[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; e++) part[e] = fmaf(g[e], g[e], part[e]);
    }
    for (int at = packs * 4 + threadIdx.x; at < n; at += 256)
      part[0] = fmaf(grad[at], grad[at], part[0]);
    double sum = ((double)part[0] + part[1]) + ((double)part[2] + part[3]);
    sum = rows::warp_sum(sum);
    if (lane_id() == 0) room[warp_id()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0.0;
      for (int w = 0; w < 8; w++) total += room[w];
      squares[i] = total;
    }
    __syncthreads();
  }
}
// Counts the step and makes its constants: one block.
extern "C" __global__ void __launch_bounds__(256)
    step_begin(const double *squares, State *state, int count) {
  DYN_SMEM(double, room);
  double sum = 0.0;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += 256) sum += squares[i];
  sum = rows::warp_sum(sum);
  if (lane_id() == 0) room[warp_id()] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  sum = 0.0;
  for (int w = 0; w < 8; w++) sum += room[w];
  State &s = *state;
  s.norm = sqrt(sum);
  s.finite = s.norm < INFINITY;
  if (!s.finite) return;
  s.step++;
  // The small number is PyTorch's; it matters for norms near 0 only.
  bool clips = s.max_norm > 0.f && s.norm + 1e-6 > (double)s.max_norm;
  s.grad_scale = clips ? (float)((double)s.max_norm / (s.norm + 1e-6)) : 1.f;
  double c1 = 1.0 - pow((double)s.beta1, (double)s.step);
  double c2 = 1.0 - pow((double)s.beta2, (double)s.step);
  s.step_size = (float)((double)s.lr / c1);
  s.root = (float)(1.0 / sqrt(c2));
  s.decay = 1.f - s.lr * s.weight_decay;
}
