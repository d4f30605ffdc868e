//! The house rules of the sources: who may depend on whom, how long things may get, and what may not be written.
//!
//! Exceptions have names and only go away: one that is no longer needed fails too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what goes wrong here is a failing test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 120;
/// Files that may be longer.
const LONG_FILES: [&str; 0] = [];
/// Functions that may be longer: file and name.
const LONG_FUNCTIONS: [(&str, &str); 0] = [];
/// Besides the files named `config.rs`.
const READ_THE_ENVIRONMENT: [&str; 0] = [];
/// Where a guest's status is data of wasi:http, and no answer of ours.
const KNOW_STATUS: [&str; 1] = ["runtime/sandbox/src/body.rs"];

/// The bad inputs, as the first thing on each line of `tests/bad_input.txt`.
const BAD_INPUTS: [&str; 48] = [
    "not Wasm",
    "a core module without metadata",
    "a component with no incoming-handler",
    "a component whose types nest deeply",
    "an import outside the list",
    "a precompiled file",
    "an empty body",
    "a body over the cap",
    "a truncated ONNX",
    "an ONNX with external data",
    "a model with an operator tract lacks",
    "a tensor of the wrong name",
    "a tensor of the wrong shape",
    "a tensor of the wrong type",
    "a tensor of the wrong length",
    "an out-of-range Gather index",
    "a name with ../",
    "a name with %2f",
    "a name with NUL",
    "a name of 10 kB",
    "a function name in upper case",
    "a key that is missing",
    "a key that is malformed",
    "a key that is expired",
    "a key that is revoked",
    "a key that is another tenant's",
    "an infinite loop",
    "a memory bomb",
    "deep recursion",
    "a guest that never answers",
    "a client that disconnects mid-request",
    "its batch entry cancelled",
    "a shape whose product does not fit its data",
    "an unknown datatype",
    "a header length past the body",
    "a negative dimension",
    "an input that is given twice",
    "BYTES with a bad length",
    "a body in chunks of one byte",
    "a gzip bomb",
    "a load of an unknown model",
    "a call of a model that is not ready",
    "weights that do not add up to 100",
    "an alias on a version that failed",
    "a webhook to a private address",
    "a batch line that is not JSON",
    "a result after its time to live",
    "an idempotency key with another body",
];

