//! The instruction wrappers, each in a kernel whose result is known: the emulator and the hardware have to
//! agree on layouts, or no other check means anything.

use super::{Check, from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::cuda::{Args, DeviceBuffer, Gpu, Launch};

pub const CHECKS: &[Check] = &[
    Check { name: "mma_bf16_with_each_ldmatrix", run: mma_bf16_with_each_ldmatrix },
    Check { name: "mma_tf32", run: mma_tf32 },
    Check { name: "cp_async_fills_with_zeros", run: cp_async_fills_with_zeros },
    Check { name: "warp_operations", run: warp_operations },
    Check { name: "block_sums_and_atomics", run: block_sums_and_atomics },
    Check { name: "named_barriers_pass_a_stage_on", run: named_barriers_pass_a_stage_on },
    Check { name: "a_grid_barrier_orders_blocks", run: a_grid_barrier_orders_blocks },
    Check { name: "flags_pass_values_on", run: flags_pass_values_on },
    Check { name: "approximations_and_roundings", run: approximations_and_roundings },
];

const U: f64 = 1.0 / 16_777_216.0;

fn launch(gpu: &dyn Gpu, kernel: &str, launch: Launch, args: Args) {
    // SAFETY: each check passes the parameters that stand in wrappers.cu, and whole buffers as spans.
    unsafe { gpu.launch(kernel, &launch, &args) }.unwrap();
}

fn span<T: bytemuck::Pod>(args: Args, buffer: &DeviceBuffer<T>) -> Args {
    args.span(buffer.ptr(), buffer.bytes())
}

/// `a b + 1` with `a` [16, k], `b` [k, 8].
fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f64> {
    let (a, b) = (wide(a), wide(b));
    (0..128)
        .map(|at| 1.0 + (0..k).map(|l| a[at / 8 * k + l] * b[l * 8 + at % 8]).sum::<f64>())
        .collect()
}

fn transpose<T: Copy>(x: &[T], rows: usize) -> Vec<T> {
    let cols = x.len() / rows;
    (0..x.len()).map(|at| x[at % rows * cols + at / rows]).collect()
}

fn mma_bf16_with_each_ldmatrix(gpu: &dyn Gpu) -> f64 {
    let (a, b) = (to_bf16(&uniform(1, 256)), to_bf16(&uniform(2, 128)));
    let want = product(&from_bf16(&a), &from_bf16(&b), 16);
    // 16 exact products and a one, below 17 together, in an order that is not told: 17 roundings, which
    // may be truncations, so 2 U each.
    let tolerance = 17.0 * 17.0 * 2.0 * U;
    let mut share = 0.0;
    let one = Launch::linear(1, 32).shared(2 * 16 * 24 * 2);
    for (transposed, single) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let given = if transposed == 1 { transpose(&b, 16) } else { b.clone() };
        let d_a = DeviceBuffer::from_slice(gpu, &a).unwrap();
        let d_b = DeviceBuffer::from_slice(gpu, &given).unwrap();
        let d = DeviceBuffer::<f32>::poisoned(gpu, 128).unwrap();
        let args = span(span(span(Args::new(), &d_a), &d_b), &d).i32(transposed).i32(single);
        launch(gpu, "wrappers_mma_bf16", one, args);
        share = f64::max(share, worst("mma", &want, &d.to_vec().unwrap(), |_| tolerance));
    }
    let d_a = DeviceBuffer::from_slice(gpu, &transpose(&a, 16)).unwrap();
    let d_b = DeviceBuffer::from_slice(gpu, &b).unwrap();
    let d = DeviceBuffer::<f32>::poisoned(gpu, 128).unwrap();
    let args = span(span(span(Args::new(), &d_a), &d_b), &d);
    launch(gpu, "wrappers_mma_bf16_a_transposed", one, args);
    f64::max(share, worst("a transposed", &want, &d.to_vec().unwrap(), |_| tolerance))
}

fn mma_tf32(gpu: &dyn Gpu) -> f64 {
    // What to_tf32 leaves: 10 bits behind the point, ties away from zero.
    let round = |x: &f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
    let (a, b) = (uniform(3, 128), uniform(4, 64));
    let rounded = |x: &[f32]| x.iter().map(round).collect::<Vec<f32>>();
    let want = product(&rounded(&a), &rounded(&b), 8);
    let d_a = DeviceBuffer::from_slice(gpu, &a).unwrap();
    let d_b = DeviceBuffer::from_slice(gpu, &b).unwrap();
    let d = DeviceBuffer::<f32>::poisoned(gpu, 128).unwrap();
    let args = span(span(span(Args::new(), &d_a), &d_b), &d);
    launch(gpu, "wrappers_mma_tf32", Launch::linear(1, 32), args);
    // 8 exact products and a one, below 9 together; 9 roundings of 2 U.
    worst("tf32", &want, &d.to_vec().unwrap(), |_| 9.0 * 9.0 * 2.0 * U)
}

