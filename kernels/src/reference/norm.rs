//! Normalisation of a group of numbers by its definition, in f64: what layer, batch and group
//! normalisation do to a row, a channel, a group of channels.

/// Numbers that share mean and variance.
pub struct Group {
    /// Their mean.
    pub mean: f64,
    /// Their variance, `/ n`.
    pub var: f64,
    /// `(x - mean) / sqrt(var + eps)`
    pub hat: Vec<f64>,
    rstd: f64,
}

impl Group {
    /// Normalises some numbers.
    pub fn new(x: &[f64], eps: f64) -> Group {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let rstd = 1.0 / (var + eps).sqrt();
        Group { mean, var, hat: x.iter().map(|x| (x - mean) * rstd).collect(), rstd }
    }

    /// The gradient of the numbers from that of `hat`: mean and variance depend on all of them.
    pub fn gradient(&self, d_hat: &[f64]) -> Vec<f64> {
        let n = self.hat.len() as f64;
        let a = d_hat.iter().sum::<f64>() / n;
        let b = d_hat.iter().zip(&self.hat).map(|(d, hat)| d * hat).sum::<f64>() / n;
        d_hat.iter().zip(&self.hat).map(|(d, hat)| self.rstd * (d - a - hat * b)).collect()
    }

    /// The gradients of one weight and one bias that all numbers share, from that of
    /// `hat * weight + bias`.
    pub fn weight_gradients(&self, d_y: &[f64]) -> (f64, f64) {
        let d_weight = d_y.iter().zip(&self.hat).map(|(d, hat)| d * hat).sum();
        (d_weight, d_y.iter().sum())
    }
}
