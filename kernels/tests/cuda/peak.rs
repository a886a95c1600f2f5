//! That the kernels of the ceilings do what is counted.

use super::{Check, worst};
use etude_kernels::cuda::peak::{Unit, arithmetic, grid_barriers, nothing, outputs};
use etude_kernels::cuda::{DeviceBuffer, Gpu};

pub const CHECKS: &[Check] = &[
    Check { name: "products_add_up", run: products_add_up },
    Check { name: "launches_and_barriers_end", run: launches_and_barriers_end },
];

fn products_add_up(gpu: &dyn Gpu) -> f64 {
    let mut share = 0.0;
    for unit in [Unit::Bf16, Unit::Tf32] {
        let sums = |rounds| {
            let out = DeviceBuffer::<f32>::poisoned(gpu, outputs(gpu)).unwrap();
            let flops = arithmetic(gpu, unit, out.ptr(), rounds).unwrap();
            (out.to_vec().unwrap(), flops)
        };
        let ((once, flops), (twice, more)) = (sums(1), sums(2));
        assert_eq!(more, 2.0 * flops);
        assert!(once.iter().all(|sum| *sum != 0.0));
        let want: Vec<f64> = once.iter().map(|sum| 2.0 * f64::from(*sum)).collect();
        // tf32 holds thread numbers up to 255 times 0.5; 32 sums of 17 terms, each off by 2 U at most.
        let largest = if unit == Unit::Bf16 { 16.0 } else { 8.0 * 128.0 };
        let tolerance = 2.0 * 32.0 * largest * 17.0 * 2.0 / 16_777_216.0;
        share = f64::max(share, worst("sums", &want, &twice, |_| tolerance));
    }
    let out = DeviceBuffer::<f32>::poisoned(gpu, outputs(gpu)).unwrap();
    arithmetic(gpu, Unit::F32, out.ptr(), 3).unwrap();
    assert!(out.to_vec().unwrap().iter().all(|x| x.is_finite()));
    share
}

fn launches_and_barriers_end(gpu: &dyn Gpu) -> f64 {
    nothing(gpu).unwrap();
    let count = DeviceBuffer::<u32>::poisoned(gpu, 1).unwrap();
    grid_barriers(gpu, count.ptr(), 5).unwrap();
    assert_eq!(count.to_vec().unwrap(), [5 * gpu.properties().sms]);
    0.0
}
