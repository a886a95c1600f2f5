//! Two tasks that ask how far back a network remembers, and how far back its gradient reaches.
//!
//! **Adding.** At each of `T` steps a number `u_t` in [0, 1) is read; two of them are marked, one in
//! each half. After the last step the sum of the marked ones is to be told. Who always says 1 has a
//! mean squared error of 1/6.
//!
//! **Copy memory.** Ten symbols of eight kinds are read, then `T - 1` blanks, a mark and ten blanks, in
//! which the ten symbols are to be told again. Who remembers nothing pays ln 8 = 2.079 nats a symbol.
//!
//! The networks are those that write music: they read sums of rows and write a distribution. A number
//! is read as its eight binary digits, a row for each that is 1. A sum is told as one of 32 equal
//! parts of [0, 2); the error is that of the mean of the distribution.
//!
//! # Source
//! Hochreiter & Schmidhuber 1997, experiments 4 and 2; in the form of Arjovsky, Shah & Bengio 2016,
//! sections 4.1 and 4.2. Here only the ten last targets of copy memory count, not the blanks.

use crate::data::{Batch, NO_TARGET};
use crate::settings::{RunConfig, TrainConfig};
use crate::train::{self, optimizer};
use crate::{Error, Model, Precision, Result};
use etude_engine::{Grads, NO_ID, Optimizer, Rng, Tensor, named_parameters, no_grad};

/// What is to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The sum of two marked numbers.
    Adding,
    /// Ten symbols.
    Copy,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 2] = [Task::Adding, Task::Copy];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Adding => "adding",
            Task::Copy => "copy",
        }
    }

    /// Finds a task by its name.
    pub fn from_name(name: &str) -> Option<Task> {
        Task::ALL.into_iter().find(|task| task.name() == name)
    }

    /// The length at which the task tells networks apart.
    pub fn usual_length(self) -> usize {
        match self {
            Task::Adding => 600,
            Task::Copy => 1000,
        }
    }
}

/// A task over a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// What is to be remembered.
    pub task: Task,
    /// `T`: numbers to read, or steps from the symbols to where they are told again.
    pub length: usize,
}

/// Binary digits of a number.
const DIGITS: u32 = 8;
/// The row that marks a number, after those of the digits.
const MARK: u32 = DIGITS;
/// Parts of [0, 2) in which a sum is told.
const PARTS: u32 = 32;
/// Kinds of symbols, and how many are remembered.
const KINDS: u32 = 8;
const SYMBOLS: usize = 10;
const BLANK: u32 = KINDS;
const GO: u32 = KINDS + 1;

/// The random streams of the sequences that are learned from and of those that are scored.
const LEARNED_STREAM: u32 = 5;
const SCORED_STREAM: u32 = 6;

impl Problem {
    /// The shortest and the longest length.
    pub const LENGTHS: std::ops::RangeInclusive<usize> = 2..=100_000;

    /// Rows of the input matrix.
    pub fn rows(self) -> usize {
        match self.task {
            // The last row is read at each step: no step is empty.
            Task::Adding => DIGITS as usize + 2,
            Task::Copy => GO as usize + 1,
        }
    }

    /// Values that are told apart.
    pub fn vocab(self) -> usize {
        match self.task {
            Task::Adding => PARTS as usize,
            Task::Copy => KINDS as usize,
        }
    }

    /// Steps of a sequence.
    pub fn steps(self) -> usize {
        match self.task {
            Task::Adding => self.length,
            Task::Copy => self.length + 2 * SYMBOLS,
        }
    }

    fn active(self) -> usize {
        match self.task {
            Task::Adding => self.rows(),
            Task::Copy => 1,
        }
    }

    /// What a network pays that remembers nothing: the mean squared error, or nats a symbol.
    pub fn without_memory(self) -> f64 {
        match self.task {
            Task::Adding => 1.0 / 6.0,
            Task::Copy => f64::from(KINDS).ln(),
        }
    }

