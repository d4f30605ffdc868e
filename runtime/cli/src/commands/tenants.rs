//! `sandpiper tenant`: for the operator.

use serde_json::json;

use super::{Context, catalog::deleted, rows};
use crate::{
    args::Tenant,
    error::Result,
    output::{fields, table},
};

pub(super) fn run(context: &Context, command: Tenant) -> Result<()> {
    let client = context.client()?;
    match command {
        Tenant::Create { name, tier } => {
            let answer = client.post("/api/v1/tenants", &json!({ "name": name, "tier": tier }))?;
            context.ui.result(&answer, |_| {
                format!(
                    "made the tenant {name} ({tier})\n\
                     give it a key with: sandpiper key create --tenant {name}"
                )
            })
        }
        Tenant::List => {
            let answer = client.get("/api/v1/tenants")?;
            let columns = [("NAME", "/name"), ("TIER", "/tier"), ("CREATED", "/created_at")];
            context.ui.result(&answer, |answer| table(rows(answer, "tenants"), &columns))
        }
        Tenant::Show { name } => {
            let answer = client.get(&format!("/api/v1/tenants/{name}"))?;
            context.ui.result(&answer, fields)
        }
        Tenant::Delete { name } => {
            client.delete(&format!("/api/v1/tenants/{name}"))?;
            deleted(context, name.as_str())
        }
    }
}
