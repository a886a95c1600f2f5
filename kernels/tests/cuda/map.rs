//! Checks of functions of one and two numbers, activations, layouts and casts.

use super::rows::{Typed, U, stored};
use super::{Check, from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::activation::Activation;
use etude_kernels::cuda::map::{self, layout};
use etude_kernels::cuda::rows::Float;
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::elementwise::{self, Binary, Unary};
use etude_kernels::reference::elementwise as reference;

pub const CHECKS: &[Check] = &[
    Check { name: "unary", run: unary },
    Check { name: "special_values_as_on_the_cpu", run: special_values },
    Check { name: "activations_backward", run: activations_backward },
    Check { name: "binary", run: binary },
    Check { name: "bias_activation_forward", run: bias_forward },
    Check { name: "bias_activation_backward", run: bias_backward },
    Check { name: "copies_between_layouts", run: copies },
    Check { name: "broadcasts_and_masks", run: broadcasts },
    Check { name: "casts_and_fills", run: casts },
];

const LENGTHS: &[usize] = &[1, 3, 31, 33, 127, 128, 129, 1000, 1023, 1025, 4097];

const UNARY: &[Unary] = &[
    Unary::Neg,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Recip,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Relu,
    Unary::LeakyRelu(0.2),
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::Silu,
    Unary::Elu(1.5),
    Unary::Softplus,
    Unary::Pow(1.0),
    Unary::Pow(2.0),
    Unary::Pow(3.0),
    Unary::Pow(-1.0),
    Unary::Pow(0.5),
    Unary::Pow(-2.5),
    Unary::Affine(0.7, -0.3),
    Unary::Step,
    Unary::Sin,
    Unary::Cos,
    Unary::Erf,
    Unary::Abs,
];

const ACTIVATIONS: &[Activation] = &[
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu(0.2),
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Elu(1.5),
    Activation::Softplus,
];

/// What a function may be off by: as the CPU's, in units of `U` of its size, and absolutely.
fn bound(f: Unary, y: f64, x: f64) -> f64 {
    match f {
        // x Phi(x): absolute error 2e-7 of max(1, |x|).
        Unary::Gelu => 2e-7 * x.abs().max(1.0),
        // A sigmoid of an argument below 3 |x|, off by 4 of its roundings, times x.
        Unary::GeluTanh => (20.0 * x.abs().max(1.0) + 12.0) * U,
        // 4 units in the last place, two halves each.
        _ => 10.0 * U * y.abs() + 1e-44,
    }
}

fn unary(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, f) in UNARY.iter().enumerate() {
        let positive = matches!(f, Unary::Log | Unary::Sqrt | Unary::Pow(_));
        let far = matches!(f, Unary::Sin | Unary::Cos);
        for n in [LENGTHS[k % LENGTHS.len()], 4097] {
            let x: Vec<f32> = uniform(k as u64, n)
                .iter()
                .enumerate()
                .map(|(i, x)| match (positive, far, i % 3) {
                    (true, ..) => x.abs() * 8.0 + 1e-3,
                    (_, true, 0) => x * 1e30,
                    (_, true, 1) => x * 3e5,
                    _ => x * 12.0,
                })
                .collect();
            for float in [Float::F32, Float::Bf16] {
                if float == Float::Bf16 && matches!(f, Unary::Pow(0.5 | -2.5)) {
                    continue;
                }
                let from = Typed::new(gpu, float, &x);
                let to = Typed::room(gpu, float, n);
                let want: Vec<f64> =
                    wide(&from.values).iter().map(|x| reference::unary(*f, *x)).collect();
                let tolerance = |i: usize| {
                    bound(*f, want[i], from.values[i].into()) + want[i].abs() * stored(float)
                };
                for per_sm in [0, 1] {
                    let (x, y) = (from.ptr(), to.ptr());
                    map::unary(gpu, float, *f, x, y, n, per_sm).unwrap();
                    let what = format!("{f:?} {float:?} {n}");
                    share = share.max(worst(&what, &want, &to.get(), tolerance));
                }
                if float == Float::F32 && !matches!(f, Unary::Pow(0.5 | -2.5)) {
                    map::plain::unary(gpu, *f, from.ptr(), to.ptr(), n).unwrap();
                    share = share.max(worst("plain", &want, &to.get(), tolerance));
                }
            }
        }
    }
    share
}

