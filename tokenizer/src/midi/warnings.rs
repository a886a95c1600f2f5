//! A bounded list of warnings: one line for each kind of fault, however often it is met.

/// Collects warnings; the first of each kind is kept in words, the others are counted.
#[derive(Default)]
pub(super) struct Warnings {
    kinds: Vec<(&'static str, String, usize)>,
}

impl Warnings {
    /// Notes a fault of a kind; `describe` is asked only the first time.
    pub(super) fn add(&mut self, kind: &'static str, describe: impl FnOnce() -> String) {
        match self.kinds.iter_mut().find(|(known, _, _)| *known == kind) {
            Some((_, _, times)) => *times += 1,
            None => self.kinds.push((kind, describe(), 1)),
        }
    }

    /// The warnings in the order in which their kinds were first met.
    pub(super) fn into_lines(self) -> Vec<String> {
        let line = |(_, text, times): (&str, String, usize)| match times {
            1 => text,
            _ => format!("{text} (the first of {times} such faults)"),
        };
        self.kinds.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_of_a_kind_are_counted_not_listed() {
        let mut warnings = Warnings::default();
        for i in 0..17 {
            warnings.add("a", || format!("fault {i}"));
        }
        warnings.add("b", || "other".to_string());
        assert_eq!(warnings.into_lines(), ["fault 0 (the first of 17 such faults)", "other"]);
    }
}
