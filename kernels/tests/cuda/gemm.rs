//! Matrix products: every tile, layout, alignment and epilogue against sums in f64.

use super::{Check, from_bf16, to_bf16, uniform, worst};
use etude_kernels::activation::Activation;
use etude_kernels::cuda::gemm::{
    Batch, Element, Epilogue, Factors, Matrix, Plan, QuantisedRows, Scratch, TILES,
    gemm_batched_forward, gemm_forward, gemm_planned_forward, gemv_forward, gemv_int8_forward,
};
use etude_kernels::cuda::{DeviceBuffer, Gpu};

pub const CHECKS: &[Check] = &[
    Check { name: "every_tile_equals_the_definition", run: every_tile_equals_the_definition },
    Check { name: "any_strides_equal_the_definition", run: any_strides_equal_the_definition },
    Check { name: "every_epilogue_equals_its_parts", run: every_epilogue_equals_its_parts },
    Check { name: "batches_equal_single_products", run: batches_equal_single_products },
    Check { name: "a_cut_sum_has_the_same_bits_twice", run: a_cut_sum_has_the_same_bits_twice },
    Check { name: "few_rows_equal_the_definition", run: few_rows_equal_the_definition },
    Check { name: "int8_weights_equal_their_numbers", run: int8_weights_equal_their_numbers },
    Check { name: "an_empty_sum_is_zero", run: an_empty_sum_is_zero },
];

/// Half an ulp of f32, and of bf16.
const U: f64 = 1.0 / 16_777_216.0;
const U_BF16: f64 = 1.0 / 256.0;

/// A matrix on the device, stored with gaps that must not change, and its numbers in f64.
struct Side<'a> {
    bits: DeviceBuffer<'a, u8>,
    numbers: Vec<f64>,
    matrix: Matrix,
    /// Elements from one matrix of the batch to the next.
    stride: usize,
}

/// How a matrix is stored.
#[derive(Clone, Copy)]
struct Storage {
    element: Element,
    transposed: bool,
    /// Elements of a row beyond its end, and elements before the first.
    gap: usize,
    offset: usize,
}

fn encode(numbers: &[f32], element: Element) -> (Vec<u8>, Vec<f32>) {
    match element {
        Element::F32 => (bytemuck::cast_slice(numbers).to_vec(), numbers.to_vec()),
        Element::Bf16 => {
            let bits = to_bf16(numbers);
            (bytemuck::cast_slice(&bits).to_vec(), from_bf16(&bits))
        }
    }
}

fn decode(bytes: &[u8], element: Element) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_ne_bytes(*four)).collect(),
        Element::Bf16 => from_bf16(
            &bytes.as_chunks().0.iter().map(|two| u16::from_ne_bytes(*two)).collect::<Vec<u16>>(),
        ),
    }
}

impl<'a> Side<'a> {
    fn new(
        gpu: &'a dyn Gpu,
        seed: u64,
        (rows, cols): (usize, usize),
        count: usize,
        storage: Storage,
    ) -> Side<'a> {
        let Storage { element, transposed, gap, offset } = storage;
        let (down, along) = if transposed { (cols, rows) } else { (rows, cols) };
        let row = along + gap;
        let stride = down * row;
        let (bytes, numbers) = encode(&uniform(seed, offset + count * stride), element);
        let bits = DeviceBuffer::from_slice(gpu, &bytes).unwrap();
        let address = bits.ptr() + (offset * element.bytes()) as u64;
        let stored = Matrix::new(address, element, down, along).row_stride(row);
        let matrix = if transposed { stored.t() } else { stored };
        let numbers = numbers[offset..].iter().map(|x| f64::from(*x)).collect();
        Side { bits, numbers, matrix, stride }
    }

    fn at(&self, z: usize, r: usize, c: usize) -> f64 {
        self.numbers[z * self.stride + r * self.matrix.row_stride + c * self.matrix.col_stride]
    }
}

