//! The command line against a real server: what it prints, and the exit codes that scripts rely on.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use sandpiper_tests::{
    OPERATOR_KEY, Server, Tenant, binary, example, expected, guest, model, repository,
};
use serde_json::Value;
use tempfile::TempDir;

/// A person at a terminal, with a folder and settings of their own.
pub(crate) struct Person {
    folder: TempDir,
    server: String,
    key: String,
}

impl Person {
    pub(crate) fn new(server: &Server, key: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("sandpiper-cli-").tempdir().unwrap();
        Person { folder, server: server.url(), key: key.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("SANDPIPER_SERVER", &self.server)
            .env("SANDPIPER_KEY", &self.key)
            .env_remove("SANDPIPER_TENANT")
            // A build of the person's own has its own target folder.
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs what must succeed; gives what it printed.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:#?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must succeed, with `--json`.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.good(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Runs what must fail with this exit code; gives the error as JSON. Without `--json` the code is the same.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> Value {
        let plain = self.run(arguments);
        assert_eq!(plain.status.code(), Some(code), "{arguments:?}: {plain:#?}");
        let output = self.run(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:#?}");
        let error: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:#?}"));
        assert_eq!(error["error"]["exit_code"], code, "{error}");
        error["error"].clone()
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

fn operator(server: &Server) -> Person {
    Person::new(server, OPERATOR_KEY)
}

pub(crate) fn member(server: &Server) -> (Tenant, Person) {
    let tenant = server.tenant("acme", "dedicated");
    let person = Person::new(server, &tenant.key);
    (tenant, person)
}

fn digits_folder() -> String {
    repository().join("examples/digits").display().to_string()
}

#[test]
fn tenants_and_keys_are_managed() {
    let server = Server::start();
    let operator = operator(&server);
    assert_eq!(operator.json(&["tenant", "create", "acme", "--tier", "free"])["tier"], "free");
    assert_eq!(operator.json(&["tenant", "list"])["tenants"][0]["name"], "acme");
    assert_eq!(operator.json(&["tenant", "show", "acme"])["limits"]["functions"], 10);
    let create =
        ["--tenant", "acme", "key", "create", "--scopes", "invoke,keys", "--expires", "30d"];
    let key = operator.json(&create);
    assert_eq!(key["scopes"], serde_json::json!(["invoke", "keys"]));
    let member = Person::new(&server, key["key"].as_str().unwrap());
    let id = key["id"].as_str().unwrap();
    assert_eq!(member.json(&["key", "list"])["keys"][0]["id"], id);
    assert!(member.good(&["key", "list"]).contains(id));
    operator.good(&["--tenant", "acme", "key", "revoke", id]);
    member.fails(4, &["key", "list"]);
    operator.good(&["tenant", "delete", "acme"]);
    assert_eq!(operator.fails(5, &["tenant", "show", "acme"])["code"], "not_found");
}

#[test]
fn an_example_is_deployed_and_invoked() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    let folder = digits_folder();
    let onnx = format!("{folder}/model/digits.onnx");
    let pushed = person.json(&["models", "push", &onnx]);
    assert_eq!((&pushed["name"], &pushed["version"]), (&"digits".into(), &1.into()));
    assert!(person.good(&["models", "list"]).contains("digits"));
    let component = person.file("digits.wasm", &example("digits"));
    let deployed = person.json(&["deploy", &folder, "--component", &component]);
    assert_eq!(deployed["url"], "/fn/acme/digits");
    let picture = format!("@{folder}/images/seven.png");
    let answer = person.good(&["invoke", "digits", "/", "-d", &picture]);
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["digit"], 7, "{answer}");
    let answer = person.json(&["invoke", "acme/digits@1", "-d", &picture]);
    assert_eq!((&answer["status"], &answer["body"]["digit"]), (&200.into(), &7.into()));
    let list = person.json(&["functions", "list"]);
    assert_eq!(list["functions"][0]["name"], "digits");
    assert_eq!(person.json(&["functions", "show", "digits"])["version"], 1);
    let versions = person.json(&["functions", "versions", "digits"]);
    assert_eq!(versions["versions"].as_array().map(Vec::len), Some(1));
    assert!(person.good(&["functions", "list"]).contains("/fn/acme/digits"));
    person.good(&["functions", "delete", "digits"]);
    person.good(&["models", "delete", "digits"]);
    assert_eq!(person.json(&["functions", "list"])["functions"], serde_json::json!([]));
}

#[test]
fn aliases_move_and_go_back() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    for n in ["1", "2"] {
        let manifest = format!("[env]\nN = \"{n}\"");
        tenant.put_function("f", &guest("misbehave"), &manifest).expect(201);
    }
    let n = || person.json(&["invoke", "f", "/env"])["body"]["N"].clone();
    assert_eq!(n(), "2");
    person.good(&["functions", "rollback", "f"]);
    assert_eq!(n(), "1");
    person.good(&["functions", "alias", "f", "live", "2"]);
    assert_eq!(n(), "2");
    person.good(&["functions", "alias", "f", "canary", "1=90,2=10"]);
    person.good(&["invoke", "f@canary", "/ok"]);
    tenant.put_model("m", &model("digits")).expect(201);
    person.good(&["models", "grant", "m", "--to", "*"]);
    assert_eq!(person.json(&["models", "show", "m"])["grants"], "*");
}

#[test]
fn logs_are_shown_and_followed() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    tenant.deploy("misbehave", "");
    tenant.invoke("misbehave", "/log?lines=1").expect(200);
    assert!(person.good(&["logs", "misbehave"]).contains("err 0"));
    assert_eq!(person.json(&["logs", "misbehave"])["lines"][0]["text"], "out 0 ");
    let mut follower = person.command(&["logs", "-f", "misbehave"]);
    let mut follower = follower.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("out 0"));
    assert!(lines.next().unwrap().unwrap().contains("err 0"));
    tenant.invoke("misbehave", "/log?lines=1").expect(200);
    assert!(lines.next().unwrap().unwrap().contains("out 0"));
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn every_class_of_failure_has_its_exit_code() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    tenant.put_function("m", &guest("misbehave"), "[limits]\ncpu_ms = 20").expect(201);
    person.fails(2, &["frobnicate"]);
    person.fails(2, &["invoke", "UPPER"]);
    person.fails(2, &["models", "push", "no-such-file.onnx"]);
    let unreachable = person.fails(3, &["--server", "http://127.0.0.1:1", "functions", "list"]);
    assert!(unreachable["hint"].as_str().unwrap().contains("sandpiper serve"), "{unreachable}");
    assert_eq!(
        person.fails(4, &["--key", "nonsense", "functions", "list"])["code"],
        "key_malformed"
    );
    assert_eq!(person.fails(4, &["tenant", "list"])["code"], "operator_only");
    assert_eq!(person.fails(5, &["functions", "show", "nothing"])["code"], "not_found");
    assert_eq!(person.fails(5, &["invoke", "nothing"])["code"], "not_found");
    let text = person.file("text.onnx", &model("text.onnx"));
    assert_eq!(person.fails(6, &["models", "push", &text])["code"], "not_onnx");
    assert_eq!(person.fails(8, &["invoke", "m", "/spin"])["code"], "cpu_exceeded");
    assert_eq!(person.fails(8, &["invoke", "m", "/trap"])["code"], "trap");
    assert_eq!(person.run(&["invoke", "m", "/status?code=404"]).status.code(), Some(6));
    assert_eq!(person.run(&["invoke", "m", "/status?code=500"]).status.code(), Some(8));
    assert_eq!(person.run(&["--help"]).status.code(), Some(0));
    assert_eq!(person.run(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_large_upload_with_a_bad_key_hears_of_the_key() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    // The server answers before it has read all this; the answer must not drown in a broken pipe.
    let magika = expected("magika.onnx").display().to_string();
    for _ in 0..3 {
        let error = person.fails(4, &["--key", "nonsense", "models", "push", &magika]);
        assert_eq!(error["code"], "key_malformed");
    }
}

#[test]
fn a_bad_upload_is_explained() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    // What can be seen without the server is.
    let text = person.file("text.wasm", b"not wasm");
    person.fails(2, &["deploy", &digits_folder(), "--component", &text]);
    let module = person.file("module.wasm", &wat::parse_str("(module)").unwrap());
    let error = person.fails(6, &["deploy", &digits_folder(), "--component", &module]);
    assert_eq!(error["code"], "core_module");
    assert!(error["hint"].as_str().unwrap().contains("wasm32-wasip2"), "{error}");
    let output = person.run(&["deploy", &digits_folder(), "--component", &module]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("error: ") && words.contains("next: "), "{words}");
    person.fails(2, &["deploy", "no-such-folder"]);
}

