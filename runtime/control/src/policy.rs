//! Policy: what a tier may use, read from TOML. The shipped set is compiled in; `--policies` replaces it as a whole.
//!
//! What is in force is the smallest of the platform's ceiling, the tier's limit and what the manifest asks for.

use std::{collections::BTreeMap, fmt, fs, io, path::Path, str::FromStr, sync::Arc};

use sandpiper_domain::{Grant, Manifest, ModelScope, SandboxLimits, TenantLimits, TenantName};
use serde::{Deserialize, Serialize};

mod file;
#[cfg(test)]
mod tests;

const PLATFORM: (&str, &str) = ("platform.toml", include_str!("../../../policies/platform.toml"));
const TIERS: [(&str, &str); 3] = [
    ("free", include_str!("../../../policies/tiers/free.toml")),
    ("standard", include_str!("../../../policies/tiers/standard.toml")),
    ("dedicated", include_str!("../../../policies/tiers/dedicated.toml")),
];

/// A policy file larger than this is no policy file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The name of a tier: the stem of its file in `tiers/`, under the rule of tenant names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TierName(Arc<str>);

impl TierName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TierName {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bytes = text.as_bytes();
        let good = bytes.len() <= 63
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if good { Ok(TierName(text.into())) } else { Err(PolicyError::TierName) }
    }
}

impl TryFrom<String> for TierName {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<TierName> for String {
    fn from(name: TierName) -> String {
        name.as_str().to_owned()
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a policy set, or a name of a tier, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A file of the set; the whole set is refused with it.
    #[error("policy file `{file}`: {reason}")]
    File {
        /// Which file, relative to the folder.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No tier can have this name.
    #[error("a tier name must match ^[a-z][a-z0-9-]{{0,62}}$")]
    TierName,
    /// The set has no such tier.
    #[error("there is no tier `{tier}`; the tiers are {known}")]
    UnknownTier {
        /// The tier asked for.
        tier: TierName,
        /// The tiers there are.
        known: String,
    },
}

/// Every limit of one tier, or of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of each sandbox.
    pub sandbox: SandboxLimits,
    /// Of the tenant as a whole.
    pub tenant: TenantLimits,
}

/// A complete policy set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// What is in force for each tier: its own limits under the platform's ceilings.
    tiers: BTreeMap<TierName, Limits>,
}

impl Policies {
    /// The set that is compiled into this binary.
    pub fn shipped() -> Result<Self, PolicyError> {
        let tiers = TIERS.map(|(tier, text)| (tier.to_owned(), text.to_owned()));
        Self::compile(PLATFORM.1, tiers.into())
    }

    /// The set in `folder`: `platform.toml` and `tiers/*.toml`. One bad file refuses the whole set.
    pub fn load(folder: &Path) -> Result<Self, PolicyError> {
        let platform = read(folder, PLATFORM.0)?;
        let refuse = |error: io::Error| refusal("tiers", error);
        let mut tiers = Vec::new();
        for entry in fs::read_dir(folder.join("tiers")).map_err(refuse)? {
            let name = entry.map_err(refuse)?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let file = format!("tiers/{name}");
            // A file that would be passed over in silence, such as `free.toml.bak`, is more likely a mistake.
            let Some(tier) = name.strip_suffix(".toml") else {
                return Err(refusal(&file, "only `<tier>.toml` files belong here"));
            };
            tiers.push((tier.to_owned(), read(folder, &file)?));
        }
        Self::compile(&platform, tiers)
    }

    fn compile(platform: &str, files: Vec<(String, String)>) -> Result<Self, PolicyError> {
        let platform = file::parse(PLATFORM.0, platform)?;
        let mut tiers = BTreeMap::new();
        for (tier, text) in files {
            let file = format!("tiers/{tier}.toml");
            let name = tier.parse().map_err(|error| refusal(&file, error))?;
            tiers.insert(name, file::parse(&file, &text)?.under(platform));
        }
        if tiers.is_empty() {
            return Err(refusal("tiers", "there is no tier"));
        }
        Ok(Policies { tiers })
    }

    /// The names of the tiers.
    pub fn tiers(&self) -> impl Iterator<Item = &TierName> {
        self.tiers.keys()
    }

    /// What is in force for tenants of `tier`.
    pub fn limits(&self, tier: &TierName) -> Result<Limits, PolicyError> {
        self.tiers.get(tier).copied().ok_or_else(|| {
            let known: Vec<_> = self.tiers().map(TierName::as_str).collect();
            PolicyError::UnknownTier { tier: tier.clone(), known: known.join(", ") }
        })
    }

    /// The grant of one function version: platform, tier and manifest, whichever is the lowest.
    pub fn grant(
        &self,
        tier: &TierName,
        manifest: &Manifest,
        tenant: &TenantName,
    ) -> Result<Grant, PolicyError> {
        let limits = self.limits(tier)?;
        Ok(Grant {
            sandbox: lowered(limits.sandbox, manifest),
            tenant: limits.tenant,
            models: Arc::new(ModelScope {
                tenant: tenant.clone(),
                bindings: manifest.models.clone(),
                pins: Arc::default(),
            }),
            env: Arc::new(manifest.env.clone()),
        })
    }
}

fn lowered(granted: SandboxLimits, manifest: &Manifest) -> SandboxLimits {
    let asked = &manifest.limits;
    granted.min(SandboxLimits {
        memory_mib: asked.memory_mib.unwrap_or(u64::MAX),
        cpu_ms: asked.cpu_ms.unwrap_or(u64::MAX),
        wall_ms: asked.wall_ms.unwrap_or(u64::MAX),
        tensor_mib: asked.tensor_mib.unwrap_or(u64::MAX),
        request_body_mib: asked.request_body_mib.unwrap_or(u64::MAX),
        log_kib: u64::MAX,
    })
}

fn read(folder: &Path, file: &str) -> Result<String, PolicyError> {
    let refuse = |error: io::Error| refusal(file, error);
    let path = folder.join(file);
    if fs::metadata(&path).map_err(refuse)?.len() > FILE_BYTES_MAX {
        return Err(refusal(file, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    fs::read_to_string(path).map_err(refuse)
}

fn refusal(file: &str, reason: impl ToString) -> PolicyError {
    PolicyError::File { file: file.to_owned(), reason: reason.to_string() }
}
