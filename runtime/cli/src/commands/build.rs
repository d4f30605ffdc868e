//! `sandpiper build`: sees to the Wasm target, runs the manifest's build command and checks what came out.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;

use super::{Context, interrupt::Interrupt};
use crate::{
    error::{CliError, Kind, Result},
    output::{Task, Ui, human},
    project::{Project, check_component},
};

/// The target of WASI 0.2 components.
pub(super) const TARGET: &str = "wasm32-wasip2";
/// The lines of the build's output that are shown when it fails; the end holds the error.
const LINES_KEPT: usize = 2_000;

/// What a build gave.
pub(super) struct Built {
    pub(super) component: PathBuf,
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

pub(super) fn run(context: &Context, path: &Path) -> Result<()> {
    let project = Project::load(path)?;
    let built = build(context.ui, &project, None)?;
    let result = json!({
        "name": project.manifest.name,
        "component": built.component,
        "bytes": built.bytes,
        "ms": built.time.as_millis() as u64,
    });
    context.ui.result(&result, |_| {
        let (component, time) = (built.component.display(), human(built.time));
        format!("built {} in {time}: {component}, {} bytes", project.manifest.name, built.bytes)
    })
}

/// Builds `project` and checks that its component is there. A caller who watches for signals hands its watch on;
/// where nobody does, they end the build as they end us.
pub(super) fn build(ui: Ui, project: &Project, interrupt: Option<&Interrupt>) -> Result<Built> {
    let component = project.component()?;
    let task = ui.spinner(&format!("building {}", project.manifest.name));
    if let Some(command) = &project.manifest.build.command {
        if command.contains(TARGET) {
            ensure_target(ui, &project.folder)?;
        }
        run_command(command, &project.folder, &task, interrupt)?;
    }
    let bytes = check_component(&component)
        .map_err(|error| error.or_next("see that the build command writes it"))?;
    Ok(Built { component, bytes, time: task.elapsed() })
}

/// Whether the toolchain of `folder` has the Wasm target; `None` where rustup is not there to tell.
pub(super) fn has_target(folder: &Path) -> Option<bool> {
    let mut rustup = Command::new("rustup");
    let output = rustup.args(["target", "list", "--installed"]).current_dir(folder).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == TARGET))
}

fn ensure_target(ui: Ui, folder: &Path) -> Result<()> {
    // Without rustup the build command itself will say what it misses.
    if has_target(folder) != Some(false) {
        return Ok(());
    }
    ui.note(&format!("adding the Rust target {TARGET}"));
    let mut rustup = Command::new("rustup");
    let output = rustup.args(["target", "add", TARGET]).current_dir(folder).output();
    let failed = |why: &str| {
        CliError::new(Kind::Build, format!("the Rust target {TARGET} cannot be added"))
            .why(why)
            .next(format!("run `rustup target add {TARGET}` where there is a network"))
    };
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn run_command(
    command: &str,
    folder: &Path,
    task: &Task,
    interrupt: Option<&Interrupt>,
) -> Result<()> {
    // Both streams go into one pipe, so that the output keeps its order.
    let failed = |why: String| {
        CliError::new(Kind::Build, "the build failed").why(why).next(format!(
            "correct what it says; the command was `{command}` in {}",
            folder.display()
        ))
    };
    let (reader, writer) = std::io::pipe().map_err(|error| failed(error.to_string()))?;
    let second = writer.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(folder);
    shell.stdin(Stdio::null()).stdout(writer).stderr(second);
    // The manifest says where the component lies; a target folder from outside would put it elsewhere.
    shell.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    let child = match interrupt {
        Some(interrupt) => interrupt.start_build(&mut shell),
        None => shell.spawn(),
    };
    // The writers live on in `shell`; the pipe ends only when they are gone.
    drop(shell);
    let mut child = child.map_err(|error| failed(error.to_string()))?;
    let mut kept = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n').map_while(|line| line.ok()) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if !line.trim().is_empty() {
            task.detail(&line);
        }
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    let status = child.wait();
    if let Some(interrupt) = interrupt {
        interrupt.build_ended();
    }
    let status = status.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let output = kept.into_iter().collect::<Vec<_>>().join("\n");
    Err(failed(format!("{status}\n{output}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(folder: &Path, command: &str) -> Project {
        let manifest =
            format!("name = \"a\"\n[build]\ncommand = '''{command}'''\ncomponent = \"a.wasm\"\n");
        std::fs::write(folder.join("sandpiper.toml"), manifest).unwrap();
        Project::load(folder).unwrap()
    }

    #[test]
    fn the_command_runs_in_the_folder_and_leaves_a_component() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(folder.path(), r"printf '\0asm1234' > a.wasm");
        assert_eq!(build(Ui::new(true), &project, None).unwrap().bytes, 8);
    }

    #[test]
    fn a_failure_shows_the_whole_output_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(folder.path(), "echo one; echo two >&2; echo three; exit 3");
        let error = build(Ui::new(true), &project, None).err().unwrap();
        assert_eq!(error.exit_code(), 9);
        assert!(error.why.unwrap().ends_with("one\ntwo\nthree"));
    }

    #[test]
    fn a_command_that_writes_nothing_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(folder.path(), "true");
        let error = build(Ui::new(true), &project, None).err().unwrap();
        assert!(error.what.contains("a.wasm"), "{}", error.text());
    }
}