#[test]
fn defaults_come_from_the_config_file() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    let run = |arguments: &[&str], stdin: &str| {
        let mut command = person.command(arguments);
        command.env_remove("SANDPIPER_SERVER").env_remove("SANDPIPER_KEY");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    };
    assert!(run(&["config", "set", "server", &person.server], "").status.success());
    assert!(run(&["config", "set", "key", "-"], &person.key).status.success());
    let shown = run(&["--json", "config", "show"], "");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains(&person.server) && !text.contains(&person.key), "{text}");
    assert!(run(&["functions", "list"], "").status.success());
    assert!(run(&["config", "unset", "key"], "").status.success());
    assert_eq!(run(&["functions", "list"], "").status.code(), Some(4));
}

#[test]
fn doctor_finds_what_is_wrong() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    let report = person.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");
    let output = person.run(&["--json", "doctor", "--key", "nonsense"]);
    assert_ne!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let failed = checks.iter().find(|check| check["check"] == "key").unwrap();
    assert_eq!(failed["state"], "failed", "{report}");
    assert!(failed["next"].is_string(), "{report}");
}

#[test]
fn a_new_function_is_built_deployed_and_answers() {
    let server = Server::start();
    let (_tenant, person) = member(&server);
    let sdk = repository().join("guest-sdk").display().to_string();
    person.good(&["new", "greeter", "--sdk", &sdk]);
    let error = person.fails(2, &["new", "greeter", "--sdk", &sdk]);
    assert!(error["message"].as_str().unwrap().contains("greeter"), "{error}");
    let folder = person.folder.path().join("greeter");
    assert!(Path::new(&folder).join("sandpiper.toml").exists());
    person.good(&["build", "greeter"]);
    let deployed = person.json(&["deploy", "greeter", "--no-build"]);
    assert_eq!(deployed["version"], 1);
    let answer = person.json(&["invoke", "greeter"]);
    assert_eq!(answer["status"], 200, "{answer}");
    std::fs::write(folder.join("src/lib.rs"), "this is no Rust").unwrap();
    let output = person.run(&["build", "greeter"]);
    assert_eq!(output.status.code(), Some(9), "{output:#?}");
}

