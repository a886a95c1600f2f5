//! Checks of sampling: the token that the CPU draws, wherever rounding cannot decide.

use super::{Check, uniform};
use etude_kernels::cuda::random::Stream;
use etude_kernels::cuda::sample::{self, Controls, Draw};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::philox;

pub const CHECKS: &[Check] = &[
    Check { name: "tokens_are_those_of_the_definition", run: tokens },
    Check { name: "the_guard_gives_way_to_the_grammar", run: guard },
    Check { name: "units_come_from_the_stream", run: stream },
];

const NONE: u32 = u32::MAX;

/// Tokens that the definition allows for a unit that may be off by a little.
fn allowed_tokens(
    logits: &[f32],
    open: impl Fn(usize) -> bool,
    c: Controls,
    unit: f64,
    slack: f64,
) -> Vec<u32> {
    let (mut best, mut top) = (0, f64::NEG_INFINITY);
    for (t, x) in logits.iter().enumerate() {
        if f64::from(*x) > top && open(t) {
            (best, top) = (t, f64::from(*x));
        }
    }
    if c.temperature == 0.0 || top == f64::NEG_INFINITY {
        return vec![best as u32];
    }
    let mut p: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(t, x)| {
            let p = ((f64::from(*x) - top) / f64::from(c.temperature)).exp();
            if open(t) && p >= f64::from(c.min_p) { p } else { 0.0 }
        })
        .collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    let total: f64 = p.iter().sum();
    let wanted = f64::from(c.top_p) * total;
    let most = if c.top_k == 0 { p.len() } else { c.top_k as usize };
    let mut sum = 0.0;
    for (rank, t) in order.iter().enumerate() {
        if rank >= most || (rank > 0 && sum >= wanted && c.top_p < 1.0) {
            p[*t] = 0.0;
        } else {
            sum += p[*t];
        }
    }
    let kept: f64 = p.iter().sum();
    let mut upto = 0.0;
    let mut found = Vec::new();
    for (t, p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        let (from, to) = (upto / kept, (upto + p) / kept);
        if unit + slack >= from && unit - slack < to {
            found.push(t as u32);
        }
        upto += p;
    }
    found
}

/// Whether a cut is so near to another one that rounding may decide between them.
fn cut_is_clear(logits: &[f32], open: &dyn Fn(usize) -> bool, c: Controls) -> bool {
    let open_logits =
        || logits.iter().enumerate().filter(|(t, _)| open(*t)).map(|(_, x)| f64::from(*x));
    let top = open_logits().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> =
        open_logits().map(|x| ((x - top) / f64::from(c.temperature)).exp()).collect();
    p.sort_by(|a, b| b.total_cmp(a));
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs();
    if c.min_p > 0.0 && p.iter().any(|p| near(*p, c.min_p.into())) {
        return false;
    }
    p.retain(|p| *p >= f64::from(c.min_p));
    let total: f64 = p.iter().sum();
    let mut sum = 0.0;
    for p in &p {
        sum += p;
        if c.top_p < 1.0 && near(sum, f64::from(c.top_p) * total) {
            return false;
        }
    }
    true
}

