//! Performances note by note: one step of the network a note, and six heads that tell it.
//!
//! ```text
//! x_n = the six classes of note n - 1, one-hot, one behind the other                [315]
//! h_n = LSTM(x_n, h_{n-1})
//! p(note n | notes before) = product over the heads k of softmax(W_k h_n + b_k)[class k of note n]
//! ```
//!
//! Given the notes before it, the six parts of a note do not depend on each other. To let them, tell the
//! same tokens one at a time (`conditions = none`, `head = softmax`), at six steps a note.
//!
//! A batch holds tokens, six a note; each has its nats, so that figures compare with those of other
//! networks over the same tokens.
//!
//! Source: Magenta's `performance_with_dynamics_and_note_encoding` (Simon & Oore 2017).

use crate::data::{Batch, NO_TARGET};
use crate::layers::scored;
use crate::{Error, Result, Scored, of_another_model};
use etude_engine::{Ids, Tensor};
use etude_tokenizer::NotePerformance;
use std::ops::Range;

/// Heads, and tokens of a note.
const HEADS: usize = NotePerformance::HEADS.len();

/// The tokens of a head.
fn tokens(head: usize) -> Range<usize> {
    NotePerformance::FIRST[head] as usize..NotePerformance::FIRST[head + 1] as usize
}

/// The input of each note in place of that of each token: a note's is that of its first.
pub(super) fn of_notes(batch: &Batch) -> Batch {
    let step = batch.batch * batch.active;
    let rows = batch.rows.chunks(step.max(1)).step_by(HEADS).flatten().copied().collect();
    let steps = batch.steps.div_ceil(HEADS);
    Batch { rows, steps, targets: Vec::new(), keys: Vec::new(), ..*batch }
}

/// The classes of a head `[notes * batch]`; [`NO_TARGET`] past a piece's end.
fn classes(batch: &Batch, head: usize) -> Result<Vec<u32>> {
    let mut classes = vec![NO_TARGET; batch.steps.div_ceil(HEADS) * batch.batch];
    let steps = batch.targets.chunks_exact(batch.batch.max(1)).skip(head).step_by(HEADS);
    for (class, &token) in classes.iter_mut().zip(steps.flatten()) {
        if token == NO_TARGET {
            continue;
        }
        if !tokens(head).contains(&(token as usize)) {
            let why = format!("token {token} where one of head {head} of a note is due");
            return Err(Error::Data { why });
        }
        *class = token - NotePerformance::FIRST[head];
    }
    Ok(classes)
}

/// The mean negative log-likelihood of the batch's tokens, in nats.
///
/// # Shapes
/// `logits` `[notes * batch, 315]`.
pub(super) fn loss(logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    let all = batch.target_count().max(1) as f32;
    for head in 0..HEADS {
        let classes = classes(batch, head)?;
        let count = classes.iter().filter(|class| **class != NO_TARGET).count();
        if count == 0 {
            continue;
        }
        let nats = logits.slice(1, tokens(head))?.cross_entropy(&Ids::new(classes))?;
        let nats = nats.scale(count as f32 / all)?;
        sum = Some(match sum {
            None => nats,
            Some(sum) => sum.add(&nats)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(logits.sum_all()?.scale(0.0)?),
    }
}

/// Scores every token of the batch.
///
/// # Shapes
/// `logits` `[notes * batch, 315]`.
pub(super) fn score(logits: &Tensor, batch: &Batch) -> Result<Scored> {
    let mut all = Scored { nats: vec![0.0; batch.targets.len()], hits: 0 };
    for head in 0..HEADS {
        let of_head = scored(&logits.slice(1, tokens(head))?, &classes(batch, head)?)?;
        all.hits += of_head.hits;
        let steps = all.nats.chunks_exact_mut(batch.batch.max(1)).skip(head).step_by(HEADS);
        for (nats, own) in steps.zip(of_head.nats.chunks_exact(batch.batch.max(1))) {
            nats.copy_from_slice(own);
        }
    }
    Ok(all)
}

/// Whose turn it is while a note is written.
pub(super) struct NoteTurn {
    logits: Vec<f32>,
    /// The logits of the head that is due; the others are left out.
    shown: Vec<f32>,
    due: usize,
}

impl NoteTurn {
    pub fn new() -> NoteTurn {
        let vocab = NotePerformance::FIRST[HEADS] as usize;
        NoteTurn { logits: vec![0.0; vocab], shown: vec![0.0; vocab], due: 0 }
    }

    pub fn reset(&mut self) {
        self.due = 0;
    }

    /// Whether the network has to read a note first.
    pub fn is_due(&self) -> bool {
        self.due == 0
    }

    /// Takes what the network says about the next note.
    pub fn begin(&mut self, logits: &[f32]) {
        self.logits.copy_from_slice(logits);
    }

    /// The logits of the next head, of all other tokens minus infinity.
    pub fn next(&mut self) -> &[f32] {
        self.shown.fill(f32::NEG_INFINITY);
        let own = tokens(self.due);
        self.shown[own.clone()].copy_from_slice(&self.logits[own]);
        self.due = (self.due + 1) % HEADS;
        &self.shown
    }

    /// What the next step reads.
    pub fn state(&self) -> Vec<f32> {
        [&self.logits[..], &[self.due as f32]].concat()
    }

    /// Goes back to a [`NoteTurn::state`] at the beginning of `state`; returns what follows it.
    pub fn set_state<'a>(&mut self, state: &'a [f32]) -> Result<&'a [f32]> {
        let own = state.split_at_checked(self.logits.len() + 1);
        let (own, rest) = own.ok_or_else(of_another_model)?;
        self.logits.copy_from_slice(&own[..own.len() - 1]);
        self.due = own[own.len() - 1] as usize % HEADS;
        Ok(rest)
    }
}