/// A crate, the crates of ours that it may use, and others that it may not (a `*` stands for any ending).
const TABLE: [(&str, &[&str], &[&str]); 6] = [
    ("domain", &[], &["tokio", "wasmtime*", "tract*", "http*", "hyper*", "axum", "rusqlite"]),
    ("inference", &["domain"], &["wasmtime*", "http*", "hyper*", "axum", "tonic", "rusqlite"]),
    ("sandbox", &["domain"], &["tract*", "rusqlite", "axum", "serde_json"]),
    ("control", &["domain"], &["wasmtime*", "tract*", "tokio", "http*", "hyper*", "axum"]),
    (
        "server",
        &["domain", "inference", "sandbox", "control"],
        &["rusqlite", "tract*", "wasmtime*"],
    ),
    // hyper is there as the client that `bench` loads a server with.
    ("cli", &["domain", "server"], &["rusqlite", "tract*", "wasmtime*", "axum", "tonic"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every file of the repository but what is built, with its path from the root.
fn files() -> Vec<(String, PathBuf)> {
    const SKIPPED: [&str; 7] =
        ["target", ".git", ".cache", ".venv", "__pycache__", "node_modules", "sandpiper-data"];
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && !SKIPPED.contains(&&*entry.file_name().to_string_lossy()) {
                folders.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

/// The Rust sources under any of `places`.
fn sources(places: &[&str]) -> Vec<(String, String)> {
    let files = files().into_iter();
    let files = files.filter(|(name, _)| {
        name.ends_with(".rs") && places.iter().any(|place| name.starts_with(place))
    });
    files.map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
}

const OURS: [&str; 4] = ["runtime/", "guest-sdk/", "examples/", "tests/"];
const SHIPPED: [&str; 3] = ["runtime/", "guest-sdk/", "examples/"];

/// Whether the whole file is a test, or help for tests that is compiled with them alone.
fn is_test_file(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap();
    file == "tests.rs"
        || file.ends_with("_tests.rs")
        || file == "build.rs"
        || name.contains("/tests/")
        || name == "runtime/inference/src/testing.rs"
}

/// The source with comments and the insides of literals blanked, line for line.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = at + literal_or_comment(rest, bytes[..at].last().copied());
        if end > at {
            out.extend(text[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            let next = rest.chars().next().unwrap();
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

/// The length of the comment, string or character that `rest` begins with; 0 where there is none.
fn literal_or_comment(rest: &str, before: Option<u8>) -> usize {
    let until = |end: &str, from: usize| {
        rest[from..].find(end).map_or(rest.len(), |n| from + n + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until("*/", 2);
    }
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let hashes = rest
        .trim_start_matches('b')
        .strip_prefix('r')
        .map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let (Some(hashes), false) = (hashes, in_word) {
        let start = rest.find('r').unwrap() + 1 + hashes;
        if rest[start..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), start + 1);
        }
    }
    let quote = match rest.as_bytes()[0] {
        quote @ (b'"' | b'\'') => quote,
        _ => return 0,
    };
    // A lifetime has no second quote near.
    if quote == b'\'' && !rest[1..].starts_with('\\') {
        let mut chars = rest[1..].chars();
        let length = chars.next().map_or(0, char::len_utf8);
        return if chars.next() == Some('\'') { length + 2 } else { 0 };
    }
    let mut escaped = false;
    for (index, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The line after the block that begins at the first brace from `from` on; `None` where a `;` comes first.
fn block_end(code: &str, from: usize) -> Option<usize> {
    let (mut braces, mut others) = (0usize, 0usize);
    for (index, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others = others.saturating_sub(1),
            b'{' => braces += 1,
            b'}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 {
                    return Some(index + 1);
                }
            }
            b';' if braces == 0 && others == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The code without its test modules.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]").or_else(|| out.find("#[test]")) {
        let end = block_end(&out, at + 12).unwrap_or(at + 12);
        let blank: String =
            out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blank);
    }
    out
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Every place where one of `words` stands in the code.
fn places(name: &str, code: &str, words: &[&str]) -> Vec<String> {
    let found =
        words.iter().flat_map(|word| code.match_indices(word).map(move |(at, _)| (at, word)));
    found.map(|(at, word)| format!("{name}:{}: {word}", line_of(code, at))).collect()
}

fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Fails for what is found and not excepted, and for exceptions that are not found.
fn ratchet<T: Ord + std::fmt::Debug>(what: &str, found: BTreeSet<T>, excepted: BTreeSet<T>) {
    let new: Vec<&T> = found.difference(&excepted).collect();
    assert!(new.is_empty(), "{what}: {new:#?}");
    let stale: Vec<&T> = excepted.difference(&found).collect();
    assert!(stale.is_empty(), "{what}: these exceptions are no longer needed: {stale:#?}");
}

fn manifest(path: &str) -> toml::Table {
    fs::read_to_string(root().join(path)).unwrap().parse().unwrap()
}

#[test]
fn the_scanner_sees_code_and_nothing_else() {
    let source = r##"
        /* .unwrap() */ fn a<'a>(s: &'a str) -> [u8; 2] { // .unwrap()
            let _ = ('"', '\'', b'x', r#"panic!("x")"#, "\" .unwrap() {", "é");
            s.first().unwrap();
            thing.expect("a text");
            draft.expect(&key)
        }
        #[cfg(test)]
        mod tests { fn b() { None.unwrap() } }
        fn c() { panic!("{}", 1) }
    "##;
    let code = without_tests(&code(source));
    assert_eq!(code.lines().count(), source.lines().count());
    let words = [".unwrap()", ".expect( ", "panic!("];
    assert_eq!(places("x", &code, &words), ["x:4: .unwrap()", "x:5: .expect( ", "x:10: panic!("]);
    let end = block_end(&code, code.find("fn a").unwrap()).unwrap();
    assert_eq!((line_of(&code, end), &code[end - 1..end]), (7, "}"));
}

#[test]
fn crates_depend_only_on_what_lies_below_them() {
    let mut found = Vec::new();
    for (name, below, banned) in TABLE {
        let manifest = manifest(&format!("runtime/{name}/Cargo.toml"));
        for section in ["dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(|table| table.as_table())
            else {
                continue;
            };
            for dependency in dependencies.keys() {
                let ours = dependency.strip_prefix("sandpiper-");
                let is_banned = banned.iter().any(|ban| match ban.strip_suffix('*') {
                    Some(start) => dependency.starts_with(start),
                    None => dependency == ban,
                });
                if is_banned || ours.is_some_and(|ours| !below.contains(&ours)) {
                    found.push(format!("{name} depends on {dependency}"));
                }
            }
        }
    }
    none("the direction is domain <- inference, sandbox, control <- server <- cli", found);
}

#[test]
fn nothing_below_the_server_knows_http_status_or_json() {
    let below = ["runtime/domain/", "runtime/inference/", "runtime/sandbox/", "runtime/control/"];
    let mut found = BTreeSet::new();
    for (name, text) in sources(&below) {
        let code = without_tests(&code(&text));
        if ["StatusCode", "axum::", "IntoResponse"].iter().any(|word| code.contains(word)) {
            found.insert(name);
        }
    }
    ratchet(
        "status and wire formats belong to the server",
        found,
        KNOW_STATUS.map(str::to_owned).into(),
    );
}

#[test]
fn nothing_panics_on_purpose_outside_tests() {
    // A literal is blank here, so `.expect( ` is the one that takes a text.
    const WORDS: [&str; 7] = [
        ".unwrap()",
        ".expect( ",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
        ".unwrap_err()",
    ];
    let mut found = Vec::new();
    for (name, text) in sources(&SHIPPED).iter().filter(|(name, _)| !is_test_file(name)) {
        found.extend(places(name, &without_tests(&code(text)), &WORDS));
    }
    none("a tenant may be behind the value: return an error", found);
}

#[test]
fn files_stay_short() {
    let found =
        sources(&OURS).into_iter().filter(|(_, text)| text.lines().count() > FILE_LINES_MAX);
    let found = found.map(|(name, text)| (name, text.lines().count()));
    let found: BTreeMap<String, usize> = found.collect();
    let names = found.keys().cloned().collect();
    ratchet("files of more than 500 lines", names, LONG_FILES.map(str::to_owned).into());
}

#[test]
fn functions_stay_short() {
    let mut found = BTreeSet::new();
    for (name, text) in sources(&OURS) {
        let code = code(&text);
        for (at, _) in code.match_indices("fn ") {
            let in_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let Some(end) = block_end(&code, at).filter(|_| !in_word) else { continue };
            let lines = line_of(&code, end) - line_of(&code, at) + 1;
            if lines > FUNCTION_LINES_MAX {
                let function = code[at + 3..].split(['(', '<']).next().unwrap().trim().to_owned();
                found.insert((name.clone(), function));
            }
        }
    }
    let excepted = LONG_FUNCTIONS.map(|(file, function)| (file.to_owned(), function.to_owned()));
    ratchet("functions of more than 70 lines", found, excepted.into());
}

#[test]
fn lines_stay_narrow() {
    let mut found = Vec::new();
    for (name, text) in sources(&OURS) {
        for (index, line) in text.lines().enumerate() {
            // rustfmt does not break strings, and neither should people.
            if line.chars().count() > COLUMNS_MAX && !line.contains('"') && !is_test_file(&name) {
                found.push(format!("{name}:{}", index + 1));
            }
        }
    }
    none("lines of more than 120 columns", found);
}

#[test]
fn no_test_is_ignored_and_nothing_is_put_off() {
    let words =
        [concat!("#[ign", "ore"), concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut found = Vec::new();
    for (name, path) in files() {
        let is_text = [".rs", ".py", ".toml", ".md", ".sh", "/run", ".wit", ".js"];
        if !is_text.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let text = fs::read_to_string(path).unwrap_or_default();
        found.extend(places(&name, &text, &words));
    }
    none("do it, or file an issue", found);
}

#[test]
fn only_config_reads_the_environment() {
    let mut found = BTreeSet::new();
    for (name, text) in sources(&["runtime/"]) {
        let reads = without_tests(&code(&text)).contains("env::var");
        if reads && !name.ends_with("/config.rs") && !is_test_file(&name) {
            found.insert(name);
        }
    }
    ratchet(
        "files that read the environment",
        found,
        READ_THE_ENVIRONMENT.map(str::to_owned).into(),
    );
}

#[test]
fn every_crate_has_the_lints_and_every_file_says_what_it_is() {
    let mut found = Vec::new();
    for (name, path) in files() {
        if name.ends_with("/Cargo.toml") && name.matches('/').count() > 1
            || name == "tests/Cargo.toml"
        {
            let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            let is_package = manifest.contains_key("package");
            if is_package && lints.and_then(toml::Value::as_bool) != Some(true) {
                found.push(format!("{name}: no `lints.workspace = true`"));
            }
        }
    }
    for (name, text) in sources(&OURS) {
        if !is_test_file(&name) && !name.starts_with("tests/expected/") && !text.starts_with("//!")
        {
            found.push(format!("{name}: does not begin with `//!`"));
        }
    }
    none("crates and files", found);
}

#[test]
fn every_bad_input_has_a_test_that_exists() {
    let text = fs::read_to_string(root().join("tests/bad_input.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let table: BTreeMap<&str, &str> =
        lines.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}"))).collect();
    let listed: BTreeSet<&str> = table.keys().copied().collect();
    ratchet("bad inputs", BAD_INPUTS.into(), listed);
    let mut found = Vec::new();
    for (input, tests) in table {
        for test in tests.split(", ") {
            let (module, function) = test.split_once("::").unwrap_or_else(|| panic!("{test}"));
            let source = fs::read_to_string(root().join(format!("tests/e2e/{module}.rs")));
            let declared = format!("#[test]\nfn {function}() {{");
            if !source.is_ok_and(|source| source.contains(&declared)) {
                found.push(format!("{input}: {test}"));
            }
        }
    }
    none("tests that are named and not there", found);
}

#[test]
fn no_machine_or_registry_is_named() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/home", "/"),
        concat!("index.cra", "tes.io"),
        concat!("static.cra", "tes.io"),
        concat!("pypi", ".org"),
        concat!("python", "hosted"),
        concat!("registry.npm", "js"),
        concat!("deb.deb", "ian.org"),
    ];
    let mut found = Vec::new();
    for (name, path) in files() {
        let is_shared = name.starts_with("shared/") || name.ends_with("Cargo.lock");
        let text = fs::read_to_string(path).unwrap_or_default();
        if !is_shared && text.len() < 1 << 20 {
            found.extend(places(&name, &text, &words));
        }
    }
    none("the repository builds anywhere", found);
}
