//! The manifest of a function, `sandpiper.toml`. An unknown key is an error, so that a typo is found at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{FunctionName, ModelRef, Selector};

/// Who may invoke a function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// A key of the tenant with the scope `invoke`.
    #[default]
    Key,
    /// Anyone.
    Public,
}

/// How the CLI builds the component; the server ignores it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// The shell command that builds it.
    pub command: Option<String>,
    /// Where the built component lies, relative to the manifest.
    pub component: Option<String>,
}

/// Limits that a function asks for; they may only lower what policy grants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct FunctionLimits {
    pub memory_mib: Option<u64>,
    pub cpu_ms: Option<u64>,
    pub wall_ms: Option<u64>,
    pub tensor_mib: Option<u64>,
    pub request_body_mib: Option<u64>,
}

/// How a version's sandboxes come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Made for the request that needs it.
    Fresh,
    /// Made before it is needed; serves one request.
    Prepared,
    /// Made before it is needed; serves several requests of its version, one after the other.
    Reused,
}

/// How many sandboxes a function keeps and how often each may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// Sandboxes kept ready.
    pub min: u32,
    /// Sandboxes at once.
    pub max: u32,
    /// Requests one sandbox may serve; 1 is a fresh sandbox for each request.
    pub reuse: u32,
    /// Requests at once that each ready sandbox is planned for.
    pub concurrency: u32,
    /// How they come to be; without it, what `min` and `reuse` imply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl Default for Scale {
    fn default() -> Self {
        Scale { min: 0, max: 64, reuse: 1, concurrency: 1, mode: None }
    }
}

/// Requests that one sandbox may serve at most.
const REUSE_MAX: u32 = 128;
/// Requests at once that one ready sandbox may be planned for.
const CONCURRENCY_MAX: u32 = 100;

impl Scale {
    /// The mode in force.
    pub fn mode(&self) -> Mode {
        self.mode.unwrap_or(match (self.reuse, self.min) {
            (2.., _) => Mode::Reused,
            (_, 1..) => Mode::Prepared,
            _ => Mode::Fresh,
        })
    }

    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.max == 0 || self.min > self.max {
            return Err(("scale.max", "must be at least 1 and no less than scale.min"));
        }
        if !(1..=REUSE_MAX).contains(&self.reuse) {
            return Err(("scale.reuse", "must be from 1 to 128"));
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.concurrency) {
            return Err(("scale.concurrency", "must be from 1 to 100"));
        }
        match self.mode {
            Some(Mode::Fresh) if self.min > 0 => {
                Err(("scale.min", "must be 0 where every sandbox is fresh"))
            }
            Some(Mode::Fresh | Mode::Prepared) if self.reuse > 1 => {
                Err(("scale.reuse", "must be 1 unless scale.mode is \"reused\""))
            }
            Some(Mode::Reused) if self.reuse < 2 => {
                Err(("scale.reuse", "must be at least 2 to reuse a sandbox"))
            }
            _ => Ok(()),
        }
    }
}

/// `sandpiper.toml`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The function's name.
    pub name: FunctionName,
    /// Who may invoke it.
    #[serde(default)]
    pub auth: Auth,
    /// For the CLI.
    #[serde(default)]
    pub build: Build,
    /// Names the function may load, and the alias or version each is bound to.
    #[serde(default)]
    pub models: Option<BTreeMap<String, Selector>>,
    /// Lowered limits.
    #[serde(default)]
    pub limits: FunctionLimits,
    /// Sandboxes.
    #[serde(default)]
    pub scale: Scale,
    /// The environment of the guest.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is no TOML of this shape. The text shows the place.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    /// A value is outside its range.
    #[error("the manifest's `{key}` {rule}")]
    Value {
        /// Which key.
        key: String,
        /// What is wrong with it.
        rule: &'static str,
    },
}

const BYTES_MAX: usize = 64 * 1024;
const ENV_MAX: usize = 64;
const MODELS_MAX: usize = 64;

impl Manifest {
    /// The manifest of a function that came without one.
    pub fn of(name: FunctionName) -> Self {
        Manifest {
            name,
            auth: Auth::default(),
            build: Build::default(),
            models: None,
            limits: FunctionLimits::default(),
            scale: Scale::default(),
            env: BTreeMap::new(),
        }
    }

