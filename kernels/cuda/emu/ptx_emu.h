// The meaning of the instructions in common/ptx.cuh, in plain C++.
#pragma once

template <class V>
inline void emu_check_aligned(const V *p, const char *what) {
  if ((uintptr_t)p & (sizeof(V) - 1)) emu::die(what);
}
template <class V>
inline V load(const V *p) {
  emu_check_aligned(p, "load: misaligned address");
  return *p;
}
template <class V>
inline void store(V *p, V v) {
  emu_check_aligned(p, "store: misaligned address");
  *p = v;
}
template <class V>
inline V load_const(const V *p) {
  return load(p);
}
template <class V>
inline V load_stream(const V *p) {
  return load(p);
}
template <class V>
inline V load_l2(const V *p) {
  return load(p);
}
template <class V>
inline void store_stream(V *p, V v) {
  store(p, v);
}
template <class V>
inline void store_l2(V *p, V v) {
  store(p, v);
}
template <class V>
inline V __ldg(const V *p) {
  return load(p);
}
inline void prefetch_l2(const void *) {}

inline u32 load_acquire(const u32 *p) {
  u32 v = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  emu::poll(p, v);
  return v;
}
inline u32 load_volatile(const u32 *p) { return load_acquire(p); }
inline void store_release(u32 *p, u32 v) {
  __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
  emu::wake(p);
}
inline void store_volatile(u32 *p, u32 v) { store_release(p, v); }
inline void add_release(u32 *p, u32 v) {
  __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
  emu::wake(p);
}

inline void named_barrier_sync(int id, int threads) {
  if (threads <= 0 || threads % 32) emu::die("bar.sync: not whole warps");
  emu::barrier(id, threads, true);
}
inline void named_barrier_arrive(int id, int threads) {
  if (threads <= 0 || threads % 32) emu::die("bar.arrive: not whole warps");
  emu::barrier(id, threads, false);
}

// The bytes land only at the wait; until then the destination is NaN, so a forgotten wait is seen.
template <int BYTES>
inline void emu_cp_async(void *smem, const void *gmem, int source_bytes) {
  if (((uintptr_t)smem | (uintptr_t)gmem) & (BYTES - 1)) emu::die("cp.async: misaligned address");
  if (source_bytes < 0 || source_bytes > BYTES) emu::die("cp.async: source size");
  char *at = (char *)smem, *start = emu::block->smem;
  if (at < start || at + BYTES > start + emu::block->smem_bytes)
    emu::die("cp.async: destination outside of shared memory");
  memset(smem, 0xff, BYTES);
  emu::self->copies.push_back({smem, gmem, BYTES, source_bytes, emu::self->committed});
}
inline void cp_async16(void *smem, const void *gmem) { emu_cp_async<16>(smem, gmem, 16); }
inline void cp_async8(void *smem, const void *gmem) { emu_cp_async<8>(smem, gmem, 8); }
inline void cp_async4(void *smem, const void *gmem) { emu_cp_async<4>(smem, gmem, 4); }
inline void cp_async16_zfill(void *smem, const void *gmem, int source_bytes) {
  emu_cp_async<16>(smem, gmem, source_bytes);
}
inline void cp_async8_zfill(void *smem, const void *gmem, int source_bytes) {
  emu_cp_async<8>(smem, gmem, source_bytes);
}
inline void cp_async4_zfill(void *smem, const void *gmem, int source_bytes) {
  emu_cp_async<4>(smem, gmem, source_bytes);
}
inline void cp_async_commit() { emu::self->committed++; }
template <int N>
inline void cp_async_wait() {
  auto &copies = emu::self->copies;
  size_t kept = 0;
  for (auto &c : copies) {
    if (c.group < emu::self->committed - N) {
      memset(c.smem, 0, c.bytes);
      memcpy(c.smem, c.gmem, c.source_bytes);
    } else {
      copies[kept++] = c;
    }
  }
  copies.resize(kept);
}