fn special_values(gpu: &dyn Gpu) -> f64 {
    const INF: f32 = f32::INFINITY;
    let x = [
        f32::NAN,
        INF,
        -INF,
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e-40,
        -1e-40,
        100.0,
        -100.0,
        3e38,
        -3e38,
        65536.5,
        -1e10,
        20.0,
        -20.0,
    ];
    let n = x.len();
    let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
    let to = DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
    let same = |what: &str, want: &[f32], got: &[f32]| {
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            // Denormals may be flushed; what is far below the smallest normal number counts as 0.
            let near = (w - g).abs() <= 2e-6 * w.abs() + 1e-37;
            let equal = near || w == g || (w.is_nan() && g.is_nan());
            assert!(equal, "{what} of {}: {g:e}, on the CPU {w:e}", x[i % n]);
        }
    };
    let mut want = vec![0.0; n];
    for f in UNARY {
        elementwise::unary_forward(*f, &x, &mut want);
        map::unary_forward(gpu, Float::F32, *f, from.ptr(), to.ptr(), n).unwrap();
        same(&format!("{f:?}"), &want, &to.to_vec().unwrap());
    }
    let d_y = vec![1.0; n];
    let d = DeviceBuffer::from_slice(gpu, &d_y).unwrap();
    for f in ACTIVATIONS {
        etude_kernels::activation::activation_backward(*f, &x, &d_y, &mut want);
        let (x, d) = (from.ptr(), d.ptr());
        map::activation_backward(gpu, Float::F32, *f, x, d, to.ptr(), n).unwrap();
        same(&format!("slope of {f:?}"), &want, &to.to_vec().unwrap());
    }
    // Each with each.
    let (a, b): (Vec<f32>, Vec<f32>) =
        x.iter().flat_map(|a| x.iter().map(move |b| (*a, *b))).unzip();
    let mut want = vec![0.0; n * n];
    let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
    let (d_a, d_b, to) = (up(&a), up(&b), up(&want));
    for f in BINARY {
        elementwise::binary_forward(*f, &a, &b, &mut want);
        map::binary_forward(gpu, *f, d_a.ptr(), d_b.ptr(), to.ptr(), n * n).unwrap();
        same(&format!("{f:?}"), &want, &to.to_vec().unwrap());
    }
    0.0
}

fn activations_backward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, f) in ACTIVATIONS.iter().enumerate() {
        let n = LENGTHS[LENGTHS.len() - 1 - k % LENGTHS.len()];
        let x: Vec<f32> = uniform(3, n).iter().map(|x| 10.0 * x).collect();
        for float in [Float::F32, Float::Bf16] {
            let x = Typed::new(gpu, float, &x);
            let d_y = Typed::new(gpu, float, &uniform(4, n));
            let d_x = Typed::room(gpu, float, n);
            let (from, d, to) = (x.ptr(), d_y.ptr(), d_x.ptr());
            let pairs = x.values.iter().zip(&d_y.values);
            let want: Vec<f64> = pairs
                .map(|(x, d)| reference::activation_slope(*f, (*x).into()) * f64::from(*d))
                .collect();
            // GELU's slope is a polynomial with absolute error 3e-7; the others lose some 4 units in the
            // last place, terms of up to |x| times the slope of a sigmoid.
            let tolerance =
                |i: usize| 4e-7 + 12.0 * U * want[i].abs() + want[i].abs() * stored(float);
            map::activation_backward(gpu, float, *f, from, d, to, n).unwrap();
            let what = format!("slope of {f:?} {float:?} {n}");
            share = share.max(worst(&what, &want, &d_x.get(), tolerance));
            if float == Float::F32 {
                map::plain::backward(gpu, *f, from, d, to, n).unwrap();
                share = share.max(worst("plain", &want, &d_x.get(), tolerance));
                map::activation_forward(gpu, float, *f, from, to, n).unwrap();
            }
        }
    }
    share
}

const BINARY: &[Binary] =
    &[Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min];