    /// Reads and checks a manifest.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > BYTES_MAX {
            return Err(ManifestError::Syntax(format!("it is longer than {BYTES_MAX} bytes")));
        }
        let manifest: Manifest =
            toml::from_str(text).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |key: &str, rule| Err(ManifestError::Value { key: key.to_owned(), rule });
        let limits = [
            ("limits.memory_mib", self.limits.memory_mib),
            ("limits.cpu_ms", self.limits.cpu_ms),
            ("limits.wall_ms", self.limits.wall_ms),
            ("limits.tensor_mib", self.limits.tensor_mib),
            ("limits.request_body_mib", self.limits.request_body_mib),
        ];
        for (key, value) in limits {
            if value == Some(0) {
                return refuse(key, "must be at least 1");
            }
        }
        if let Err((key, rule)) = self.scale.check() {
            return refuse(key, rule);
        }
        if self.env.len() > ENV_MAX {
            return refuse("env", "may have at most 64 entries");
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return refuse("env", "may not have a name that is empty or contains `=` or NUL");
            }
        }
        let models = self.models.iter().flatten();
        if models.clone().count() > MODELS_MAX {
            return refuse("models", "may have at most 64 entries");
        }
        for (name, _) in models {
            match name.parse::<ModelRef>() {
                Ok(ModelRef { selector: None, .. }) => {}
                _ => {
                    return refuse(
                        "models",
                        "has a key that is no model name (`name` or `owner/name`)",
                    );
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_design_s_sample_is_read() {
        let manifest = Manifest::parse(
            r#"
            name = "digits"
            auth = "key"
            [build]
            command = "cargo build --release --target wasm32-wasip2"
            component = "target/wasm32-wasip2/release/digits.wasm"
            [models]
            digits = "live"
            "acme/other" = "3"
            [limits]
            memory_mib = 64
            cpu_ms = 50
            wall_ms = 2000
            [scale]
            min = 0
            max = 64
            reuse = 1
            [env]
            THRESHOLD = "0.5"
            "#,
        )
        .unwrap();
        assert_eq!(manifest.name.as_str(), "digits");
        assert_eq!(manifest.limits.cpu_ms, Some(50));
        assert_eq!(manifest.models.unwrap()["acme/other"], Selector::Version(3));
    }

    #[test]
    fn only_the_name_is_needed() {
        assert_eq!(Manifest::parse("name = \"a\"").unwrap(), Manifest::of("a".parse().unwrap()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "missing field `name`"),
            ("name = \"A\"", "a function name must match"),
            ("name = \"a\"\nnmae = 1", "unknown field `nmae`"),
            ("name = \"a\"\n[limits]\ncpu_ms = 0", "limits.cpu_ms"),
            ("name = \"a\"\n[limits]\ncpu = 1", "unknown field `cpu`"),
            ("name = \"a\"\n[scale]\nreuse = 0", "scale.reuse"),
            ("name = \"a\"\n[scale]\nreuse = 129", "scale.reuse"),
            ("name = \"a\"\n[scale]\nmax = 0", "scale.max"),
            ("name = \"a\"\n[scale]\nmin = 65", "scale.max"),
            ("name = \"a\"\n[scale]\nconcurrency = 0", "scale.concurrency"),
            ("name = \"a\"\n[scale]\nconcurrency = 101", "scale.concurrency"),
            ("name = \"a\"\n[scale]\nmode = \"fresh\"\nmin = 1", "scale.min"),
            ("name = \"a\"\n[scale]\nmode = \"prepared\"\nreuse = 2", "scale.reuse"),
            ("name = \"a\"\n[scale]\nmode = \"reused\"", "scale.reuse"),
            ("name = \"a\"\n[scale]\nmode = \"warm\"", "unknown variant `warm`"),
            ("name = \"a\"\n[env]\n\"a=b\" = \"1\"", "env"),
            ("name = \"a\"\n[models]\n\"../x\" = \"live\"", "models"),
            ("name = \"a\"\n[models]\nx = \"0\"", "a version is a number"),
        ] {
            let error = Manifest::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gave {error}");
        }
    }

    #[test]
    fn the_mode_is_the_one_named_or_what_the_numbers_imply() {
        let mode = |lines: &str| {
            Manifest::parse(&format!("name = \"a\"\n[scale]\n{lines}")).unwrap().scale.mode()
        };
        assert_eq!(mode(""), Mode::Fresh);
        assert_eq!(mode("min = 1"), Mode::Prepared);
        assert_eq!(mode("reuse = 2"), Mode::Reused);
        assert_eq!(mode("min = 1\nreuse = 128"), Mode::Reused);
        assert_eq!(mode("mode = \"prepared\""), Mode::Prepared);
        assert_eq!(mode("mode = \"fresh\""), Mode::Fresh);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in ".*") {
            let _ = Manifest::parse(&text);
        }
    }
}