fn apply(f: Option<Activation>, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match f {
        None | Some(Activation::Identity) => x,
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::LeakyRelu(slope)) => x.max(0.0) + f64::from(slope) * x.min(0.0),
        // erf by its series, exact enough for |x| < 6.
        Some(Activation::Gelu) => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Some(Activation::GeluTanh) => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Some(Activation::Silu) => x * sigmoid(x),
        Some(Activation::Tanh) => x.tanh(),
        Some(Activation::Sigmoid) => sigmoid(x),
        Some(Activation::Elu(alpha)) => {
            if x > 0.0 {
                x
            } else {
                f64::from(alpha) * x.exp_m1()
            }
        }
        Some(Activation::Softplus) => x.max(0.0) + (-x.abs()).exp().ln_1p(),
    }
}

fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// What a case computes and what it may err by.
struct Case {
    epilogue: (bool, bool, Option<Activation>, bool),
    c: Element,
    /// Relative error of one product of factors.
    product: f64,
}

/// Runs `compute` on C and compares with the definition; gaps of C must keep their bits.
fn share(
    gpu: &dyn Gpu,
    what: &str,
    (a, b): (&Side, &Side),
    (count, gap): (usize, usize),
    case: &Case,
    compute: &dyn Fn(Epilogue, Matrix, Batch),
) -> f64 {
    let (m, k, n) = (a.matrix.rows, a.matrix.cols, b.matrix.cols);
    let (accumulate, with_bias, activation, with_residual) = case.epilogue;
    let storage = Storage { element: case.c, transposed: false, gap, offset: 0 };
    let c = Side::new(gpu, 3, (m, n), count, storage);
    let residual = Side::new(gpu, 4, (m, n), count, storage);
    let bias = uniform(5, n);
    let d_bias = DeviceBuffer::from_slice(gpu, &bias).unwrap();
    let epilogue = Epilogue {
        accumulate,
        bias: with_bias.then_some(d_bias.ptr()),
        activation,
        residual: with_residual.then_some(residual.matrix),
    };
    let batch = Batch {
        count,
        stride_a: a.stride,
        stride_b: b.stride,
        stride_c: c.stride,
        stride_residual: residual.stride,
    };
    compute(epilogue, c.matrix, batch);

    let mut want = c.numbers.clone();
    let mut tolerance = vec![0.0; want.len()];
    for z in 0..count {
        for i in 0..m {
            for (j, bias) in bias.iter().enumerate() {
                let (mut sum, mut size) = (0.0, 0.0);
                for l in 0..k {
                    let term = a.at(z, i, l) * b.at(z, l, j);
                    sum += term;
                    size += term.abs();
                }
                // Tensor cores cut where others round: a whole ulp of a partial sum, which is at most
                // `size`, for every term.
                let mut error = size * (case.product + 2.0 * (k + 2) as f64 * U);
                for extra in
                    [accumulate.then(|| c.at(z, i, j)), with_bias.then(|| f64::from(*bias))]
                        .into_iter()
                        .flatten()
                {
                    sum += extra;
                    error += (size + extra.abs()) * U;
                }
                let mut y = apply(activation, sum);
                // Slopes are below 1.13; the functions themselves are good to 4 ulp, or to one of the
                // 1 that tanh and exp are added to, times the argument.
                error = 1.13 * error + 8.0 * U * (y.abs() + sum.abs().max(1.0));
                if with_residual {
                    y += residual.at(z, i, j);
                    error += y.abs() * U;
                }
                if case.c == Element::Bf16 {
                    error += U_BF16 * (y.abs() + error);
                }
                let at = z * c.stride + i * c.matrix.row_stride + j;
                (want[at], tolerance[at]) = (y, error);
            }
        }
    }
    worst(what, &want, &decode(&c.bits.to_vec().unwrap(), case.c), |i| tolerance[i])
}