fn binary(gpu: &dyn Gpu) -> f64 {
    let same = |what: String, want: &[f32], got: &[f32]| assert_eq!(want, got, "{what}");
    for (k, n) in LENGTHS.iter().copied().enumerate() {
        let f = BINARY[k % 6];
        let (a, b) = (uniform(1, n), uniform(2, n));
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (d_a, d_b, y) = (up(&a), up(&b), DeviceBuffer::<f32>::poisoned(gpu, n).unwrap());
        let mut want = vec![0.0; n];
        // One operation, rounded as the standard says: the same bits.
        elementwise::binary_forward(f, &a, &b, &mut want);
        map::binary_forward(gpu, f, d_a.ptr(), d_b.ptr(), y.ptr(), n).unwrap();
        same(format!("{f:?} {n}"), &want, &y.to_vec().unwrap());
        elementwise::binary_scalar_forward(f, &a, 0.3, &mut want);
        map::binary_scalar_forward(gpu, f, d_a.ptr(), 0.3, y.ptr(), n).unwrap();
        same(format!("{f:?} {n} scalar"), &want, &y.to_vec().unwrap());
        elementwise::axpy(0.7, &a, &mut want);
        map::axpy(gpu, 0.7, d_a.ptr(), y.ptr(), n).unwrap();
        same(format!("axpy {n}"), &want, &y.to_vec().unwrap());
    }
    for (k, (rows, cols)) in SHAPES.iter().copied().enumerate() {
        let f = BINARY[k % 6];
        let (a, b) = (uniform(1, rows * cols), uniform(2, cols));
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (d_a, d_b, y) = (up(&a), up(&b), up(&a));
        let mut want = vec![0.0; a.len()];
        elementwise::binary_row_forward(f, &a, &b, &mut want);
        map::binary_row_forward(gpu, f, d_a.ptr(), d_b.ptr(), y.ptr(), rows, cols).unwrap();
        same(format!("{f:?} {rows}x{cols}"), &want, &y.to_vec().unwrap());
    }
    0.0
}

const SHAPES: &[(usize, usize)] = &[
    (1, 1),
    (7, 3),
    (300, 1),
    (5, 31),
    (65, 33),
    (3, 128),
    (40, 64),
    (2, 1023),
    (9, 1024),
    (3, 1025),
    (2, 4097),
    (100, 8),
];

fn bias_forward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, (rows, cols)) in SHAPES.iter().copied().enumerate() {
        let f = ACTIVATIONS[k % ACTIVATIONS.len()];
        let n = rows * cols;
        for float in [Float::F32, Float::Bf16] {
            let x: Vec<f32> = uniform(5, n).iter().map(|x| 4.0 * x).collect();
            let (x, bias) = (Typed::new(gpu, float, &x), Typed::new(gpu, float, &uniform(6, cols)));
            let residual = Typed::new(gpu, float, &uniform(7, n));
            let y = Typed::room(gpu, float, n);
            for with in [false, true] {
                let (x_at, b, r) = (x.ptr(), bias.ptr(), if with { residual.ptr() } else { 0 });
                map::bias_activation(
                    gpu,
                    float,
                    f,
                    x_at,
                    b,
                    r,
                    y.ptr(),
                    rows,
                    cols,
                    u32::from(k % 2 == 0),
                )
                .unwrap();
                let argument = |i: usize| f64::from(x.values[i] + bias.values[i % cols]);
                let value = |i: usize| reference::unary(as_unary(f), argument(i));
                let added = |i: usize| if with { f64::from(residual.values[i]) } else { 0.0 };
                let want: Vec<f64> = (0..n).map(|i| value(i) + added(i)).collect();
                let tolerance = |i: usize| {
                    bound(as_unary(f), value(i), argument(i))
                        + 2.0 * U * (value(i).abs() + added(i).abs())
                        + want[i].abs() * stored(float)
                };
                let what = format!("bias and {f:?} {float:?} {rows}x{cols} residual {with}");
                share = share.max(worst(&what, &want, &y.get(), tolerance));
            }
        }
    }
    share
}

fn as_unary(f: Activation) -> Unary {
    match f {
        Activation::Identity => Unary::Pow(1.0),
        Activation::Relu => Unary::Relu,
        Activation::LeakyRelu(slope) => Unary::LeakyRelu(slope),
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Silu => Unary::Silu,
        Activation::Tanh => Unary::Tanh,
        Activation::Sigmoid => Unary::Sigmoid,
        Activation::Elu(alpha) => Unary::Elu(alpha),
        Activation::Softplus => Unary::Softplus,
    }
}