    /// Draws sequences; with each the sum that adding asks for.
    fn batch(self, rng: &mut Rng, batch: usize) -> (Batch, Vec<f64>) {
        let (steps, active) = (self.steps(), self.active());
        let mut rows = vec![NO_ID; steps * batch * active];
        let mut targets = vec![NO_TARGET; steps * batch];
        let mut sums = Vec::with_capacity(batch);
        for b in 0..batch {
            let mut below = |n: usize| rng.below(n as u32) as usize;
            let mut row = |t: usize, slot: usize, row: u32| {
                rows[(t * batch + b) * active + slot] = row;
            };
            match self.task {
                Task::Adding => {
                    let half = steps / 2;
                    let marked = [below(half), half + below(steps - half)];
                    let mut sum = 0;
                    for t in 0..steps {
                        let u = below(1 << DIGITS);
                        for digit in (0..DIGITS).filter(|digit| u >> digit & 1 == 1) {
                            row(t, digit as usize, digit);
                        }
                        row(t, DIGITS as usize + 1, MARK + 1);
                        if marked.contains(&t) {
                            row(t, DIGITS as usize, MARK);
                            sum += u as u32;
                        }
                    }
                    // Of a number of the part [u, u + 1) / 256 the middle is meant.
                    sums.push((f64::from(sum) + 1.0) / f64::from(1 << DIGITS));
                    targets[(steps - 1) * batch + b] = sum * PARTS / (2 << DIGITS);
                }
                Task::Copy => {
                    let again = steps - SYMBOLS;
                    (0..steps).for_each(|t| row(t, 0, if t + 1 == again { GO } else { BLANK }));
                    for i in 0..SYMBOLS {
                        let symbol = below(KINDS as usize) as u32;
                        row(i, 0, symbol);
                        targets[(again + i) * batch + b] = symbol;
                    }
                }
            }
        }
        (Batch { rows, targets, keys: Vec::new(), steps, batch, active }, sums)
    }
}

/// How well a task is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskScore {
    /// Nats a target.
    pub nats: f64,
    /// Share of the targets that are the first choice.
    pub accuracy: f64,
    /// Mean squared error of the sums; of adding alone.
    pub squared_error: Option<f64>,
}

/// A network that learns a task.
pub struct Drill {
    problem: Problem,
    config: RunConfig,
    model: Box<dyn Model>,
    optimizer: Optimizer,
    step: u64,
}

impl Drill {
    /// Begins with fresh weights: of the configuration the sizes of the network and how it learns
    /// count, not its encoding.
    ///
    /// # Errors
    /// If the length is out of range, or the network does not reach so far or writes no distribution.
    pub fn new(problem: Problem, config: RunConfig) -> Result<Drill> {
        if !Problem::LENGTHS.contains(&problem.length) {
            let (from, to) = (Problem::LENGTHS.start(), Problem::LENGTHS.end());
            let why = format!("{}; {from} to {to} is wanted", problem.length);
            return Err(Error::Config { key: "length".into(), why });
        }
        let network = &config.model.network;
        if network.writes_keys() || network.writes_notes() {
            let why = "a task is told as a distribution; this network writes keys or notes".into();
            return Err(Error::Config { key: "model.head".into(), why });
        }
        if let Some(most) = network.most_steps().filter(|most| *most < problem.steps()) {
            let why = format!("{most}; the task has {} steps", problem.steps());
            return Err(Error::Config { key: "model.context".into(), why });
        }
        let model = network.build(problem.rows(), problem.vocab(), config.train.seed)?;
        let optimizer = optimizer(&config.train);
        Ok(Drill { problem, config, model, optimizer, step: 0 })
    }

    /// The network.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Takes a step of training, as a run does; returns the loss of its batch, in nats a target.
    ///
    /// # Errors
    /// If the loss or the gradient is not finite.
    pub fn learn(&mut self) -> Result<f64> {
        let TrainConfig { seed, batch, .. } = self.config.train;
        let mut rng = Rng { seed, stream: LEARNED_STREAM, position: self.step << 36 };
        let (batch, _) = self.problem.batch(&mut rng, batch);
        let (model, optimizer) = (&mut *self.model, &mut self.optimizer);
        let (loss, _) = train::learn(model, optimizer, &batch, &self.config, self.step)?;
        self.step += 1;
        Ok(loss)
    }

