//! Which keys a query sees: at most two runs of keys, each a range that only moves forward.

/// Which keys a query sees. Position `p` of query `i` is `i + keys - queries`: queries are the last of
/// the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Every key.
    Full,
    /// Keys `j <= p`.
    Causal,
    /// The last `width` keys up to `p`: `p - width < j <= p`.
    Window {
        /// Number of keys, at least 1.
        width: usize,
    },
    /// Keys `j <= p` of the own block of `block` keys, and of earlier blocks the last of every `stride`
    /// keys: `j / block == p / block` or `j % stride == stride - 1`.
    ///
    /// # Source
    /// Child, Gray, Radford & Sutskever 2019, "fixed" attention; MuseNet (Payne 2019).
    Strided {
        /// Keys of a block, at least 1.
        block: usize,
        /// Keys from one column that everybody sees to the next, at least 1.
        stride: usize,
    },
}

impl Mask {
    /// Tells whether the query at position `p` sees key `j`.
    pub fn sees(self, p: usize, j: usize) -> bool {
        match self {
            Mask::Full => true,
            Mask::Causal => j <= p,
            Mask::Window { width } => j <= p && p - j < width,
            Mask::Strided { block, stride } => {
                j <= p && (j / block == p / block || j % stride == stride - 1)
            }
        }
    }

    /// Tells whether no query sees what comes after it.
    pub fn is_causal(self) -> bool {
        self != Mask::Full
    }

    /// The most keys that a query sees, counted from itself back to the first, among `keys`.
    pub fn reach(self, keys: usize) -> usize {
        match self {
            Mask::Window { width } => width.min(keys),
            _ => keys,
        }
    }

    /// Number of (query, key) pairs that are seen: the work of a head.
    pub fn pairs(self, queries: usize, keys: usize) -> usize {
        let seen = |p| self.runs(keys).iter().map(|run| run.range(p)).map(|(a, b)| b - a).sum();
        (0..queries).map(|i| -> usize { seen(i + keys - queries.min(keys)) }).sum()
    }

    /// Tells whether each query sees a key: the sizes of the mask are at least 1.
    pub fn is_valid(self) -> bool {
        match self {
            Mask::Full | Mask::Causal => true,
            Mask::Window { width } => width > 0,
            Mask::Strided { block, stride } => block > 0 && stride > 0,
        }
    }

    /// The runs of keys that queries see, none of which holds a key twice.
    pub(super) fn runs(self, keys: usize) -> Runs {
        let near = Run { mask: self, is_far: false, first: 0, step: 1, count: keys };
        match self {
            Mask::Strided { stride, .. } if stride <= keys => {
                let (first, count) = (stride - 1, keys / stride);
                let far = Run { mask: self, is_far: true, first, step: stride, count };
                Runs { runs: [near, far], len: 2 }
            }
            _ => Runs { runs: [near, near], len: 1 },
        }
    }
}

/// One or two runs.
pub(super) struct Runs {
    runs: [Run; 2],
    len: usize,
}

impl Runs {
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Run> {
        self.runs[..self.len].iter()
    }
}

/// Keys `first`, `first + step`, ..: `count` of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    mask: Mask,
    /// The columns of earlier blocks, gathered: each query sees the first few of them.
    is_far: bool,
    pub first: usize,
    pub step: usize,
    pub count: usize,
}

impl Run {
    /// The keys of this run that the query at position `p` sees, by their number in the run. Both ends
    /// grow with `p`.
    pub(super) fn range(&self, p: usize) -> (usize, usize) {
        match self.mask {
            Mask::Full => (0, self.count),
            Mask::Causal => (0, p + 1),
            Mask::Window { width } => ((p + 1).saturating_sub(width), p + 1),
            Mask::Strided { block, stride } if self.is_far => (0, p / block * block / stride),
            Mask::Strided { block, .. } => (p / block * block, p + 1),
        }
    }
}
