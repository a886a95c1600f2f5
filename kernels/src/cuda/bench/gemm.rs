//! Timed cases of the family `gemm`: every tile that takes a product, and the one that is chosen.

use super::{Bench, Error};
use crate::cuda::gemm::{
    Batch, Element, Epilogue, Factors, Matrix, Plan, QuantisedRows, Scratch, TILES,
    gemm_fused_forward, gemm_planned_forward, gemv_forward, gemv_int8_forward,
};
use crate::cuda::{DeviceBuffer, Gpu};
use crate::gemm_bf16::to_bf16;
use crate::philox;

/// `m`, `n`, `k`: squares, a feed-forward layer over 16k tokens and its way back, an LSTM's input.
const SIZES: &[[usize; 3]] = &[
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [4096, 4096, 4096],
    [8192, 8192, 8192],
    [16384, 2048, 512],
    [16384, 512, 2048],
    [64, 2048, 512],
];

/// Products whose result is small and whose sum is long, as gradients of weights are.
const LONG_SUMS: &[[usize; 3]] = &[[512, 512, 16384], [512, 2048, 16384], [388, 512, 8192]];

/// Weights `n x k` of a generated token.
const WEIGHTS: &[[usize; 2]] =
    &[[1536, 512], [2048, 512], [512, 2048], [4096, 1024], [4096, 4096], [16384, 4096]];

/// The cases.
///
/// # Errors
/// Those of the device.
pub fn cases(bench: &mut Bench) -> Result<(), Error> {
    let small = bench.small;
    let sized = move |sizes: &[usize; 3]| if small { sizes.map(|x| x / 128 + 8) } else { *sizes };
    for (name, factors) in
        [("bf16", Factors::Exact), ("tf32", Factors::Tf32), ("f32", Factors::Split)]
    {
        let element = if name == "bf16" { Element::Bf16 } else { Element::F32 };
        let layouts = if name == "bf16" { &["nn", "nt", "tn"][..] } else { &["nn"][..] };
        for layout in layouts {
            for sizes in SIZES {
                product(bench, name, layout, sized(sizes), element, factors)?;
            }
        }
    }
    for sizes in LONG_SUMS {
        product(bench, "bf16", "tn", sized(sizes), Element::Bf16, Factors::Exact)?;
        product(bench, "f32", "tn", sized(sizes), Element::F32, Factors::Split)?;
    }
    for [n, k] in WEIGHTS {
        let [n, k] = if small { [n / 128, k / 16] } else { [*n, *k] };
        for m in [1, 8] {
            few_rows(bench, m, n, k)?;
        }
    }
    Ok(())
}

/// Uniform numbers in `[-1, 1)`, the same 2^18 again and again: products of zeros are faster than real
/// ones.
pub(super) fn random(
    gpu: &dyn Gpu,
    element: Element,
    len: usize,
) -> Result<DeviceBuffer<'_, u8>, Error> {
    let piece = len.min(1 << 18);
    let mut numbers = vec![0.0; piece];
    philox::uniform(&mut numbers, 1, 0, 0);
    numbers.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
    let buffer = DeviceBuffer::zeros(gpu, len * element.bytes())?;
    match element {
        Element::F32 => gpu.upload(buffer.ptr(), bytemuck::cast_slice(&numbers))?,
        Element::Bf16 => {
            let bits: Vec<u16> = to_bf16(&numbers).iter().map(|x| x.to_bits()).collect();
            gpu.upload(buffer.ptr(), bytemuck::cast_slice(&bits))?;
        }
    }
    let mut done = piece * element.bytes();
    while done < buffer.bytes() {
        let more = done.min(buffer.bytes() - done);
        gpu.copy(buffer.ptr() + done as u64, buffer.ptr(), more)?;
        done += more;
    }
    Ok(buffer)
}

