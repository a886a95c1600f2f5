//! One attention on the device, and what the definition in f64 says of it.
//!
//! Tolerances are six standard deviations of independent roundings, summed where they meet. `U` is the
//! unit roundoff of f32, `B` that of bf16; a rounding of `x` has a variance of at most `(U x)^2 / 3`.
//! Inputs lie in `[-1, 1)` and are exact. A sum of `n` products of two of them stays within `sqrt(n)`
//! (three standard deviations), is rounded `n` times, and the tensor cores may cut off instead of
//! rounding, which doubles `U`: it is off by `6 * 2 U * n / sqrt(3) < 7 n U`.

use crate::cuda::{from_bf16, to_bf16, uniform, wide, worst};
use etude_kernels::attention::{Dropout, Mask, Rule, Sizes, Strides};
use etude_kernels::cuda::attention::{
    Format, Relative, Rows, attention_backward, attention_backward_plain, attention_backward_room,
    attention_forward, attention_forward_plain,
};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::philox;
use etude_kernels::reference::attention::Head;

const U: f64 = 1.0 / 16_777_216.0;
const B: f64 = 1.0 / 256.0;
const SIX: f64 = 6.0;

/// One attention: sizes, rule, how operands lie and how they are computed.
#[derive(Debug, Clone)]
pub struct Case {
    pub s: Sizes,
    pub rule: Rule,
    pub by_row: bool,
    /// 0: no relative logits.
    pub max_len: usize,
    /// Operands in bf16 on tensor cores, or the plain kernels on this format.
    pub plain: Option<Format>,
    pub results: Format,
    pub forward: Option<&'static str>,
    pub backward: Option<(&'static str, &'static str)>,
}

/// A result, and what a difference may be.
pub struct Expected {
    pub value: Vec<f64>,
    pub tolerance: Vec<f64>,
}

impl Expected {
    pub fn zeros(n: usize) -> Expected {
        Expected { value: vec![0.0; n], tolerance: vec![0.0; n] }
    }

    pub fn share(&self, what: &str, got: &[f32]) -> f64 {
        worst(what, &self.value, got, |i| self.tolerance[i])
    }
}

/// Operands on the host: numbers that are exact in the format of the case.
pub struct Operands {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub er: Vec<f32>,
    pub d_o: Vec<f32>,
}

impl Case {
    pub fn new(mask: Mask, [batch, heads, queries, keys, head_dim]: [usize; 5]) -> Case {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Case {
            s: Sizes { batch, heads, queries, keys, head_dim },
            rule: Rule { mask, scale, dropout: None },
            by_row: true,
            max_len: 0,
            plain: None,
            results: Format::F32,
            forward: None,
            backward: None,
        }
    }

    pub fn relative(mut self, more: usize) -> Case {
        self.max_len = self.rule.mask.reach(self.s.keys) + more;
        self
    }

    pub fn dropout(mut self, p: f32) -> Case {
        self.rule.dropout = Some(Dropout { p, seed: 0x1234_5678_9abc, stream: 5, position: 11 });
        self
    }

    pub fn plain(mut self, format: Format) -> Case {
        self.plain = Some(format);
        self
    }

    pub fn format(&self) -> Format {
        self.plain.unwrap_or(Format::Bf16)
    }

    pub fn strides(&self, rows: usize) -> Strides {
        match self.by_row {
            true => Strides::by_row(self.s.heads, rows, self.s.head_dim),
            false => Strides::by_head(self.s.heads, rows, self.s.head_dim),
        }
    }

    pub fn operands(&self) -> Operands {
        let s = self.s;
        let numbers = |seed, n| match self.format() {
            Format::F32 => uniform(seed, n),
            Format::Bf16 => from_bf16(&to_bf16(&uniform(seed, n))),
        };
        let (of_q, of_k) =
            (s.batch * s.heads * s.queries * s.head_dim, s.batch * s.heads * s.keys * s.head_dim);
        Operands {
            q: numbers(1, of_q),
            k: numbers(2, of_k),
            v: numbers(3, of_k),
            er: numbers(4, s.heads * self.max_len * s.head_dim),
            d_o: numbers(5, of_q),
        }
    }

