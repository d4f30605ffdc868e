//! What a key may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One permission of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Scope {
    Deploy,
    Delete,
    Invoke,
    Models,
    Logs,
    Keys,
}

impl Scope {
    /// Every scope, in the design's order.
    pub const ALL: [Scope; 6] =
        [Scope::Deploy, Scope::Delete, Scope::Invoke, Scope::Models, Scope::Logs, Scope::Keys];

    /// Its name in JSON and messages.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Deploy => "deploy",
            Scope::Delete => "delete",
            Scope::Invoke => "invoke",
            Scope::Models => "models",
            Scope::Logs => "logs",
            Scope::Keys => "keys",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a scope is one of deploy, delete, invoke, models, logs, keys")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Scope::ALL.into_iter().find(|scope| scope.name() == text).ok_or(UnknownScope)
    }
}

/// A set of scopes, small enough to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// Every scope.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether the set holds `scope`.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether every scope of `other` is in this set too.
    pub fn covers(self, other: ScopeSet) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether it holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        ScopeSet(scopes.into_iter().fold(0, |set, scope| set | 1 << scope as u8))
    }
}

impl From<Vec<Scope>> for ScopeSet {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<ScopeSet> for Vec<Scope> {
    fn from(set: ScopeSet) -> Self {
        Scope::ALL.into_iter().filter(|scope| set.contains(*scope)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_it_was_given() {
        let set: ScopeSet = [Scope::Invoke, Scope::Logs].into_iter().collect();
        assert!(set.contains(Scope::Invoke) && !set.contains(Scope::Keys));
        assert!(ScopeSet::all().covers(set) && !set.covers(ScopeSet::all()));
        assert_eq!(Vec::from(set), [Scope::Invoke, Scope::Logs]);
    }
}
