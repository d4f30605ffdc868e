//! How a function or a caller names a model: `name`, `name@3`, `name@canary`, `owner/name@3`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{AliasName, ModelName, NameError, TenantName};

/// One version of a thing, by number or through an alias.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Selector {
    /// A pinned version, 1 or more.
    Version(u32),
    /// Whatever the alias points at now.
    Alias(AliasName),
}

impl Default for Selector {
    fn default() -> Self {
        Selector::Alias(AliasName::live())
    }
}

impl FromStr for Selector {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return match text.parse() {
                Ok(number) if number > 0 && !text.starts_with('0') => Ok(Selector::Version(number)),
                _ => Err(ReferenceError::Version),
            };
        }
        Ok(Selector::Alias(text.parse()?))
    }
}

impl TryFrom<String> for Selector {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Version(number) => write!(f, "{number}"),
            Selector::Alias(alias) => write!(f, "{alias}"),
        }
    }
}

/// Why a reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// One of its names breaks the rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The version is not a number between 1 and 4294967295 without leading zeros.
    #[error("a version is a number from 1 to 4294967295")]
    Version,
}

/// A model as a guest names it: `[owner/]name[@selector]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The tenant that owns the model, when it is not the caller.
    pub owner: Option<TenantName>,
    /// The model's name.
    pub name: ModelName,
    /// The version or alias, when one is named.
    pub selector: Option<Selector>,
}

impl FromStr for ModelRef {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (path, selector) = match text.split_once('@') {
            Some((path, selector)) => (path, Some(selector.parse()?)),
            None => (text, None),
        };
        let (owner, name) = match path.split_once('/') {
            Some((owner, name)) => (Some(owner.parse()?), name),
            None => (None, path),
        };
        Ok(ModelRef { owner, name: name.parse()?, selector })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(owner) = &self.owner {
            write!(f, "{owner}/")?;
        }
        write!(f, "{}", self.name)?;
        if let Some(selector) = &self.selector {
            write!(f, "@{selector}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in ["digits", "digits@3", "digits@canary", "acme/digits", "acme/Res.Net-50@12"] {
            assert_eq!(text.parse::<ModelRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "@",
            "a@",
            "a@0",
            "a@01",
            "a@4294967296",
            "a@1x",
            "/a",
            "a/",
            "A/b",
            "a/b/c",
            "a@b@c",
            "../a",
        ] {
            assert!(text.parse::<ModelRef>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "[a-z/@0-9A-Z._-]{0,24}") {
            if let Ok(reference) = text.parse::<ModelRef>() {
                assert_eq!(reference.to_string(), text);
            }
        }
    }
}
