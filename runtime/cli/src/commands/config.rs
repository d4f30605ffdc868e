//! `sandpiper config`: shows and sets the defaults in the config file.

use std::{io::Read, path::PathBuf};

use sandpiper_domain::TenantName;
use serde_json::{Value, json};

use super::Context;
use crate::{
    args::{Config, Setting},
    config::{self, Sourced, masked},
    error::{CliError, Result},
};

pub(super) fn run(context: &Context, command: Config) -> Result<()> {
    match command {
        Config::Set { name, value } => {
            let value = if value == "-" { from_stdin()? } else { value };
            change(context, name, Some(checked(name, value)?))
        }
        Config::Unset { name } => change(context, name, None),
        Config::Show => show(context),
    }
}

fn change(context: &Context, name: Setting, value: Option<String>) -> Result<()> {
    let path = path()?;
    let mut file = config::read(&path)?;
    let set = value.is_some();
    let (field, word) = match name {
        Setting::Server => (&mut file.server, "server"),
        Setting::Key => (&mut file.key, "key"),
        Setting::Tenant => (&mut file.tenant, "tenant"),
    };
    *field = value;
    config::write(&path, &file)?;
    let verb = if set { "set" } else { "removed" };
    context.ui.result(&json!({ verb: word, "path": path }), |_| {
        format!("{verb} {word} in {}", path.display())
    })
}

fn checked(name: Setting, value: String) -> Result<String> {
    let value = value.trim().to_owned();
    if value.is_empty() {
        return Err(CliError::usage("the value is empty")
            .next("remove a default with `sandpiper config unset`"));
    }
    match name {
        Setting::Server => config::server_url(&value),
        Setting::Tenant => Ok(value.parse::<TenantName>()?.to_string()),
        Setting::Key if value.chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Err(CliError::usage("a key has neither spaces nor line breaks").next("copy it again"))
        }
        Setting::Key => Ok(value),
    }
}

fn show(context: &Context) -> Result<()> {
    let settings = context.settings()?;
    let key = settings.key.map(|key| Sourced { value: masked(&key.value), source: key.source });
    let tenant = settings
        .tenant
        .map(|tenant| Sourced { value: tenant.value.to_string(), source: tenant.source });
    let rows = [("server", Some(settings.server)), ("key", key), ("tenant", tenant)];
    let mut result = json!({ "path": path()? });
    for (name, setting) in &rows {
        result[*name] = match setting {
            Some(setting) => json!({ "value": setting.value, "source": setting.source }),
            None => Value::Null,
        };
    }
    context.ui.result(&result, |_| {
        let mut lines = Vec::new();
        for (name, setting) in &rows {
            lines.push(match setting {
                Some(setting) => format!("{name:7} {}  ({})", setting.value, setting.source),
                None => format!("{name:7} (not set)"),
            });
        }
        lines.join("\n")
    })
}

fn path() -> Result<PathBuf> {
    config::path().ok_or_else(|| {
        CliError::usage("there is no place for the config file").next("set HOME or XDG_CONFIG_HOME")
    })
}

fn from_stdin() -> Result<String> {
    let mut text = String::new();
    // A key is short; whatever else is on stdin need not be read to its end.
    std::io::stdin()
        .lock()
        .take(64 * 1024)
        .read_to_string(&mut text)
        .map_err(|error| CliError::usage("stdin cannot be read").why(error))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_before_they_are_kept() {
        assert_eq!(checked(Setting::Server, "https://h/ ".into()).unwrap(), "https://h");
        assert_eq!(checked(Setting::Key, "sp_x\n".into()).unwrap(), "sp_x");
        for (name, value) in [
            (Setting::Server, "h:8080"),
            (Setting::Tenant, "A"),
            (Setting::Key, "a b"),
            (Setting::Key, " "),
        ] {
            assert_eq!(checked(name, value.into()).unwrap_err().exit_code(), 2, "{value:?}");
        }
    }
}