fn cp_async_fills_with_zeros(gpu: &dyn Gpu) -> f64 {
    let x: Vec<u32> = (1..=128).collect();
    for valid in [0, 1, 5, 6, 7, 64, 127, 128] {
        let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let y = DeviceBuffer::<u32>::poisoned(gpu, 512).unwrap();
        let args = span(span(Args::new(), &d_x), &y).i32(valid);
        launch(gpu, "wrappers_cp_async", Launch::linear(1, 32).shared(384 * 4), args);
        let cut: Vec<u32> = x.iter().map(|x| if *x <= valid as u32 { *x } else { 0 }).collect();
        assert_eq!(y.to_vec().unwrap(), [&cut[..], &cut, &cut, &x].concat(), "{valid}");
    }
    0.0
}

fn warp_operations(gpu: &dyn Gpu) -> f64 {
    let x: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % 256).collect();
    let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let d_y = DeviceBuffer::<u32>::poisoned(gpu, 768).unwrap();
    launch(gpu, "wrappers_warp", Launch::linear(1, 64), span(span(Args::new(), &d_x), &d_y));
    let y = d_y.to_vec().unwrap();
    for t in 0..64 {
        let (warp, l) = (t / 32 * 32, t % 32);
        let lanes = &x[warp..warp + 32];
        let same_half = |lane: usize| lane / 16 == l / 16;
        let vote = |f: &dyn Fn(u32) -> bool| {
            lanes.iter().enumerate().map(|(i, v)| u32::from(f(*v)) << i).sum::<u32>()
        };
        let (any, all) = (vote(&|v| v > 250) != 0, vote(&|v| v < 256) == u32::MAX);
        let (or, and) = (lanes.iter().fold(0, |a, b| a | b), lanes.iter().fold(255, |a, b| a & b));
        let v = x[t];
        let ffs = if v == 0 { 0 } else { v.trailing_zeros() + 1 };
        let want = [
            lanes[l ^ 5],
            if l >= 3 && same_half(l - 3) { lanes[l - 3] } else { v },
            if same_half(l + 3) { lanes[l + 3] } else { v },
            lanes[l / 8 * 8 + 1],
            vote(&|v| v & 1 == 1),
            u32::from(any) | u32::from(all) << 1,
            lanes.iter().sum(),
            *lanes.iter().max().unwrap(),
            *lanes.iter().min().unwrap(),
            vote(&|other| other & 3 == v & 3),
            or | and << 8,
            v.count_ones() | v.leading_zeros() << 8 | ffs << 16 | (l as u32) << 24,
        ];
        let got: Vec<u32> = (0..12).map(|row| y[row * 64 + t]).collect();
        assert_eq!(got, want, "thread {t}");
    }
    0.0
}

fn block_sums_and_atomics(gpu: &dyn Gpu) -> f64 {
    let x = uniform(5, 256);
    let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let y = DeviceBuffer::<f32>::poisoned(gpu, 3 * 256).unwrap();
    let counts = DeviceBuffer::<f32>::zeros(gpu, 2).unwrap();
    let z = DeviceBuffer::<u32>::zeros(gpu, 4).unwrap();
    let args = span(span(span(span(Args::new(), &d_x), &y), &counts), &z);
    launch(gpu, "wrappers_block", Launch::linear(1, 256).shared(128), args);
    let (y, counts, z) = (y.to_vec().unwrap(), counts.to_vec().unwrap(), z.to_vec().unwrap());
    let total: u64 = (0..256).sum();
    assert_eq!(z[..2], [total as u32, 255]);
    assert_eq!(u64::from(z[2]) | u64::from(z[3]) << 32, total << 30);
    assert_eq!((counts[0], counts[1].to_bits()), (8.0, 256));
    assert_eq!(y[256..512], [x.iter().copied().fold(-1.0, f32::max); 256]);
    // A tree of 8 levels over 256 numbers below 1: each level is off by U of at most 256. Doubling is exact.
    let sum: f64 = wide(&x).iter().sum();
    let share = worst("sum", &[sum; 256], &y[..256], |_| 8.0 * 256.0 * U);
    share.max(worst("doubles", &[2.0 * sum; 256], &y[512..], |_| 16.0 * 256.0 * U))
}

fn named_barriers_pass_a_stage_on(gpu: &dyn Gpu) -> f64 {
    for rounds in [1, 2, 5] {
        let x: Vec<u32> = (0..64 * rounds as u32).map(|i| i * 3 + 1).collect();
        let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let y = DeviceBuffer::<u32>::poisoned(gpu, x.len()).unwrap();
        let args = span(span(Args::new(), &d_x), &y).i32(rounds);
        launch(gpu, "wrappers_named_barriers", Launch::linear(1, 128).shared(256), args);
        let want: Vec<u32> = x.chunks(64).flat_map(|part| part.iter().rev().copied()).collect();
        assert_eq!(y.to_vec().unwrap(), want);
    }
    0.0
}

