//! What is counted: one call of each kernel that carries the models, at a small shape of them.

use std::hint::black_box;

use etude_kernels::activation::{Activation, bias_activation_forward};
use etude_kernels::attention::{
    Mask, Rows, RowsMut, Rule, Sizes as AttentionSizes, Strides, attention_backward,
    attention_backward_room, attention_forward,
};
use etude_kernels::conv::{ConvShape, conv_data_backward, conv_filter_backward, conv_forward};
use etude_kernels::elementwise::{Unary, unary_forward};
use etude_kernels::embedding::embedding_forward;
use etude_kernels::gemm::{MatMut, MatRef, PackedB, gemm_forward, gemm_packed_forward};
use etude_kernels::norm::{layer_norm_backward, layer_norm_forward};
use etude_kernels::optim::{AdamStep, adam};
use etude_kernels::philox;
use etude_kernels::recurrent::{
    Nonlinearity, Sizes, gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward,
    rnn_forward,
};
use etude_kernels::softmax::{cross_entropy_forward, softmax_forward};
use etude_kernels::stream::{Precision, StreamedB, stream_forward};
use etude_models::generate::{Length, Request, Writer};
use etude_models::sampling::Sampling;
use etude_tokenizer::{Meter, Score, encoding};

/// Something whose instructions are counted.
pub struct Case {
    /// Its name in the table and in the file of counts.
    pub name: &'static str,
    /// Further calls in the longer one of its two runs: some millions of instructions, beside which the
    /// threads that start and idle do not count.
    pub calls: u64,
    /// Makes what a call needs.
    pub make: fn() -> Box<dyn FnMut()>,
}

/// Every case: a new kernel of importance is a line here, and the counts are recorded again.
pub const CASES: &[Case] = &[
    Case { name: "gemm packed 32x512x128", calls: 20, make: || gemm(32, 512, 128, Right::Packed) },
    Case { name: "gemm packed 1x512x128", calls: 200, make: || gemm(1, 512, 128, Right::Packed) },
    Case { name: "gemm 128x128x128", calls: 20, make: || gemm(128, 128, 128, Right::Plain) },
    Case {
        name: "gemm transposed 33x97x65",
        calls: 50,
        make: || gemm(33, 97, 65, Right::Transposed),
    },
    Case { name: "rnn forward and backward", calls: 30, make: rnn },
    Case { name: "gru forward and backward", calls: 20, make: gru },
    Case { name: "lstm forward and backward", calls: 20, make: lstm },
    Case { name: "stream f32 1x512x128", calls: 200, make: || stream(Precision::F32) },
    Case { name: "stream bf16 1x512x128", calls: 200, make: || stream(Precision::Bf16) },
    Case { name: "stream int8 1x512x128", calls: 200, make: || stream(Precision::Int8) },
    Case { name: "attention forward and backward 2x96x48", calls: 10, make: attention },
    Case { name: "conv 3x3 forward and backward", calls: 5, make: conv },
    Case { name: "softmax 64x388", calls: 50, make: softmax },
    Case { name: "cross entropy 64x388", calls: 50, make: cross_entropy },
    Case { name: "layer norm forward and backward 64x512", calls: 50, make: layer_norm },
    Case { name: "gelu 32768", calls: 30, make: || unary(Unary::Gelu) },
    Case { name: "tanh 32768", calls: 50, make: || unary(Unary::Tanh) },
    Case { name: "bias gelu residual 64x512", calls: 30, make: bias_gelu_residual },
    Case { name: "embedding 64x512", calls: 200, make: embedding },
    Case { name: "adam 32768", calls: 100, make: adam_step },
    Case { name: "a bar written and read back", calls: 2, make: piece },
];

/// Numbers in `[-0.5, 0.5)`, the same in every run.
fn random(stream: u32, len: usize) -> Vec<f32> {
    let mut numbers = vec![0.0; len];
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x -= 0.5);
    numbers
}

/// How the right operand is stored.
#[derive(Clone, Copy)]
enum Right {
    Packed,
    Plain,
    Transposed,
}

fn gemm(m: usize, n: usize, k: usize, right: Right) -> Box<dyn FnMut()> {
    let (a, b, mut c) = (random(1, m * k), random(2, k * n), vec![0.0; m * n]);
    let packed = PackedB::new(MatRef::new(&b, k, n));
    Box::new(move || {
        let (a, c) = (MatRef::new(&a, m, k), &mut MatMut::new(black_box(&mut c), m, n));
        match right {
            Right::Packed => gemm_packed_forward(a, &packed, None, c, true),
            Right::Plain => gemm_forward(a, MatRef::new(&b, k, n), c, false),
            Right::Transposed => gemm_forward(a, MatRef::new(&b, n, k).t(), c, false),
        }
    })
}

