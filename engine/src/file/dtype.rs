//! Number formats of weight files and the way from and to f32.

use half::{bf16, f16};

/// The format of the numbers of one tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say all there is
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

const ALL: [(Dtype, &str, usize); 15] = [
    (Dtype::Bool, "BOOL", 1),
    (Dtype::U8, "U8", 1),
    (Dtype::I8, "I8", 1),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::I16, "I16", 2),
    (Dtype::U16, "U16", 2),
    (Dtype::F16, "F16", 2),
    (Dtype::Bf16, "BF16", 2),
    (Dtype::I32, "I32", 4),
    (Dtype::U32, "U32", 4),
    (Dtype::F32, "F32", 4),
    (Dtype::F64, "F64", 8),
    (Dtype::I64, "I64", 8),
    (Dtype::U64, "U64", 8),
];

impl Dtype {
    /// Finds a format by its name in the file.
    pub fn from_name(name: &str) -> Option<Dtype> {
        ALL.iter().find(|(_, n, _)| *n == name).map(|(dtype, ..)| *dtype)
    }

    /// The name that the file uses.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(dtype, ..)| *dtype == self).map_or("", |(_, name, _)| name)
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        ALL.iter().find(|(dtype, ..)| *dtype == self).map_or(1, |(.., size)| *size)
    }

    /// Reads numbers as f32, one after another; false if the engine does not compute with them.
    pub(crate) fn decode(self, bytes: &[u8], y: &mut [f32]) -> bool {
        match self {
            Dtype::F32 => each(bytes, y, f32::from_le_bytes),
            Dtype::F16 => each(bytes, y, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => each(bytes, y, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => each(bytes, y, |b| f64::from_le_bytes(b) as f32),
            Dtype::I8 => each(bytes, y, |b| f32::from(i8::from_le_bytes(b))),
            Dtype::U8 | Dtype::Bool => each(bytes, y, |[b]| f32::from(b)),
            _ => return false,
        }
        true
    }
}

fn each<const N: usize>(bytes: &[u8], y: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (y, b) in y.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *y = f(*b);
    }
}

/// Writes f32 numbers in another format; bf16 and f16 round to the nearest, ties to even.
pub(crate) fn encode(x: &[f32], dtype: Dtype, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F16 => x.iter().for_each(|x| out.extend(f16::from_f32(*x).to_le_bytes())),
        Dtype::Bf16 => x.iter().for_each(|x| out.extend(bf16::from_f32(*x).to_le_bytes())),
        _ => x.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

/// Quantises each row to whole numbers in `[-127, 127]`; returns one scale a row.
///
/// # Shapes
/// `x` `[rows, cols]`, `q` `[rows, cols]`, scales `[rows]`; `x` is about `q * scale`.
pub(crate) fn quantise_rows(x: &[f32], rows: usize, q: &mut Vec<u8>) -> Vec<f32> {
    let cols = x.len().checked_div(rows).unwrap_or(0);
    let row_scale = |r: usize| {
        let row = &x[r * cols..(r + 1) * cols];
        let max = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let scale = max / 127.0;
        for x in row {
            // Tiny rows would divide by 0; they are 0 in this format.
            let whole = if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 };
            q.extend((whole.clamp(-127.0, 127.0) as i8).to_le_bytes());
        }
        scale
    };
    (0..rows).map(row_scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: of the two neighbours the nearer one, of two equally near the even one.
    fn nearest(x: f32, decode: impl Fn(u16) -> f32) -> u16 {
        let finite = (0..=u16::MAX).filter(|b| decode(*b).is_finite());
        let better = |a: u16, b: u16| {
            let (da, db) = (
                (f64::from(decode(a)) - f64::from(x)).abs(),
                (f64::from(decode(b)) - f64::from(x)).abs(),
            );
            let same_sign = decode(a).is_sign_negative() == x.is_sign_negative();
            if da < db || (da == db && same_sign && a.is_multiple_of(2)) { a } else { b }
        };
        finite.fold(0, |best, b| better(b, best))
    }

    #[test]
    fn short_floats_round_to_the_nearest_and_ties_to_even() {
        let mut bytes = Vec::new();
        // Exact values, ties upwards and downwards, subnormals, and neighbours of ties.
        let xs = [
            0.0f32,
            1.0,
            -1.0,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            1.0 + 1.0 / 2048.0,
            1.0 + 3.0 / 2048.0,
            0.1,
            -0.3,
            65504.0,
            3.0e-8,
            5.960_464_5e-8,
            8.9e-8,
            1e-5,
            2049.0,
            2051.0,
            257.0,
            259.0,
            1.003_906_4,
            1.003_906,
        ];
        for x in xs {
            for (dtype, decode) in [
                (Dtype::F16, (|b| f16::from_bits(b).to_f32()) as fn(u16) -> f32),
                (Dtype::Bf16, |b| bf16::from_bits(b).to_f32()),
            ] {
                bytes.clear();
                encode(&[x], dtype, &mut bytes);
                let found = u16::from_le_bytes([bytes[0], bytes[1]]);
                assert_eq!(decode(found), decode(nearest(x, decode)), "{x} as {dtype:?}");
            }
        }
    }

    #[test]
    fn short_floats_come_back_unchanged() {
        for bits in 0..=u16::MAX {
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let (mut x, mut bytes) = ([0.0], Vec::new());
                assert!(dtype.decode(&bits.to_le_bytes(), &mut x));
                if x[0].is_nan() {
                    continue;
                }
                encode(&x, dtype, &mut bytes);
                assert_eq!(bytes, bits.to_le_bytes());
            }
        }
    }

    #[test]
    fn quantised_rows_are_off_by_at_most_half_a_step() {
        let x: Vec<f32> = (0..60).map(|i| ((i * 37 % 60) as f32 - 30.0) * 0.01).collect();
        let mut q = Vec::new();
        let scales = quantise_rows(&x, 4, &mut q);
        for (i, x) in x.iter().enumerate() {
            let back = f32::from(q[i] as i8) * scales[i / 15];
            // Half a step, and the rounding of the division and the product.
            assert!((x - back).abs() <= 0.5 * scales[i / 15] * (1.0 + 1e-5));
        }
        assert_eq!(quantise_rows(&[0.0; 3], 1, &mut Vec::new()), [0.0]);
        assert_eq!(quantise_rows(&[], 0, &mut Vec::new()), [0.0f32; 0]);
    }
}
