//! Every operation of the case table at its large shape: forward alone, and with its gradient.
//!
//! `cargo bench --bench operations -- softmax` times some; `-- --test` runs each once. Names are
//! `<operation>/<shapes>/<tier>`; one thread. Elements are those of all inputs.

#[path = "../tests/support/array.rs"]
#[allow(dead_code)] // the f64 side of the table is for the tests
mod array;
#[path = "../tests/support/cases.rs"]
mod cases;

use std::hint::black_box;
use std::time::Duration;

use cases::{Case, cases};
use criterion::{Criterion, Throughput};
use etude_engine::{Graph, Tensor, grad, isa, no_grad};

fn inputs(case: &Case) -> Vec<Tensor> {
    let tensor = |(shape, x): &(Vec<usize>, Vec<f32>)| {
        Tensor::from_slice(x, shape).expect("the table's shapes").requires_grad()
    };
    case.draw(&case.large).iter().map(tensor).collect()
}

fn operations(c: &mut Criterion) {
    for case in cases() {
        let inputs = inputs(&case);
        let shapes: Vec<String> = case
            .large
            .iter()
            .map(|s| s.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))
            .collect();
        let name = format!("{}/{}", shapes.join(","), isa::active().name());
        let elements: usize = inputs.iter().map(Tensor::len).sum();
        let mut group = c.benchmark_group(case.name);
        group.throughput(Throughput::Elements(elements as u64));
        group.bench_function(format!("{name}/forward"), |b| {
            b.iter(|| no_grad(|| black_box((case.forward)(&inputs).expect("the table's call"))));
        });
        let all: Vec<&Tensor> = inputs.iter().collect();
        group.bench_function(format!("{name}/gradient"), |b| {
            b.iter(|| {
                let y = (case.forward)(&inputs).and_then(|y| y.sum_all());
                black_box(y.and_then(|y| grad(&y, &all, Graph::Drop)).expect("its gradient"))
            });
        });
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args();
    operations(&mut criterion);
    criterion.final_summary();
}
