//! The arguments of the commands for versions and traffic.

use std::{str::FromStr, time::Duration};

use clap::Args;
use sandpiper_domain::{AliasName, FunctionName};

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The function
    pub(crate) function: FunctionName,
    /// The alias to move
    #[arg(long, default_value = "live")]
    pub(crate) alias: AliasName,
    /// Go back to where it last pointed at this version alone
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The function
    pub(crate) function: FunctionName,
    /// One version
    pub(crate) from: u32,
    /// The other [default: the newest]
    pub(crate) to: Option<u32>,
}

/// A new version that takes a part of the traffic first.
#[derive(Debug, Args)]
pub(crate) struct Canary {
    /// Give the new version this part of the traffic of `live`, and all of it when it has done well
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u32).range(1..=99),
        conflicts_with = "no_activate"
    )]
    pub(crate) canary: Option<u32>,
    /// How long it is watched, such as 30s, 5m or 2h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time, requires = "canary")]
    pub(crate) bake: Duration,
    /// The largest part of its requests that may fail, from 0 to 1 [default: 0.05]
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "canary")]
    pub(crate) max_error_rate: Option<f64>,
    /// The longest that 99 of 100 of its requests may take, such as 200ms or 2s
    #[arg(long, value_name = "TIME", value_parser = time, requires = "canary")]
    pub(crate) max_p99: Option<Duration>,
    /// Do not wait for the end of it
    #[arg(long, requires = "canary")]
    pub(crate) detach: bool,
}

/// What keeps callers on one version of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sticky {
    Header(String),
    Cookie(String),
    None,
}

impl FromStr for Sticky {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once(':') {
            Some(("header", name)) if !name.is_empty() => Ok(Sticky::Header(name.to_owned())),
            Some(("cookie", name)) if !name.is_empty() => Ok(Sticky::Cookie(name.to_owned())),
            None if text == "none" => Ok(Sticky::None),
            _ => Err("give header:NAME, cookie:NAME or none"),
        }
    }
}

fn time(text: &str) -> Result<Duration, &'static str> {
    const RULE: &str = "give a time such as 200ms, 30s, 5m or 2h";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(RULE),
    };
    let count: u64 = count.parse().map_err(|_| RULE)?;
    let ms = count.checked_mul(unit_ms).filter(|ms| *ms > 0).ok_or(RULE)?;
    Ok(Duration::from_millis(ms))
}

fn rate(text: &str) -> Result<f64, &'static str> {
    let rate = text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
    rate.ok_or("give a part between 0 and 1, such as 0.05")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(time("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "5", "m", "0s", "-1s", "1.5s", "1w", "18446744073709551615d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_keeps_callers_is_a_header_or_a_cookie() {
        assert_eq!("header:x-user".parse(), Ok(Sticky::Header("x-user".to_owned())));
        assert_eq!("cookie:group".parse(), Ok(Sticky::Cookie("group".to_owned())));
        assert_eq!("none".parse(), Ok(Sticky::None));
        for bad in ["", "header", "header:", "ip:x", "none:x"] {
            assert!(bad.parse::<Sticky>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_parts_of_one() {
        assert_eq!(rate("0.05"), Ok(0.05));
        for bad in ["", "5%", "1.1", "-0.1", "NaN", "inf"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
