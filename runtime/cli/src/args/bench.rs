//! What `bench` understands.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// NAME, or `model NAME` or `function NAME` to say which is meant
    #[arg(required = true, num_args = 1..=2, value_name = "NAME")]
    pub(crate) target: Vec<String>,
    /// Requests in flight: `8`, `1:64` (doubling), `1:64:8` (in steps of 8) or `1,4,16`
    #[arg(short, long, value_name = "LEVELS", default_value = "1:64")]
    pub(crate) concurrency: Levels,
    /// Requests a second, each sent when it is due; latency counts from then. --concurrency is then the most in flight
    #[arg(long, value_name = "LEVELS")]
    pub(crate) rate: Option<Levels>,
    /// How long each level is measured [default: until three windows of 1 s agree within 10 %, at most ten]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,
    /// How long each level runs before it is measured
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub(crate) warm_up: Duration,
    /// How long an answer may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) timeout: Duration,
    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: u16,
    /// End well although requests failed
    #[arg(long)]
    pub(crate) allow_errors: bool,
    /// Model: the request to send, as JSON of the Open Inference Protocol [default: made from the model's inputs]
    #[arg(long, value_name = "FILE", help_heading = "Models", conflicts_with_all = ["shape", "binary"])]
    pub(crate) input: Option<PathBuf>,
    /// Model: the shape of an input, such as `x:1,64`; free sizes are 1 without it. May be given again
    #[arg(long, value_name = "NAME:SIZES", help_heading = "Models")]
    pub(crate) shape: Vec<InputShape>,
    /// Model: tensors as bytes after the JSON rather than in it
    #[arg(long, help_heading = "Models")]
    pub(crate) binary: bool,
    /// Function: the path and query that it sees
    #[arg(long, value_name = "PATH", default_value = "/", help_heading = "Functions")]
    pub(crate) path: String,
    /// Function: a file to send as the body
    #[arg(long, value_name = "FILE", help_heading = "Functions")]
    pub(crate) body: Option<PathBuf>,
    /// Function: the method [default: GET, or POST with --body]
    #[arg(short = 'X', long, value_name = "METHOD", help_heading = "Functions")]
    pub(crate) method: Option<String>,
    /// A header, as `name: value`; may be given again
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
}

/// A span in seconds, with or without a fraction.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    const RULE: &str = "give seconds between 0.05 and 3600, such as 5 or 0.5";
    let seconds = text.parse::<f64>().map_err(|_| RULE)?;
    if !(0.05..=3600.0).contains(&seconds) {
        return Err(RULE);
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The levels of a sweep, ascending or as they were listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Levels(pub(crate) Vec<u32>);

impl FromStr for Levels {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const LEVELS_MAX: usize = 100;
        const RULE: &str = "give a number such as 8, a range such as 1:64 (doubling) or 1:64:8 (in steps of 8), \
                            or a list such as 1,4,16";
        let number =
            |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(|| RULE.to_owned());
        let levels: Vec<u32> = match text.split(':').collect::<Vec<_>>().as_slice() {
            [_] => text.split(',').map(number).collect::<Result<_, _>>()?,
            [first, last, step @ ..] if step.len() <= 1 => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("the range {text} ends before it begins"));
                }
                let step = step.first().map(|step| number(step)).transpose()?;
                let next = |n: &u32| match step {
                    Some(step) => n.checked_add(step),
                    None => n.checked_mul(2),
                };
                std::iter::successors(Some(first), next)
                    .take_while(|n| *n <= last)
                    .take(LEVELS_MAX + 1)
                    .collect()
            }
            _ => return Err(RULE.to_owned()),
        };
        if levels.len() > LEVELS_MAX {
            return Err(format!("that is more than {LEVELS_MAX} levels; choose a larger step"));
        }
        Ok(Levels(levels))
    }
}

/// The sizes to give to one input of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputShape {
    pub(crate) name: String,
    pub(crate) sizes: Vec<u64>,
}

impl FromStr for InputShape {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "give an input and its sizes, such as x:1,64";
        let (name, sizes) = text.rsplit_once(':').ok_or(RULE)?;
        let sizes = sizes.split(',').map(|size| size.parse::<u64>().map_err(|_| RULE));
        Ok(InputShape { name: name.to_owned(), sizes: sizes.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_double_step_or_are_listed() {
        for (text, expected) in [
            ("8", &[8][..]),
            ("1:64", &[1, 2, 4, 8, 16, 32, 64]),
            ("3:20", &[3, 6, 12]),
            ("1:64:16", &[1, 17, 33, 49]),
            ("8:8:1", &[8]),
            ("16,1,4", &[16, 1, 4]),
            ("4294967295:4294967295", &[u32::MAX]),
        ] {
            assert_eq!(text.parse::<Levels>().unwrap().0, expected, "{text}");
        }
    }

    #[test]
    fn other_levels_are_refused_with_the_rule() {
        for text in ["", "0", "x", "-1", "1:", ":4", "0:4", "1:4:0", "1:2:3:4", "1,,4", "1,2:4"] {
            let error = text.parse::<Levels>().unwrap_err();
            assert!(error.contains("1:64:8"), "{text}: {error}");
        }
        assert!("64:1".parse::<Levels>().unwrap_err().contains("ends before"));
        assert!("1:1000:1".parse::<Levels>().unwrap_err().contains("more than 100"));
    }

    #[test]
    fn a_shape_names_its_input() {
        let shape: InputShape = "a:b:1,64".parse().unwrap();
        assert_eq!((shape.name.as_str(), shape.sizes.as_slice()), ("a:b", &[1, 64][..]));
        assert!("x".parse::<InputShape>().is_err() && "x:1,-1".parse::<InputShape>().is_err());
    }

    #[test]
    fn spans_are_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1e9", "5s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
