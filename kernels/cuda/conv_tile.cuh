// Convolution over one to three axes, its two gradients, and with them the transposed convolution
// and all derivatives of higher order (`conv_shape.cuh` has the formulas).
//
// The ladder: `conv_*_plain` computes one sum per thread. The tiles below are matrix products on
// tensor cores whose operands are gathered, never unrolled in memory: tables in shared memory hold
// what a row, a column and a place in k add to an address, 4-byte cp.async with zeros outside of
// the image bring the elements, and the main loop is that of the matrix product. f32 in and out;
// `tf32` rounds factors to 10 bits behind the point, `f32` keeps about 21 by three products.
//
// blockIdx.x walks through tiles (rows first), y through groups, z through pieces of the sum
// (`split_k` each, a multiple of the tile's); their results are `stride_split` apart and are added
// by `conv_finish` in order.
#pragma once
#include "conv_shape.cuh"
#include "operand.cuh"

namespace conv {

// One operand, element by element. `fixed[e]` belongs to row (column) e, `along[slot][k]` to k.
template <int EXTENT, int BK, int STAGES, int THREADS, bool KMAJOR>
struct Gather {
  static constexpr int FAST = KMAJOR ? BK : EXTENT, STEP = THREADS / FAST;
  static constexpr int COUNT = EXTENT * BK / THREADS;
  static constexpr int AT_ONCE = COUNT < 4 ? COUNT : 4;
  static_assert(THREADS % FAST == 0 && COUNT % AT_ONCE == 0, "gather");
  const float *source;
  const int4 *fixed, *along;
  int3 limits;

  __device__ __forceinline__ void fill(SharedAddr stage, int kt) {
    const int4 *here = along + kt % STAGES * BK;
    int fast = threadIdx.x % FAST, slow = threadIdx.x / FAST;
    int4 mine = KMAJOR ? here[fast] : fixed[fast];
    const int4 *others = (KMAJOR ? fixed : here) + slow;
    const float *from = source + mine.x;
    stage += fast % 4 * 4;
    // Some at a time: a copy that follows a load from shared memory costs three empty instructions.
#pragma unroll
    for (int j = 0; j < COUNT; j += AT_ONCE) {
      int4 other[AT_ONCE];
#pragma unroll
      for (int e = 0; e < AT_ONCE; e++) other[e] = load(others + (j + e) * STEP);
#pragma unroll
      for (int e = 0; e < AT_ONCE; e++) {
        int at = slow + (j + e) * STEP;
        // Without && there are no branches. A copy of no bytes reads nothing, wherever it points.
        bool inside = ((u32)(mine.y + other[e].y) < (u32)limits.x) &
                      ((u32)(mine.z + other[e].z) < (u32)limits.y) &
                      ((u32)(mine.w + other[e].w) < (u32)limits.z);
        int to = at * FAST * 4 + tile::swizzle<float, FAST / 4, KMAJOR>(at, fast / 4) * 16;
        shared_copy_async<4>(stage + to, from + other[e].x, inside ? 4 : 0);
      }
    }
  }
};

// Entries of places in k, a slot of the ring at a time; warps take turns.
template <int MODE, int BK, int STAGES, int WARPS>
struct PrepareK {
  static constexpr bool ACTIVE = true;
  const Product<MODE> &product;
  int4 *along_a, *along_b;
  int first, end;

