//! `sandpiper deploy`: builds, uploads the component with its manifest, and says where it answers.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use sandpiper_domain::{Scope, TenantName};
use serde_json::{Value, json};

use super::{Context, build, number, text, traffic};
use crate::{
    args::Deploy,
    client::{Client, Identity, OPERATOR_WITHOUT_TENANT},
    error::{CliError, Kind, Result},
    output::{Ui, human, short},
    project::{Project, check_component},
    upload::Upload,
};

pub(super) fn run(context: &Context, arguments: &Deploy) -> Result<ExitCode> {
    let project = Project::load(&arguments.path)?;
    let settings = context.settings()?;
    let client = Client::new(&settings)?;
    // What the server would refuse is found out before a long build, not after it.
    check_rights(&client.whoami()?, settings.tenant.as_ref().map(|tenant| &tenant.value))?;
    let (component, build_time) = component(context.ui, &project, arguments)?;
    let canary = arguments.canary.canary;
    let activate = !arguments.no_activate && canary.is_none();
    let (mut answer, time) = upload(context.ui, &client, &project, &component, activate)?;
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("ms".into(), json!(time.as_millis() as u64));
        answer.insert("build_ms".into(), json!(build_time.map(|time| time.as_millis() as u64)));
    }
    let name = &project.manifest.name;
    let (version, digest) = (number(&answer, "version"), short(text(&answer, "digest")));
    let ready = format!("{name} version {version} ({digest}) is ready in {}", human(time));
    let Some(percent) = canary else {
        context.ui.result(&answer, |answer| match activate {
            true => format!("{ready}\n{}", absolute(client.server(), text(answer, "url"))),
            false => format!(
                "{ready}\n`live` has not moved; move it with: sandpiper functions alias {name} live {version}"
            ),
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut rollout = traffic::begin(&client, name, version, percent, &arguments.canary)?;
    if !arguments.canary.detach {
        context.ui.note(&format!("{ready}\n{}", traffic::told(&rollout)));
        rollout = traffic::follow(context.ui, &client, name)?;
    }
    answer["rollout"] = rollout;
    let state = text(&answer["rollout"], "state");
    let is_good = state == "promoted" || state == "baking";
    context.ui.result(&answer, |answer| traffic::told(&answer["rollout"]))?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the key may deploy, and whether it is clear for whom.
fn check_rights(identity: &Identity, named: Option<&TenantName>) -> Result<()> {
    if identity.operator && named.is_none() {
        return Err(CliError::usage(OPERATOR_WITHOUT_TENANT)
            .next("name the tenant to deploy for: --tenant NAME, or SANDPIPER_TENANT"));
    }
    let scope = Scope::Deploy.name();
    if !identity.scopes.iter().any(|held| held == scope) {
        return Err(CliError::new(Kind::Auth, format!("the key lacks the scope `{scope}`"))
            .next("use one that has it: `sandpiper key create` makes it, with a key that has the scope `keys`"));
    }
    Ok(())
}

fn component(ui: Ui, project: &Project, arguments: &Deploy) -> Result<(PathBuf, Option<Duration>)> {
    if let Some(file) = &arguments.component {
        check_component(file)?;
        return Ok((file.clone(), None));
    }
    if arguments.no_build {
        let file = project.component()?;
        check_component(&file)?;
        return Ok((file, None));
    }
    let built = build::build(ui, project, None)?;
    Ok((built.component, Some(built.time)))
}

/// Uploads one component and waits until its version is ready.
pub(super) fn upload(
    ui: Ui,
    client: &Client,
    project: &Project,
    component: &std::path::Path,
    activate: bool,
) -> Result<(Value, Duration)> {
    let name = &project.manifest.name;
    let upload = Upload::function(component, &project.manifest_text)?;
    let task = ui.upload(&format!("uploading {name}"), upload.length);
    let query = if activate { "" } else { "?activate=false" };
    let answer = client.upload(&format!("/api/v1/functions/{name}{query}"), upload, &task)?;
    Ok((answer, task.elapsed()))
}

/// The function's URL; a server that gives only the path has it completed.
pub(super) fn absolute(server: &str, url: &str) -> String {
    if url.starts_with('/') { format!("{server}{url}") } else { url.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_would_refuse_is_refused_before_the_build() {
        let tenant: TenantName = "acme".parse().unwrap();
        let scopes = |scopes: &[&str]| scopes.iter().map(|&scope| scope.to_owned()).collect();
        let operator =
            Identity { tenant: None, operator: true, scopes: scopes(&["deploy", "invoke"]) };
        let refused = check_rights(&operator, None).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.text().contains("--tenant"), "{}", refused.text());
        assert!(check_rights(&operator, Some(&tenant)).is_ok());

        let member = |held: &[&str]| Identity {
            tenant: Some(tenant.clone()),
            operator: false,
            scopes: scopes(held),
        };
        assert!(check_rights(&member(&["deploy"]), None).is_ok());
        assert_eq!(check_rights(&member(&["invoke"]), None).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn a_path_is_completed_and_a_url_kept() {
        assert_eq!(absolute("http://h:1", "/fn/a/b"), "http://h:1/fn/a/b");
        assert_eq!(absolute("http://h:1", "https://x/fn/a/b"), "https://x/fn/a/b");
    }
}
