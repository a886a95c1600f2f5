//! The smallest kernels: `y = a x + y` and a copy.

use super::{Check, uniform, wide, worst};
use etude_kernels::cuda::{DeviceBuffer, Gpu, copy};

pub const CHECKS: &[Check] = &[
    Check { name: "axpy_equals_its_definition", run: axpy_equals_its_definition },
    Check { name: "a_copy_is_equal", run: a_copy_is_equal },
    Check { name: "a_recording_runs_again", run: a_recording_runs_again },
];

const U: f64 = 1.0 / 16_777_216.0;

fn axpy_equals_its_definition(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0;
    for count in [1, 31, 256, 257, 70_001] {
        let (x, y) = (uniform(1, count), uniform(2, count));
        let want: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| 0.375 * x + y).collect();
        let d_x = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let d_y = DeviceBuffer::from_slice(gpu, &y).unwrap();
        copy::axpy(gpu, d_x.ptr(), d_y.ptr(), 0.375, count).unwrap();
        // A product below 0.375 and a sum below 1.375, each rounded once, or both at once.
        let tolerance = (0.375 + 1.375) * U;
        share = f64::max(share, worst("axpy", &want, &d_y.to_vec().unwrap(), |_| tolerance));
    }
    share
}

fn a_copy_is_equal(gpu: &dyn Gpu) -> f64 {
    for count in [4, 1024, 4 * 1023, 4 * 40_000] {
        let x = uniform(3, count);
        let from = DeviceBuffer::from_slice(gpu, &x).unwrap();
        let to = DeviceBuffer::<f32>::poisoned(gpu, count).unwrap();
        copy::copy(gpu, from.ptr(), to.ptr(), count * 4).unwrap();
        assert_eq!(x, to.to_vec().unwrap());
    }
    0.0
}

fn a_recording_runs_again(gpu: &dyn Gpu) -> f64 {
    let count = 1000;
    let x = DeviceBuffer::from_slice(gpu, &vec![1.0f32; count]).unwrap();
    let y = DeviceBuffer::<f32>::zeros(gpu, count).unwrap();
    let graph = gpu
        .record(&mut || {
            copy::axpy(gpu, x.ptr(), y.ptr(), 1.0, count)?;
            copy::axpy(gpu, x.ptr(), y.ptr(), 2.0, count)
        })
        .unwrap();
    assert_eq!(y.to_vec().unwrap(), vec![0.0; count]);
    for round in 1..4 {
        graph.launch().unwrap();
        assert_eq!(y.to_vec().unwrap(), vec![3.0 * round as f32; count]);
    }
    0.0
}
