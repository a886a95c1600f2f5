//! Optimizers: gradient descent with momentum, Adam, AdamW; clipping by the global norm.

use std::collections::BTreeMap;

use etude_kernels::optim::{AdamStep, Part, adam_all, sgd_all, sum_of_squares_all};

use crate::autograd::Grads;
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::param::Module;
use crate::tensor::{Compact, Tensor};

/// How a gradient becomes a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// `u = momentum * u + g; p = p - lr * u`.
    Sgd {
        /// How much of the last step stays.
        momentum: f32,
    },
    /// Adam; AdamW where `weight_decay` is not 0.
    Adam {
        /// Decay of the mean of the gradient.
        beta1: f32,
        /// Decay of the mean of its square.
        beta2: f32,
        /// Added to the root of the second.
        eps: f32,
        /// Decoupled decay of the parameters, times the learning rate.
        weight_decay: f32,
    },
}

impl Rule {
    /// Names of the moments that the rule keeps for each parameter.
    fn moments(self) -> &'static [&'static str] {
        match self {
            Rule::Sgd { .. } => &["u"],
            Rule::Adam { .. } => &["m", "v"],
        }
    }
}

/// Changes parameters by their gradients. Moments are kept by the names of the parameters.
#[derive(Clone)]
pub struct Optimizer {
    rule: Rule,
    clip_norm: Option<f32>,
    step: u64,
    moments: BTreeMap<String, Vec<Buffer>>,
}

impl Optimizer {
    /// Makes an optimizer that has taken no step yet.
    pub fn new(rule: Rule) -> Optimizer {
        Optimizer { rule, clip_norm: None, step: 0, moments: BTreeMap::new() }
    }

    /// Gradient descent with momentum (Polyak 1964).
    pub fn sgd(momentum: f32) -> Optimizer {
        Optimizer::new(Rule::Sgd { momentum })
    }