fn bias_backward(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (k, (rows, cols)) in SHAPES.iter().copied().enumerate() {
        let f = ACTIVATIONS[k % ACTIVATIONS.len()];
        let n = rows * cols;
        for float in [Float::F32, Float::Bf16] {
            let (x, bias) =
                (Typed::new(gpu, float, &uniform(5, n)), Typed::new(gpu, float, &uniform(6, cols)));
            let (d_y, d_x) = (Typed::new(gpu, float, &uniform(7, n)), Typed::room(gpu, float, n));
            let d_bias = DeviceBuffer::from_slice(gpu, &vec![0.5f32; cols]).unwrap();
            let bytes = map::bias_activation_backward_scratch(gpu, float, rows, cols);
            let scratch = DeviceBuffer::<u8>::poisoned(gpu, bytes).unwrap();
            let (from, b, d, to) = (x.ptr(), bias.ptr(), d_y.ptr(), d_x.ptr());
            let (sums, room) = (d_bias.ptr(), scratch.ptr());
            map::bias_activation_backward(gpu, float, f, from, b, d, to, sums, room, rows, cols)
                .unwrap();
            let mut want_bias = vec![0.5; cols];
            let want: Vec<f64> = (0..n)
                .map(|i| {
                    let at = f64::from(x.values[i] + bias.values[i % cols]);
                    let d = reference::activation_slope(f, at) * f64::from(d_y.values[i]);
                    want_bias[i % cols] += d;
                    d
                })
                .collect();
            let what = format!("bias and {f:?} backward {float:?} {rows}x{cols}");
            let each = 4e-7 + 14.0 * U;
            let tolerance = |i: usize| each + want[i].abs() * stored(float);
            share = share.max(worst(&what, &want, &d_x.get(), tolerance));
            // The sums are of what is not yet rounded to bf16; slopes are below 1.6.
            let bound = rows as f64 * (each + 1.6 * (rows as f64 + 1.0) * U) + U;
            share = share.max(worst(&what, &want_bias, &d_bias.to_vec().unwrap(), |_| bound));
        }
    }
    share
}

