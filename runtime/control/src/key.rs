//! The text of a key and what is kept of it.
//!
//! A tenant's key is `sp_<id>_<secret><checksum>`: 12, 43 and 6 characters of base62. The checksum (CRC-32 of all
//! before it) lets a mistyped key be refused without a look-up and lets scanners recognise a leaked one. The secret
//! holds 256 random bits, so a fast MAC suffices at rest: there is nothing to guess that a slow hash would protect.

use std::{fmt, io, str::FromStr};

use hmac::{Hmac, KeyInit, Mac as _};
use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

#[cfg(test)]
mod tests;

const PREFIX: &str = "sp_";
const ID_LENGTH: usize = 12;
const SECRET_LENGTH: usize = 43;
const CHECKSUM_LENGTH: usize = 6;
const BODY_LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH;
const OPERATOR_LENGTH_MIN: usize = 32;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The public part of a key: names it in lists, logs and deletions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; ID_LENGTH]);

/// The text is the id of no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's id is 12 letters and digits")]
pub struct ParseKeyIdError;

impl KeyId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Only base62 gets in, so this never falls back.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = ParseKeyIdError;
    fn from_str(text: &str) -> Result<Self, ParseKeyIdError> {
        let id = text.as_bytes().try_into().map_err(|_| ParseKeyIdError)?;
        if is_base62(text) { Ok(KeyId(id)) } else { Err(ParseKeyIdError) }
    }
}

impl TryFrom<String> for KeyId {
    type Error = ParseKeyIdError;
    fn try_from(text: String) -> Result<Self, ParseKeyIdError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.as_str().to_owned()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A whole key in plain text, as it is shown once to its owner.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

impl KeyText {
    /// A new key from the system's random numbers.
    pub(crate) fn generate() -> io::Result<(KeyId, Self)> {
        let mut id = [0; ID_LENGTH];
        random_base62(&mut id)?;
        let mut secret = [0; SECRET_LENGTH];
        random_base62(&mut secret)?;
        let id = KeyId(id);
        let mut text = format!("{PREFIX}{id}_{}", String::from_utf8_lossy(&secret));
        text.push_str(&checksum(&text));
        Ok((id, KeyText(text)))
    }

    /// The text itself. Whoever calls this decides who sees it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(…)")
    }
}

/// The id within a key's text, when its form and checksum are right.
pub(crate) fn id_of(text: &str) -> Option<KeyId> {
    let (body, sum) = text.split_at_checked(BODY_LENGTH)?;
    let (id, secret) = body.strip_prefix(PREFIX)?.split_at_checked(ID_LENGTH)?;
    let secret = secret.strip_prefix('_')?;
    let good = is_base62(secret) && sum.len() == CHECKSUM_LENGTH && sum == checksum(body);
    if good { id.parse().ok() } else { None }
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// 6 digits of base62 hold 32 bits with room to spare.
fn checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [0; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    digits.map(char::from).iter().collect()
}

fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn random_base62(digits: &mut [u8]) -> io::Result<()> {
    for digit in digits {
        // Bytes of 248 and more are drawn again: they would make the first eight digits likelier than the others.
        *digit = loop {
            let [byte] = random_bytes()?;
            if byte < 248 {
                break ALPHABET[usize::from(byte) % ALPHABET.len()];
            }
        };
    }
    Ok(())
}

/// What is kept of a key.
#[derive(Clone, Copy)]
pub(crate) struct KeyMac([u8; 32]);

impl KeyMac {
    /// Matches no key: compared with where there is no key of that id, so that the time taken is alike.
    pub(crate) const NONE: KeyMac = KeyMac([0; 32]);

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        KeyMac(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    pub(crate) fn matches(&self, other: &KeyMac) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMac(…)")
    }
}

/// The node's secret that keys are hashed with: a copy of the database alone checks no guess.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

impl Pepper {
    /// The length of a pepper.
    pub const LENGTH: usize = 32;

    /// A pepper from its bytes.
    pub fn new(bytes: &[u8; Self::LENGTH]) -> Self {
        // HMAC pads its key with zeros to the hash's block; done here, the length is right by its type.
        let mut block = [0; 64];
        block[..Self::LENGTH].copy_from_slice(bytes);
        Pepper(Hmac::new(&block.into()))
    }

    pub(crate) fn random_bytes() -> io::Result<[u8; Self::LENGTH]> {
        random_bytes()
    }

    /// HMAC-SHA-256 of `text`.
    pub(crate) fn mac(&self, text: &str) -> KeyMac {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        KeyMac(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

/// The operator's key: any text of at least 32 characters.
#[derive(Clone)]
pub struct OperatorKey(String);

/// The operator's key is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operator's key must have at least 32 characters")]
pub struct OperatorKeyError;

impl OperatorKey {
    /// A new random one.
    pub(crate) fn generate() -> io::Result<Self> {
        let mut digits = [0; SECRET_LENGTH];
        random_base62(&mut digits)?;
        Ok(OperatorKey(format!("op_{}", String::from_utf8_lossy(&digits))))
    }

    /// The text itself. Whoever calls this decides who sees it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for OperatorKey {
    type Err = OperatorKeyError;
    fn from_str(text: &str) -> Result<Self, OperatorKeyError> {
        if text.chars().count() < OPERATOR_LENGTH_MIN {
            return Err(OperatorKeyError);
        }
        Ok(OperatorKey(text.to_owned()))
    }
}

impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorKey(…)")
    }
}
