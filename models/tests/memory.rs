//! The memory of a training step. A file of its own: what the free list holds is that of a whole process.

use etude_engine::{Rng, memory};
use etude_models::Model;
use etude_models::data::Batch;
use etude_models::transformer::{Transformer, TransformerConfig};

#[test]
fn computing_blocks_again_takes_less_than_half_of_the_memory() {
    let (pieces, steps, vocab) = (4, 64, 20);
    let mut rng = Rng::new(1);
    let mut tokens = || (0..pieces * steps).map(|_| rng.below(vocab)).collect::<Vec<u32>>();
    let (rows, targets, keys) = (tokens(), tokens(), Vec::new());
    let batch = Batch { rows, targets, keys, steps, batch: pieces, active: 1 };
    // The peak only grows, so the smaller one comes first.
    let [again, kept] = [true, false].map(|recompute| {
        let sizes = TransformerConfig::plain(32, 8, 2, 128);
        let sizes = TransformerConfig { recompute, context: steps, ..sizes };
        let model = Transformer::new(sizes, vocab as usize, vocab as usize, 1).unwrap();
        drop(model.loss(&batch, None).unwrap().backward().unwrap());
        memory::stats().peak_bytes
    });
    // 256 tokens times 8 blocks of 10 * 32 + 2 * 128 numbers, against one such block and 8 times 32
    // numbers; beside them 120,000 weights and their gradients.
    assert!(2 * again < kept, "{again} of {kept} bytes");
}