    /// Adam with the constants of its paper (Kingma & Ba 2015).
    pub fn adam() -> Optimizer {
        Optimizer::adamw(0.0)
    }

    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    pub fn adamw(weight_decay: f32) -> Optimizer {
        Optimizer::new(Rule::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay })
    }

    /// Scales all gradients down together when their norm exceeds `max_norm`.
    ///
    /// # Source
    /// Pascanu, Mikolov & Bengio 2013.
    pub fn clip_norm(mut self, max_norm: f32) -> Optimizer {
        self.clip_norm = Some(max_norm);
        self
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Takes one step and returns the norm of all gradients before clipping.
    ///
    /// Parameters without a gradient stay as they are.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the name of the first parameter whose gradient is not finite (or
    /// with the learning rate, if that is not). Nothing has changed then: the caller skips the batch
    /// or stops.
    pub fn step(&mut self, model: &mut dyn Module, grads: &Grads, lr: f32) -> Result<f64> {
        if !lr.is_finite() {
            return Err(Error::NotFinite { what: "learning rate".into(), at: 0, value: lr });
        }
        let mut gradients: Vec<Compact> = Vec::new();
        model.visit(&mut |p| gradients.extend(grads.get(&p.value).map(Tensor::compact)));
        let squares = sum_of_squares_all(gradients.iter().map(|d| &d[..]));
        if !squares.is_finite() {
            find_not_finite(model, grads)?;
        }
        let norm = squares.sqrt();
        let scale = match self.clip_norm {
            // The small number is PyTorch's; it matters for norms near 0 only.
            Some(max) if norm + 1e-6 > f64::from(max) => (f64::from(max) / (norm + 1e-6)) as f32,
            _ => 1.0,
        };
        // A count from a file may be the largest there is.
        self.step = self.step.saturating_add(1);
        let (rule, step, moments) = (self.rule, self.step, &mut self.moments);
        let kept = rule.moments().len();
        // All parameters are lent at once, so that one pass changes them all: they are taken out of
        // the model, and put back.
        let hole = Tensor::scalar(0.0);
        let mut taken: Vec<(Tensor, Vec<Buffer>, Compact)> = Vec::with_capacity(gradients.len());
        model.visit_mut(&mut |p| {
            let Some(d) = grads.get(&p.value) else { return };
            let mut moment = moments.get_mut(&p.name).map(std::mem::take).unwrap_or_default();
            moment.resize_with(kept, || Buffer::zeros(d.len()));
            taken.push((std::mem::replace(&mut p.value, hole.clone()), moment, d.compact()));
        });
        let mut parts: Vec<Part> = taken
            .iter_mut()
            .map(|(value, moment, d)| match &mut moment[..] {
                [u] => Part::sgd(value.numbers_mut(), u, d),
                [m, v] => Part::adam(value.numbers_mut(), m, v, d),
                _ => unreachable!("a rule has its own number of moments"),
            })
            .collect();
        match rule {
            Rule::Sgd { momentum } => sgd_all(&mut parts, lr, momentum, scale),
            Rule::Adam { beta1, beta2, eps, weight_decay } => {
                let grad_scale = scale;
                let s = AdamStep { lr, beta1, beta2, eps, weight_decay, step, grad_scale };
                adam_all(&mut parts, s);
            }
        }
        drop(parts);
        let mut taken = taken.into_iter();
        model.visit_mut(&mut |p| {
            if p.value.id() == hole.id()
                && let Some((value, moment, _)) = taken.next()
            {
                p.value = value;
                match moments.get_mut(&p.name) {
                    Some(place) => *place = moment,
                    None => drop(moments.insert(p.name.clone(), moment)),
                }
            }
        });
        Ok(norm)
    }

    /// All moments as named tensors: `m.lstm.0.w_hh`. With [`Optimizer::steps`] this is all state.
    ///
    /// # Errors
    /// None on a processor.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for (name, moments) in &self.moments {
            for (kind, moment) in self.rule.moments().iter().zip(moments) {
                let tensor = Tensor::from_slice(moment, &[moment.len()])?;
                state.push((format!("{kind}.{name}"), tensor));
            }
        }
        Ok(state)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// [`Error::Weights`] if a moment belongs to no parameter of the model, is missing, or has
    /// another number of elements than its parameter.
    pub fn load_state(
        &mut self,
        model: &dyn Module,
        steps: u64,
        state: &[(String, Tensor)],
    ) -> Result<()> {
        let mut named: BTreeMap<&str, &Tensor> =
            state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut moments = BTreeMap::new();
        let mut faults = Vec::new();
        model.visit(&mut |p| {
            let kinds = self.rule.moments().iter();
            let found: Vec<_> =
                kinds.map(|kind| named.remove(format!("{kind}.{}", p.name).as_str())).collect();
            if found.iter().all(Option::is_none) {
                return;
            }
            let fits = |t: &&Tensor| t.len() == p.value.len();
            let whole: Vec<Buffer> = found
                .into_iter()
                .flatten()
                .filter(fits)
                .map(|t| Buffer::copy(&t.values()))
                .collect();
            match whole.len() == self.rule.moments().len() {
                true => drop(moments.insert(p.name.clone(), whole)),
                false => faults.push(format!("the moments of {} are not whole", p.name)),
            }
        });
        faults.extend(named.keys().map(|name| format!("{name:?} belongs to no parameter")));
        if !faults.is_empty() {
            return Err(Error::Weights { why: format!("optimizer: {}", faults.join("; ")) });
        }
        (self.moments, self.step) = (moments, steps);
        Ok(())
    }
}

fn find_not_finite(model: &dyn Module, grads: &Grads) -> Result<()> {
    let mut result = Ok(());
    model.visit(&mut |p| {
        if let (Ok(()), Some(d)) = (&result, grads.get(&p.value)) {
            result = d.check_finite(&format!("gradient of {}", p.name));
        }
    });
    result?;
    // All elements are finite and yet the sum of their squares is not: only above 1e154.
    Err(Error::NotFinite { what: "gradient norm".into(), at: 0, value: f32::INFINITY })
}