fn a_grid_barrier_orders_blocks(gpu: &dyn Gpu) -> f64 {
    for blocks in [1, 2, 7] {
        let rounds = 9;
        let cells = DeviceBuffer::<u32>::zeros(gpu, 2 * blocks).unwrap();
        let count = DeviceBuffer::<u32>::zeros(gpu, 1).unwrap();
        let args = span(span(Args::new(), &cells), &count).i32(rounds);
        let grid = Launch::linear(blocks as u32, 64).cooperative();
        launch(gpu, "wrappers_grid_barrier", grid, args);
        let mut want = vec![0; blocks];
        for _ in 0..rounds {
            want = (0..blocks)
                .map(|b| (b + blocks - 1) % blocks)
                .map(|from| want[from] + from as u32)
                .collect();
        }
        let from = rounds as usize % 2 * blocks;
        assert_eq!(cells.to_vec().unwrap()[from..from + blocks], want);
        assert_eq!(count.to_vec().unwrap(), [rounds as u32 * blocks as u32]);
    }
    0.0
}

fn flags_pass_values_on(gpu: &dyn Gpu) -> f64 {
    let x: Vec<u32> = (0..50).map(|i| i * i + 7).collect();
    let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let y = DeviceBuffer::<u32>::poisoned(gpu, x.len()).unwrap();
    let cell = DeviceBuffer::<u32>::zeros(gpu, 1).unwrap();
    let flags = DeviceBuffer::<u32>::zeros(gpu, 2).unwrap();
    let args = span(span(span(span(Args::new(), &d_x), &y), &cell), &flags).i32(x.len() as i32);
    launch(gpu, "wrappers_flags", Launch::linear(2, 32).cooperative(), args);
    assert_eq!(y.to_vec().unwrap(), x);
    0.0
}

fn approximations_and_roundings(gpu: &dyn Gpu) -> f64 {
    let mut x: Vec<f32> = uniform(6, 1000).iter().map(|x| x * 20.0).collect();
    x.extend([1.0, -1.0, 0.5, 3.0, 1.003_906_2, 1.011_718_8, 1e30, -1e-30, 1e-3]);
    let count = x.len();
    let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let y = DeviceBuffer::<u32>::poisoned(gpu, 9 * count).unwrap();
    let args = span(span(Args::new(), &d_x), &y).i32(count as i32);
    launch(gpu, "wrappers_math", Launch::linear(count.div_ceil(128) as u32, 128), args);
    let y = y.to_vec().unwrap();
    let row = |r: usize| -> Vec<f32> {
        y[r * count..(r + 1) * count].iter().map(|bits| f32::from_bits(*bits)).collect()
    };
    let of = |f: fn(f64) -> f64| wide(&x).into_iter().map(f).collect::<Vec<f64>>();
    // The bounds of the PTX manual: ex2 2 ulp (and all of a result below the normal numbers), lg2 2^-22
    // absolute between 0.5 and 2 and 2 ulp elsewhere, tanh 2^-11 relative, rcp 1 ulp, rsqrt 2^-22.4 and
    // sqrt 2^-22.9 relative. An ulp is at most 2 U of the value.
    let near = |name: &str, r: usize, f: fn(f64) -> f64, relative: f64, absolute: f64| {
        let want = of(f);
        // What overflows f32 is infinite in both.
        let want: Vec<f64> = want.iter().map(|w| f64::from(*w as f32).max(*w)).collect();
        worst(name, &want, &row(r), |i| match want[i].is_finite() {
            true => relative * want[i].abs() + absolute,
            false => 1.0,
        })
    };
    let tiny = f64::from(f32::MIN_POSITIVE);
    let mut share = near("ex2", 0, f64::exp2, 4.0 * U, tiny);
    share = share.max(near("lg2", 1, |x| x.abs().log2(), 4.0 * U, 4.0 * U));
    share = share.max(near("tanh", 2, f64::tanh, 1.0 / 2048.0, 0.0));
    share = share.max(near("rcp", 3, |x| 1.0 / x, 2.0 * U, tiny));
    share = share.max(near("rsqrt", 4, |x| 1.0 / x.abs().sqrt(), 4.0 * U, 0.0));
    share = share.max(near("sqrt", 5, |x| x.abs().sqrt(), 4.0 * U, 0.0));
    for (i, v) in x.iter().enumerate() {
        let (half, minus) =
            (half::bf16::from_f32(*v).to_bits(), half::bf16::from_f32(-v).to_bits());
        assert_eq!(y[6 * count + i], u32::from(half), "{v:e} to bf16");
        assert_eq!(y[7 * count + i], (v.to_bits() + 0x1000) & !0x1fff, "{v:e} to tf32");
        assert_eq!(y[8 * count + i], u32::from(half) | u32::from(minus) << 16, "{v:e} packed");
    }
    share
}