    /// The places of the rows of one head.
    pub fn places(&self, plane: usize, rows: usize) -> Vec<usize> {
        let at = self.strides(rows);
        let first = plane / self.s.heads * at.batch + plane % self.s.heads * at.head;
        (0..rows)
            .flat_map(|row| first + row * at.row..first + row * at.row + self.s.head_dim)
            .collect()
    }

    /// What dropout leaves of each weight of a head.
    pub fn keep(&self, plane: usize) -> Vec<f64> {
        let Some(d) = self.rule.dropout else { return Vec::new() };
        let (s, width) = (self.s, self.s.keys.next_multiple_of(4));
        let ones = vec![1.0; s.batch * s.heads * s.queries * width];
        let mut mask = vec![0.0; ones.len()];
        philox::dropout(&ones, &mut mask, d.p, d.seed, d.stream, d.position);
        let of_plane = &mask[plane * s.queries * width..(plane + 1) * s.queries * width];
        of_plane.chunks_exact(width).flat_map(|row| wide(&row[..s.keys])).collect()
    }

    /// The roundoff with which weights and their gradients enter the second product.
    pub fn roundoff(&self) -> f64 {
        if self.plain.is_some() { 0.0 } else { B }
    }

    /// How far an exponent can be off, which is the relative error of a weight.
    pub fn exponent(&self) -> f64 {
        let terms = self.s.head_dim as f64 * if self.max_len > 0 { 2.0 } else { 1.0 };
        7.0 * f64::from(self.rule.scale) * terms * U + 16.0 * U
    }

