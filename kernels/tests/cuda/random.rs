//! Checks of random numbers and dropout.

use super::rows::{Typed, U};
use super::{Check, from_bf16, to_bf16, uniform, worst};
use etude_kernels::cuda::random::{self, Stream};
use etude_kernels::cuda::rows::Float;
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::philox;

pub const CHECKS: &[Check] = &[
    Check { name: "uniform_has_the_bits_of_the_cpu", run: uniform_bits },
    Check { name: "bernoulli_is_where_dropout_drops", run: bernoulli },
    Check { name: "normal", run: normal },
    Check { name: "dropout_has_the_bits_of_the_cpu", run: dropout },
];

const LENGTHS: &[usize] = &[1, 3, 31, 33, 127, 128, 129, 1000, 1023, 1025, 4097, 70_001];

fn streams() -> [Stream; 3] {
    [
        Stream { seed: 1, stream: 0, position: 0, moved: 0 },
        Stream { seed: u64::MAX - 5, stream: 7, position: 12_345, moved: 0 },
        // The position passes from one word to two, and wraps.
        Stream { seed: 1 << 40, stream: u32::MAX, position: u64::MAX - 3, moved: 0 },
    ]
}

fn uniform_bits(gpu: &dyn Gpu) -> f64 {
    for n in LENGTHS.iter().copied() {
        for s in streams() {
            let mut want = vec![0.0; n];
            philox::uniform(&mut want, s.seed, s.stream, s.position);
            let y = DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
            random::uniform(gpu, y.ptr(), n, s).unwrap();
            assert_eq!(want, y.to_vec().unwrap(), "{n} {s:?}");
        }
    }
    // A count on the device moves the stream on; an odd address.
    let moved = DeviceBuffer::from_slice(gpu, &[1000u64]).unwrap();
    let y = DeviceBuffer::<f32>::poisoned(gpu, 100).unwrap();
    let s = Stream { seed: 3, stream: 4, position: 5, moved: moved.ptr() };
    random::uniform(gpu, y.ptr() + 4, 99, s).unwrap();
    let mut want = vec![0.0; 99];
    philox::uniform(&mut want, 3, 4, 1005);
    assert_eq!(want, y.to_vec().unwrap()[1..]);
    0.0
}

fn bernoulli(gpu: &dyn Gpu) -> f64 {
    let n = 4097;
    for p in [0.0, 0.1, 0.5, 1.0] {
        let s = streams()[1];
        let (y, ones) = (
            DeviceBuffer::<f32>::poisoned(gpu, n).unwrap(),
            DeviceBuffer::from_slice(gpu, &vec![1.0f32; n]).unwrap(),
        );
        random::bernoulli(gpu, y.ptr(), n, p, s).unwrap();
        let drawn = y.to_vec().unwrap();
        random::dropout(gpu, Float::F32, ones.ptr(), y.ptr(), n, p, s).unwrap();
        let kept = y.to_vec().unwrap();
        assert!(drawn.iter().zip(&kept).all(|(d, k)| (*d == 1.0) == (*k == 0.0) || p == 1.0));
        let count = drawn.iter().sum::<f32>() / n as f32;
        // Within 5 deviations of sqrt(p (1 - p) / n).
        assert!((count - p).abs() <= 5.0 * (p * (1.0 - p) / n as f32).sqrt(), "{p}: {count}");
    }
    0.0
}

fn normal(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for n in LENGTHS.iter().copied() {
        for s in streams() {
            let mut units = vec![0.0; n.next_multiple_of(4)];
            philox::uniform(&mut units, s.seed, s.stream, s.position);
            let want: Vec<f64> = units
                .chunks(2)
                .flat_map(|pair| {
                    let u = f64::from(pair[0]) + 1.0 / 16_777_216.0;
                    let (r, v) = ((-2.0 * u.ln()).sqrt(), f64::from(pair[1]));
                    let (sin, cos) = (v * std::f64::consts::TAU).sin_cos();
                    [r * cos, r * sin]
                })
                .take(n)
                .collect();
            let y = DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
            random::normal(gpu, y.ptr(), n, s).unwrap();
            // Radius below 5.8: u has 25 bits and is rounded (an error of U / u in the logarithm, at most
            // U 2^-1 / ln 2 of the radius where u is near 1), the logarithm 2 ulp, root and products one
            // rounding each; sine and cosine 2 ulp of 1 and half an ulp of an angle below 0.8.
            let near_one = |i: usize| {
                let u = f64::from(units[i / 2 * 2]) + 1.0 / 16_777_216.0;
                let r = (-2.0 * u.ln()).sqrt();
                // d r = d u / (u r); where r is 0 the rounded u is 1 as well.
                if r > 0.0 { 0.5 * U / (u * r) } else { 0.0 }
            };
            let what = format!("normal {n} {s:?}");
            let bound = |i: usize| 5.8 * (4.0 + 3.0 + 4.0 + 1.0) * U + near_one(i);
            share = share.max(worst(&what, &want, &y.to_vec().unwrap(), bound));
        }
    }
    share
}

fn dropout(gpu: &dyn Gpu) -> f64 {
    for n in LENGTHS.iter().copied() {
        let x = uniform(5, n);
        for (s, p) in streams().into_iter().zip([0.1, 0.5, 0.999]) {
            let mut want = vec![0.0; n];
            philox::dropout(&x, &mut want, p, s.seed, s.stream, s.position);
            let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
            let y = DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
            for per_sm in [0, 1] {
                let (x, y_at) = (from.ptr(), y.ptr());
                random::dropout_with(gpu, per_sm, Float::F32, x, y_at, n, p, s).unwrap();
                assert_eq!(want, y.to_vec().unwrap(), "{n} {s:?}, {per_sm}");
            }
            random::dropout_plain(gpu, from.ptr(), y.ptr(), n, p, s).unwrap();
            assert_eq!(want, y.to_vec().unwrap(), "plain");
            // In place, and in bf16: the same numbers, rounded.
            random::dropout(gpu, Float::F32, from.ptr(), from.ptr(), n, p, s).unwrap();
            assert_eq!(want, from.to_vec().unwrap(), "in place");
            let narrow = Typed::new(gpu, Float::Bf16, &x);
            let mut want = vec![0.0; n];
            philox::dropout(&narrow.values, &mut want, p, s.seed, s.stream, s.position);
            let y = Typed::room(gpu, Float::Bf16, n);
            random::dropout(gpu, Float::Bf16, narrow.ptr(), y.ptr(), n, p, s).unwrap();
            assert_eq!(from_bf16(&to_bf16(&want)), y.get(), "bf16 {n} {s:?}");
        }
    }
    0.0
}
