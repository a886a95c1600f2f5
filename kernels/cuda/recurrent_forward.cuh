// The persistent forward of a recurrent sequence: see recurrent_seq.cuh.
#pragma once
#include "recurrent_seq.cuh"

// gates    [steps, batch, G * hidden]: the input part of the sums on entry; on return activated
//          gates (of an RNN: the states), but for WITHOUT_GATES
// weights  what recurrent_weights_* makes of w_hh
// b_hh     [G * hidden], of a GRU
// states   [steps + 1, batch, pitch], bf16 or f32: h0 in its place (the first, or the last of a
//          sequence that is read from its end), 0xff elsewhere on entry; all states on return
// first    [batch, hidden]: c0 of an LSTM, h0 of a GRU; null is zero
// h        [steps, batch, hidden], written; may be null
// kept     [steps, batch, hidden], written: c of an LSTM, W_hn h + b_hn of a GRU; may be null
// counters [1 + groups * passes * slices]: the status, then counters, zero on entry
// pitch is hidden rounded up to 16 bytes; `span` is chunks (bf16) or elements (f32) of k of a warp.
template <Cell CELL, int UNITS, class Product>
__device__ __forceinline__ void sequence_forward(
    float *gates, const typename Product::Weights *weights, const float *b_hh,
    typename Product::Element *states, const float *first, float *h, float *kept, u32 *counters,
    int steps, int batch, int hidden, int pitch, int span, int passes, int flags) {
  constexpr int G = gates_of(CELL), M = G * UNITS;
  constexpr int PARTS = Place<UNITS>::PARTS;
  DYN_SMEM(unsigned char, smem);
  float *partial = reinterpret_cast<float *>(smem);
  // [passes][threads]: c or h of this thread's cells.
  float *carried = partial + 2 * Partial<M>::FLOATS;
  unsigned char *stages = reinterpret_cast<unsigned char *>(carried + passes * SEQ_THREADS);
  unsigned char *room = stages + Product::stage_bytes();

  int slice = blockIdx.x, slices = gridDim.x, group = blockIdx.y;
  Patience patience{counters};
  counters++;
  Product product;
  product.load(room, span, hidden, weights);

  Place<UNITS> place;
  int unit = slice * UNITS + place.unit;
  float bias[3] = {};
  if (CELL == Cell::GRU && unit < hidden)
    for (int g = 0; g < 3; g++) bias[g] = b_hh[g * hidden + unit];
#pragma unroll 1
  for (int pass = 0; pass < passes; pass++) {
    int row = (group * passes + pass) * SEQ_ROWS + place.row;
    bool inside = CELL != Cell::RNN && first && unit < hidden && row < batch;
    carried[pass * SEQ_THREADS + threadIdx.x] = inside ? first[(i64)row * hidden + unit] : 0.f;
  }
  __syncthreads();

  bool turned = flags & BACKWARDS_IN_TIME;
  i64 step_states = (i64)batch * pitch;
  auto time_of = [&](int step) { return turned ? steps - 1 - step : step; };
  auto row_of = [&](int pass) { return (group * passes + pass) * SEQ_ROWS + place.row; };
  auto gates_at = [&](int t, int row) {
    return gates + ((i64)t * batch + row) * G * hidden + unit;
  };
  // Each part loads and stores some of the gates.
  auto is_mine = [&](int g) { return g % PARTS == place.part; };

  auto ask_for = [&](int step) {
    int t = time_of(step);
#pragma unroll 1
    for (int pass = 0; step < steps && pass < passes; pass++) {
      int row = row_of(pass);
      if (row >= batch) break;
#pragma unroll
      for (int g = 0; g < G; g++)
        if (is_mine(g) && unit < hidden) prefetch_l2(gates_at(t, row) + g * hidden);
      if (place.part == 0 && place.unit % 16 == 0 && unit < pitch)
        prefetch_l2(states + (t + !turned) * step_states + (i64)row * pitch + unit);
    }
  };
  // The input part. It is loaded while the step before is computed, not while states are awaited:
  // loads come back in the order in which they were issued.
  float next[G], next_n;
  auto load_input = [&](int step, int pass) {
    int row = row_of(pass);
    bool inside = step < steps && unit < hidden && row < batch;
    const float *from = gates_at(time_of(step), row);
#pragma unroll
    for (int g = 0; g < G; g++) {
      next[g] = 0.f;
      if (inside && is_mine(g) && !(CELL == Cell::GRU && g == 2)) next[g] = from[g * hidden];
    }
    next_n = CELL == Cell::GRU && inside ? from[2 * hidden] : 0.f;
  };
#pragma unroll 1
  for (int step = 0; step < AHEAD; step++) ask_for(step);
  load_input(0, 0);
  // Passes of the last group may lie beyond the batch.
  int full_passes = min(passes, (batch - group * passes * SEQ_ROWS + SEQ_ROWS - 1) / SEQ_ROWS);
  int buffer = 0;
  for (int step = 0; step < steps; step++) {
    int t = time_of(step);
    const typename Product::Element *before = states + (t + turned) * step_states;
    typename Product::Element *after = states + (t + !turned) * step_states;
    for (int pass = 0; pass < full_passes; pass++) {
      int row = row_of(pass), base = row - place.row;
      bool inside = unit < hidden && row < batch;
      i64 at = ((i64)t * batch + row) * hidden + unit;
      float *mine = gates_at(t, row);
      float x[G], x_n = next_n;
#pragma unroll
      for (int g = 0; g < G; g++) x[g] = next[g];
      if (flags & BY_COUNTER)
        await_counters(counters + (group * passes + pass) * slices, slices, step * SEQ_WARPS,
                       patience);
      float *sums_at = partial + buffer * Partial<M>::FLOATS;
      product.run(before + (i64)base * pitch, pitch, batch - base, sums_at, stages, patience);
      bool last = pass + 1 == full_passes;
      load_input(step + last, last ? 0 : pass + 1);
      if (pass == 0) ask_for(step + AHEAD);
      // One barrier: the other buffer is written only by those who are past it.
      __syncthreads();
      buffer ^= 1;
      place.template collect<M, G>(sums_at, x);
      float &state = carried[pass * SEQ_THREADS + threadIdx.x];
      float out, keep = 0.f;
      if constexpr (CELL == Cell::LSTM) {
        x[0] = sigmoid(x[0]);
        x[1] = sigmoid(x[1]);
        x[2] = tanh_by_exp(x[2]);
        x[3] = sigmoid(x[3]);
        keep = x[1] * state + x[0] * x[2];
        out = x[3] * tanh_by_exp(keep);
        state = keep;
      } else if constexpr (CELL == Cell::GRU) {
        x[0] = sigmoid(x[0] + bias[0]);
        x[1] = sigmoid(x[1] + bias[1]);
        keep = x[2] + bias[2];
        x[2] = tanh_by_exp(x_n + x[0] * keep);
        out = x[2] + x[1] * (state - x[2]);
        state = out;
      } else {
        // Written so that NaN stays NaN.
        out = flags & RECTIFIER ? (x[0] < 0.f ? 0.f : x[0]) : tanh_by_exp(x[0]);
        x[0] = out;
      }
      Product::send(after + (i64)row * pitch + unit, unit < hidden ? out : 0.f,
                    place.part == 0 && row < batch && unit < pitch);
      if (flags & BY_COUNTER) {
        __syncwarp();
        if (lane_id() == 0) add_release(counters + (group * passes + pass) * slices + slice, 1);
      }
      if (inside) {
        if (!(flags & WITHOUT_GATES)) {
#pragma unroll
          for (int g = 0; g < G; g++)
            if (is_mine(g)) mine[g * hidden] = x[g];
        }
        if (h && place.part == 0) h[at] = out;
        if (kept && place.part == PARTS - 1) kept[at] = keep;
      }
    }
  }
}
