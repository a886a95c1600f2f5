// The persistent backward of a recurrent sequence: see recurrent_seq.cuh.
#pragma once
#include "recurrent_seq.cuh"

// gates    [steps, batch, G * hidden]: activated gates on entry, the gradient of the sums on return;
//          of an RNN: the gradient that reaches each state on entry, of the sums on return
// d_rec    [steps, batch, 3 * hidden], written: the gradient of W_hh h + b_hh; of a GRU
// w_hh     [G * hidden, hidden], as PyTorch has it; bf16 or f32
// deltas   [steps, batch, G, pitch], bf16 or f32, 0xff on entry: on return what goes back through w_hh
//          (d_rec of a GRU, else the gradient of the sums)
// first    [batch, hidden]: c0 of an LSTM, h0 of a GRU; null is zero
// states   [steps, batch, hidden]: c of an LSTM, else h
// h_n      [steps, batch, hidden]: of a GRU, from the forward
// d_h      [steps, batch, hidden]: the gradient that reaches each output; not of an RNN
// d_c      [steps, batch, hidden] or null: the gradient that reaches each cell of an LSTM from outside
// d_h0     [batch, hidden], written; d_c0 likewise, of an LSTM
// counters, pitch, span: as in the forward
template <Cell CELL, int UNITS, class Product>
__device__ __forceinline__ void sequence_backward(
    float *gates, float *d_rec, const typename Product::Element *w_hh,
    typename Product::Element *deltas, const float *first, const float *states, const float *h_n,
    const float *d_h, const float *d_c, float *d_h0, float *d_c0, u32 *counters, int steps,
    int batch, int hidden, int pitch, int span, int passes, int flags) {
  constexpr int G = gates_of(CELL), M = UNITS;
  constexpr int PARTS = Place<UNITS>::PARTS;
  DYN_SMEM(unsigned char, smem);
  float *partial = reinterpret_cast<float *>(smem);
  // [passes][threads]: what goes to the step before without w_hh: d_c of an LSTM, z d_h of a GRU.
  float *carried = partial + 2 * Partial<M>::FLOATS;
  unsigned char *stages = reinterpret_cast<unsigned char *>(carried + passes * SEQ_THREADS);
  unsigned char *room = stages + Product::stage_bytes();

  int slice = blockIdx.x, slices = gridDim.x, group = blockIdx.y;
  Patience patience{counters};
  counters++;
  Product product;
  product.load(room, span, G * pitch, [&](int m, int k) {
    int unit = slice * UNITS + m, g = k / pitch, from = k % pitch;
    bool inside = unit < hidden && from < hidden && g < G;
    return inside ? w_hh[((i64)g * hidden + from) * hidden + unit] : typename Product::Element{};
  });
  Place<UNITS> place;
  int unit = slice * UNITS + place.unit;
  for (int pass = 0; pass < passes; pass++) carried[pass * SEQ_THREADS + threadIdx.x] = 0.f;
  __syncthreads();

  bool turned = flags & BACKWARDS_IN_TIME;
  i64 step_deltas = (i64)batch * G * pitch;
  int buffer = 0;
  for (int step = steps - 1; step >= -1; step--) {
    int t = turned ? steps - 1 - step : step;
    int later = turned ? t - 1 : t + 1, earlier = turned ? t + 1 : t - 1;
    for (int pass = 0; pass < passes; pass++) {
      int base = (group * passes + pass) * SEQ_ROWS, row = base + place.row;
      if (base >= batch) break;
      bool inside = unit < hidden && row < batch;
      i64 at = ((i64)t * batch + row) * hidden + unit, at_first = (i64)row * hidden + unit;
      i64 at_earlier = ((i64)earlier * batch + row) * hidden + unit;
      float *mine = gates + ((i64)t * batch + row) * G * hidden + unit;
      // What the pointwise part needs, under way while the gradients are awaited.
      float y[G] = {}, now = 0.f, past = 0.f, of_n = 0.f, d_out = 0.f, d_cell = 0.f;
      if (inside && step >= 0) {
#pragma unroll
        for (int g = 0; g < G; g++) y[g] = mine[g * hidden];
        if (CELL != Cell::GRU) now = states[at];
        if (CELL != Cell::RNN) {
          past = step > 0 ? states[at_earlier] : first ? first[at_first] : 0.f;
          d_out = d_h[at];
        }
        if (CELL == Cell::GRU) of_n = h_n[at];
        if (CELL == Cell::LSTM && d_c) d_cell = d_c[at];
      }
      float sum[1] = {};
      if (step < steps - 1) {
        if (flags & BY_COUNTER)
          await_counters(counters + (group * passes + pass) * slices, slices,
                         (steps - 1 - step) * SEQ_WARPS, patience);
        float *sums_at = partial + buffer * Partial<M>::FLOATS;
        product.run(deltas + later * step_deltas + (i64)base * G * pitch, (i64)G * pitch,
                    batch - base, sums_at, stages, patience);
        __syncthreads();
        buffer ^= 1;
        place.template collect<M, 1>(sums_at, sum);
      }
      float &carry = carried[pass * SEQ_THREADS + threadIdx.x];
      if (CELL == Cell::GRU) sum[0] += carry;
      if (step < 0) {
        if (inside && place.part == 0) {
          d_h0[at_first] = sum[0];
          if (CELL == Cell::LSTM) d_c0[at_first] = carry;
        }
        continue;
      }
      float d[G];
      float d_new = 0.f;
      if constexpr (CELL == Cell::LSTM) {
        float tanh_c = tanh_by_exp(now), dh = d_out + sum[0];
        float dc = carry + d_cell + dh * y[3] * (1.f - tanh_c * tanh_c);
        d[0] = dc * y[2] * y[0] * (1.f - y[0]);
        d[1] = dc * past * y[1] * (1.f - y[1]);
        d[2] = dc * y[0] * (1.f - y[2] * y[2]);
        d[3] = dh * tanh_c * y[3] * (1.f - y[3]);
        carry = dc * y[1];
      } else if constexpr (CELL == Cell::GRU) {
        float dh = d_out + sum[0];
        d_new = dh * (1.f - y[1]) * (1.f - y[2] * y[2]);
        d[0] = d_new * of_n * y[0] * (1.f - y[0]);
        d[1] = dh * (past - y[2]) * y[1] * (1.f - y[1]);
        d[2] = d_new * y[0];
        carry = dh * y[1];
      } else {
        float dh = y[0] + sum[0];
        d[0] = !(flags & RECTIFIER) ? dh * (1.f - now * now) : now > 0.f ? dh : 0.f;
      }
      // Each part sends and stores some of the gates.
      typename Product::Element *to = deltas + t * step_deltas + (i64)row * G * pitch + unit;
#pragma unroll
      for (int first_gate = 0; first_gate < G; first_gate += PARTS) {
        float value = d[first_gate];
#pragma unroll
        for (int p = 1; p < PARTS; p++)
          if (first_gate + p < G && place.part == p) value = d[first_gate + p];
        int g = first_gate + place.part;
        Product::send(to + g * pitch, unit < hidden ? value : 0.f,
                      g < G && row < batch && unit < pitch);
      }
      // All parts have read the activated gates that some of them now overwrite.
      __syncwarp();
      if (flags & BY_COUNTER) {
        if (lane_id() == 0) add_release(counters + (group * passes + pass) * slices + slice, 1);
      }
      if (inside) {
#pragma unroll
        for (int g = 0; g < G; g++)
          if (g % PARTS == place.part) {
            if (CELL == Cell::GRU) d_rec[((i64)t * batch + row) * 3 * hidden + g * hidden + unit] = d[g];
            mine[g * hidden] = CELL == Cell::GRU && g == 2 ? d_new : d[g];
          }
      }
    }
  }
}
