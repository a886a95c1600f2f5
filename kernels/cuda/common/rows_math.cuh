// Functions of one number and their slopes, as `kernels/src/cpu/math.rs` has them: what would
// cancel is written so that it does not. NaN goes through every one of them.
#pragma once
#include "common/rows.cuh"

#ifdef __CUDACC__
#define ROWS_GLOBAL_TABLE __device__ const
#else
#define ROWS_GLOBAL_TABLE static const
#endif

namespace rows {

// 1 / (1 + e^-x) and one less that: with z = exp(-|x|) <= 1 nothing overflows.
__device__ __forceinline__ void sigmoids(float x, float &s, float &rest) {
  float z = expf(-fabsf(x));
  float near = __fdividef(1.f, 1.f + z), far = z * near;
  s = x < 0.f ? far : near;
  rest = x < 0.f ? near : far;
}
__device__ __forceinline__ float sigmoid(float x) {
  float z = expf(-fabsf(x));
  return __fdividef(x < 0.f ? z : 1.f, 1.f + z);
}
__device__ __forceinline__ float softplus(float x) {
  return (x < 0.f ? 0.f : x) + log1pf(expf(-fabsf(x)));
}

// From here on the upper tail of the normal distribution is below all numbers.
constexpr float TAIL_END = 13.f;

__device__ __forceinline__ float within(float x, float bound) {
  float y = x > bound ? bound : x;
  return y < -bound ? -bound : y;
}

// 1 - Phi(a) for 0 <= a <= TAIL_END; the polynomial is log2(2 (1 - Phi(a))) / a.
__device__ __forceinline__ float upper_tail(float a) {
  float p = -1.376836811e-11f;
  p = fmaf(p, a, 1.0400686e-9f);
  p = fmaf(p, a, -3.404965e-8f);
  p = fmaf(p, a, 6.307796e-7f);
  p = fmaf(p, a, -7.199955e-6f);
  p = fmaf(p, a, 5.0588675e-5f);
  p = fmaf(p, a, -1.839267e-4f);
  p = fmaf(p, a, -2.0099024e-4f);
  p = fmaf(p, a, 0.007183308f);
  p = fmaf(p, a, -0.052587815f);
  p = fmaf(p, a, -0.45917916f);
  p = fmaf(p, a, -1.151108f);
  return 0.5f * exp2f(p * a);
}
// x Phi(x) as max(x, 0) - |x| (1 - Phi(|x|)): no cancellation in the left tail.
__device__ __forceinline__ float gelu(float x) {
  float a = fabsf(x) > TAIL_END ? TAIL_END : fabsf(x);
  return fmaf(-a, upper_tail(a), x < 0.f ? 0.f : x);
}
__device__ __forceinline__ float gelu_slope(float x) {
  float a = fabsf(x) > TAIL_END ? TAIL_END : fabsf(x);
  float phi = 0.5f * exp2f(fmaf(a * a, -0.72134752f, -0.3257481f));
  float left = fmaf(-phi, a, upper_tail(a));
  return x > 0.f ? 1.f - left : left;
}

constexpr float GELU_TWICE = 1.595769122f;  // 2 sqrt(2 / pi)
constexpr float GELU_CUBE = 0.044715f;
constexpr float GELU_FLAT = 16.f;  // beyond this the tanh form is 0 or x

__device__ __forceinline__ float gelu_tanh(float x) {
  float c = within(x, GELU_FLAT);
  float u = fmaf(c * c, GELU_TWICE * GELU_CUBE, GELU_TWICE) * c;
  return (x < -GELU_FLAT ? -GELU_FLAT : x) * sigmoid(u);
}
__device__ __forceinline__ float gelu_tanh_slope(float x) {
  float c = within(x, GELU_FLAT), square = c * c, s, rest;
  sigmoids(fmaf(square, GELU_TWICE * GELU_CUBE, GELU_TWICE) * c, s, rest);
  float slope = fmaf(square, 3.f * GELU_TWICE * GELU_CUBE, GELU_TWICE);
  return fmaf(s, c * slope * rest, s);
}
__device__ __forceinline__ float silu(float x) {
  return (x < -104.f ? -104.f : x) * sigmoid(x);  // the bound keeps 0 times infinity away
}
__device__ __forceinline__ float silu_slope(float x) {
  float s, rest;
  sigmoids(x, s, rest);
  return fmaf(s, within(x, 104.f) * rest, s);
}

// 2 / pi in words, the most significant first, after a word of zeros; as far as f32 reaches.
ROWS_GLOBAL_TABLE u32 TWO_OVER_PI[8] = {0,           0xa2f9836eu, 0x4e441529u, 0xfc2757d1u,
                                             0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu};

// Splits |x| > 65536 into quarter turns and a rest in [-pi/4, pi/4] (Payne & Hanek 1983).
__device__ __forceinline__ float far_reduce(float x, u32 &quarter) {
  u32 bits = __float_as_uint(x);
  // |x| = mantissa 2^exponent, -7 <= exponent <= 104. Bits of 2 / pi before place `exponent - 2`
  // count whole turns: 96 bits from there on are enough.
  int from = (int)(bits >> 23 & 0xff) - 150 - 2 + 32, word = from >> 5, shift = from & 31;
  u64 mantissa = (bits & 0x7fffff) | 0x800000;
  u32 w[4];
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = TWO_OVER_PI[word + i];
  u32 part[3];
#pragma unroll
  for (int i = 0; i < 3; i++) part[i] = shift ? w[i] << shift | w[i + 1] >> (32 - shift) : w[i];
  u64 low = mantissa * part[2];
  u64 middle = mantissa * part[1] + (low >> 32);
  u64 high = mantissa * part[0] + (middle >> 32);
  // The first two bits are quarters, the rest a fraction of one.
  u64 product = high << 32 | (middle & 0xffffffffu);
  quarter = (u32)(product >> 62);
  i64 rest = (i64)(product << 2);
  if (rest < 0) quarter++;  // nearer to the next
  float r = (float)((double)rest * (1.5707963267948966 / 18446744073709551616.0));
  if (bits >> 31) {
    quarter = 0u - quarter;
    r = -r;
  }
  return r;
}

// sin(x + turns pi / 2)
__device__ __forceinline__ float sine(float x, u32 turns) {
  if (fabsf(x) == INFINITY) return x - x;
  u32 quarter;
  float r;
  if (fabsf(x) > 65536.f) {
    r = far_reduce(x, quarter);
  } else {
    float n = rintf(x * 0.636619772f);
    quarter = (u32)(int)n;
    // Three words of pi / 2: x may be as near to a multiple of it as 2^-24 x.
    r = fmaf(-n, 1.57079637f, x);
    r = fmaf(-n, -4.371139e-8f, r);
    r = fmaf(-n, -1.7151245e-15f, r);
  }
  quarter += turns;
  float z = r * r;
  float s = fmaf(2.8373952e-6f, z, -1.9853505e-4f);
  s = fmaf(fmaf(s, z, 0.00833338f), z, -0.16666667f);
  s = fmaf(s * z, r, r);
  float c = fmaf(fmaf(2.4432553e-5f, z, -0.001388731f), z, 0.041666646f);
  c = fmaf(fmaf(c, z, -0.5f), z, 1.f);
  float y = quarter & 1 ? c : s;
  return quarter & 2 ? -y : y;
}

// Numbers of the functions, in the order of `elementwise::Unary`.
enum UnaryOp {
  NEG, EXP, LOG, SQRT, RECIP, TANH, SIGMOID, RELU, LEAKY_RELU, GELU, GELU_TANH, SILU, ELU,
  SOFTPLUS, POW, AFFINE, STEP, SIN, COS, ERF, ABS, SQUARE, CUBE, IDENTITY
};

#define EACH(f)                       \
  _Pragma("unroll") for (int e = 0; e < E; e++) { \
    float x = v[e];                   \
    v[e] = f;                         \
  }                                   \
  break

// Functions that no network applies to much: one number at a time.
__device__ __forceinline__ bool is_rare(int op) { return op == SIN || op == COS || op == ERF; }
__device__ __forceinline__ float rare(int op, float x) {
  if (op == ERF) return erff(x);
  if (op == SIN && x == 0.f) return x;  // the reduction loses the sign of -0
  return sine(x, op == COS);
}

// Applies one of the others to some numbers; `pow` has a kernel of its own.
template <int E>
__device__ __forceinline__ void apply_unary(int op, float p, float q, float *v) {
  switch (op) {
    case NEG: EACH(-x);
    case EXP: EACH(expf(x));
    case LOG: EACH(logf(x));
    case SQRT: EACH(sqrtf(x));
    case RECIP: EACH(1.f / x);
    case TANH: EACH(tanhf(x));
    case SIGMOID: EACH(sigmoid(x));
    case RELU: EACH(x < 0.f ? 0.f : x);
    case LEAKY_RELU: EACH(x > 0.f ? x : p * x);
    case GELU: EACH(gelu(x));
    case GELU_TANH: EACH(gelu_tanh(x));
    case SILU: EACH(silu(x));
    case ELU: EACH(x > 0.f ? x : p * expm1f(x));
    case SOFTPLUS: EACH(softplus(x));
    case AFFINE: EACH(fmaf(p, x, q));
    case STEP: EACH(x > 0.f ? 1.f : 0.f);
    case ABS: EACH(fabsf(x));
    case SQUARE: EACH(x * x);
    case CUBE: EACH(x * x * x);
    default: break;
  }
}

// Applies an activation: those of the functions above that stand between two layers.
template <int E>
__device__ __forceinline__ void apply_activation(int op, float p, float *v) {
  switch (op) {
    case RELU: EACH(x < 0.f ? 0.f : x);
    case LEAKY_RELU: EACH(x > 0.f ? x : p * x);
    case GELU: EACH(gelu(x));
    case GELU_TANH: EACH(gelu_tanh(x));
    case SILU: EACH(silu(x));
    case TANH: EACH(tanhf(x));
    case SIGMOID: EACH(sigmoid(x));
    case ELU: EACH(x > 0.f ? x : p * expm1f(x));
    case SOFTPLUS: EACH(softplus(x));
    default: break;
  }
}
#undef EACH

#define EACH(slope)                   \
  _Pragma("unroll") for (int e = 0; e < E; e++) { \
    float x = v[e];                   \
    d[e] = (slope) * d[e];            \
  }                                   \
  break

__device__ __forceinline__ float sigmoid_slope(float x) {
  float s, rest;
  sigmoids(x, s, rest);
  return s * rest;
}

// Multiplies gradients by the derivative of an activation at some numbers.
template <int E>
__device__ __forceinline__ void apply_slope(int op, float p, const float *v, float *d) {
  switch (op) {
    case RELU:
#pragma unroll
      for (int e = 0; e < E; e++) d[e] = v[e] > 0.f ? d[e] : 0.f;
      break;
    case LEAKY_RELU: EACH(x > 0.f ? 1.f : p);
    case GELU: EACH(gelu_slope(x));
    case GELU_TANH: EACH(gelu_tanh_slope(x));
    case SILU: EACH(silu_slope(x));
    // 1 - tanh(x)^2 = 4 s (1 - s) with s = sigmoid(2 x): nothing cancels.
    case TANH: EACH(4.f * sigmoid_slope(x + x));
    case SIGMOID: EACH(sigmoid_slope(x));
    case ELU: EACH(x > 0.f ? 1.f : p * expf(x));
    case SOFTPLUS: EACH(sigmoid(x));
    default: break;
  }
}
#undef EACH

}  // namespace rows
