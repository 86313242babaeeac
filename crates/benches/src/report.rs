//! What a goal asks for, what was measured, and the table of both.

use std::fmt::Write;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// For example `P1`.
    pub(crate) goal: &'static str,
    /// What is measured, with its unit.
    pub(crate) what: &'static str,
    /// Of the product.
    pub(crate) product: f64,
    /// Of the yardstick; none where the goal is an absolute bound.
    pub(crate) limit: Option<f64>,
    /// Product ÷ yardstick, the median over the rounds; or the measured value itself.
    pub(crate) ratio: f64,
    /// Smallest and largest of the rounds.
    pub(crate) spread: (f64, f64),
    /// The bar.
    pub(crate) must: f64,
    /// The wish.
    pub(crate) aim: f64,
    /// Which way is better.
    pub(crate) better: Better,
}

/// A goal that could not be measured, and why.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    /// For example `C2`.
    pub(crate) goal: &'static str,
    /// Why.
    pub(crate) why: String,
}

impl Row {
    fn holds(&self, bar: f64) -> bool {
        match self.better {
            Better::Less => self.ratio <= bar,
            Better::More => self.ratio >= bar,
        }
    }

    /// Is the bar met?
    pub(crate) fn met(&self) -> bool {
        self.holds(self.must)
    }

    fn verdict(&self) -> &'static str {
        match (self.met(), self.holds(self.aim)) {
            (true, true) => "aim",
            (true, false) => "must",
            (false, _) => "MISSED",
        }
    }
}

/// The median of `values`.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// The smallest and the largest of `values`.
pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &value| (least.min(value), most.max(value)))
}

/// Everything as one table.
pub(crate) fn table(rows: &[Row], missing: &[Missing]) -> String {
    let head = ["goal", "what", "product", "limit", "ratio", "rounds", "must", "aim", "met"];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        lines.push([
            row.goal.to_owned(),
            row.what.to_owned(),
            short(row.product),
            row.limit.map_or_else(|| "-".to_owned(), short),
            short(row.ratio),
            format!("{}–{}", short(row.spread.0), short(row.spread.1)),
            bar(row.better, row.must),
            bar(row.better, row.aim),
            row.verdict().to_owned(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 | 1 | 8 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(text, "| {} |", rules.join(" | "));
        }
    }
    for Missing { goal, why } in missing {
        let _ = writeln!(text, "{goal} was not measured: {why}");
    }
    text
}

/// `1/50` reads better than 0.02.
fn bar(better: Better, value: f64) -> String {
    let sign = match better {
        Better::Less => '≤',
        Better::More => '≥',
    };
    if value < 0.1 { format!("{sign} 1/{:.0}", 1.0 / value) } else { format!("{sign} {}", short(value)) }
}

fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        middle if middle >= 0.1 => format!("{value:.2}"),
        small if small > 0.0 => format!("1/{:.0}", 1.0 / value),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn small_ratios_are_written_as_fractions() {
        assert_eq!(short(0.005), "1/200");
        assert_eq!(bar(Better::Less, 0.02), "≤ 1/50");
        assert_eq!(bar(Better::More, 12.0), "≥ 12.0");
    }
}