template <int MATRICES, bool TRANS>
inline void emu_ldmatrix(u32 *r, const void *smem) {
  struct Lane {
    const char *row;
    u32 *r;
  } mine{(const char *)smem, r};
  if (emu::self->linear % 32 < 8 * MATRICES && ((uintptr_t)smem & 15))
    emu::die("ldmatrix: misaligned");
  emu::collective(emu::OP_LDMATRIX + MATRICES * 2 + TRANS, 32, ~0u, &mine, [](void **lanes) {
    for (int q = 0; q < MATRICES; q++)
      for (int l = 0; l < 32; l++) {
        u16 pair[2];
        for (int e = 0; e < 2; e++) {
          int row = TRANS ? l % 4 * 2 + e : l / 4, column = TRANS ? l / 4 : l % 4 * 2 + e;
          memcpy(&pair[e], ((Lane *)lanes[q * 8 + row])->row + column * 2, 2);
        }
        memcpy(&((Lane *)lanes[l])->r[q], pair, 4);
      }
  });
}
inline void ldmatrix_x4(u32 (&r)[4], const void *smem) { emu_ldmatrix<4, false>(r, smem); }
inline void ldmatrix_x2(u32 (&r)[2], const void *smem) { emu_ldmatrix<2, false>(r, smem); }
inline void ldmatrix_x1(u32 (&r)[1], const void *smem) { emu_ldmatrix<1, false>(r, smem); }
inline void ldmatrix_x4_trans(u32 (&r)[4], const void *smem) { emu_ldmatrix<4, true>(r, smem); }
inline void ldmatrix_x2_trans(u32 (&r)[2], const void *smem) { emu_ldmatrix<2, true>(r, smem); }
inline void ldmatrix_x1_trans(u32 (&r)[1], const void *smem) { emu_ldmatrix<1, true>(r, smem); }

struct EmuMmaLane {
  float *c;
  const u32 *a, *b;
};
// c += a b, once the fragments of all lanes are spread into `a` [16, K] and `b` [K, 8].
template <int K>
inline void emu_mma_finish(void **lanes, const float (&a)[16][K], const float (&b)[K][8]) {
  float d[16][8] = {};
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < 4; r++)
      ((EmuMmaLane *)lanes[l])->c[r] += d[l / 4 + (r >> 1) * 8][l % 4 * 2 + (r & 1)];
}
inline void mma_bf16_16816(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  EmuMmaLane mine{c, a, b};
  emu::collective(emu::OP_MMA_BF16_16816, 32, ~0u, &mine, [](void **lanes) {
    float am[16][16], bm[16][8];
    for (int l = 0; l < 32; l++) {
      auto *lane = (EmuMmaLane *)lanes[l];
      int g = l / 4, t = l % 4;
      for (int r = 0; r < 4; r++) {
        float *at = &am[g + (r & 1) * 8][t * 2 + (r >> 1) * 8];
        at[0] = low_float(lane->a[r]);
        at[1] = high_float(lane->a[r]);
      }
      for (int r = 0; r < 2; r++) {
        bm[t * 2 + r * 8][g] = low_float(lane->b[r]);
        bm[t * 2 + 1 + r * 8][g] = high_float(lane->b[r]);
      }
    }
    emu_mma_finish<16>(lanes, am, bm);
  });
}
// The unit ignores the low 13 bits: an operand that was not rounded by to_tf32 is cut off.
inline void mma_tf32_1688(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  EmuMmaLane mine{c, a, b};
  emu::collective(emu::OP_MMA_TF32_1688, 32, ~0u, &mine, [](void **lanes) {
    auto cut = [](u32 x) { return __uint_as_float(x & 0xffffe000u); };
    float am[16][8], bm[8][8];
    for (int l = 0; l < 32; l++) {
      auto *lane = (EmuMmaLane *)lanes[l];
      int g = l / 4, t = l % 4;
      for (int r = 0; r < 4; r++) am[g + (r & 1) * 8][t + (r >> 1) * 4] = cut(lane->a[r]);
      for (int r = 0; r < 2; r++) bm[t + r * 4][g] = cut(lane->b[r]);
    }
    emu_mma_finish<8>(lanes, am, bm);
  });
}
inline u32 to_tf32(float x) {
  u32 word = __float_as_uint(x);
  return x != x ? 0x7fffe000u : (word + 0x1000u) & 0xffffe000u;
}

inline float emu_flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }
inline float exp2_approx(float x) { return emu_flush(exp2f(emu_flush(x))); }
inline float log2_approx(float x) { return log2f(emu_flush(x)); }
inline float tanh_approx(float x) { return tanhf(x); }
inline float rcp_approx(float x) { return emu_flush(1.f / emu_flush(x)); }
inline float rsqrt_approx(float x) { return 1.f / sqrtf(emu_flush(x)); }
inline float sqrt_approx(float x) { return sqrtf(emu_flush(x)); }
