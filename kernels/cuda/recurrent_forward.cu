// Persistent forwards of LSTM, GRU and Elman sequences with products of bf16: recurrent_seq.cuh.
// The name tells the hidden units of a block, and how many chunks of 32 each warp has in registers.
#include "recurrent_forward.cuh"

#define FORWARD(NAME, CELL, UNITS, KR, MORE)                                                      \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_forward_bf16_u##UNITS##_k##KR(                                                       \
          float *gates, const uint4 *weights, const float *b_hh, bf16 *states, const float *first,\
          float *h, float *kept, u32 *counters, int steps, int batch, int hidden, int pitch,      \
          int span, int passes, int flags) {                                                      \
    sequence_forward<Cell::CELL, UNITS, Bf16Product<gates_of(Cell::CELL) * UNITS, KR, MORE>>(     \
        gates, weights, b_hh, states, first, h, kept, counters, steps, batch, hidden, pitch, span,\
        passes, flags);                                                                           \
  }

FORWARD(lstm, LSTM, 16, 1, false)
FORWARD(lstm, LSTM, 16, 2, false)
FORWARD(lstm, LSTM, 16, 3, false)
FORWARD(lstm, LSTM, 16, 4, true)
FORWARD(lstm, LSTM, 32, 1, false)
FORWARD(lstm, LSTM, 32, 2, true)
FORWARD(gru, GRU, 16, 1, false)
FORWARD(gru, GRU, 16, 2, false)
FORWARD(gru, GRU, 16, 3, false)
FORWARD(gru, GRU, 16, 4, true)
FORWARD(gru, GRU, 32, 2, false)
FORWARD(gru, GRU, 32, 3, true)
FORWARD(rnn, RNN, 16, 1, false)
FORWARD(rnn, RNN, 16, 2, false)
FORWARD(rnn, RNN, 16, 3, false)
FORWARD(rnn, RNN, 16, 4, true)
FORWARD(rnn, RNN, 32, 2, false)
FORWARD(rnn, RNN, 32, 4, true)