    /// What results should be: o, lse, d_q, d_k, d_v, d_er.
    pub fn expected(&self, x: &Operands) -> [Expected; 6] {
        let (s, d) = (self.s, self.s.head_dim);
        let mut o = Expected::zeros(x.q.len());
        let mut lse = Expected::zeros(s.batch * s.heads * s.queries);
        let (mut d_q, mut d_k) = (Expected::zeros(x.q.len()), Expected::zeros(x.k.len()));
        let (mut d_v, mut d_er) = (Expected::zeros(x.k.len()), Expected::zeros(x.er.len()));
        let mut er_variance = vec![0.0; x.er.len()];
        let blow = self.rule.dropout.map_or(1.0, |d| 1.0 / (1.0 - f64::from(d.p)));
        let (scale, exponent) = (f64::from(self.rule.scale), self.exponent());
        // Of a rounding to bf16 and of one to f32, relative.
        let (narrow, result) =
            (self.roundoff().powi(2) / 3.0, if self.results == Format::Bf16 { B } else { U });
        for plane in 0..s.batch * s.heads {
            let (of_q, of_k) = (self.places(plane, s.queries), self.places(plane, s.keys));
            let take = |x: &[f32], at: &[usize]| -> Vec<f64> {
                at.iter().map(|at| f64::from(x[*at])).collect()
            };
            let (q, k, v) = (take(&x.q, &of_q), take(&x.k, &of_k), take(&x.v, &of_k));
            let d_o = take(&x.d_o, &of_q);
            let er_at = plane % s.heads * self.max_len * d;
            let er = wide(&x.er[er_at..er_at + self.max_len * d]);
            let keep = self.keep(plane);
            let head = Head {
                q: &q,
                k: &k,
                v: &v,
                er: &er,
                mask: self.rule.mask,
                scale,
                keep: &keep,
                head_dim: d,
            };
            let (value, sums) = head.forward();
            let gradients = head.backward(&d_o);
            let mut variance = [(); 3].map(|()| vec![0.0; s.keys * d]);
            let mut sums_of = [(); 2].map(|()| vec![0.0; s.keys * d]);
            for i in 0..s.queries {
                let (weights, _) = head.weights(i);
                let row = |x: &'_ [f64], n: usize| x[n * d..(n + 1) * d].to_vec();
                let (q_i, d_o_i) = (row(&q, i), row(&d_o, i));
                let kept = |j: usize| if keep.is_empty() { 1.0 } else { keep[i * s.keys + j] };
                let d_p: Vec<f64> = (0..s.keys)
                    .map(|j| kept(j) * (0..d).map(|c| d_o_i[c] * v[j * d + c]).sum::<f64>())
                    .collect();
                let mean: f64 = weights.iter().zip(&d_p).map(|(w, d)| w * d).sum();
                // Delta is a sum of d products of d_o and o, which is itself off.
                let mut o_error = 0.0;
                for c in 0..d {
                    let of = |j: usize| weights[j] * kept(j) * v[j * d + c];
                    let squares: f64 = (0..s.keys).map(|j| of(j).powi(2)).sum();
                    let at = of_q[i * d + c];
                    let error = SIX * (narrow * squares).sqrt()
                        + blow * (2.0 * exponent + (s.keys as f64 + 16.0) * 2.0 * U);
                    o.value[at] = value[i * d + c];
                    o.tolerance[at] = error + (result + U) * value[i * d + c].abs();
                    o_error += (d_o_i[c] * value[i * d + c]).powi(2);
                }
                // The backward reads the definition's o, rounded to the format of results.
                let delta_error = SIX * result * (o_error / 3.0).sqrt() + 7.0 * d as f64 * U * blow;
                let at = plane * s.queries + i;
                lse.value[at] = sums[i];
                lse.tolerance[at] = exponent + (s.keys as f64 + 16.0) * U + 4.0 * U * sums[i].abs();
                let mut q_variance = vec![0.0; d];
                let mut q_sums = vec![(0.0, 0.0, 0.0); d];
                for (j, w) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                    let d_s = w * (d_p[j] - mean);
                    let off = w
                        * (2.0 * exponent * (d_p[j].abs() + mean.abs())
                            + 7.0 * d as f64 * U * blow);
                    let p = i + s.keys - s.queries.min(s.keys);
                    for c in 0..d {
                        let e = if self.max_len > 0 {
                            let at = (j + self.max_len - 1 - p) * d + c;
                            let squared = narrow * (scale * d_s * q_i[c]).powi(2)
                                + (scale * w * delta_error / SIX * q_i[c]).powi(2);
                            er_variance[er_at + at] += squared;
                            d_er.tolerance[er_at + at] += scale
                                * q_i[c].abs()
                                * (off + d_s.abs() * (s.batch * s.queries + 16) as f64 * 2.0 * U);
                            er[at]
                        } else {
                            0.0
                        };
                        let key = k[j * d + c] + e;
                        q_variance[c] += narrow * (scale * d_s * key).powi(2);
                        q_sums[c].0 += scale * w * key;
                        q_sums[c].1 += scale * off * key.abs();
                        q_sums[c].2 += scale * d_s.abs() * (k[j * d + c].abs() + e.abs());
                        let at = j * d + c;
                        variance[0][at] += narrow * (scale * d_s * q_i[c]).powi(2)
                            + (scale * w * delta_error / SIX * q_i[c]).powi(2);
                        sums_of[0][at] += scale
                            * q_i[c].abs()
                            * (off + d_s.abs() * (s.queries as f64 + 16.0) * 2.0 * U);
                        let p = w * kept(j);
                        variance[1][at] += narrow * (p * d_o_i[c]).powi(2);
                        sums_of[1][at] += p
                            * d_o_i[c].abs()
                            * (2.0 * exponent + (s.queries as f64 + 16.0) * 2.0 * U);
                    }
                }
                for c in 0..d {
                    let at = of_q[i * d + c];
                    d_q.value[at] = gradients.q[i * d + c];
                    d_q.tolerance[at] = SIX * q_variance[c].sqrt()
                        + q_sums[c].0.abs() * delta_error
                        + q_sums[c].1
                        + q_sums[c].2 * (2.0 * s.keys as f64 + 16.0) * 2.0 * U
                        + result * gradients.q[i * d + c].abs();
                }
            }
            for (n, at) in of_k.iter().enumerate() {
                d_k.value[*at] = gradients.k[n];
                d_v.value[*at] = gradients.v[n];
                // Columns of a strided mask are added to what was rounded before.
                d_k.tolerance[*at] = SIX * variance[0][n].sqrt()
                    + sums_of[0][n]
                    + result * (gradients.k[n].abs() + 2.0 * SIX * U);
                d_v.tolerance[*at] = SIX * variance[1][n].sqrt()
                    + sums_of[1][n]
                    + result * (gradients.v[n].abs() + 2.0 * SIX * U);
            }
            for (n, g) in gradients.er.iter().enumerate() {
                d_er.value[er_at + n] += g;
            }
        }
        for (n, tolerance) in d_er.tolerance.iter_mut().enumerate() {
            *tolerance += SIX * er_variance[n].sqrt() + result * d_er.value[n].abs();
        }
        [o, lse, d_q, d_k, d_v, d_er]
    }

    pub fn check_forward(&self, gpu: &dyn Gpu) -> f64 {
        let x = self.operands();
        let [o, lse, ..] = self.expected(&x);
        let device = OnDevice::new(gpu, self, &x);
        let (got_o, got_lse) = device.forward();
        o.share(&format!("{self:?} o"), &got_o).max(lse.share(&format!("{self:?} lse"), &got_lse))
    }

    pub fn check_backward(&self, gpu: &dyn Gpu) -> f64 {
        let x = self.operands();
        let [o, lse, expected @ ..] = self.expected(&x);
        let device = OnDevice::new(gpu, self, &x);
        let got = device.backward(&o.value, &lse.value);
        let mut share = 0.0;
        for (name, (expected, got)) in
            ["d_q", "d_k", "d_v", "d_er"].iter().zip(expected.iter().zip(&got))
        {
            share = f64::max(share, expected.share(&format!("{self:?} {name}"), got));
        }
        share
    }

    pub fn check(&self, gpu: &dyn Gpu) -> f64 {
        self.check_forward(gpu).max(self.check_backward(gpu))
    }
}

