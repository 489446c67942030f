//! Percentiles and tables of small samples.

use std::time::Duration;

/// A sample of durations.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<Duration>);

impl Sample {
    /// Adds one.
    pub fn push(&mut self, value: Duration) {
        let at = self.0.partition_point(|known| *known <= value);
        self.0.insert(at, value);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least `percent` of the sample does not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = self.0.len().saturating_mul(percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// The largest.
    pub fn worst(&self) -> Option<Duration> {
        self.0.last().copied()
    }
}

/// Prints seconds with three digits, `-` for none.
pub fn seconds(value: Option<Duration>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.3}", value.as_secs_f64()))
}

/// Lays out rows in columns, the first one to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut sample = Sample::default();
        assert_eq!(sample.percentile(50), None);
        for value in [5, 1, 4, 2, 3] {
            sample.push(Duration::from_secs(value));
        }
        assert_eq!(sample.percentile(50), Some(Duration::from_secs(3)));
        assert_eq!(sample.percentile(99), Some(Duration::from_secs(5)));
        assert_eq!(sample.worst(), Some(Duration::from_secs(5)));
    }
}
