//! `sandpiper doctor`: checks what the other commands need, and says what to do about what is missing.

use std::{
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use sandpiper_domain::TenantName;
use serde_json::{Value, json};

use super::{Context, build};
use crate::{
    client::{Client, Identity},
    config::{self, Settings, masked},
    error::{CliError, Kind, Result},
    output::clean,
};

/// A healthy server answers its probes at once.
const PROBE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Failed,
    /// It could not be checked, since something before it failed.
    Skipped,
}

/// One line of the report.
struct Check {
    name: &'static str,
    state: State,
    detail: String,
    next: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Check { name, state: State::Ok, detail: detail.into(), next: None }
    }

    fn failed(name: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Check { name, state: State::Failed, detail: detail.into(), next: Some(next.into()) }
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Check { name, state: State::Skipped, detail: detail.into(), next: None }
    }

    fn of_error(name: &'static str, error: CliError) -> Self {
        let detail = match error.why {
            Some(why) => format!("{}: {why}", error.what),
            None => error.what,
        };
        Check { name, state: State::Failed, detail, next: error.next.map(String::from) }
    }

    fn line(&self) -> String {
        let state = match self.state {
            State::Ok => "ok  ",
            State::Failed => "FAIL",
            State::Skipped => "--  ",
        };
        let mut line = format!("{state}  {:12}  {}", self.name, clean(&self.detail));
        if let Some(next) = &self.next {
            line.push_str(&format!("\n{:20}next: {}", "", clean(next)));
        }
        line
    }

    fn json(&self) -> Value {
        let state = match self.state {
            State::Ok => "ok",
            State::Failed => "failed",
            State::Skipped => "skipped",
        };
        json!({ "check": self.name, "state": state, "detail": self.detail, "next": self.next })
    }
}