/// Numbers in the device's memory in one of both formats.
pub enum Numbers<'a> {
    F32(DeviceBuffer<'a, f32>),
    Bf16(DeviceBuffer<'a, u16>),
}

impl<'a> Numbers<'a> {
    pub fn of(gpu: &'a dyn Gpu, x: &[f32], format: Format) -> Numbers<'a> {
        match format {
            Format::F32 => Numbers::F32(DeviceBuffer::from_slice(gpu, x).unwrap()),
            Format::Bf16 => Numbers::Bf16(DeviceBuffer::from_slice(gpu, &to_bf16(x)).unwrap()),
        }
    }

    pub fn poisoned(gpu: &'a dyn Gpu, n: usize, format: Format) -> Numbers<'a> {
        match format {
            Format::F32 => Numbers::F32(DeviceBuffer::poisoned(gpu, n).unwrap()),
            Format::Bf16 => Numbers::Bf16(DeviceBuffer::poisoned(gpu, n).unwrap()),
        }
    }

    pub fn rows(&self, strides: Strides) -> Rows {
        Rows { address: self.ptr(), strides, format: self.format() }
    }

    pub fn ptr(&self) -> u64 {
        match self {
            Numbers::F32(x) => x.ptr(),
            Numbers::Bf16(x) => x.ptr(),
        }
    }

    pub fn format(&self) -> Format {
        match self {
            Numbers::F32(_) => Format::F32,
            Numbers::Bf16(_) => Format::Bf16,
        }
    }

    pub fn to_vec(&self) -> Vec<f32> {
        match self {
            Numbers::F32(x) => x.to_vec().unwrap(),
            Numbers::Bf16(x) => from_bf16(&x.to_vec().unwrap()),
        }
    }
}

/// A case with its operands in the device's memory.
pub struct OnDevice<'a> {
    pub gpu: &'a dyn Gpu,
    pub case: &'a Case,
    pub q: Numbers<'a>,
    pub k: Numbers<'a>,
    pub v: Numbers<'a>,
    pub er: Numbers<'a>,
    pub d_o: Numbers<'a>,
}

impl<'a> OnDevice<'a> {
    pub fn new(gpu: &'a dyn Gpu, case: &'a Case, x: &Operands) -> OnDevice<'a> {
        let format = case.format();
        let of = |x: &[f32]| Numbers::of(gpu, x, format);
        let (q, k, v, er, d_o) = (of(&x.q), of(&x.k), of(&x.v), of(&x.er), of(&x.d_o));
        OnDevice { gpu, case, q, k, v, er, d_o }
    }

    pub fn relative(&self) -> Option<Relative> {
        let max_len = self.case.max_len;
        (max_len > 0).then_some(Relative { er: self.er.ptr(), max_len })
    }

    pub fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let (gpu, case, s) = (self.gpu, self.case, self.case.s);
        let (of_q, of_k) = (case.strides(s.queries), case.strides(s.keys));
        let planes = s.batch * s.heads;
        let o = Numbers::poisoned(gpu, planes * s.queries * s.head_dim, case.results);
        let lse = DeviceBuffer::<f32>::poisoned(gpu, planes * s.queries).unwrap();
        let (q, k, v) = (self.q.rows(of_q), self.k.rows(of_k), self.v.rows(of_k));
        let (relative, to, rule) = (self.relative(), o.rows(of_q), &case.rule);
        match case.plain {
            Some(_) => attention_forward_plain(gpu, q, k, v, relative, to, lse.ptr(), s, rule),
            None => {
                let variant = case.forward;
                attention_forward(gpu, q, k, v, relative, to, lse.ptr(), s, rule, variant)
            }
        }
        .unwrap();
        (o.to_vec(), lse.to_vec().unwrap())
    }

    pub fn backward(&self, o: &[f64], lse: &[f64]) -> [Vec<f32>; 4] {
        let (gpu, case, s) = (self.gpu, self.case, self.case.s);
        let (of_q, of_k) = (case.strides(s.queries), case.strides(s.keys));
        let narrow = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let o = Numbers::of(gpu, &narrow(o), case.results);
        let lse = DeviceBuffer::from_slice(gpu, &narrow(lse)).unwrap();
        let planes = s.batch * s.heads;
        let empty = |n| Numbers::poisoned(gpu, n, case.results);
        let d_q = empty(planes * s.queries * s.head_dim);
        let (d_k, d_v) = (empty(planes * s.keys * s.head_dim), empty(planes * s.keys * s.head_dim));
        let d_er = empty(s.heads * case.max_len * s.head_dim);
        let relative = self.relative();
        let len = attention_backward_room(gpu, s, relative);
        let room = DeviceBuffer::<f32>::poisoned(gpu, len).unwrap();
        let (q, k, v) = (self.q.rows(of_q), self.k.rows(of_k), self.v.rows(of_k));
        let (o, d_o) = (o.rows(of_q), self.d_o.rows(of_q));
        let (to_q, to_k, to_v) = (d_q.rows(of_q), d_k.rows(of_k), d_v.rows(of_k));
        let to_er = relative.map(|_| (d_er.ptr(), d_er.format()));
        let (lse, room, rule) = (lse.ptr(), room.ptr(), &case.rule);
        match case.plain {
            Some(_) => attention_backward_plain(
                gpu, q, k, v, relative, o, lse, d_o, to_q, to_k, to_v, to_er, room, s, rule,
            ),
            None => attention_backward(
                gpu,
                q,
                k,
                v,
                relative,
                o,
                lse,
                d_o,
                to_q,
                to_k,
                to_v,
                to_er,
                room,
                s,
                rule,
                case.backward,
            ),
        }
        .unwrap();
        [d_q.to_vec(), d_k.to_vec(), d_v.to_vec(), d_er.to_vec()]
    }
}