    /// Scores sequences that nothing was learned from, always the same ones.
    ///
    /// # Errors
    /// If the weights do not fit together.
    pub fn score(&self, sequences: usize) -> Result<TaskScore> {
        let mut rng = Rng::stream(self.config.train.seed, SCORED_STREAM);
        let (mut nats, mut hits, mut targets, mut squares) = (0.0, 0, 0, 0.0);
        let mut generator = self.model.generator(Precision::F32)?;
        let mut left = sequences;
        while left > 0 {
            let (batch, sums) = self.problem.batch(&mut rng, left.min(16));
            left -= batch.batch;
            let scored = self.model.score(&batch)?;
            nats += scored.nats.iter().map(|x| f64::from(*x)).sum::<f64>();
            hits += scored.hits;
            targets += batch.target_count();
            for (b, sum) in sums.into_iter().enumerate() {
                generator.reset();
                let mut told = 0.0;
                for t in 0..batch.steps {
                    let rows = &batch.rows[(t * batch.batch + b) * batch.active..][..batch.active];
                    let logits = generator.step(rows)?;
                    if t + 1 == batch.steps {
                        told = mean(logits);
                    }
                }
                squares += (told - sum) * (told - sum);
            }
        }
        let count = targets.max(1) as f64;
        Ok(TaskScore {
            nats: nats / count,
            accuracy: hits as f64 / count,
            squared_error: (self.problem.task == Task::Adding)
                .then_some(squares / sequences.max(1) as f64),
        })
    }

    /// The norm of the gradient of the loss by what each step adds to the network, the last step first:
    /// the root of the mean of squares over some sequences.
    ///
    /// A network whose input matrix has a row for each step, the sum of the rows that the step reads,
    /// computes the same; the gradient of that row is the one that is asked for.
    ///
    /// # Errors
    /// If the network does not fit in memory.
    pub fn gradient_norms(&self, sequences: usize) -> Result<Vec<f64>> {
        let steps = self.problem.steps();
        let mut rng = Rng::stream(self.config.train.seed, SCORED_STREAM);
        let inputs = self.input_matrices()?;
        let mut squares = vec![0.0; steps];
        for _ in 0..sequences {
            let (batch, _) = self.problem.batch(&mut rng, 1);
            let model = self.unrolled(&batch, &inputs)?;
            let rows: Vec<u32> = (0..steps as u32).collect();
            let grads = model.loss(&Batch { rows, active: 1, ..batch }, None)?.backward()?;
            let all = gradients(&*model, &grads);
            for &(place, axis) in &inputs {
                if let Some(d) = &all[place] {
                    add_squares(&mut squares, d, axis)?;
                }
            }
        }
        squares.reverse();
        Ok(squares.into_iter().map(|x| (x / sequences.max(1) as f64).sqrt()).collect())
    }

    /// The places among the weights of the matrices that have a row for each input, and the axis of
    /// those rows: their shape is another one where there is a row more.
    fn input_matrices(&self) -> Result<Vec<(usize, usize)>> {
        let (rows, vocab) = (self.problem.rows(), self.problem.vocab());
        let wider = named_parameters(&*self.config.model.network.build(rows + 1, vocab, 0)?);
        let both = named_parameters(&*self.model).into_iter().zip(wider).enumerate();
        let differing = |(place, ((_, own), (_, wider))): (usize, ((_, Tensor), (_, Tensor)))| {
            let axes = own.shape().iter().zip(wider.shape());
            axes.into_iter().position(|(a, b)| a != b).map(|axis| (place, axis))
        };
        Ok(both.filter_map(differing).collect())
    }

    /// The same network with a row for each step of a sequence.
    fn unrolled(&self, batch: &Batch, inputs: &[(usize, usize)]) -> Result<Box<dyn Model>> {
        let (rows, vocab) = (self.problem.rows(), self.problem.vocab());
        let mut values = named_parameters(&*self.model);
        for &(place, axis) in inputs {
            values[place].1 = spread(&values[place].1, axis, batch, rows)?;
        }
        let mut model = self.config.model.network.build(batch.steps, vocab, 0)?;
        let (mut values, mut result) = (values.into_iter(), Ok(()));
        model.visit_mut(&mut |p| {
            if let (Some((_, value)), Ok(())) = (values.next(), &result) {
                result = p.set(&value);
            }
        });
        result?;
        Ok(model)
    }
}

/// The gradient of each weight, in the order of [`named_parameters`].
fn gradients(model: &dyn Model, grads: &Grads) -> Vec<Option<Tensor>> {
    let mut all = Vec::new();
    model.visit(&mut |p| all.push(grads.get(&p.value).cloned()));
    all
}

