//! Reading metrics in Prometheus' text format.

/// One scrape.
#[derive(Debug)]
pub struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of the metric over all series that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .filter(|(series, _)| {
                labels.iter().all(|(key, value)| series.contains(&format!("{key}=\"{value}\"")))
            })
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }

    /// The text itself.
    pub fn text(&self) -> &str {
        &self.0
    }
}