/// The relative error of a product of two factors that are multiplied in this way.
fn product_error(factors: Factors, element: Element) -> f64 {
    match (element, factors) {
        // Exact in f32.
        (Element::Bf16, _) => 0.0,
        (_, Factors::Exact) => U,
        // Each factor is off by 2^-11 of itself.
        (_, Factors::Tf32) => 2.0 / 2048.0 + U,
        // What is left of a factor, 2^-11, is rounded to 2^-11 of itself: 2^-22 twice, and the product
        // of what is left is not added: 2^-22. Three sums in place of one.
        (_, Factors::Split) => 3.0 / 4_194_304.0 + 3.0 * U,
    }
}

const PLAIN_STORAGE: Storage =
    Storage { element: Element::F32, transposed: false, gap: 0, offset: 0 };

/// Sizes around the tiles' edges, small enough for the emulator.
const SIZES: [[usize; 3]; 5] =
    [[1, 1, 1], [37, 45, 50], [130, 140, 70], [16, 24, 300], [257, 9, 33]];

fn every_tile_equals_the_definition(gpu: &dyn Gpu) -> f64 {
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 1 << 18).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    let mut largest = 0.0;
    for tile in TILES {
        let per_chunk = 16 / tile.element.bytes();
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            for (i, [m, n, k]) in SIZES.into_iter().enumerate() {
                if ta && tb && !tile.both_transposed {
                    continue;
                }
                // Rows of a strict tile start at multiples of 16 bytes; of a loose one anywhere.
                let storage = |transposed: bool, along: usize, seed: usize| Storage {
                    element: tile.element,
                    transposed,
                    gap: if tile.loose {
                        seed % 3
                    } else {
                        along.next_multiple_of(per_chunk) - along
                    },
                    offset: if tile.loose { seed % 5 } else { 0 },
                };
                let a = Side::new(gpu, 1, (m, k), 1, storage(ta, if ta { m } else { k }, i));
                let b = Side::new(gpu, 2, (k, n), 1, storage(tb, if tb { k } else { n }, i + 1));
                let case = Case {
                    epilogue: (false, false, None, false),
                    c: if i % 2 == 0 { Element::F32 } else { tile.element },
                    product: product_error(tile.factors, tile.element),
                };
                let splits = if m * n < 500 { 3 } else { 1 };
                let plan = Plan { tile: Some(tile), splits };
                let what = format!("{} {ta} {tb} {m}x{n}x{k}", tile.name);
                let run = |epilogue: Epilogue, c: Matrix, batch: Batch| {
                    let (a, b) = (a.matrix, b.matrix);
                    gemm_planned_forward(gpu, a, b, epilogue, c, batch, plan, scratch).unwrap();
                };
                largest = f64::max(largest, share(gpu, &what, (&a, &b), (1, i), &case, &run));
            }
        }
    }
    largest
}

fn any_strides_equal_the_definition(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    for element in [Element::F32, Element::Bf16] {
        let (m, n, k) = (19, 33, 21);
        let storage = |gap| Storage { element, transposed: false, gap, ..PLAIN_STORAGE };
        // Every second column of A, every third row and column of B.
        let mut a = Side::new(gpu, 1, (m, 2 * k), 1, storage(1));
        a.matrix = Matrix { cols: k, col_stride: 2, ..a.matrix };
        let mut b = Side::new(gpu, 2, (3 * k, 3 * n), 1, storage(2));
        let row_stride = 3 * b.matrix.row_stride;
        b.matrix = Matrix { rows: k, cols: n, row_stride, col_stride: 3, ..b.matrix };
        let case = Case {
            epilogue: (true, true, Some(Activation::Tanh), true),
            c: element,
            product: product_error(Factors::Exact, element),
        };
        let run = |epilogue: Epilogue, c: Matrix, batch: Batch| {
            let (factors, none) = (Factors::default(), Scratch::NONE);
            gemm_batched_forward(gpu, a.matrix, b.matrix, epilogue, c, batch, factors, none)
                .unwrap();
        };
        largest = f64::max(largest, share(gpu, "any strides", (&a, &b), (1, 2), &case, &run));
    }
    largest
}