fn tokens(gpu: &dyn Gpu) -> f64 {
    let plain = Controls { temperature: 1.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
    let all = [
        plain,
        Controls { temperature: 0.0, ..plain },
        Controls { temperature: 0.7, ..plain },
        Controls { top_k: 1, ..plain },
        Controls { top_k: 5, ..plain },
        Controls { top_k: 100_000, ..plain },
        Controls { top_p: 0.9, ..plain },
        Controls { top_p: 0.05, temperature: 1.5, ..plain },
        Controls { min_p: 0.1, ..plain },
        Controls { top_k: 40, top_p: 0.95, min_p: 0.02, temperature: 0.9 },
    ];
    let mut drawn = 0;
    for vocab in [1usize, 3, 31, 33, 129, 388, 1000, 4097] {
        let rows = 7;
        let mut logits: Vec<f32> = uniform(vocab as u64, rows * vocab)
            .iter()
            // Coarse steps in some rows: many equal probabilities.
            .enumerate()
            .map(|(i, x)| if i / vocab % 2 == 0 { x * 5.0 } else { (x * 4.0).round() })
            .collect();
        if vocab > 3 {
            logits[2] = f32::NEG_INFINITY;
            logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        }
        let words = vocab.div_ceil(32);
        // Row 3: every third token; row 4: the last one alone; others: all.
        let open = move |row: usize, t: usize| match row {
            3 => t.is_multiple_of(3),
            4 => t == vocab - 1,
            _ => true,
        };
        let mut bits = vec![0u32; rows * words];
        for row in 0..rows {
            for t in (0..vocab).filter(|t| open(row, *t)) {
                bits[row * words + t / 32] |= 1 << (t % 32);
            }
        }
        let d_logits = DeviceBuffer::from_slice(gpu, &logits).unwrap();
        let d_bits = DeviceBuffer::from_slice(gpu, &bits).unwrap();
        let tokens = DeviceBuffer::from_slice(gpu, &vec![NONE; rows]).unwrap();
        let probs = DeviceBuffer::<f32>::poisoned(gpu, rows * vocab).unwrap();
        for (k, c) in all.iter().enumerate() {
            let mut units: Vec<f32> = uniform(k as u64, rows).iter().map(|x| x.abs()).collect();
            units[0] = 0.0;
            units[5] = 1.0 - f32::EPSILON / 2.0;
            let d_units = DeviceBuffer::from_slice(gpu, &units).unwrap();
            let stream = Stream { seed: 0, stream: 0, position: 0, moved: 0 };
            let draw = Draw { allowed: d_bits.ptr(), struck: 0, units: d_units.ptr(), stream };
            let run_plain = vocab <= 129;
            for plain in [false, true] {
                if plain && !run_plain {
                    continue;
                }
                tokens.write(&vec![NONE; rows]).unwrap();
                let (x, t) = (d_logits.ptr(), tokens.ptr());
                if plain {
                    let (p, b, u) = (probs.ptr(), d_bits.ptr(), d_units.ptr());
                    sample::sample_plain(gpu, x, b, u, *c, p, t, rows, vocab).unwrap();
                } else {
                    sample::sample_rows(gpu, x, draw, *c, t, rows, vocab).unwrap();
                }
                for (row, token) in tokens.to_vec().unwrap().into_iter().enumerate() {
                    let logits = &logits[row * vocab..(row + 1) * vocab];
                    let clear = c.temperature == 0.0
                        || logits[vocab / 2] == f32::NEG_INFINITY
                        || cut_is_clear(logits, &|t| open(row, t), *c);
                    if !clear {
                        continue;
                    }
                    // Exponentials within 2 ulp and a rounded argument below 10: 2e-6 of each, and of
                    // their sum; multiples of 2^-40.
                    let unit = f64::from(units[row]);
                    let good = allowed_tokens(logits, |t| open(row, t), *c, unit, 4e-6);
                    assert!(
                        good.contains(&token),
                        "vocab {vocab} row {row} {c:?} plain {plain}: {token} of {good:?}"
                    );
                    drawn += 1;
                }
            }
        }
    }
    // Unclear cuts are rare.
    assert!(drawn > 700, "{drawn}");
    0.0
}

fn guard(gpu: &dyn Gpu) -> f64 {
    let vocab = 3;
    let logits = DeviceBuffer::from_slice(gpu, &[9.0f32, 0.0, 9.0].repeat(4)).unwrap();
    // One alone; 1 and 2; all; all.
    let allowed = DeviceBuffer::from_slice(gpu, &[0b010u32, 0b110, 0b111, 0b111]).unwrap();
    let struck = DeviceBuffer::from_slice(gpu, &[1u32, 1, 0, NONE]).unwrap();
    let units = DeviceBuffer::from_slice(gpu, &[0.5f32, 0.5, 0.25, 0.25]).unwrap();
    let tokens = DeviceBuffer::from_slice(gpu, &[NONE; 4]).unwrap();
    let stream = Stream { seed: 0, stream: 0, position: 0, moved: 0 };
    let draw = Draw { allowed: allowed.ptr(), struck: struck.ptr(), units: units.ptr(), stream };
    let c = Controls { temperature: 1.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
    sample::sample_rows(gpu, logits.ptr(), draw, c, tokens.ptr(), 4, vocab).unwrap();
    assert_eq!(tokens.to_vec().unwrap(), [1, 2, 2, 0]);
    0.0
}

fn stream(gpu: &dyn Gpu) -> f64 {
    // Equal logits: the token is the unit, in steps of 1 / vocab.
    let (rows, vocab) = (50, 64);
    let logits = DeviceBuffer::from_slice(gpu, &vec![0.0f32; rows * vocab]).unwrap();
    let moved = DeviceBuffer::from_slice(gpu, &[30u64]).unwrap();
    let tokens = DeviceBuffer::from_slice(gpu, &vec![NONE; rows]).unwrap();
    let stream = Stream { seed: 9, stream: 2, position: 70, moved: moved.ptr() };
    let draw = Draw { allowed: 0, struck: 0, units: 0, stream };
    let c = Controls { temperature: 1.0, top_p: 1.0, min_p: 0.0, top_k: 0 };
    sample::sample_rows(gpu, logits.ptr(), draw, c, tokens.ptr(), rows, vocab).unwrap();
    let want: Vec<u32> = (0..rows as u64)
        .map(|r| (philox::to_unit(philox::block(9, 2, 100 + r)[0]) * vocab as f32) as u32)
        .collect();
    assert_eq!(want, tokens.to_vec().unwrap());
    0.0
}
