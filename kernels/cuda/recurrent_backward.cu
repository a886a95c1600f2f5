// Persistent backwards of LSTM, GRU and Elman sequences with products of bf16: recurrent_seq.cuh. The
// name tells the hidden units of a block, and how many chunks of 32 each warp has in registers.
#include "recurrent_backward.cuh"

#define BACKWARD(NAME, CELL, UNITS, KR)                                                           \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_backward_bf16_u##UNITS##_k##KR(                                                      \
          float *gates, float *d_rec, const bf16 *w_hh, bf16 *deltas, const float *first,         \
          const float *states, const float *h_n, const float *d_h, const float *d_c, float *d_h0, \
          float *d_c0, u32 *counters, int steps, int batch, int hidden, int pitch, int span,      \
          int passes, int flags) {                                                                \
    sequence_backward<Cell::CELL, UNITS, Bf16Product<UNITS, KR>>(                                 \
        gates, d_rec, w_hh, deltas, first, states, h_n, d_h, d_c, d_h0, d_c0, counters, steps,    \
        batch, hidden, pitch, span, passes, flags);                                               \
  }

BACKWARD(lstm, LSTM, 16, 2)
BACKWARD(lstm, LSTM, 16, 4)
BACKWARD(lstm, LSTM, 16, 8)
BACKWARD(lstm, LSTM, 16, 12)
BACKWARD(lstm, LSTM, 16, 16)
BACKWARD(lstm, LSTM, 32, 4)
BACKWARD(lstm, LSTM, 32, 8)
BACKWARD(lstm, LSTM, 32, 10)
BACKWARD(gru, GRU, 16, 2)
BACKWARD(gru, GRU, 16, 3)
BACKWARD(gru, GRU, 16, 6)
BACKWARD(gru, GRU, 16, 9)
BACKWARD(gru, GRU, 16, 12)
BACKWARD(gru, GRU, 32, 3)
BACKWARD(gru, GRU, 32, 6)
BACKWARD(gru, GRU, 32, 9)
BACKWARD(rnn, RNN, 16, 1)
BACKWARD(rnn, RNN, 16, 2)
BACKWARD(rnn, RNN, 16, 3)
BACKWARD(rnn, RNN, 16, 4)
BACKWARD(rnn, RNN, 32, 1)
BACKWARD(rnn, RNN, 32, 2)
BACKWARD(rnn, RNN, 32, 3)
BACKWARD(rnn, RNN, 32, 4)
