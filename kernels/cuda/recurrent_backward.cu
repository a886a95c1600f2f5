// Persistent backwards of LSTM, GRU and Elman sequences with products of bf16: recurrent_seq.cuh.
// The name tells the hidden units of a block, and how many chunks of 32 each warp has in registers.
#include "recurrent_backward.cuh"

#define BACKWARD(NAME, CELL, UNITS, KR, MORE)                                                     \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_backward_bf16_u##UNITS##_k##KR(                                                      \
          float *gates, float *d_rec, const uint4 *weights, bf16 *deltas, const float *first,     \
          const float *states, const float *h_n, const float *d_h, const float *d_c, float *d_h0, \
          float *d_c0, u32 *counters, int steps, int batch, int hidden, int pitch, int span,      \
          int passes, int flags) {                                                                \
    sequence_backward<Cell::CELL, UNITS, Bf16Product<UNITS, KR, MORE>>(                           \
        gates, d_rec, weights, deltas, first, states, h_n, d_h, d_c, d_h0, d_c0, counters, steps, \
        batch, hidden, pitch, span, passes, flags);                                               \
  }

BACKWARD(lstm, LSTM, 16, 2, false)
BACKWARD(lstm, LSTM, 16, 4, false)
BACKWARD(lstm, LSTM, 16, 8, false)
BACKWARD(lstm, LSTM, 16, 12, false)
BACKWARD(lstm, LSTM, 16, 16, true)
BACKWARD(lstm, LSTM, 32, 8, false)
BACKWARD(lstm, LSTM, 32, 10, true)
BACKWARD(gru, GRU, 16, 3, false)
BACKWARD(gru, GRU, 16, 6, false)
BACKWARD(gru, GRU, 16, 9, false)
BACKWARD(gru, GRU, 16, 12, true)
BACKWARD(gru, GRU, 32, 6, false)
BACKWARD(gru, GRU, 32, 9, true)
BACKWARD(rnn, RNN, 16, 1, false)
BACKWARD(rnn, RNN, 16, 2, false)
BACKWARD(rnn, RNN, 16, 3, false)
BACKWARD(rnn, RNN, 16, 4, true)
BACKWARD(rnn, RNN, 32, 2, false)
BACKWARD(rnn, RNN, 32, 4, true)