#[test]
fn the_demo_reads_a_seven() {
    let mut command = Command::new(binary());
    command.args(["--json", "demo", "--once"]).current_dir(repository()).stdin(Stdio::null());
    command.env_remove("CARGO_TARGET_DIR").env_remove("SANDPIPER_SERVER");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:#?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["answer"]["digit"], 7, "{report}");
    assert!(report["answer"]["confidence"].as_f64().unwrap() > 0.9, "{report}");
}

#[test]
fn models_are_pushed_with_options_and_samples() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let person = Person::new(&server, &tenant.key);
    let file = person.folder.path().join("m.onnx");
    std::fs::write(&file, sandpiper_tests::onnx::product(2, 0.5)).unwrap();
    let samples = person.folder.path().join("samples.json");
    let inputs =
        r#"[{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}]"#;
    std::fs::write(&samples, inputs).unwrap();
    let version = person.json(&[
        "models",
        "push",
        "m.onnx",
        "--option",
        "cache=true",
        "--option",
        "max_delay_us=100",
        "--samples",
        "samples.json",
    ]);
    assert_eq!(version["options"]["cache"], true);
    assert_eq!(version["options"]["max_delay_us"], 100);
    assert!(version["samples_digest"].is_string());
    let shown = person.good(&["models", "show", "m"]);
    for part in ["memory_bytes", "operators", "parameters", "batching", "ready", "max_delay_us"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let refused = person.run(&["models", "push", "m.onnx", "--option", "cashe=true"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("the options are batching"),
        "{refused:?}"
    );
    assert!(!person.run(&["models", "push", "m.onnx", "--option", "cache"]).status.success());
    person.good(&["models", "push", "m.onnx"]);
    let retained = person.json(&["models", "retain", "m", "--latest", "1"]);
    assert_eq!(retained["removed"], serde_json::json!([1]));
}
