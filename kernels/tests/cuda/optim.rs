//! Checks of the optimizers.

use super::rows::U;
use super::{Check, to_bf16, uniform, wide, worst};
use etude_kernels::cuda::optim::{self, Part, Pieces, State};
use etude_kernels::cuda::{DeviceBuffer, Gpu};
use etude_kernels::optim::AdamStep;
use etude_kernels::reference::optim as reference;

pub const CHECKS: &[Check] = &[
    Check { name: "adam_over_all_tensors", run: adam },
    Check { name: "gradient_descent_over_all_tensors", run: sgd },
    Check { name: "a_gradient_that_is_not_finite_changes_nothing", run: not_finite },
];

const SIZES: &[usize] = &[1, 3, 127, 8192, 8193, 20_000, 31, 1025];

/// A tensor on the device with all that belongs to it.
struct Tensor<'a> {
    param: DeviceBuffer<'a, f32>,
    grad: DeviceBuffer<'a, f32>,
    m: DeviceBuffer<'a, f32>,
    v: DeviceBuffer<'a, f32>,
    shadow: DeviceBuffer<'a, u16>,
    /// Numbers by which the arrays begin late: not on 16 bytes.
    skip: usize,
}

impl<'a> Tensor<'a> {
    fn new(gpu: &'a dyn Gpu, seed: u64, n: usize, skip: usize) -> Tensor<'a> {
        let up = |seed, f: &dyn Fn(f32) -> f32| {
            let x: Vec<f32> = uniform(seed, n + skip).iter().map(|x| f(*x)).collect();
            DeviceBuffer::from_slice(gpu, &x).unwrap()
        };
        Tensor {
            param: up(seed, &|x| x),
            grad: up(seed + 1, &|x| 0.1 * x),
            m: up(seed + 2, &|x| 0.1 * x),
            v: up(seed + 3, &|x| 0.01 * x.abs()),
            shadow: DeviceBuffer::poisoned(gpu, n + skip).unwrap(),
            skip,
        }
    }

    fn part(&self, shadow: bool) -> Part {
        let late = 4 * self.skip as u64;
        Part {
            param: self.param.ptr() + late,
            grad: self.grad.ptr() + late,
            m: self.m.ptr() + late,
            v: self.v.ptr() + late,
            shadow: if shadow { self.shadow.ptr() + late / 2 } else { 0 },
            count: self.param.len() - self.skip,
        }
    }

    fn get(&self) -> [Vec<f32>; 4] {
        [&self.param, &self.grad, &self.m, &self.v]
            .map(|x| x.to_vec().unwrap()[self.skip..].to_vec())
    }
}

fn tensors(gpu: &dyn Gpu) -> Vec<Tensor<'_>> {
    let skip = |k: usize| usize::from(k == 3 || k == 6);
    SIZES.iter().enumerate().map(|(k, n)| Tensor::new(gpu, 10 * k as u64, *n, skip(k))).collect()
}

const STATE: State = State {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
    momentum: 0.9,
    max_norm: 0.0,
    step: 0,
    norm: 0.0,
    finite: false,
    grad_scale: 0.0,
};

fn read_state(state: &DeviceBuffer<u8>) -> State {
    let bytes: [u8; State::BYTES] = state.to_vec().unwrap().try_into().unwrap();
    State::from_bytes(&bytes)
}

fn norm_of(all: &[[Vec<f32>; 4]]) -> f64 {
    all.iter().flat_map(|x| &x[1]).map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
}

