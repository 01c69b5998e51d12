//! Least squares with a handful of columns, by normal equations.

/// A symmetric matrix of a few rows.
pub(super) type Matrix = Vec<Vec<f64>>;

/// What solves a system, and the inverse of its normal matrix: the shape of the solution's covariance.
pub(super) struct Solution {
    pub(super) values: Vec<f64>,
    pub(super) inverse: Matrix,
}

/// The values that bring `rows * values` nearest to `targets`; none where the rows do not determine them.
pub(super) fn solve(rows: &[Vec<f64>], targets: &[f64]) -> Option<Solution> {
    let columns = rows.first()?.len();
    // Columns of one size, so that a pivot near 0 means what it says.
    let scale: Vec<f64> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column] * row[column])
                .sum::<f64>()
                .sqrt()
        })
        .collect();
    if scale.iter().any(|scale| !scale.is_normal()) {
        return None;
    }
    let mut normal = vec![vec![0.0; columns]; columns];
    let mut right = vec![0.0; columns];
    for (row, target) in rows.iter().zip(targets) {
        for i in 0..columns {
            right[i] += row[i] / scale[i] * target;
            for j in 0..columns {
                normal[i][j] += row[i] / scale[i] * row[j] / scale[j];
            }
        }
    }
    let mut inverse = invert(normal)?;
    let mut values = vec![0.0; columns];
    for i in 0..columns {
        values[i] = (0..columns).map(|j| inverse[i][j] * right[j]).sum::<f64>() / scale[i];
    }
    for (i, row) in inverse.iter_mut().enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value /= scale[i] * scale[j];
        }
    }
    values
        .iter()
        .all(|value| value.is_finite())
        .then_some(Solution { values, inverse })
}

/// Gauss and Jordan with the largest pivots.
fn invert(mut matrix: Matrix) -> Option<Matrix> {
    const SINGULAR: f64 = 1e-11;
    let size = matrix.len();
    let mut inverse: Matrix = (0..size)
        .map(|i| (0..size).map(|j| f64::from(u8::from(i == j))).collect())
        .collect();
    for column in 0..size {
        let pivot =
            (column..size).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        if matrix[pivot][column].abs() < SINGULAR {
            return None;
        }
        matrix.swap(column, pivot);
        inverse.swap(column, pivot);
        let by = matrix[column][column];
        for j in 0..size {
            matrix[column][j] /= by;
            inverse[column][j] /= by;
        }
        for row in (0..size).filter(|&row| row != column) {
            let by = matrix[row][column];
            for j in 0..size {
                matrix[row][j] -= by * matrix[column][j];
                inverse[row][j] -= by * inverse[column][j];
            }
        }
    }
    Some(inverse)
}

/// `vector * matrix * vector`.
pub(super) fn quadratic(vector: &[f64], matrix: &Matrix) -> f64 {
    let of = |row: &Vec<f64>| row.iter().zip(vector).map(|(a, b)| a * b).sum::<f64>();
    matrix.iter().zip(vector).map(|(row, x)| x * of(row)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_with_its_covariance() {
        let rows: Vec<Vec<f64>> = [1.0, 2.0, 3.0, 4.0].map(|x| vec![1.0, x]).into();
        let solution = solve(&rows, &[3.0, 5.0, 7.0, 9.0]).unwrap();
        assert!((solution.values[0] - 1.0).abs() < 1e-9 && (solution.values[1] - 2.0).abs() < 1e-9);
        // The inverse of [[4, 10], [10, 30]].
        assert!((solution.inverse[0][0] - 1.5).abs() < 1e-9 && (solution.inverse[1][1] - 0.2).abs() < 1e-9);
        // 1 * 1.5 + 2 * 1 * -0.5 * 2.5 + 0.2 * 2.5^2: the mean is known best.
        assert!((quadratic(&[1.0, 2.5], &solution.inverse) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_determined_has_no_solution() {
        let rows = vec![vec![1.0, 2.0], vec![1.0, 2.0], vec![1.0, 2.0]];
        assert!(solve(&rows, &[1.0, 2.0, 3.0]).is_none());
        assert!(solve(&[], &[]).is_none());
        assert!(solve(&[vec![0.0]], &[1.0]).is_none());
    }
}
