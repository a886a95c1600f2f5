// The persistent backward of a recurrent sequence: see recurrent_seq.cuh.
#pragma once
#include "recurrent_seq.cuh"

// gates    [steps, batch, G * hidden]: activated gates on entry, the gradient of the sums on
//          return; of an RNN: the gradient that reaches each state on entry, of the sums on return
// d_rec    [steps, batch, 3 * hidden], written: the gradient of W_hh h + b_hh; of a GRU
// weights  what recurrent_weights_* makes of w_hh
// deltas   [steps, batch, G, pitch], bf16 or f32, 0xff on entry: on return what goes back through
//          w_hh (d_rec of a GRU, else the gradient of the sums)
// first    [batch, hidden]: c0 of an LSTM, h0 of a GRU; null is zero
// states   [steps, batch, hidden]: c of an LSTM, else h
// h_n      [steps, batch, hidden]: of a GRU, from the forward
// d_h      [steps, batch, hidden]: the gradient that reaches each output; not of an RNN
// d_c      [steps, batch, hidden] or null: the gradient that reaches each cell of an LSTM from
//          outside
// d_h0     [batch, hidden], written; d_c0 likewise, of an LSTM
// counters, pitch, span: as in the forward
template <Cell CELL, int UNITS, class Product>
__device__ __forceinline__ void sequence_backward(
    float *gates, float *d_rec, const typename Product::Weights *weights,
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
  product.load(room, span, G * pitch, weights);

  Place<UNITS> place;
  int unit = slice * UNITS + place.unit;
#pragma unroll 1
  for (int pass = 0; pass < passes; pass++) carried[pass * SEQ_THREADS + threadIdx.x] = 0.f;
  __syncthreads();

  bool turned = flags & BACKWARDS_IN_TIME;
  i64 step_deltas = (i64)batch * G * pitch;
  auto time_of = [&](int step) { return turned ? steps - 1 - step : step; };
  auto row_of = [&](int pass) { return (group * passes + pass) * SEQ_ROWS + place.row; };
  auto gates_at = [&](int t, int row) {
    return gates + ((i64)t * batch + row) * G * hidden + unit;
  };
  auto is_mine = [&](int g) { return g % PARTS == place.part; };

  auto ask_for = [&](int step) {
    int t = time_of(step);
#pragma unroll 1
    for (int pass = 0; step >= 0 && pass < passes; pass++) {
      int row = row_of(pass);
      if (row >= batch || unit >= pitch) break;
      i64 at = ((i64)t * batch + row) * hidden + unit;
#pragma unroll
      for (int g = 0; g < G; g++) {
        if (!is_mine(g)) continue;
        if (unit < hidden) prefetch_l2(gates_at(t, row) + g * hidden);
        if (place.unit % 16 == 0)
          prefetch_l2(deltas + t * step_deltas + ((i64)row * G + g) * pitch + unit);
      }
      if (unit >= hidden) break;
      if (place.part == 0) prefetch_l2(states + at);
      if (CELL != Cell::RNN && place.part == PARTS - 1) prefetch_l2(d_h + at);
      if (CELL == Cell::LSTM && d_c && place.part == 0) prefetch_l2(d_c + at);
      if (CELL == Cell::GRU && place.part == 0) prefetch_l2(h_n + at);
    }
  };
  // What the pointwise part needs. It is loaded while the step before is computed, not while
  // gradients are awaited: loads come back in the order in which they were issued.
  struct Inputs {
    float y[G], now, past, of_n, d_out, d_cell;
  } next;
  auto load_inputs = [&](int step, int pass) {
    int row = row_of(pass), t = time_of(step);
    i64 at = ((i64)t * batch + row) * hidden + unit;
    i64 at_earlier = at + (turned ? 1 : -1) * (i64)batch * hidden;
    const float *from = gates_at(t, row);
    bool inside = step >= 0 && unit < hidden && row < batch;
#pragma unroll
    for (int g = 0; g < G; g++) next.y[g] = inside ? from[g * hidden] : 0.f;
    next.now = next.past = next.of_n = next.d_out = next.d_cell = 0.f;
    if (!inside) return;
    if (CELL != Cell::GRU) next.now = states[at];
    if (CELL != Cell::RNN) {
      next.past =
          step > 0 ? states[at_earlier] : first ? first[(i64)row * hidden + unit] : 0.f;
      next.d_out = d_h[at];
    }
    if (CELL == Cell::GRU) next.of_n = h_n[at];
    if (CELL == Cell::LSTM && d_c) next.d_cell = d_c[at];
  };
#pragma unroll 1
  for (int step = 0; step < AHEAD; step++) ask_for(steps - 1 - step);
  load_inputs(steps - 1, 0);
  // Passes of the last group may lie beyond the batch.
  int full_passes = min(passes, (batch - group * passes * SEQ_ROWS + SEQ_ROWS - 1) / SEQ_ROWS);
  int buffer = 0;
  for (int step = steps - 1; step >= -1; step--) {
    int t = time_of(step), later = turned ? t - 1 : t + 1;
    for (int pass = 0; pass < full_passes; pass++) {
      int row = row_of(pass), base = row - place.row;
      bool inside = unit < hidden && row < batch;
      i64 at_first = (i64)row * hidden + unit;
      float *mine = gates_at(t, row);
      Inputs in = next;
      float sum[1] = {};
      float *sums_at = partial + buffer * Partial<M>::FLOATS;
      if (step < steps - 1) {
        if (flags & BY_COUNTER)
          await_counters(counters + (group * passes + pass) * slices, slices,
                         (steps - 1 - step) * SEQ_WARPS, patience);
        product.run(deltas + later * step_deltas + (i64)base * G * pitch, (i64)G * pitch,
                    batch - base, sums_at, stages, patience);
      }
      bool last = pass + 1 == full_passes;
      load_inputs(step - last, last ? 0 : pass + 1);
      if (pass == 0) ask_for(step - AHEAD);
      if (step < steps - 1) {
        // One barrier: the other buffer is written only by those who are past it.
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
        float tanh_c = tanh_by_exp(in.now), dh = in.d_out + sum[0];
        float dc = carry + in.d_cell + dh * in.y[3] * (1.f - tanh_c * tanh_c);
        d[0] = dc * in.y[2] * in.y[0] * (1.f - in.y[0]);
        d[1] = dc * in.past * in.y[1] * (1.f - in.y[1]);
        d[2] = dc * in.y[0] * (1.f - in.y[2] * in.y[2]);
        d[3] = dh * tanh_c * in.y[3] * (1.f - in.y[3]);
        carry = dc * in.y[1];
      } else if constexpr (CELL == Cell::GRU) {
        float dh = in.d_out + sum[0];
        d_new = dh * (1.f - in.y[1]) * (1.f - in.y[2] * in.y[2]);
        d[0] = d_new * in.of_n * in.y[0] * (1.f - in.y[0]);
        d[1] = dh * (in.past - in.y[2]) * in.y[1] * (1.f - in.y[1]);
        d[2] = d_new * in.y[0];
        carry = dh * in.y[1];
      } else {
        float dh = in.y[0] + sum[0];
        d[0] = !(flags & RECTIFIER) ? dh * (1.f - in.now * in.now) : in.now > 0.f ? dh : 0.f;
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
          if (is_mine(g)) {
            if (CELL == Cell::GRU) d_rec[mine - gates + g * hidden] = d[g];
            mine[g * hidden] = CELL == Cell::GRU && g == 2 ? d_new : d[g];
          }
      }
    }
  }
}