const SIZES: Sizes = Sizes { steps: 4, batch: 16, hidden: 64 };

/// Weights, the packed weight and its transpose, and the length of the states, for `gates` gates.
fn weights(gates: usize) -> (PackedB, PackedB, usize) {
    let Sizes { steps, batch, hidden } = SIZES;
    let w = random(1, gates * hidden * hidden);
    let w = MatRef::new(&w, gates * hidden, hidden);
    (PackedB::new(w.t()), PackedB::new(w), steps * batch * hidden)
}

fn rnn() -> Box<dyn FnMut()> {
    let (w, w_t, len) = weights(1);
    let (x, h0, d) = (random(2, len), vec![0.0; len / SIZES.steps], random(3, len));
    let (mut h, mut d_h, mut d_h0) = (x.clone(), d.clone(), h0.clone());
    Box::new(move || {
        h.copy_from_slice(&x);
        d_h.copy_from_slice(&d);
        rnn_forward(&mut h, &w, &h0, Nonlinearity::Tanh, SIZES);
        rnn_backward(&h, &mut d_h, &w_t, &mut d_h0, Nonlinearity::Tanh, SIZES);
        black_box(&d_h0);
    })
}

fn gru() -> Box<dyn FnMut()> {
    let (w, w_t, len) = weights(3);
    let (x, b, h0) =
        (random(2, 3 * len), random(4, 3 * SIZES.hidden), vec![0.0; len / SIZES.steps]);
    let d_h = random(3, len);
    let (mut gates, mut d_rec) = (x.clone(), x.clone());
    let (mut h, mut h_n, mut d_h0) = (vec![0.0; len], vec![0.0; len], h0.clone());
    Box::new(move || {
        gates.copy_from_slice(&x);
        gru_forward(&mut gates, &w, &b, &h0, &mut h, &mut h_n, SIZES);
        gru_backward(&mut gates, &mut d_rec, &w_t, &h0, &h, &h_n, &d_h, &mut d_h0, SIZES);
        black_box(&d_h0);
    })
}

fn lstm() -> Box<dyn FnMut()> {
    let (w, w_t, len) = weights(4);
    let (x, h0, d_h) = (random(2, 4 * len), vec![0.0; len / SIZES.steps], random(3, len));
    let (mut gates, mut h, mut c) = (x.clone(), vec![0.0; len], vec![0.0; len]);
    let (mut d_h0, mut d_c0) = (h0.clone(), h0.clone());
    Box::new(move || {
        gates.copy_from_slice(&x);
        lstm_forward(&mut gates, &w, &h0, &h0, &mut h, &mut c, SIZES);
        lstm_backward(&mut gates, &w_t, &h0, &c, &d_h, &[], &mut d_h0, &mut d_c0, SIZES);
        black_box(&d_h0);
    })
}

fn stream(precision: Precision) -> Box<dyn FnMut()> {
    let (k, n) = (128, 512);
    let (x, w, bias) = (random(1, k), random(2, k * n), random(3, n));
    let w = StreamedB::new(MatRef::new(&w, k, n), precision);
    let mut y = vec![0.0; n];
    Box::new(move || stream_forward(&x, &w, Some(&bias), black_box(&mut y), false))
}

fn attention() -> Box<dyn FnMut()> {
    let s = AttentionSizes { batch: 1, heads: 2, queries: 96, keys: 96, head_dim: 48 };
    let rule = Rule { mask: Mask::Causal, scale: 0.125, dropout: None };
    let strides = Strides::by_head(s.heads, s.keys, s.head_dim);
    let n = s.heads * s.keys * s.head_dim;
    let operands = [1, 2, 3, 4].map(|stream| random(stream, n));
    let (mut o, mut lse) = (vec![0.0; n], vec![0.0; s.heads * s.queries]);
    let mut d = [0; 3].map(|_| vec![0.0; n]);
    let mut room = vec![0.0; attention_backward_room(s, &rule, false)];
    Box::new(move || {
        let [q, k, v, d_o] = operands.each_ref().map(|data| Rows { data, strides });
        let y = RowsMut { data: black_box(&mut o), strides };
        attention_forward(q, k, v, None, y, &mut lse, s, &rule);
        let y = Rows { data: &o, strides };
        let [d_q, d_k, d_v] = d.each_mut().map(|data| RowsMut { data, strides });
        let (d_er, room) = (&mut [], &mut room);
        attention_backward(q, k, v, None, y, &lse, d_o, d_q, d_k, d_v, d_er, room, s, &rule);
    })
}