/// Row-major strides.
fn in_order(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

/// Places of all numbers of a view, in order.
fn places(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut all = vec![0];
    for (dim, stride) in dims.iter().zip(strides) {
        all = all.iter().flat_map(|at| (0..*dim).map(move |k| at + k * stride)).collect();
    }
    all
}

fn copies(gpu: &dyn Gpu) -> f64 {
    // Sizes of x, the order of its axes in y, and from where to where each axis is kept.
    let cases: &[(&[usize], &[usize])] = &[
        (&[1], &[0]),
        (&[5, 7], &[0, 1]),
        (&[33, 65], &[1, 0]),
        (&[3, 40, 31], &[0, 2, 1]),
        (&[3, 4, 5, 8], &[2, 0, 1, 3]),
        (&[2, 3, 4, 3, 2, 5], &[5, 3, 1, 4, 2, 0]),
        (&[6, 4, 16], &[1, 0, 2]),
        (&[1, 9, 1, 4], &[3, 0, 1, 2]),
    ];
    for (dims, order) in cases {
        let n: usize = dims.iter().product();
        let x: Vec<u32> = (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let strides = in_order(dims);
        let (y_dims, x_strides): (Vec<usize>, Vec<usize>) =
            order.iter().map(|axis| (dims[*axis], strides[*axis])).unzip();
        let y_strides = in_order(&y_dims);
        let want: Vec<u32> = places(&y_dims, &x_strides).iter().map(|at| x[*at]).collect();
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let to = DeviceBuffer::<u32>::poisoned(gpu, n).unwrap();
        let view = |address, strides| layout::View { address, strides };
        let (a, b) = (view(from.ptr(), &x_strides[..]), view(to.ptr(), &y_strides[..]));
        layout::copy_strided(gpu, 4, a, b, &y_dims).unwrap();
        assert_eq!(want, to.to_vec().unwrap(), "{dims:?} {order:?}");
        // Numbers of 2 bytes.
        let x: Vec<u16> = x.iter().map(|x| *x as u16).collect();
        let want: Vec<u16> = want.iter().map(|x| *x as u16).collect();
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let to = DeviceBuffer::<u16>::poisoned(gpu, n).unwrap();
        let (a, b) = (view(from.ptr(), &x_strides[..]), view(to.ptr(), &y_strides[..]));
        layout::copy_strided(gpu, 2, a, b, &y_dims).unwrap();
        assert_eq!(want, to.to_vec().unwrap(), "{dims:?} {order:?} u16");
    }
    // A slice of 3 of 7 columns to columns 2.. of 6, in words of 4 and of 16 bytes.
    for wide in [1, 4] {
        let (rows, from_cols, to_cols, kept) = (5, 7 * wide, 6 * wide, 3 * wide);
        let x: Vec<u32> = (0..(rows * from_cols) as u32).collect();
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let to = DeviceBuffer::from_slice(gpu, &vec![7u32; rows * to_cols]).unwrap();
        let (x_at, y_at) = (from.ptr() + 4 * wide as u64, to.ptr() + 8 * wide as u64);
        let a = layout::View { address: x_at, strides: &[from_cols, 1] };
        let b = layout::View { address: y_at, strides: &[to_cols, 1] };
        layout::copy_strided(gpu, 4, a, b, &[rows, kept]).unwrap();
        let mut want = vec![7; rows * to_cols];
        for r in 0..rows {
            for c in 0..kept {
                want[r * to_cols + 2 * wide + c] = x[r * from_cols + wide + c];
            }
        }
        assert_eq!(want, to.to_vec().unwrap());
    }
    0.0
}

fn broadcasts(gpu: &dyn Gpu) -> f64 {
    let cases: &[(&[usize], &[usize], &[usize])] = &[
        (&[4, 1, 5], &[1, 3, 1], &[4, 3, 5]),
        (&[1, 1], &[6, 70], &[6, 70]),
        (&[2, 3, 1, 4, 1, 2], &[1, 3, 5, 1, 2, 2], &[2, 3, 5, 4, 2, 2]),
        (&[33, 1], &[1, 65], &[33, 65]),
    ];
    let strides = |dims: &[usize]| -> Vec<usize> {
        let order = in_order(dims);
        dims.iter().zip(order).map(|(dim, stride)| if *dim == 1 { 0 } else { stride }).collect()
    };
    for (k, (a_dims, b_dims, dims)) in cases.iter().enumerate() {
        let n: usize = dims.iter().product();
        let (a, b) = (
            uniform(1, a_dims.iter().product::<usize>()),
            uniform(2, b_dims.iter().product::<usize>()),
        );
        let (a_strides, b_strides) = (strides(a_dims), strides(b_dims));
        let up = |x: &[f32]| DeviceBuffer::from_slice(gpu, x).unwrap();
        let (d_a, d_b) = (up(&a), up(&b));
        let y = DeviceBuffer::<f32>::poisoned(gpu, n).unwrap();
        let view_a = layout::View { address: d_a.ptr(), strides: &a_strides };
        let view_b = layout::View { address: d_b.ptr(), strides: &b_strides };
        let pairs: Vec<(f32, f32)> = places(dims, &a_strides)
            .iter()
            .zip(places(dims, &b_strides))
            .map(|(i, j)| (a[*i], b[j]))
            .collect();
        for f in &BINARY[k..k + 3] {
            layout::binary_strided_forward(gpu, *f, view_a, view_b, y.ptr(), dims).unwrap();
            let mut want = vec![0.0; n];
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            elementwise::binary_forward(*f, &a, &b, &mut want);
            assert_eq!(want, y.to_vec().unwrap(), "{f:?} {dims:?}");
        }
        let mask: Vec<f32> = uniform(3, n).iter().map(|x| f32::from(u8::from(*x > 0.0))).collect();
        let d_mask = up(&mask);
        let order = in_order(dims);
        let view_m = layout::View { address: d_mask.ptr(), strides: &order };
        layout::where_mask_forward(gpu, view_m, view_a, view_b, y.ptr(), dims).unwrap();
        let want: Vec<f32> =
            mask.iter().zip(&pairs).map(|(m, (a, b))| if *m != 0.0 { *a } else { *b }).collect();
        assert_eq!(want, y.to_vec().unwrap());
    }
    0.0
}

fn casts(gpu: &dyn Gpu) -> f64 {
    for n in LENGTHS.iter().copied() {
        let mut x = uniform(8, n);
        x[0] = f32::INFINITY;
        if n > 2 {
            x[1] = -1e-41;
            x[2] = 3.39e38; // the nearest bf16 is infinite
        }
        let bits = to_bf16(&x);
        let (from, to) = (
            DeviceBuffer::from_slice(gpu, &x).unwrap(),
            DeviceBuffer::<u16>::poisoned(gpu, n).unwrap(),
        );
        layout::to_bf16(gpu, from.ptr(), to.ptr(), n).unwrap();
        assert_eq!(bits, to.to_vec().unwrap());
        layout::from_bf16(gpu, to.ptr(), from.ptr(), n).unwrap();
        assert_eq!(from_bf16(&bits), from.to_vec().unwrap());
        layout::fill(gpu, from.ptr(), 1.5f32.to_bits(), n).unwrap();
        assert_eq!(vec![1.5; n], from.to_vec().unwrap());
    }
    0.0
}