/// Bias, activation, residual and accumulation, each in every kind of kernel that ends differently.
fn every_epilogue_equals_its_parts(gpu: &dyn Gpu) -> f64 {
    let activations = [
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu(0.2),
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Elu(0.7),
        Activation::Softplus,
    ];
    let mut largest = 0.0;
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 1 << 16).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    for (i, activation) in activations.into_iter().enumerate() {
        for (c, splits, n) in [
            (Element::F32, 1, 32),
            (Element::Bf16, 1, 31),
            (Element::F32, 2, 31),
            (Element::Bf16, 2, 32),
        ] {
            let (m, k) = (21, 72);
            let storage = Storage { element: Element::Bf16, ..PLAIN_STORAGE };
            let transposed = Storage { transposed: true, ..storage };
            let a = Side::new(gpu, 11, (m, k), 1, storage);
            let b = Side::new(gpu, 12, (k, n), 1, transposed);
            let epilogue = (i % 2 == 0, i % 3 != 0, Some(activation), i % 4 < 2);
            let case = Case { epilogue, c, product: 0.0 };
            let tile = TILES.iter().find(|tile| tile.name == "gemm_bf16_64x64x32");
            let run = |epilogue: Epilogue, c: Matrix, batch: Batch| {
                let plan = Plan { tile, splits };
                gemm_planned_forward(gpu, a.matrix, b.matrix, epilogue, c, batch, plan, scratch)
                    .unwrap();
            };
            let what = format!("{activation:?} {splits} parts");
            largest = f64::max(largest, share(gpu, &what, (&a, &b), (1, i % 3), &case, &run));
        }
    }
    largest
}

fn batches_equal_single_products(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 1 << 16).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    for element in [Element::F32, Element::Bf16] {
        for factors in [Factors::Exact, Factors::Split, Factors::Tf32] {
            for [m, n, k] in [[24, 40, 16], [9, 17, 200], [140, 13, 24]] {
                let storage = Storage { element, gap: 8, ..PLAIN_STORAGE };
                let a = Side::new(gpu, 21, (m, k), 3, storage);
                let b = Side::new(gpu, 22, (k, n), 3, storage);
                let worst_product = product_error(factors, element);
                let case =
                    Case { epilogue: (true, true, None, true), c: element, product: worst_product };
                let run = |epilogue: Epilogue, c: Matrix, batch: Batch| {
                    let (a, b) = (a.matrix, b.matrix);
                    gemm_batched_forward(gpu, a, b, epilogue, c, batch, factors, scratch).unwrap();
                };
                let what = format!("batch {element:?} {factors:?} {m}x{n}x{k}");
                largest = f64::max(largest, share(gpu, &what, (&a, &b), (3, 4), &case, &run));
            }
        }
    }
    largest
}

fn a_cut_sum_has_the_same_bits_twice(gpu: &dyn Gpu) -> f64 {
    let (m, n, k) = (16, 24, 4096);
    let storage = Storage { element: Element::Bf16, ..PLAIN_STORAGE };
    let a = Side::new(gpu, 31, (m, k), 1, storage);
    let b = Side::new(gpu, 32, (k, n), 1, storage);
    let scratch = DeviceBuffer::<f32>::poisoned(gpu, 64 * m * n).unwrap();
    let scratch = Scratch { address: scratch.ptr(), bytes: scratch.bytes() };
    let run = || {
        let c = DeviceBuffer::<f32>::poisoned(gpu, m * n).unwrap();
        let to = Matrix::new(c.ptr(), Element::F32, m, n);
        gemm_forward(gpu, a.matrix, b.matrix, to, false, scratch).unwrap();
        c.to_vec().unwrap()
    };
    assert_eq!(run(), run());
    0.0
}