fn adam(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    for (per_sm, max_norm) in [(0, 0.0), (0, 0.5), (1, 1e6)] {
        let tensors = tensors(gpu);
        // The last one keeps no shadow.
        let parts: Vec<Part> =
            tensors.iter().enumerate().map(|(k, t)| t.part(k + 1 < SIZES.len())).collect();
        let pieces = Pieces::new(&parts);
        let table = DeviceBuffer::from_slice(gpu, pieces.words()).unwrap();
        let bytes = State { max_norm, ..STATE }.to_bytes();
        let state = DeviceBuffer::from_slice(gpu, &bytes).unwrap();
        let scratch = DeviceBuffer::<f64>::poisoned(gpu, pieces.len()).unwrap();
        for step in 1..4 {
            let before: Vec<_> = tensors.iter().map(Tensor::get).collect();
            let (t, s) = (table.ptr(), state.ptr());
            optim::step_begin(gpu, &pieces, t, s, scratch.ptr()).unwrap();
            let now = read_state(&state);
            let norm = norm_of(&before);
            assert!(now.finite && now.step == step && (now.norm - norm).abs() < 1e-5 * norm);
            let scale = if max_norm > 0.0 && norm > f64::from(max_norm) {
                f64::from(max_norm) / (norm + 1e-6)
            } else {
                1.0
            };
            share = share.max(worst("scale", &[scale], &[now.grad_scale], |_| 1e-5));
            optim::adam_all_with(gpu, per_sm, &pieces, t, s).unwrap();
            let a = AdamStep {
                lr: 0.01,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.1,
                step,
                grad_scale: now.grad_scale,
            };
            for (k, (tensor, before)) in tensors.iter().zip(&before).enumerate() {
                let [param, grad, m, v] = before.each_ref().map(|x| wide(x));
                let want: Vec<_> = (0..param.len())
                    .map(|i| reference::adam(param[i], m[i], v[i], grad[i], a))
                    .collect();
                let after = tensor.get();
                let take = |f: &dyn Fn(&(f64, f64, f64)) -> f64| -> Vec<f64> {
                    want.iter().map(f).collect()
                };
                let what = format!("adam tensor {k} step {step}");
                let mut near = |want: Vec<f64>, got: &[f32], bound: &dyn Fn(usize) -> f64| {
                    share = share.max(worst(&what, &want, got, bound));
                };
                // Moments below 0.1 and 0.01; 1 - beta2 is rounded: 2^-24 of 1 is 6e-5 of 0.001.
                near(take(&|w| w.1), &after[2], &|_| 0.4 * U);
                near(take(&|w| w.2), &after[3], &|i| (0.02 + 2.0 * grad[i] * grad[i]) * 2.0 * U);
                // The parameter, below 1, is rounded three times; the step is lr m / (sqrt(v) + eps) / c1
                // and has 8 relative roundings, and what the moments are off by: m absolutely, v by its root.
                near(take(&|w| w.0), &after[0], &|i| {
                    let (m_hat, v_hat) = (want[i].1 / (1.0 - 0.9f64.powi(step as i32)), want[i].2);
                    let root =
                        (v_hat / (1.0 - 0.999f64.powi(step as i32))).sqrt().max(1e-12) + 1e-8;
                    let v_off = (0.02 + 2.0 * grad[i] * grad[i]) * U / v_hat.max(1e-30);
                    let relative = 10.0 * U + v_off + 1e-6;
                    3.0 * U + 0.01 / root * (m_hat.abs() * relative + 4.0 * U)
                });
                let shadow = tensor.shadow.to_vec().unwrap()[tensor.skip..].to_vec();
                if k + 1 < SIZES.len() {
                    assert_eq!(to_bf16(&after[0]), shadow);
                } else {
                    assert!(shadow.iter().all(|x| *x == 0xffff));
                }
            }
        }
    }
    // The plain form does the same as the others, up to a contraction.
    let (a, b) = (Tensor::new(gpu, 3, 1000, 0), Tensor::new(gpu, 3, 1000, 0));
    let pieces = Pieces::new(&[a.part(false)]);
    let table = DeviceBuffer::from_slice(gpu, pieces.words()).unwrap();
    let state = DeviceBuffer::from_slice(gpu, &STATE.to_bytes()).unwrap();
    let scratch = DeviceBuffer::<f64>::poisoned(gpu, pieces.len()).unwrap();
    optim::step_begin(gpu, &pieces, table.ptr(), state.ptr(), scratch.ptr()).unwrap();
    optim::adam_all(gpu, &pieces, table.ptr(), state.ptr()).unwrap();
    optim::adam_plain(gpu, b.part(false), state.ptr()).unwrap();
    for (a, b) in a.get().iter().zip(b.get()) {
        share = share.max(worst("plain", &wide(a), &b, |_| 4.0 * U));
    }
    share
}

fn sgd(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0f64;
    let tensors = tensors(gpu);
    let parts: Vec<Part> = tensors.iter().map(|t| Part { v: 0, ..t.part(true) }).collect();
    let pieces = Pieces::new(&parts);
    let table = DeviceBuffer::from_slice(gpu, pieces.words()).unwrap();
    let state =
        DeviceBuffer::from_slice(gpu, &State { max_norm: 0.3, ..STATE }.to_bytes()).unwrap();
    let scratch = DeviceBuffer::<f64>::poisoned(gpu, pieces.len()).unwrap();
    let before: Vec<_> = tensors.iter().map(Tensor::get).collect();
    optim::step_begin(gpu, &pieces, table.ptr(), state.ptr(), scratch.ptr()).unwrap();
    let scale = f64::from(read_state(&state).grad_scale);
    optim::sgd_all(gpu, &pieces, table.ptr(), state.ptr()).unwrap();
    let (lr, momentum) = (f64::from(0.01f32), f64::from(0.9f32));
    for (tensor, before) in tensors.iter().zip(&before) {
        let [param, grad, u, _] = before.each_ref().map(|x| wide(x));
        let want_u: Vec<f64> = (0..u.len()).map(|i| momentum * u[i] + grad[i] * scale).collect();
        let want: Vec<f64> = (0..u.len()).map(|i| param[i] - lr * want_u[i]).collect();
        let after = tensor.get();
        // A product and a sum below 0.2; a sum below 1.1.
        share = share.max(worst("u", &want_u, &after[2], |_| 0.4 * U));
        share = share.max(worst("param", &want, &after[0], |_| 1.2 * U));
        assert_eq!(to_bf16(&after[0]), tensor.shadow.to_vec().unwrap()[tensor.skip..]);
        assert_eq!(before[3], after[3]);
    }
    share
}

fn not_finite(gpu: &dyn Gpu) -> f64 {
    for bad in [f32::NAN, f32::INFINITY] {
        let tensor = Tensor::new(gpu, 1, 9000, 0);
        let mut grad = tensor.grad.to_vec().unwrap();
        grad[8999] = bad;
        tensor.grad.write(&grad).unwrap();
        let pieces = Pieces::new(&[tensor.part(true)]);
        let table = DeviceBuffer::from_slice(gpu, pieces.words()).unwrap();
        let state = DeviceBuffer::from_slice(gpu, &State { step: 6, ..STATE }.to_bytes()).unwrap();
        let scratch = DeviceBuffer::<f64>::poisoned(gpu, pieces.len()).unwrap();
        let before = tensor.get();
        optim::step_begin(gpu, &pieces, table.ptr(), state.ptr(), scratch.ptr()).unwrap();
        optim::adam_all(gpu, &pieces, table.ptr(), state.ptr()).unwrap();
        optim::sgd_all(gpu, &pieces, table.ptr(), state.ptr()).unwrap();
        let (now, after) = (read_state(&state), tensor.get());
        assert!(!now.finite && now.step == 6);
        assert!([0, 2, 3].iter().all(|k| before[*k] == after[*k]));
    }
    0.0
}
