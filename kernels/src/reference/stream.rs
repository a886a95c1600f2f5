//! A row times int8 weights, by the definition.

/// Rounds numbers to whole ones in `[-127, 127]` of a unit, and returns the unit: the largest number
/// is 127 of it. Numbers all below 1e-30 are 0 of unit 0.
pub fn quantise(x: &[f32]) -> (Vec<i8>, f32) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest < 1e-30 {
        return (vec![0; x.len()], 0.0);
    }
    let whole = |x: &f32| (x * (127.0 / largest)).round_ties_even() as i8;
    (x.iter().map(whole).collect(), largest / 127.0)
}

/// Computes `y[j] += sum over l of q[l] * w[l][j] * (unit * scale[j])`: `q` and `unit` of the row,
/// `w[l][j]` the weight of column `j` in units of a 127th of the column's largest.
///
/// # Shapes
/// `x` `[k]`, `w` `[k, n]`, `y` `[n]`.
pub fn stream_int8_forward(x: &[f32], w: &[f32], y: &mut [f32]) {
    let (n, (q, unit)) = (y.len(), quantise(x));
    for (j, y) in y.iter_mut().enumerate() {
        let column = w.iter().skip(j).step_by(n);
        let scale = column.clone().fold(0.0f32, |largest, w| largest.max(w.abs())) / 127.0;
        let whole = |w: &f32| if scale > 0.0 { (w / scale).round_ties_even() as i32 } else { 0 };
        let sum: i32 = q.iter().zip(column).map(|(q, w)| i32::from(*q) * whole(w)).sum();
        *y += sum as f32 * (unit * scale);
    }
}
