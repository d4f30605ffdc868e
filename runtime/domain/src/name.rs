//! Names that users choose. A name is checked once, where it enters, and is a type of its own after that.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a name was refused. The text states the rule and never repeats the name, which may be long or hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {noun} name must match {rule}")]
pub struct NameError {
    /// What was named: `tenant`, `function`, `alias` or `model`.
    pub noun: &'static str,
    /// The rule, as a regular expression.
    pub rule: &'static str,
}

const LABEL_RULE: &str = "^[a-z][a-z0-9-]{0,62}$";
const MODEL_RULE: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$";

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_model_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $noun:literal, $rule:expr, $check:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { noun: $noun, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a tenant: `^[a-z][a-z0-9-]{0,62}$`.
    TenantName, "tenant", LABEL_RULE, is_label
);
name!(
    /// The name of a function: `^[a-z][a-z0-9-]{0,62}$`.
    FunctionName, "function", LABEL_RULE, is_label
);
name!(
    /// The name of an alias: `^[a-z][a-z0-9-]{0,62}$`, so that it is never mistaken for a version number.
    AliasName, "alias", LABEL_RULE, is_label
);
name!(
    /// The name of a model: `^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`.
    ModelName, "model", MODEL_RULE, is_model_name
);

impl AliasName {
    /// The alias that a deployment moves and that a caller gets who names none.
    pub fn live() -> Self {
        Self("live".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_rule() {
        for good in ["a", "digits", "a-1", "a--", &"a".repeat(63)] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "1a",
            "-a",
            "a_b",
            "a.b",
            "../a",
            "a/b",
            "a%2f",
            "a\0",
            "ä",
            "a ",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn model_names_follow_the_rule() {
        for good in ["a", "A", "9", "resnet-50_v1.5", &"m".repeat(128)] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", ".hidden", "a/b", "a@1", "a\0", "é", &"m".repeat(129)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_never_repeats_the_name() {
        let text = "<script>".parse::<TenantName>().unwrap_err().to_string();
        assert_eq!(text, "a tenant name must match ^[a-z][a-z0-9-]{0,62}$");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in ".*") {
            let _ = text.parse::<TenantName>();
            let _ = text.parse::<ModelName>();
        }
    }
}
