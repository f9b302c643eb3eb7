//! A measurement beside its peer.

use serde::Serialize;

use crate::output::{Output, table};

/// One figure of ours and the peer's, measured in the same run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    /// `None` where there is no peer to compare with: then the figure stands against a stated limit.
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: String,
    pub(crate) higher_is_better: bool,
    pub(crate) settings: String,
}

impl Figure {
    /// How many times better ours is: above 1 we win.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let peer = self.peer.filter(|peer| *peer > 0.0 && self.ours > 0.0)?;
        Some(if self.higher_is_better { self.ours / peer } else { peer / self.ours })
    }
}

/// The middle value; of an even number the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(high), Some(low)) if values.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (Some(high), _) => *high,
        _ => f64::NAN,
    }
}

/// The smallest value that at least `percent` of the values do not exceed (nearest rank).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank within the length"
)]
pub(crate) fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The figures as a table, losses said as such; or as JSON.
pub(crate) fn print(figures: &[Figure], versions: &str, output: Output) -> anyhow::Result<()> {
    output.json(&figures)?;
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|figure| {
            vec![
                figure.what.clone(),
                number(figure.ours),
                figure.peer.map_or_else(String::new, number),
                figure.unit.to_owned(),
                match figure.ratio() {
                    Some(ratio) if ratio >= 1.0 => format!("{ratio:.2} times better"),
                    Some(ratio) => format!("{:.2} times WORSE", 1.0 / ratio),
                    None => String::new(),
                },
                figure.peer_name.clone(),
            ]
        })
        .collect();
    output.line(table(&["what", "ours", "peer", "unit", "ours is", "peer is"], &rows));
    let mut settings: Vec<&str> = figures.iter().map(|figure| figure.settings.as_str()).collect();
    settings.dedup();
    for line in settings {
        output.line(output.faint(line));
    }
    output.line(output.faint(versions));
    Ok(())
}

fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
        let mut values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&mut values, 99.0), 99.0);
        assert_eq!(percentile(&mut values, 50.0), 50.0);
        assert_eq!(percentile(&mut [7.0], 99.0), 7.0);
    }

    #[test]
    fn a_ratio_above_one_is_a_win_both_ways() {
        let figure = |ours, peer, higher_is_better| Figure {
            what: String::new(),
            unit: "s",
            ours,
            peer: Some(peer),
            peer_name: String::new(),
            higher_is_better,
            settings: String::new(),
        };
        assert_eq!(figure(1.0, 2.0, false).ratio(), Some(2.0));
        assert_eq!(figure(1.0, 2.0, true).ratio(), Some(0.5));
    }
}
