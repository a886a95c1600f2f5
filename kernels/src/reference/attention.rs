//! Attention by its definition, one head, in f64, with the whole square matrix.

use crate::attention::Mask;

/// One head: `q` `[queries, head_dim]`, `k`, `v` `[keys, head_dim]`, and, if it is not empty, `er`
/// `[max_len, head_dim]`.
#[derive(Clone)]
pub struct Head<'a> {
    /// Queries.
    pub q: &'a [f64],
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
    /// Relative embeddings.
    pub er: &'a [f64],
    /// Which keys a query sees.
    pub mask: Mask,
    /// What scores are multiplied by.
    pub scale: f64,
    /// What each weight `[queries, keys]` is multiplied by after the softmax: dropout, or nothing.
    pub keep: &'a [f64],
    /// Numbers of a row.
    pub head_dim: usize,
}

/// Gradients, each in the form of what it belongs to.
pub struct Gradients {
    /// Of the queries.
    pub q: Vec<f64>,
    /// Of the keys.
    pub k: Vec<f64>,
    /// Of the values.
    pub v: Vec<f64>,
    /// Of the embeddings.
    pub er: Vec<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn axpy(a: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

impl Head<'_> {
    fn row<'a>(&self, x: &'a [f64], i: usize) -> &'a [f64] {
        &x[i * self.head_dim..(i + 1) * self.head_dim]
    }

    /// Numbers of queries and of keys.
    fn sizes(&self) -> (usize, usize) {
        (self.q.len() / self.head_dim, self.k.len() / self.head_dim)
    }

    /// The embedding for key `j` and position `p`.
    fn embedding(&self, p: usize, j: usize) -> usize {
        j + self.er.len() / self.head_dim - 1 - p
    }

    /// The weights of query `i` before dropout, and the logarithm of what they were divided by.
    pub fn weights(&self, i: usize) -> (Vec<f64>, f64) {
        let (queries, keys) = self.sizes();
        let (q, p) = (self.row(self.q, i), i + keys - queries.min(keys));
        let mut scores = vec![f64::NEG_INFINITY; keys];
        for (j, score) in scores.iter_mut().enumerate().filter(|(j, _)| self.mask.sees(p, *j)) {
            *score = dot(q, self.row(self.k, j));
            if !self.er.is_empty() {
                *score += dot(q, self.row(self.er, self.embedding(p, j)));
            }
            *score *= self.scale;
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        (
            scores
                .iter()
                .map(|s| if *s == f64::NEG_INFINITY { 0.0 } else { (s - lse).exp() })
                .collect(),
            lse,
        )
    }

    /// What a weight is multiplied by after the softmax.
    fn keep(&self, i: usize, j: usize) -> f64 {
        if self.keep.is_empty() { 1.0 } else { self.keep[i * self.sizes().1 + j] }
    }

    /// The results `[queries, head_dim]` and log-sum-exps `[queries]`.
    pub fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let (queries, _) = self.sizes();
        let (mut o, mut lse) = (vec![0.0; self.q.len()], vec![0.0; queries]);
        for (i, o) in o.chunks_exact_mut(self.head_dim).enumerate() {
            let (weights, sum) = self.weights(i);
            lse[i] = sum;
            for (j, w) in weights.iter().enumerate() {
                axpy(w * self.keep(i, j), self.row(self.v, j), o);
            }
        }
        (o, lse)
    }

    /// The gradients from that of the result, `[queries, head_dim]`.
    pub fn backward(&self, d_o: &[f64]) -> Gradients {
        let (queries, keys) = self.sizes();
        let zeros = |x: &[f64]| vec![0.0; x.len()];
        let mut d =
            Gradients { q: zeros(self.q), k: zeros(self.k), v: zeros(self.v), er: zeros(self.er) };
        let at = |j: usize| j * self.head_dim..(j + 1) * self.head_dim;
        for i in 0..queries {
            let (p, q, d_o) = (i + keys - queries.min(keys), self.row(self.q, i), self.row(d_o, i));
            let (weights, _) = self.weights(i);
            let d_weights: Vec<f64> =
                (0..keys).map(|j| self.keep(i, j) * dot(d_o, self.row(self.v, j))).collect();
            let mean = dot(&weights, &d_weights);
            for (j, w) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                axpy(w * self.keep(i, j), d_o, &mut d.v[at(j)]);
                // The softmax, then the scale.
                let d_score = self.scale * w * (d_weights[j] - mean);
                axpy(d_score, q, &mut d.k[at(j)]);
                axpy(d_score, self.row(self.k, j), &mut d.q[at(i)]);
                if !self.er.is_empty() {
                    let e = self.embedding(p, j);
                    axpy(d_score, q, &mut d.er[at(e)]);
                    axpy(d_score, self.row(self.er, e), &mut d.q[at(i)]);
                }
            }
        }
        d
    }
}
