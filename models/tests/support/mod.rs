//! What tests of networks share.

use etude_models::Model;
use etude_models::data::Batch;

/// Compares gradients of every weight, at its first, middle and last place, with differences of the loss.
pub fn check_gradients(model: &mut dyn Model, batch: &Batch, what: &str) {
    let grads = model.loss(batch, None).unwrap().backward().unwrap();
    let mut analytic = Vec::new();
    model.visit(&mut |p| {
        let d = grads.get(&p.value).expect("every weight has a gradient");
        analytic.push((p.name.clone(), d.to_vec()));
    });
    for (name, d) in &analytic {
        for place in [0, d.len() / 2, d.len() - 1] {
            let by = 4e-3;
            let mut value = |by: f32| {
                let change = |model: &mut dyn Model, by: f32| {
                    model.visit_mut(&mut |p| {
                        if p.name == *name {
                            p.update(|w| w[place] += by);
                        }
                    });
                };
                change(model, by);
                let loss = f64::from(model.loss(batch, None).unwrap().item().unwrap());
                change(model, -by);
                loss
            };
            let difference = (value(by) - value(-by)) / (2.0 * f64::from(by));
            // A loss of about 2 is known to 2e-7 or so: 1e-4 from rounding; by^2 = 1.6e-5 times a third
            // derivative that a norm of small numbers may make some tens.
            let off = (difference - f64::from(d[place])).abs();
            let allowed = 5e-4 + 1e-2 * difference.abs();
            assert!(off < allowed, "{what} {name}[{place}]: {difference}, {}", d[place]);
        }
    }
}
