//! Learning rates over the steps of a training.

use std::f64::consts::PI;

/// A learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Always the same.
    Constant {
        /// The rate.
        lr: f64,
    },
    /// `scale * width^-0.5 * min(step^-0.5, step * warmup^-1.5)` (Vaswani et al. 2017, equation 3).
    Noam {
        /// A factor before the formula; 1 in the paper.
        scale: f64,
        /// The width of the model.
        width: usize,
        /// Steps until the rate is highest.
        warmup: u64,
    },
    /// Rises linearly, then falls along half a cosine (Loshchilov & Hutter 2017).
    Cosine {
        /// The highest rate.
        lr: f64,
        /// The last rate.
        floor: f64,
        /// Steps of the rise.
        warmup: u64,
        /// The step at which the floor is reached.
        total: u64,
    },
    /// `(lr - floor) * decay^step + floor` (Roberts et al. 2018, MusicVAE).
    Exponential {
        /// The first rate.
        lr: f64,
        /// The rate that it falls towards.
        floor: f64,
        /// The factor of each step.
        decay: f64,
    },
}

impl Schedule {
    /// The rate of a step; the first step is 0.
    pub fn at(&self, step: u64) -> f32 {
        let rate = match *self {
            Schedule::Constant { lr } => lr,
            Schedule::Noam { scale, width, warmup } => {
                let (step, warmup) = (step as f64 + 1.0, warmup.max(1) as f64);
                let rise = step * warmup.powf(-1.5);
                scale * (width.max(1) as f64).powf(-0.5) * step.powf(-0.5).min(rise)
            }
            Schedule::Cosine { lr, warmup, .. } if step < warmup => {
                lr * (step + 1) as f64 / warmup as f64
            }
            Schedule::Cosine { lr, floor, warmup, total } => {
                let length = total.saturating_sub(warmup).max(1) as f64;
                let done = ((step - warmup) as f64 / length).min(1.0);
                floor + (lr - floor) * 0.5 * (1.0 + (PI * done).cos())
            }
            Schedule::Exponential { lr, floor, decay } => {
                (lr - floor) * decay.powf(step as f64) + floor
            }
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noam_peaks_at_the_end_of_the_warmup() {
        let s = Schedule::Noam { scale: 1.0, width: 512, warmup: 4000 };
        // 512^-0.5 * 4000^-0.5, the peak of the paper's base model.
        assert!((s.at(3999) - 6.987_712e-4).abs() < 1e-9);
        assert!(s.at(3998) < s.at(3999) && s.at(4000) < s.at(3999));
    }

    #[test]
    fn cosine_rises_to_its_rate_and_falls_to_its_floor() {
        let s = Schedule::Cosine { lr: 1.0, floor: 0.1, warmup: 10, total: 110 };
        assert_eq!((s.at(0), s.at(9), s.at(10)), (0.1, 1.0, 1.0));
        assert!((s.at(60) - 0.55).abs() < 1e-6);
        assert_eq!((s.at(110), s.at(1000)), (0.1, 0.1));
    }

    #[test]
    fn exponential_decays_towards_its_floor() {
        let s = Schedule::Exponential { lr: 1e-3, floor: 1e-5, decay: 0.9999 };
        assert_eq!(s.at(0), 1e-3);
        assert!((s.at(10_000) - (9.9e-4 * 0.9999f64.powi(10_000) + 1e-5) as f32).abs() < 1e-9);
        assert!((s.at(10_000_000) - 1e-5).abs() < 1e-12);
    }

    #[test]
    fn degenerate_settings_stay_finite() {
        for step in [0, 1, 100] {
            assert!(Schedule::Noam { scale: 1.0, width: 0, warmup: 0 }.at(step).is_finite());
            let s = Schedule::Cosine { lr: 1.0, floor: 0.0, warmup: 0, total: 0 };
            assert!(s.at(step).is_finite());
        }
    }
}