/// Makes of the rows along an axis of `w` one for each step, the sum of those that it reads; what is
/// beyond the first `rows` stays behind them.
fn spread(w: &Tensor, axis: usize, batch: &Batch, rows: usize) -> Result<Tensor> {
    let row = |i: usize| w.slice(axis, i..i + 1);
    no_grad(|| {
        let mut parts = Vec::with_capacity(batch.steps + 1);
        for read in batch.rows.chunks_exact(batch.active) {
            let mut read = read.iter().filter(|id| **id != NO_ID);
            let first = read.next().map_or(0, |id| *id as usize);
            let mut sum = row(first)?;
            for id in read {
                sum = sum.add(&row(*id as usize)?)?;
            }
            parts.push(sum);
        }
        if w.shape()[axis] > rows {
            parts.push(w.slice(axis, rows..w.shape()[axis])?);
        }
        Ok(Tensor::concat(&parts.iter().collect::<Vec<_>>(), axis)?)
    })
}

/// Adds the squares of a gradient to those of the steps, which are the first rows along an axis.
fn add_squares(squares: &mut [f64], d: &Tensor, axis: usize) -> Result<()> {
    for (step, square) in squares.iter_mut().enumerate() {
        let row = d.slice(axis, step..step + 1)?.to_vec();
        *square += row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    }
    Ok(())
}