fn product(
    bench: &mut Bench,
    name: &str,
    layout: &str,
    [m, n, k]: [usize; 3],
    element: Element,
    factors: Factors,
) -> Result<(), Error> {
    let case = format!("gemm/{name} {layout}/{m}x{n}x{k}");
    if !bench.wants(&case) {
        return Ok(());
    }
    let gpu = bench.gpu;
    let (a, b) = (random(gpu, element, m * k)?, random(gpu, element, k * n)?);
    let c = DeviceBuffer::<u8>::poisoned(gpu, m * n * element.bytes())?;
    // Room for a few parts of a small result, as a training step has.
    let room = DeviceBuffer::<u8>::zeros(gpu, if m * n <= 1 << 21 { m * n * 4 * 16 } else { 16 })?;
    let scratch = Scratch { address: room.ptr(), bytes: room.bytes() };
    let stored = |x: &DeviceBuffer<u8>, rows: usize, cols: usize, transposed: bool| {
        if transposed {
            Matrix::new(x.ptr(), element, cols, rows).t()
        } else {
            Matrix::new(x.ptr(), element, rows, cols)
        }
    };
    let a = stored(&a, m, k, layout.starts_with('t'));
    let b = stored(&b, k, n, layout.ends_with('t'));
    let to = Matrix::new(c.ptr(), element, m, n);
    let flops = 2.0 * (m * n * k) as f64;
    let bytes = ((m * k + k * n + m * n) * element.bytes()) as f64;
    bench.case(&case, "chosen", flops, bytes, &mut || {
        gemm_fused_forward(gpu, a, b, Epilogue::default(), to, factors, scratch)
    })?;
    let wanted = TILES.iter().filter(|tile| {
        let same = tile.factors == factors || tile.factors == Factors::Exact;
        // Loose tiles of bf16 and tf32 are for rows that strict ones cannot take.
        let needed = !tile.loose || tile.factors == Factors::Exact && element == Element::F32;
        tile.element == element && same && needed
    });
    for tile in wanted {
        let parts: &[usize] = if k >= 4 * m.max(n) { &[1, 4, 16] } else { &[1] };
        for &splits in parts {
            let plan = Plan { tile: Some(tile), splits };
            if !plan.takes(&a, &b, Batch::ONE) || splits > 1 && splits * m * n * 4 > scratch.bytes {
                continue;
            }
            let variant = match splits {
                1 => tile.name.replace("gemm_", ""),
                _ => format!("{} in {splits}", tile.name.replace("gemm_", "")),
            };
            bench.case(&case, &variant, flops, bytes, &mut || {
                let epilogue = Epilogue::default();
                gemm_planned_forward(gpu, a, b, epilogue, to, Batch::ONE, plan, scratch)
            })?;
        }
    }
    Ok(())
}

/// Few rows with weights that take turns, so that no cache holds them: at least 128 MiB of them.
fn few_rows(bench: &mut Bench, m: usize, n: usize, k: usize) -> Result<(), Error> {
    let gpu = bench.gpu;
    for (name, x, w, bytes) in [
        ("f32", Element::F32, Element::F32, 4),
        ("bf16", Element::Bf16, Element::Bf16, 2),
        ("f32 with bf16", Element::F32, Element::Bf16, 2),
        ("f32 with int8", Element::F32, Element::F32, 1),
    ] {
        let case = format!("gemm/{name} few rows/{m}x{n}x{k}");
        if !bench.wants(&case) {
            continue;
        }
        let size = n * k * bytes;
        let copies = if bench.small { 2 } else { (1usize << 27).div_ceil(size) };
        let a = random(gpu, x, m * k)?;
        let weights = random(gpu, w, (copies * size).div_ceil(w.bytes()))?;
        let scales = random(gpu, Element::F32, n)?;
        let c = DeviceBuffer::<f32>::poisoned(gpu, m * n)?;
        let a = Matrix::new(a.ptr(), x, m, k);
        let to = Matrix::new(c.ptr(), Element::F32, m, n);
        let moved = (size + m * k * x.bytes() + m * n * 4) as f64;
        let mut turn = 0;
        bench.case(&case, "chosen", 2.0 * (m * n * k) as f64, moved, &mut || {
            turn = (turn + 1) % copies;
            let at = weights.ptr() + (turn * size) as u64;
            if bytes == 1 {
                let w = QuantisedRows { numbers: at, scales: scales.ptr(), rows: n, cols: k };
                return gemv_int8_forward(gpu, a, w, Epilogue::default(), to);
            }
            let b = Matrix::new(at, w, n, k).t();
            gemv_forward(gpu, a, b, Epilogue::default(), to)
        })?;
    }
    Ok(())
}
