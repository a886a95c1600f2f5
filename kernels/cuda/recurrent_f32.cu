// Persistent forwards and backwards of LSTM, GRU and Elman sequences in f32: recurrent_seq.cuh. The
// name tells the hidden units of a block.
#include "recurrent_backward.cuh"
#include "recurrent_forward.cuh"

#define FORWARD_F32(NAME, CELL, UNITS)                                                            \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_forward_f32_u##UNITS(                                                                \
          float *gates, const float *weights, const float *b_hh, float *states, const float *first,\
          float *h, float *kept, u32 *counters, int steps, int batch, int hidden, int pitch,      \
          int span, int passes, int flags) {                                                      \
    sequence_forward<Cell::CELL, UNITS, F32Product<gates_of(Cell::CELL) * UNITS>>(                \
        gates, weights, b_hh, states, first, h, kept, counters, steps, batch, hidden, pitch, span,\
        passes, flags);                                                                           \
  }

#define BACKWARD_F32(NAME, CELL, UNITS)                                                           \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_backward_f32_u##UNITS(                                                               \
          float *gates, float *d_rec, const float *weights, float *deltas, const float *first,    \
          const float *states, const float *h_n, const float *d_h, const float *d_c, float *d_h0, \
          float *d_c0, u32 *counters, int steps, int batch, int hidden, int pitch, int span,      \
          int passes, int flags) {                                                                \
    sequence_backward<Cell::CELL, UNITS, F32Product<UNITS>>(                                      \
        gates, d_rec, weights, deltas, first, states, h_n, d_h, d_c, d_h0, d_c0, counters, steps, \
        batch, hidden, pitch, span, passes, flags);                                               \
  }

FORWARD_F32(lstm, LSTM, 8)
BACKWARD_F32(lstm, LSTM, 8)
FORWARD_F32(lstm, LSTM, 16)
BACKWARD_F32(lstm, LSTM, 16)
FORWARD_F32(gru, GRU, 8)
BACKWARD_F32(gru, GRU, 8)
FORWARD_F32(gru, GRU, 16)
BACKWARD_F32(gru, GRU, 16)
FORWARD_F32(rnn, RNN, 8)
BACKWARD_F32(rnn, RNN, 8)
FORWARD_F32(rnn, RNN, 16)
BACKWARD_F32(rnn, RNN, 16)
