//! How one version of a model is loaded and run. The catalog keeps options as text; this is what the names mean.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest a call may be made to wait for others to join its batch.
const MAX_DELAY_US: u64 = 1_000_000;
/// The largest batch that can be asked for.
const BATCH_SIZE_MAX: u32 = 32;

/// The options of a model version, each with the name under which it is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOptions {
    /// Whether calls may run together, where measuring shows that it pays and that the answers stay the same.
    pub batching: bool,
    /// The largest batch, from 1 to 32.
    pub batch_size_max: u32,
    /// How far an output of a batch may be from that of a call alone, absolutely; 0 asks for the same bits.
    pub batch_tolerance: f32,
    /// How long a call may wait for others to join its batch, in microseconds. 0: it takes what waits already.
    pub max_delay_us: u64,
    /// Whether answers to the same inputs of the same tenant are kept and given again.
    pub cache: bool,
    /// Whether the model stays in memory when others need room.
    pub pinned: bool,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            batching: true,
            batch_size_max: BATCH_SIZE_MAX,
            batch_tolerance: 0.0,
            max_delay_us: 0,
            cache: false,
            pinned: false,
        }
    }
}

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelOptionsError {
    /// No option has this name.
    #[error("there is no model option `{0}`; the options are {NAMES}")]
    Unknown(String),
    /// The value is none that the option can have.
    #[error("the model option `{name}` is {wanted}")]
    Value {
        /// The option.
        name: &'static str,
        /// What it may be.
        wanted: &'static str,
    },
}

const NAMES: &str = "batching, batch_size_max, batch_tolerance, max_delay_us, cache and pinned";

impl ModelOptions {
    /// Reads options from text; what is not named keeps its default.
    pub fn from_texts(texts: &BTreeMap<String, String>) -> Result<Self, ModelOptionsError> {
        let mut options = ModelOptions::default();
        for (name, text) in texts {
            match name.as_str() {
                "batching" => options.batching = switch("batching", text)?,
                "batch_size_max" => {
                    let sizes = 1..=BATCH_SIZE_MAX;
                    let size = text.parse().ok().filter(|size| sizes.contains(size));
                    options.batch_size_max = size.ok_or(ModelOptionsError::Value {
                        name: "batch_size_max",
                        wanted: "a number from 1 to 32",
                    })?;
                }
                "batch_tolerance" => {
                    let tolerance = text.parse().ok().filter(|t: &f32| t.is_finite() && *t >= 0.0);
                    options.batch_tolerance = tolerance.ok_or(ModelOptionsError::Value {
                        name: "batch_tolerance",
                        wanted: "a number that is not negative, such as 0.00001",
                    })?;
                }
                "max_delay_us" => {
                    let delay = text.parse().ok().filter(|delay| *delay <= MAX_DELAY_US);
                    options.max_delay_us = delay.ok_or(ModelOptionsError::Value {
                        name: "max_delay_us",
                        wanted: "a number of microseconds from 0 to 1000000",
                    })?;
                }
                "cache" => options.cache = switch("cache", text)?,
                "pinned" => options.pinned = switch("pinned", text)?,
                _ => return Err(ModelOptionsError::Unknown(name.chars().take(40).collect())),
            }
        }
        Ok(options)
    }

    /// The options that differ from the defaults, as text.
    pub fn to_texts(&self) -> BTreeMap<String, String> {
        let default = ModelOptions::default();
        let all = [
            ("batching", self.batching.to_string(), default.batching.to_string()),
            ("batch_size_max", self.batch_size_max.to_string(), default.batch_size_max.to_string()),
            (
                "batch_tolerance",
                self.batch_tolerance.to_string(),
                default.batch_tolerance.to_string(),
            ),
            ("max_delay_us", self.max_delay_us.to_string(), default.max_delay_us.to_string()),
            ("cache", self.cache.to_string(), default.cache.to_string()),
            ("pinned", self.pinned.to_string(), default.pinned.to_string()),
        ];
        let differs = |(name, own, usual): (&str, String, String)| {
            (own != usual).then(|| (name.to_owned(), own))
        };
        all.into_iter().filter_map(differs).collect()
    }
}

fn switch(name: &'static str, text: &str) -> Result<bool, ModelOptionsError> {
    text.parse().map_err(|_| ModelOptionsError::Value { name, wanted: "true or false" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    #[test]
    fn options_are_read_and_written_back() {
        let given = texts(&[("batch_size_max", "8"), ("cache", "true"), ("max_delay_us", "200")]);
        let options = ModelOptions::from_texts(&given).unwrap();
        assert!(options.batching && options.cache && !options.pinned);
        assert_eq!((options.batch_size_max, options.max_delay_us), (8, 200));
        assert_eq!(options.to_texts(), given);
        assert!(ModelOptions::default().to_texts().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (name, text) in [
            ("batching", "maybe"),
            ("batch_size_max", "0"),
            ("batch_size_max", "33"),
            ("batch_tolerance", "-1"),
            ("batch_tolerance", "NaN"),
            ("max_delay_us", "1000001"),
            ("pined", "true"),
        ] {
            assert!(ModelOptions::from_texts(&texts(&[(name, text)])).is_err(), "{name}={text}");
        }
    }
}
