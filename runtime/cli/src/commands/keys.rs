//! `sandpiper key`: makes, lists and revokes the keys of a tenant.

use sandpiper_domain::{Scope, TenantName};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{Context, rows, text};
use crate::{
    args::Key,
    error::{CliError, Result},
    expires,
    output::{clean, table},
};

pub(super) fn run(context: &Context, command: Key) -> Result<()> {
    match command {
        Key::Create { scopes, expires } => create(context, &scopes, expires.as_deref()),
        Key::List => {
            let client = context.client()?;
            let answer = client.get(&format!("/api/v1/tenants/{}/keys", client.tenant()?))?;
            let columns = [
                ("ID", "/id"),
                ("SCOPES", "/scopes"),
                ("CREATED", "/created_at"),
                ("EXPIRES", "/expires_at"),
            ];
            context.ui.result(&answer, |answer| table(rows(answer, "keys"), &columns))
        }
        Key::Revoke { id } => {
            check_id(&id)?;
            let client = context.client()?;
            client.delete(&format!("/api/v1/tenants/{}/keys/{id}", client.tenant()?))?;
            context.ui.result(&json!({ "revoked": id }), |_| format!("revoked {id}"))
        }
    }
}

fn create(context: &Context, scopes: &[Scope], expires: Option<&str>) -> Result<()> {
    let mut body = Map::new();
    if !scopes.is_empty() {
        body.insert("scopes".into(), json!(scopes));
    }
    if let Some(expires) = expires {
        let moment = expires::parse(expires, OffsetDateTime::now_utc())
            .map_err(|why| CliError::usage("--expires is not understood").why(why))?;
        body.insert("expires_at".into(), moment.into());
    }
    let client = context.client()?;
    let tenant = client.tenant()?;
    let answer = client.post(&format!("/api/v1/tenants/{tenant}/keys"), &Value::Object(body))?;
    context.ui.note(&format!(
        "key {} of {tenant}; it is shown this once. Keep it with: sandpiper config set key -",
        text(&answer, "id")
    ));
    // The key alone on stdout, so that `KEY=$(sandpiper key create)` works.
    let shown = context.ui.result(&answer, |answer| text(answer, "key").to_owned());
    shown.map_err(|error| unshown(error, text(&answer, "id"), &tenant))
}

/// A key that nobody has seen is of no use to anyone but a finder. This one error is never quiet.
fn unshown(error: CliError, id: &str, tenant: &TenantName) -> CliError {
    CliError::unexpected("the key was made and could not be shown")
        .why(error.why.as_deref().unwrap_or(&error.what))
        .next(format!("revoke it: sandpiper key revoke {} --tenant {tenant}", clean(id)))
}

/// An id goes into a URL: a slash or a space in it would make it another one.
fn check_id(id: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if id.is_empty() || !id.bytes().all(good) {
        return Err(CliError::usage("that is no key id")
            .next("`sandpiper key list` shows the ids; the key itself is not needed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_key_that_nobody_saw_is_an_error_that_names_it() {
        let closed = CliError::new(Kind::OutputClosed, "the reader of the output has gone");
        let error = unshown(closed, "k1", &"acme".parse().unwrap());
        assert_eq!(error.exit_code(), 1);
        assert!(error.text().contains("sandpiper key revoke k1 --tenant acme"), "{}", error.text());
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_url() {
        assert!(check_id("k_01-aB").is_ok());
        for id in ["", "..", "a/b", "a?b", "a b", "é"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }
}