pub(super) fn run(context: &Context) -> Result<ExitCode> {
    let mut checks = vec![rust(), wasm_target(), config_file()];
    match context.settings() {
        Err(error) => checks.push(Check::of_error("settings", error)),
        Ok(settings) => server_and_key(&settings, &mut checks)?,
    }
    let healthy = checks.iter().all(|check| check.state != State::Failed);
    let lines: Vec<_> = checks.iter().map(Check::json).collect();
    context.ui.result(&json!({ "ok": healthy, "checks": lines }), |_| {
        checks.iter().map(Check::line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::from(if healthy { 0 } else { Kind::Unexpected as u8 }))
}

fn rust() -> Check {
    const NEXT: &str = "install Rust with rustup (needed by `sandpiper build` alone)";
    match Command::new("cargo").arg("--version").output() {
        Ok(output) if output.status.success() => {
            Check::ok("rust", String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(output) => Check::failed("rust", String::from_utf8_lossy(&output.stderr).trim(), NEXT),
        Err(error) => Check::failed("rust", format!("cargo cannot be run: {error}"), NEXT),
    }
}

fn wasm_target() -> Check {
    let (name, target) = ("wasm target", build::TARGET);
    match build::has_target(Path::new(".")) {
        Some(true) => Check::ok(name, target),
        Some(false) => Check::failed(
            name,
            format!("{target} is not installed"),
            format!("rustup target add {target} (`sandpiper build` does it too)"),
        ),
        None => Check::skipped(name, "rustup cannot be asked"),
    }
}

fn config_file() -> Check {
    let name = "config file";
    let Some(path) = config::path() else {
        return Check::skipped(name, "there is no home folder for it");
    };
    let shown = path.display();
    match (config::mode(&path), config::read(&path)) {
        (None, _) => Check::ok(name, format!("{shown} does not exist; the defaults are in force")),
        (Some(_), Err(error)) => Check::of_error(name, error),
        (Some(mode), Ok(_)) if mode & 0o077 != 0 => Check::failed(
            name,
            format!("{shown} may be read by others (mode {mode:03o})"),
            format!("chmod 600 {shown}"),
        ),
        (Some(mode), Ok(_)) => Check::ok(name, format!("{shown} (mode {mode:03o})")),
    }
}

fn server_and_key(settings: &Settings, checks: &mut Vec<Check>) -> Result<()> {
    let anonymous = Client::with(&settings.server.value, None, None)?;
    let server = format!("{} ({})", settings.server.value, settings.server.source);
    match anonymous.probe("/livez", PROBE) {
        Ok(200) => checks.push(Check::ok("server", server)),
        Ok(status) => checks.push(Check::failed(
            "server",
            format!("{server} answers /livez with {status}"),
            "check that the address is a Sandpiper server's",
        )),
        Err(error) => checks.push(Check::of_error("server", error)),
    }
    if checks.last().is_some_and(|check| check.state == State::Failed) {
        checks.push(Check::skipped("key", "the server has to answer first"));
        return Ok(());
    }
    checks.push(match anonymous.probe("/readyz", PROBE) {
        Ok(200) => Check::ok("ready", "the server takes requests"),
        Ok(status) => Check::failed(
            "ready",
            format!("/readyz answers {status}"),
            "wait: it starts or drains; its log says more",
        ),
        Err(error) => Check::of_error("ready", error),
    });
    checks.push(key(settings));
    Ok(())
}

fn key(settings: &Settings) -> Check {
    let Some(key) = &settings.key else {
        return Check::failed(
            "key",
            "none is set",
            "sandpiper config set key -, or SANDPIPER_KEY; an operator makes one with \
             `sandpiper key create --tenant NAME`",
        );
    };
    // A key that cannot even be sent is found out here, and is one failed check among the others.
    match Client::new(settings).and_then(|client| client.whoami()) {
        Ok(identity) => {
            let owner = owner(&identity, settings.tenant.as_ref().map(|tenant| &tenant.value));
            let scopes = identity.scopes.join(", ");
            Check::ok("key", format!("{} is {owner}; scopes: {scopes}", masked(&key.value)))
        }
        Err(error) => Check::of_error("key", error),
    }
}

/// Whose key it is. The operator's acts for the tenant that is `named`; a tenant's acts for none but its own.
fn owner(identity: &Identity, named: Option<&TenantName>) -> String {
    match (identity.operator, &identity.tenant, named) {
        (true, _, Some(named)) => format!("the operator's, acting for {named}"),
        (true, _, None) => "the operator's, acting for no tenant".to_owned(),
        (false, Some(tenant), _) => format!("{tenant}'s"),
        (false, None, _) => "nobody's".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_what_to_do() {
        let line = Check::failed("key", "none is set", "set one").line();
        assert_eq!(line, format!("FAIL  key           none is set\n{:20}next: set one", ""));
    }

    #[test]
    fn a_malformed_key_is_a_failed_check() {
        let global = crate::args::Global {
            server: Some("http://127.0.0.1:1".into()),
            key: Some("a\nb".into()),
            tenant: Some("t".into()),
            json: true,
        };
        let settings = Settings::load(&global).unwrap();
        let check = key(&settings);
        assert_eq!((check.state, check.name), (State::Failed, "key"));
        assert!(check.detail.contains("characters"), "{}", check.detail);
        // The rest of the report is still there.
        let mut checks = Vec::new();
        server_and_key(&settings, &mut checks).unwrap();
        assert_eq!(checks.len(), 2);
    }

    #[test]
    fn the_operators_key_acts_for_the_tenant_that_is_named() {
        let operator = Identity { operator: true, ..Identity::default() };
        let acme: TenantName = "acme".parse().unwrap();
        assert_eq!(owner(&operator, Some(&acme)), "the operator's, acting for acme");
        assert_eq!(owner(&operator, None), "the operator's, acting for no tenant");
        let member = Identity { tenant: Some(acme), ..Identity::default() };
        assert_eq!(owner(&member, Some(&"beta".parse().unwrap())), "acme's");
    }

    #[test]
    fn a_server_that_is_down_leaves_the_key_unchecked() {
        let global = crate::args::Global {
            server: Some("http://127.0.0.1:1".into()),
            key: Some("k".into()),
            tenant: Some("t".into()),
            json: true,
        };
        let mut checks = Vec::new();
        server_and_key(&Settings::load(&global).unwrap(), &mut checks).unwrap();
        let states: Vec<_> = checks.iter().map(|check| check.state).collect();
        assert_eq!(states, [State::Failed, State::Skipped]);
        assert!(checks[0].next.as_ref().unwrap().contains("sandpiper serve"));
    }
}
