//! Convolutions of real models, each of the three sums alone, on every tier of this machine: GFLOP/s
//! beside the peak of multiply-adds measured in the same run.
//!
//! `cargo bench --bench conv -- 3x3` times some; `cargo bench --bench conv -- --test` runs each once (the
//! smoke run of CI). Names are `conv-<sum>/<kernel>/<stride>-<in>x<out>-<size>/<tier>`; one thread. A
//! transposed convolution is `data` forwards and `forward` backwards.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use etude::bench::aligned::Aligned;
use etude_kernels::conv::{ConvShape, conv_data_backward, conv_filter_backward, conv_forward};
use etude_kernels::isa::{self, Isa};
use etude_kernels::{peak, philox};

mod support;

/// Batch, channels in and out, size, kernel, stride, padding.
type Sizes = (usize, usize, usize, [usize; 3], [usize; 3], [usize; 3], [usize; 3]);

const ONE: [usize; 3] = [1; 3];
const NONE: [usize; 3] = [0; 3];

const CASES: &[Sizes] = &[
    // Square kernels over piano rolls.
    (4, 16, 64, [1, 96, 84], [1, 3, 3], ONE, [0, 1, 1]),
    (4, 64, 64, [1, 48, 42], [1, 3, 3], ONE, [0, 1, 1]),
    (4, 128, 128, [1, 24, 21], [1, 3, 3], ONE, [0, 1, 1]),
    // The critic of a GAN over bars, steps and pitches: an octave, a beat, bars.
    (16, 1, 16, [4, 48, 84], [1, 1, 12], [1, 1, 12], NONE),
    (16, 16, 16, [4, 48, 7], [1, 4, 1], [1, 4, 1], NONE),
    (16, 80, 64, [4, 12, 7], [1, 1, 4], ONE, NONE),
    (16, 128, 256, [4, 1, 1], [2, 1, 1], ONE, NONE),
    // Its generator, which transposes these.
    (16, 64, 128, [1, 48, 42], [1, 4, 4], [1, 2, 2], [0, 1, 1]),
    (16, 64, 128, [4, 48, 7], [1, 4, 1], [1, 4, 1], NONE),
    // One axis: steps of a sequence, and of sound.
    (16, 90, 128, [1, 1, 256], [1, 1, 5], ONE, [0, 0, 2]),
    (4, 1, 32, [1, 1, 16000], [1, 1, 16], [1, 1, 8], NONE),
    // A mixture of channels at each place.
    (8, 96, 96, [1, 24, 21], ONE, ONE, NONE),
];

fn random(stream: u32, len: usize) -> Aligned<f32> {
    let mut numbers = Aligned::filled(0.0, len);
    philox::uniform(&mut numbers, 0, stream, 0);
    numbers.iter_mut().for_each(|x| *x -= 0.5);
    numbers
}

fn text(sizes: &[usize]) -> String {
    let sizes = sizes.iter().skip_while(|n| **n == 1).map(usize::to_string);
    let text = sizes.collect::<Vec<_>>().join("x");
    if text.is_empty() { "1".into() } else { text }
}

fn convolutions(c: &mut Criterion) {
    for &(batch, channels_in, channels_out, input, kernel, stride, padding) in CASES {
        let output = [0, 1, 2].map(|a| {
            ConvShape::output_size(input[a], kernel[a], stride[a], padding[a], 1)
                .expect("a kernel that fits")
        });
        let shape = ConvShape {
            batch,
            channels_in,
            channels_out,
            groups: 1,
            input,
            output,
            kernel,
            stride,
            padding,
            dilation: ONE,
        };
        let name = format!(
            "{}/{}-{channels_in}x{channels_out}-{}",
            text(&kernel),
            text(&stride),
            text(&input)
        );
        let places: usize = output.iter().product();
        let flops = 2.0 * (batch * places * shape.w_len()) as f64;
        let (x, w, d_y) =
            (random(1, shape.x_len()), random(2, shape.w_len()), random(3, shape.y_len()));
        let bias = random(4, channels_out);
        let mut y = random(5, shape.y_len());
        let (mut d_x, mut d_w) = (random(6, shape.x_len()), random(7, shape.w_len()));
        let mut d_bias = random(8, channels_out);
        for sum in ["forward", "data", "filter"] {
            let mut group = c.benchmark_group(format!("conv-{sum}"));
            group.throughput(Throughput::Elements(flops as u64));
            for tier in Isa::available() {
                isa::force(tier);
                let id = BenchmarkId::new(&name, tier.name());
                let best = support::time(&mut group, id, || {
                    let x = black_box(&x);
                    match sum {
                        "forward" => conv_forward(x, &w, Some(&bias), &mut y, &shape),
                        "data" => conv_data_backward(&d_y, &w, None, &mut d_x, &shape),
                        _ => {
                            let d_bias = Some(&mut d_bias[..]);
                            conv_filter_backward(x, &d_y, &mut d_w, d_bias, &shape);
                        }
                    }
                });
                if let Some(best) = best {
                    let gflops = flops / best / 1e9;
                    let share = 100.0 * gflops / peak::fma_gflops_of(tier, 1);
                    println!(
                        "{:>60}",
                        format!("best {gflops:.1} GFLOP/s, {share:.0} % of the peak")
                    );
                }
            }
            group.finish();
        }
    }
}

fn main() {
    support::on_one_thread(200, &[support::peaks, convolutions]);
}