fn few_rows_equal_the_definition(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    let kinds = [
        (Element::F32, Element::F32),
        (Element::Bf16, Element::Bf16),
        (Element::F32, Element::Bf16),
    ];
    for (x, w) in kinds {
        for (i, [m, n, k]) in
            [[1, 5, 64], [1, 33, 2000], [3, 9, 77], [4, 12, 1024], [7, 30, 640], [8, 3, 8]]
                .into_iter()
                .enumerate()
        {
            // Aligned and not.
            let gap = |k: usize| if i % 2 == 0 { k.next_multiple_of(8) - k } else { 1 };
            let storage = Storage { element: x, gap: gap(k), ..PLAIN_STORAGE };
            let a = Side::new(gpu, 41, (m, k), 1, storage);
            let b = Side::new(
                gpu,
                42,
                (k, n),
                1,
                Storage { element: w, transposed: true, gap: gap(k), offset: i / 3 },
            );
            let case = Case {
                epilogue: (i % 2 == 1, i % 3 == 0, Some(Activation::GeluTanh), i < 4),
                c: if i % 2 == 0 { Element::F32 } else { w },
                product: U,
            };
            let run = |epilogue: Epilogue, c: Matrix, _: Batch| {
                gemv_forward(gpu, a.matrix, b.matrix, epilogue, c).unwrap();
            };
            let what = format!("few rows {x:?} {w:?} {m}x{n}x{k}");
            largest = f64::max(largest, share(gpu, &what, (&a, &b), (1, i % 2), &case, &run));
        }
    }
    largest
}

fn int8_weights_equal_their_numbers(gpu: &dyn Gpu) -> f64 {
    let mut largest = 0.0;
    for [m, n, k] in [[1, 5, 64], [1, 18, 4096], [4, 12, 80], [8, 31, 45]] {
        let numbers: Vec<i8> =
            uniform(51, n * k).iter().map(|x| (x * 128.0).floor() as i8).collect();
        let scales = uniform(52, n);
        let a = Side::new(gpu, 53, (m, k), 1, PLAIN_STORAGE);
        // The same weights as f32 for the definition: numbers times scales, exact in f64.
        let mut b = Side::new(gpu, 54, (k, n), 1, Storage { transposed: true, ..PLAIN_STORAGE });
        for (i, x) in b.numbers.iter_mut().enumerate() {
            *x = f64::from(numbers[i]) * f64::from(scales[i / k]);
        }
        let d_numbers = DeviceBuffer::from_slice(gpu, &numbers).unwrap();
        let d_scales = DeviceBuffer::from_slice(gpu, &scales).unwrap();
        let w =
            QuantisedRows { numbers: d_numbers.ptr(), scales: d_scales.ptr(), rows: n, cols: k };
        // Multiplying by the scale rounds once more.
        let case = Case { epilogue: (false, true, None, true), c: Element::F32, product: 2.0 * U };
        let run = |epilogue: Epilogue, c: Matrix, _: Batch| {
            gemv_int8_forward(gpu, a.matrix, w, epilogue, c).unwrap();
        };
        let what = format!("int8 {m}x{n}x{k}");
        largest = f64::max(largest, share(gpu, &what, (&a, &b), (1, 0), &case, &run));
    }
    largest
}

fn an_empty_sum_is_zero(gpu: &dyn Gpu) -> f64 {
    for element in [Element::F32, Element::Bf16] {
        for m in [3, 70] {
            let c = DeviceBuffer::<f32>::poisoned(gpu, m * 40).unwrap();
            let a = Matrix::new(0, element, m, 0);
            let b = Matrix::new(0, element, 0, 40);
            let to = Matrix::new(c.ptr(), Element::F32, m, 40);
            gemm_forward(gpu, a, b, to, false, Scratch::NONE).unwrap();
            assert_eq!(c.to_vec().unwrap(), vec![0.0; m * 40]);
            gemm_forward(gpu, a, b, to, true, Scratch::NONE).unwrap();
            assert_eq!(c.to_vec().unwrap(), vec![0.0; m * 40]);
        }
    }
    0.0
}
