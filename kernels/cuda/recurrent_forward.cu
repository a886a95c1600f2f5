// Persistent forwards of LSTM, GRU and Elman sequences with products of bf16: recurrent_seq.cuh. The
// name tells the hidden units of a block, and how many chunks of 32 each warp has in registers.
#include "recurrent_forward.cuh"

#define FORWARD(NAME, CELL, UNITS, KR)                                                            \
  extern "C" __global__ void __launch_bounds__(SEQ_THREADS, 1)                                    \
      NAME##_forward_bf16_u##UNITS##_k##KR(                                                       \
          float *gates, const bf16 *w_hh, const float *b_hh, bf16 *states, const float *first,    \
          float *h, float *kept, u32 *counters, int steps, int batch, int hidden, int pitch,      \
          int span, int passes, int flags) {                                                      \
    sequence_forward<Cell::CELL, UNITS, Bf16Product<gates_of(Cell::CELL) * UNITS, KR>>(           \
        gates, w_hh, b_hh, states, first, h, kept, counters, steps, batch, hidden, pitch, span,   \
        passes, flags);                                                                           \
  }

FORWARD(lstm, LSTM, 16, 1)
FORWARD(lstm, LSTM, 16, 2)
FORWARD(lstm, LSTM, 16, 3)
FORWARD(lstm, LSTM, 16, 4)
FORWARD(lstm, LSTM, 8, 1)
FORWARD(lstm, LSTM, 8, 2)
FORWARD(lstm, LSTM, 8, 3)
FORWARD(lstm, LSTM, 8, 4)
FORWARD(lstm, LSTM, 32, 1)
FORWARD(lstm, LSTM, 32, 2)
FORWARD(gru, GRU, 16, 1)
FORWARD(gru, GRU, 16, 2)
FORWARD(gru, GRU, 16, 3)
FORWARD(gru, GRU, 16, 4)
FORWARD(gru, GRU, 32, 1)
FORWARD(gru, GRU, 32, 2)
FORWARD(gru, GRU, 32, 3)
FORWARD(rnn, RNN, 16, 1)
FORWARD(rnn, RNN, 16, 2)
FORWARD(rnn, RNN, 16, 3)
FORWARD(rnn, RNN, 16, 4)
FORWARD(rnn, RNN, 32, 1)
FORWARD(rnn, RNN, 32, 2)
FORWARD(rnn, RNN, 32, 3)
FORWARD(rnn, RNN, 32, 4)