  __device__ __forceinline__ void operator()(int kt) const {
    int lane = threadIdx.x % 32, k = first + kt * BK + lane, slot = kt % STAGES * BK + lane;
    if (threadIdx.x / 32 != kt % WARPS || lane >= BK) return;
    int4 a = make_int4(0, OUTSIDE, 0, 0), b = a;
    if (k < end) product.along(k, a, b);
    if (Product<MODE>::GATHERS_A) along_a[slot] = a;
    along_b[slot] = b;
  }
};

// What lies behind the stages in shared memory.
template <class C>
struct Tables {
  int4 row_a[C::BM], col_b[C::BN], row_out[C::BM], col_out[C::BN];
  int4 along_a[C::STAGES * C::BK], along_b[C::STAGES * C::BK];
  float bias[C::BM];
};

template <int MODE, class C>
__device__ __forceinline__ void compute(const float *a, const float *b, const float *bias,
                                        float *out, int alignment_a, int split_k, i64 stride_split,
                                        const Shape &shape) {
  constexpr int STAGED = C::BM * C::BN * 4, STAGES = C::STAGES * C::STAGE_BYTES;
  DYN_SMEM(char, smem);
  auto &tables = *reinterpret_cast<Tables<C> *>(smem + (STAGED > STAGES ? STAGED : STAGES));
  Product<MODE> product{shape};
  int rows = product.rows(), cols = product.cols();
  int tiles_m = (rows + C::BM - 1) / C::BM;
  int row = blockIdx.x % tiles_m * C::BM, col = blockIdx.x / tiles_m * C::BN;
  int first = blockIdx.z * split_k, end = min(first + split_k, product.depth());

  for (int e = threadIdx.x; e < C::BM; e += C::THREADS) {
    bool exists = row + e < rows;
    int4 none = make_int4(0, OUTSIDE, 0, 0);
    tables.row_a[e] = exists ? product.row_a(row + e) : none;
    tables.row_out[e] = exists ? product.row_out(row + e) : none;
    tables.bias[e] = exists && bias ? bias[product.channel(row + e)] : 0.f;
  }
  for (int e = threadIdx.x; e < C::BN; e += C::THREADS) {
    bool exists = col + e < cols;
    int4 none = make_int4(0, OUTSIDE, 0, 0);
    tables.col_b[e] = exists ? product.col_b(col + e) : none;
    tables.col_out[e] = exists ? product.col_out(col + e) : none;
  }

  float acc[C::MT][C::NT][4] = {};
  PrepareK<MODE, C::BK, C::STAGES, C::THREADS / 32> prepare{product, tables.along_a,
                                                            tables.along_b, first, end};
  Gather<C::BN, C::BK, C::STAGES, C::THREADS, C::B_KMAJOR> load_b{b, tables.col_b, tables.along_b,
                                                                  product.limits_b()};
  int tiles = (end - first + C::BK - 1) / C::BK;
  if constexpr (Product<MODE>::GATHERS_A) {
    Gather<C::BM, C::BK, C::STAGES, C::THREADS, C::A_KMAJOR> load_a{
        a, tables.row_a, tables.along_a, product.limits_a()};
    tile::sum_tiles<C>(load_a, load_b, prepare, to_shared(smem), tiles, acc);
  } else {
    int depth = product.depth();
    tile::Operand<float, C::BM, C::BK, C::THREADS, true, true> load_a(
        a + (i64)row * depth + first, depth, rows - row, end - first, alignment_a);
    tile::sum_tiles<C>(load_a, load_b, prepare, to_shared(smem), tiles, acc);
  }
  float *sums = reinterpret_cast<float *>(smem);
  tile::stage_sums<C>(sums, acc);

  // Neighbouring threads write neighbours in memory: rows that lie side by side, then columns.
  out += blockIdx.z * stride_split;
  int3 limits = product.limits_out();
  int beside = product.rows_side_by_side(), row_groups = (C::BM + beside - 1) / beside;
  int r = threadIdx.x % beside, rest = threadIdx.x / beside;
  int r_step = C::THREADS % beside, rest_step = C::THREADS / beside;
#pragma unroll 1
  for (; rest < row_groups * C::BN; r += r_step, rest += rest_step) {
    if (r >= beside) {
      r -= beside;
      rest++;
    }
    int e_row = rest / C::BN * beside + r, e_col = rest % C::BN;
    if (e_row >= C::BM || rest >= row_groups * C::BN) continue;
    int4 at_row = tables.row_out[e_row], at_col = tables.col_out[e_col];
    if ((u32)(at_row.y + at_col.y) < (u32)limits.x && (u32)(at_row.z + at_col.z) < (u32)limits.y &&
        (u32)(at_row.w + at_col.w) < (u32)limits.z)
      out[at_row.x + at_col.x] = sums[tile::staged<C::BN>(e_row, e_col)] + tables.bias[e_row];
  }
}

template <int MODE, int BM, int BN, int BK, int WM, int WN, int STAGES, int PASSES>
using Tile = tile::Config<float, BM, BN, BK, WM, WN, STAGES, Product<MODE>::A_KMAJOR,
                          Product<MODE>::B_KMAJOR, PASSES>;

// Pointers of the block's group.
__device__ __forceinline__ i64 x_group(const Shape &s) {
  return (i64)blockIdx.y * s.cin * s.inputs();
}
__device__ __forceinline__ i64 y_group(const Shape &s) {
  return (i64)blockIdx.y * s.cout * s.outputs();
}
__device__ __forceinline__ i64 w_group(const Shape &s) {
  return (i64)blockIdx.y * s.cout * s.cin * s.kernel_size();
}

}  // namespace conv

#define CONV_FORWARD_KERNEL(name, threads, blocks, ...)                                         \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                                 \
      name(const float *x, const float *w, const float *bias, float *y, int alignment,          \
           int split_k, i64 stride_split, conv::Shape s) {                                      \
    conv::compute<conv::FORWARD, conv::Tile<conv::FORWARD, __VA_ARGS__>>(                       \
        w + conv::w_group(s), x + conv::x_group(s), bias ? bias + blockIdx.y * s.cout : nullptr, \
        y + conv::y_group(s), alignment, split_k, stride_split, s);                             \
  }
#define CONV_DATA_KERNEL(name, threads, blocks, ...)                                            \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                                 \
      name(const float *d_y, const float *w, const float *bias, float *d_x, int split_k,        \
           i64 stride_split, conv::Shape s) {                                                   \
    conv::compute<conv::DATA, conv::Tile<conv::DATA, __VA_ARGS__>>(                             \
        w + conv::w_group(s), d_y + conv::y_group(s), bias ? bias + blockIdx.y * s.cin : nullptr, \
        d_x + conv::x_group(s), 4, split_k, stride_split, s);                                   \
  }
#define CONV_FILTER_KERNEL(name, threads, blocks, ...)                                          \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                                 \
      name(const float *x, const float *d_y, float *d_w, int split_k, i64 stride_split,         \
           conv::Shape s) {                                                                     \
    conv::compute<conv::FILTER, conv::Tile<conv::FILTER, __VA_ARGS__>>(                         \
        d_y + conv::y_group(s), x + conv::x_group(s), nullptr, d_w + conv::w_group(s), 4,       \
        split_k, stride_split, s);                                                              \
  }
