//! The environment that the manifest gives to the function.

use std::{fmt::Display, str::FromStr};

use crate::{Error, Result, host};

/// A variable of the manifest's `[env]`, or `None`.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let _env = testing::env("GREETING", "ahoy");
/// assert_eq!(env("GREETING").as_deref(), Some("ahoy"));
/// assert_eq!(env("SHOUTING"), None);
/// ```
pub fn env(name: &str) -> Option<String> {
    host::env(name)
}

/// A variable of the manifest's `[env]`, parsed, or `default` where it is absent or empty.
///
/// # Errors
///
/// A value that does not parse is a fault of the deployment, not of the request: 500
/// `bad_configuration`. The message names the variable, never its value.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let _env = testing::env("THRESHOLD", "0.75");
/// assert_eq!(env_or("THRESHOLD", 0.5)?, 0.75);
/// assert_eq!(env_or("LIMIT", 10)?, 10);
/// assert_eq!(env_or("THRESHOLD", 1u8).unwrap_err().code(), "bad_configuration");
/// # Ok::<(), Error>(())
/// ```
pub fn env_or<T>(name: &str, default: T) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    let Some(value) = env(name).filter(|value| !value.is_empty()) else { return Ok(default) };
    value.trim().parse().map_err(|error: T::Err| {
        eprintln!("environment variable {name} does not parse: {error}");
        Error::new(500, "bad_configuration", format!("the variable {name} does not parse"))
    })
}
