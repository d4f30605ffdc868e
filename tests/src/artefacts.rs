//! Where the binary, the guests and the expected answers lie.

use std::path::{Path, PathBuf};

use serde_json::Value;

#[allow(clippy::disallowed_methods, reason = "the tests' settings are read here and nowhere else")]
fn setting(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// The root of the checkout.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository")
}

/// The `sandpiper` under test: `SANDPIPER_BIN`, or the one beside the running test.
pub fn binary() -> PathBuf {
    let path = setting("SANDPIPER_BIN").unwrap_or_else(|| {
        let test = std::env::current_exe().expect("the test knows its own file");
        test.ancestors().nth(2).expect("the test lies in a target folder").join("sandpiper")
    });
    must_exist(path)
}

fn must_exist(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `tests/run`, which builds it", path.display());
    path
}

/// Reads a file that must be there.
pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = must_exist(path.as_ref().to_owned());
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The component of an example, such as `digits`.
pub fn example(name: &str) -> Vec<u8> {
    read(repository().join(format!("examples/target/wasm32-wasip2/release/{name}.wasm")))
}

/// A guest of `tests/guests`, such as `misbehave`, as it comes for wasm32-wasip2.
pub fn guest(name: &str) -> Vec<u8> {
    guest_for("wasm32-wasip2", name)
}

/// A guest of `tests/guests` built for another target.
pub fn guest_for(target: &str, name: &str) -> Vec<u8> {
    read(repository().join(format!("tests/guests/target/{target}/release/{name}.wasm")))
}

/// What `tests/expected/compute.py` wrote: `expected("files/sample.py")`.
pub fn expected(file: &str) -> PathBuf {
    let folder = setting("SANDPIPER_EXPECTED");
    let folder = folder.unwrap_or_else(|| repository().join("tests/.cache/expected"));
    must_exist(folder.join(file))
}

/// What `tests/expected/compute.py` says about the examples, under `digits`, `iris` or `filetype`.
pub fn expectations(example: &str) -> Vec<Value> {
    let all: Value = serde_json::from_slice(&read(expected("expected.json"))).unwrap();
    all[example].as_array().unwrap_or_else(|| panic!("nothing about {example}")).clone()
}

/// A model: `digits` and `iris` of the examples, `magika`, or a file of the corpus such as `slow.onnx`.
pub fn model(name: &str) -> Vec<u8> {
    match name {
        "digits" | "iris" => read(repository().join(format!("examples/{name}/model/{name}.onnx"))),
        "magika" => read(expected("magika.onnx")),
        file => read(expected(&format!("models/{file}"))),
    }
}