fn conv() -> Box<dyn FnMut()> {
    let shape = ConvShape {
        batch: 2,
        channels_in: 8,
        channels_out: 16,
        groups: 1,
        input: [1, 12, 11],
        output: [1, 12, 11],
        kernel: [1, 3, 3],
        stride: [1; 3],
        padding: [0, 1, 1],
        dilation: [1; 3],
    };
    let (x, w) = (random(1, shape.x_len()), random(2, shape.w_len()));
    let (bias, d_y) = (random(3, shape.channels_out), random(4, shape.y_len()));
    let (mut y, mut d_x, mut d_w) = (d_y.clone(), x.clone(), w.clone());
    Box::new(move || {
        conv_forward(&x, &w, Some(&bias), black_box(&mut y), &shape);
        conv_data_backward(&d_y, &w, None, black_box(&mut d_x), &shape);
        conv_filter_backward(&x, &d_y, black_box(&mut d_w), None, &shape);
    })
}

fn softmax() -> Box<dyn FnMut()> {
    let (x, mut y) = (random(1, 64 * 388), vec![0.0; 64 * 388]);
    Box::new(move || softmax_forward(&x, black_box(&mut y), 388))
}

fn cross_entropy() -> Box<dyn FnMut()> {
    let (x, mut d_x, mut losses) = (random(1, 64 * 388), vec![0.0; 64 * 388], vec![0.0; 64]);
    let targets: Vec<u32> = (0..64).map(|row| row * 5).collect();
    Box::new(move || {
        cross_entropy_forward(&x, &targets, &mut losses, black_box(&mut d_x), 0.1, 388);
    })
}

fn layer_norm() -> Box<dyn FnMut()> {
    let (rows, cols) = (64, 512);
    let (x, weight, bias) = (random(1, rows * cols), random(2, cols), random(3, cols));
    let (d_y, mut y) = (random(4, rows * cols), vec![0.0; rows * cols]);
    let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
    let (mut d_weight, mut d_bias) = (vec![0.0; cols], vec![0.0; cols]);
    Box::new(move || {
        layer_norm_forward(&x, &weight, &bias, &mut y, &mut mean, &mut rstd, 1e-5);
        let d_x = black_box(&mut y);
        layer_norm_backward(&x, &weight, &mean, &rstd, &d_y, d_x, &mut d_weight, &mut d_bias);
    })
}

fn unary(f: Unary) -> Box<dyn FnMut()> {
    let (x, mut y) = (random(1, 1 << 15), vec![0.0; 1 << 15]);
    Box::new(move || unary_forward(f, &x, black_box(&mut y)))
}

fn bias_gelu_residual() -> Box<dyn FnMut()> {
    let (x, bias, residual) = (random(1, 64 * 512), random(2, 512), random(3, 64 * 512));
    let mut y = vec![0.0; 64 * 512];
    Box::new(move || {
        bias_activation_forward(Activation::Gelu, &x, &bias, Some(&residual), black_box(&mut y));
    })
}

fn embedding() -> Box<dyn FnMut()> {
    let (table, mut y) = (random(1, 388 * 512), vec![0.0; 64 * 512]);
    let ids: Vec<u32> = (0..64).map(|i| i * 6).collect();
    Box::new(move || embedding_forward(&table, &ids, None, black_box(&mut y), 1, 512))
}

fn adam_step() -> Box<dyn FnMut()> {
    let n = 1 << 15;
    let (mut param, grad) = (random(1, n), random(2, n));
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    Box::new(move || {
        let constants = AdamStep {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            grad_scale: 1.0,
        };
        adam(black_box(&mut param), &mut m, &mut v, &grad, constants);
    })
}

/// What `etude generate` and `etude tokenize` do: a model in the box writes a bar, which goes through a
/// MIDI file into tokens and back.
fn piece() -> Box<dyn FnMut()> {
    let model = etude_models::bundled::load("lstm").expect("the model in the box");
    let melody = encoding("melody").expect("a scheme");
    Box::new(move || {
        let mut writer = Writer::new(&model.config, &*model.model).expect("its writer");
        let request = Request {
            length: Length::Bars(1),
            meter: Meter { tick: 0, numerator: 4, denominator: 4 },
            tempo_bpm: 120.0,
            primer: None,
            sampling: Sampling::default(),
            seed: 7,
        };
        let piece = writer.write(&request).expect("a bar");
        let reading = Score::from_midi(&piece.score.to_midi()).expect("its own file");
        let tokens = melody.encode(&reading.score).expect("a melody").tokens;
        black_box(melody.decode(&tokens).expect("its own tokens"));
    })
}
