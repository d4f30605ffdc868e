//! What the parent makes of children that end in every way. Real models are tried in the end-to-end tests, which have
//! the real program.

use super::*;
use crate::testing::adder;

fn outcome(script: &str, cpu_s: u64) -> Verdict {
    let arguments = ["-c".into(), script.into()].to_vec();
    let trial =
        Trial { cpu_s, wall_per_cpu: 2, wall_s_min: 1, ..Trial::new("/bin/sh".into(), arguments) };
    trial.run(&ModelSpec::from(adder()))
}

const LONG: u64 = 100;

#[test]
fn a_verdict_is_taken() {
    assert_eq!(outcome("cat >/dev/null; echo '{\"Ok\":null}'", LONG), Ok(()));
    // It need not read what it is sent.
    assert_eq!(outcome("echo '{\"Err\":\"NotOnnx\"}'", LONG), Err(LoadError::NotOnnx));
}

#[test]
fn every_other_end_has_a_reason() {
    assert_eq!(outcome("exit 86", LONG), Err(LoadError::TrialMemory { limit_mib: 1536 }));
    assert_eq!(outcome("kill -XCPU $$", LONG), Err(LoadError::TrialCpu { limit_s: LONG }));
    assert_eq!(outcome("kill -KILL $$", LONG), Err(LoadError::TrialMemory { limit_mib: 1536 }));
    for script in ["kill -ABRT $$", "kill -SEGV $$", "exit 0", "exit 1", "echo hello"] {
        assert_eq!(outcome(script, LONG), Err(LoadError::TrialCrashed), "{script}");
    }
}

#[test]
fn a_child_that_neither_answers_nor_ends_is_killed() {
    for script in ["exec sleep 1000", "exec sleep 1000 >/dev/null <&-", "exec yes >/dev/null"] {
        assert_eq!(outcome(script, 1), Err(LoadError::TrialWall { limit_s: 2 }), "{script}");
    }
}

#[test]
fn a_flood_of_an_answer_is_none() {
    assert_eq!(outcome("exec yes", LONG), Err(LoadError::TrialCrashed));
}

#[test]
fn a_program_that_is_not_there_is_the_nodes_own_fault() {
    let trial = Trial::new("/nowhere/at/all".into(), Vec::new());
    assert!(matches!(trial.run(&ModelSpec::from(adder())), Err(LoadError::Bytes(_))));
}

#[test]
fn limits_grow_with_the_file() {
    let trial = Trial::new("x".into(), Vec::new());
    assert_eq!(trial.limits(0), Limits { memory_bytes: 1536 << 20, cpu_s: 30, wall_s: 90 });
    assert_eq!(
        trial.limits(100 << 20),
        Limits { memory_bytes: 2336 << 20, cpu_s: 55, wall_s: 165 }
    );
    // A small limit leaves a busy machine time enough.
    assert_eq!(Trial { cpu_s: 1, ..trial }.limits(0).wall_s, 30);
}

#[test]
fn a_child_does_not_outlive_a_trial_that_breaks_off() {
    let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let process = format!("/proc/{}", child.id());
    assert!(std::fs::exists(&process).unwrap());
    let running = Running(Mutex::new(child));
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _running = running;
        panic!("no thread for the watch");
    }));
    assert!(broken.is_err() && !std::fs::exists(&process).unwrap());
}
