//! Which version of a split a caller gets, again and again: the same value of a header or a cookie leads to the same
//! place of a hundred, on every node and after every restart.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sandpiper_control::{Alias, Sticky};
use sha2::{Digest, Sha256};

use crate::respond::Problem;

/// A week.
const COOKIE_AGE_S: u32 = 604_800;
const NAME_BYTES_MAX: usize = 64;

/// A number that decides the version, and the cookie that leads there again, for callers that have none. It is for
/// `path`: a client sends it with what lies below that and nowhere else.
pub(crate) fn pick(
    alias: &Alias,
    tenant: &str,
    function: &str,
    path: &str,
    headers: &HeaderMap,
) -> (u32, Option<HeaderValue>) {
    match &alias.sticky {
        None => (rand::random(), None),
        Some(Sticky::Header(name)) => match headers.get(name) {
            Some(value) => (place(tenant, function, value.as_bytes()), None),
            None => (rand::random(), None),
        },
        Some(Sticky::Cookie(name)) => match cookie(headers, name) {
            Some(value) => (place(tenant, function, value), None),
            None => {
                let value = format!("{:016x}", rand::random::<u64>());
                let cookie = format!(
                    "{name}={value}; Path={path}; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Lax"
                );
                let place = place(tenant, function, value.as_bytes());
                (place, HeaderValue::from_str(&cookie).ok())
            }
        },
    }
}

fn place(tenant: &str, function: &str, value: &[u8]) -> u32 {
    let hash = Sha256::new()
        .chain_update(tenant)
        .chain_update([0])
        .chain_update(function)
        .chain_update([0])
        .chain_update(value)
        .finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes);
    let mut pairs = lines.flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}

/// Refuses names that no header and no cookie can have.
pub(crate) fn check(sticky: &Sticky) -> Result<(), Problem> {
    let (Sticky::Header(name) | Sticky::Cookie(name)) = sticky;
    // Names of headers and of cookies follow the same rule.
    let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok();
    if !is_name || name.len() > NAME_BYTES_MAX {
        let rule = "`sticky` names a header or a cookie: letters, digits and hyphens, 64 at most";
        return Err(Problem::bad_request(rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; ab=2;  b=x=y ; c="));
        headers.append(header::COOKIE, HeaderValue::from_static("d=4"));
        let get = |name| cookie(&headers, name).map(|value| String::from_utf8_lossy(value));
        assert_eq!(get("a").as_deref(), Some("1"));
        assert_eq!(get("b").as_deref(), Some("x=y"));
        assert_eq!(get("d").as_deref(), Some("4"));
        assert_eq!(get("c"), None);
        assert_eq!(get("e"), None);
    }

    #[test]
    fn the_same_value_leads_to_the_same_place_for_ever() {
        // Callers keep their version over updates of Sandpiper, too: this is a contract.
        assert_eq!(place("acme", "f", b"user-1"), 3_017_107_992);
        assert_eq!(place("acme", "g", b"user-1"), 1_289_116_135);
        assert_eq!(place("acmef", "", b"user-1"), 1_585_504_515);
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "a b", "a;b", "a=b", "a\r\n", &"x".repeat(65)] {
            assert!(check(&Sticky::Header(name.to_owned())).is_err(), "{name:?}");
            assert!(check(&Sticky::Cookie(name.to_owned())).is_err(), "{name:?}");
        }
        assert!(check(&Sticky::Cookie("sp-canary".to_owned())).is_ok());
    }
}