/// The mean of a distribution over the parts of [0, 2).
fn mean(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits.iter().map(|x| f64::from(x - top).exp());
    let (mut sum, mut all) = (0.0, 0.0);
    for (part, weight) in weights.enumerate() {
        sum += weight * (part as f64 + 0.5);
        all += weight;
    }
    sum / all * 2.0 / f64::from(PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::registry::preset_config;
    use crate::settings::setting_keys;

    const NETWORKS: [&str; 4] = ["rnn", "gru", "lstm", "transformer"];

    fn drill(name: &str, task: Task, length: usize, sets: &[&str]) -> Drill {
        let mut map = preset_config(name).unwrap();
        let keys = setting_keys();
        let mut all = vec!["conditions=none", "dropout=0", "layers=2", "hidden=16", "batch=32"];
        if name == "transformer" {
            all.extend(["heads=2", "ff=32", "context=64"]);
        }
        for set in all.iter().chain(sets) {
            config::set(&mut map, set, &keys).unwrap();
        }
        Drill::new(Problem { task, length }, RunConfig::read(map).unwrap()).unwrap()
    }

    #[test]
    fn two_numbers_are_marked_and_their_sum_is_asked_for() {
        let problem = Problem { task: Task::Adding, length: 13 };
        let (batch, sums) = problem.batch(&mut Rng::new(3), 50);
        let mut parts = [0; PARTS as usize];
        for (b, sum) in sums.iter().enumerate() {
            let (mut marked, mut told) = (Vec::new(), 0u32);
            for t in 0..13 {
                let rows = &batch.rows[(t * 50 + b) * batch.active..][..batch.active];
                assert!(rows.contains(&(MARK + 1)));
                if rows.contains(&MARK) {
                    marked.push(t);
                    told +=
                        rows.iter().filter(|row| **row < DIGITS).map(|row| 1 << row).sum::<u32>();
                }
                assert_eq!(batch.targets[t * 50 + b] == NO_TARGET, t < 12);
            }
            assert!(marked.len() == 2 && marked[0] < 6 && marked[1] >= 6, "{marked:?}");
            assert_eq!(*sum, f64::from(told + 1) / 256.0);
            let part = batch.targets[12 * 50 + b];
            assert_eq!(part, (f64::from(told) / 256.0 * 16.0) as u32);
            parts[part as usize] += 1;
        }
        assert!(parts.iter().filter(|n| **n > 0).count() > 10, "{parts:?}");
        // Who always says 1, over many sums.
        let (_, sums) = problem.batch(&mut Rng::new(4), 20_000);
        let error = sums.iter().map(|s| (s - 1.0) * (s - 1.0)).sum::<f64>() / 20_000.0;
        // Its deviation is under 0.2 / sqrt(20,000).
        assert!((error - problem.without_memory()).abs() < 6e-3, "{error}");
    }

    #[test]
    fn ten_symbols_are_asked_for_again() {
        let problem = Problem { task: Task::Copy, length: 5 };
        let (batch, _) = problem.batch(&mut Rng::new(3), 3);
        assert_eq!((batch.steps, batch.rows.len()), (25, 75));
        for b in 0..3 {
            let read: Vec<u32> = (0..25).map(|t| batch.rows[t * 3 + b]).collect();
            let told: Vec<u32> = (0..25).map(|t| batch.targets[t * 3 + b]).collect();
            assert!(read[..10].iter().all(|symbol| *symbol < 8));
            assert_eq!(read[10..], [[BLANK; 4].as_slice(), &[GO], &[BLANK; 10]].concat());
            assert_eq!((&told[..15], &told[15..]), (&[NO_TARGET; 15][..], &read[..10]));
        }
    }

    /// The network with a row for each step computes the same, and the gradients of the steps that read
    /// a row add up to the gradient of that row.
    #[test]
    fn gradients_of_steps_add_up_to_those_of_rows() {
        for name in NETWORKS {
            let drill = drill(name, Task::Adding, 12, &[]);
            let mut rng = Rng::stream(drill.config.train.seed, SCORED_STREAM);
            let (batch, _) = drill.problem.batch(&mut rng, 1);
            let inputs = drill.input_matrices().unwrap();
            let unrolled = drill.unrolled(&batch, &inputs).unwrap();
            assert_eq!(inputs.len(), 1, "{name}");
            let (place, axis) = inputs[0];
            let loss = drill.model.loss(&batch, None).unwrap();
            let rows: Vec<u32> = (0..12).collect();
            let steps = Batch { rows, active: 1, ..batch.clone() };
            let same = unrolled.loss(&steps, None).unwrap();
            let (a, b) = (loss.item().unwrap(), same.item().unwrap());
            // The same sums in another order, of some hundred terms.
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
            let gradient = |model: &dyn Model, loss: &Tensor| {
                let grads = loss.clone().backward().unwrap();
                gradients(model, &grads)[place].clone().unwrap()
            };
            let own = gradient(&*drill.model, &loss);
            let by_step = gradient(&*unrolled, &same);
            for row in 0..drill.problem.rows() {
                let wanted = own.slice(axis, row..row + 1).unwrap().to_vec();
                let mut sum = vec![0.0; wanted.len()];
                for t in 0..12 {
                    if batch.rows[t * batch.active..][..batch.active].contains(&(row as u32)) {
                        let d = by_step.slice(axis, t..t + 1).unwrap().to_vec();
                        sum.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
                    }
                }
                for (x, y) in wanted.iter().zip(&sum) {
                    assert!((x - y).abs() < 1e-5, "{name}, row {row}: {x} {y}");
                }
            }
            let norms = drill.gradient_norms(1).unwrap();
            assert!(norms.len() == 12 && norms.iter().all(|x| *x > 0.0 && x.is_finite()));
            for (back, norm) in norms.into_iter().enumerate() {
                let d = by_step.slice(axis, 11 - back..12 - back).unwrap().to_vec();
                let wanted = d.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
                assert_eq!(norm, wanted, "{name}, {back} steps back");
            }
        }
    }

    #[test]
    fn short_tasks_are_learned() {
        for name in ["gru", "lstm", "transformer"] {
            let sets = ["hidden=32", "layers=1", "lr=0.01", "steps=500", "clip=1"];
            let mut drill = drill(name, Task::Adding, 6, &sets);
            let before = drill.score(64).unwrap().squared_error.unwrap();
            for _ in 0..500 {
                drill.learn().unwrap();
            }
            let score = drill.score(256).unwrap();
            println!("{name}: {before:.4} before, {score:?}");
            assert!(score.squared_error.unwrap() < 0.25 * drill.problem.without_memory(), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_learned_is_refused() {
        let refused = |name: &str, task, length, sets: &[&str]| {
            let mut map = preset_config(name).unwrap();
            let keys = setting_keys();
            sets.iter().for_each(|set| config::set(&mut map, set, &keys).unwrap());
            let config = RunConfig::read(map).unwrap();
            Drill::new(Problem { task, length }, config).err().unwrap().to_string()
        };
        assert!(refused("gru", Task::Copy, 1, &[]).contains("length: 1; 2 to 100000"));
        assert!(refused("gru/pianoroll", Task::Copy, 10, &[]).contains("model.head"));
        let sparse =
            ["positions=learned", "context=20", "sparse_block=4", "sparse_stride=2", "window=20"];
        let why = refused("transformer", Task::Copy, 30, &sparse);
        assert!(why.contains("model.context: 20; the task has 50 steps"), "{why}");
    }
}
