/// The kernels of a PTX text.
pub(super) fn kernels(text: &str) -> impl Iterator<Item = &str> {
    text.split(".entry ").skip(1).filter_map(|after| after.split(['(', '\n', ' ']).next())
}
