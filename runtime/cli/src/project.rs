//! The files of a function on the developer's machine: its manifest, its component, and the checkout it may live in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sandpiper_domain::Manifest;

use crate::error::{CliError, Result};

/// The name of the manifest.
pub(crate) const MANIFEST: &str = "sandpiper.toml";

/// Where this program was built. Nothing need be there any more.
pub(crate) const BUILT_IN: &str = env!("CARGO_MANIFEST_DIR");

/// A function's folder with a manifest that has been read and checked.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) folder: PathBuf,
    pub(crate) manifest: Manifest,
    /// The manifest as it is written, comments and all: this is what is uploaded.
    pub(crate) manifest_text: String,
}

impl Project {
    /// Reads the project at `path`, which is its folder or its manifest.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join(MANIFEST) } else { path.to_owned() };
        let manifest_text = fs::read_to_string(&file).map_err(|error| {
            CliError::usage(format!("there is no manifest at {}", file.display()))
                .why(error)
                .next("name the function's folder, or start one with `sandpiper new NAME`")
        })?;
        let manifest = Manifest::parse(&manifest_text).map_err(|error| {
            CliError::usage(format!("{} is refused", file.display()))
                .why(error)
                .next("correct the manifest")
        })?;
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Project { folder, manifest, manifest_text })
    }

    /// The built component, which need not exist.
    pub(crate) fn component(&self) -> Result<PathBuf> {
        match &self.manifest.build.component {
            Some(component) => Ok(self.folder.join(component)),
            None => Err(CliError::usage("the manifest does not say where the component lies")
                .next("add `component = \"…\"` to its [build] table, or use --component FILE")),
        }
    }
}

/// Says early that a file is neither a component nor a core module; the server judges the rest.
pub(crate) fn check_component(path: &Path) -> Result<u64> {
    let missing = |error: std::io::Error| {
        CliError::usage(format!("there is no component at {}", path.display()))
            .why(error)
            .next("build it with `sandpiper build`, or correct `component` in the manifest")
    };
    let mut magic = [0; 4];
    let mut file = fs::File::open(path).map_err(missing)?;
    let size = file.metadata().map_err(missing)?.len();
    let read = std::io::Read::read_exact(&mut file, &mut magic);
    if read.is_err() || magic != *b"\0asm" {
        return Err(CliError::usage(format!("{} is not WebAssembly", path.display()))
            .next("check `component` in the manifest"));
    }
    Ok(size)
}

/// The checkout of Sandpiper around `start`, if there is one.
pub(crate) fn checkout(start: &Path) -> Option<PathBuf> {
    let start = start.canonicalize().ok()?;
    let is_checkout = |folder: &&Path| {
        folder.join("guest-sdk/Cargo.toml").is_file() && folder.join("runtime/cli").is_dir()
    };
    start.ancestors().find(is_checkout).map(Path::to_owned)
}

/// The checkout around the current folder, or else the one that this program was built from.
pub(crate) fn checkout_for_demo() -> Option<PathBuf> {
    checkout(Path::new(".")).or_else(|| checkout(Path::new(BUILT_IN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_named_by_its_folder_or_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(MANIFEST);
        fs::write(&file, "name = \"a\"\n[build]\ncomponent = \"x/a.wasm\"").unwrap();
        for path in [folder.path(), &file] {
            let project = Project::load(path).unwrap();
            assert_eq!(project.folder, folder.path());
            assert_eq!(project.component().unwrap(), folder.path().join("x/a.wasm"));
        }
    }

    #[test]
    fn a_bad_or_missing_manifest_is_a_usage_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Project::load(folder.path()).unwrap_err().exit_code(), 2);
        fs::write(folder.path().join(MANIFEST), "name = \"a\"\ncolour = 1").unwrap();
        let error = Project::load(folder.path()).unwrap_err();
        assert!(error.text().contains("colour"), "{}", error.text());
    }

    #[test]
    fn only_webassembly_is_taken_for_a_component() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.wasm");
        fs::write(&file, b"\0asm\x0d\0\x01\0").unwrap();
        assert_eq!(check_component(&file).unwrap(), 8);
        fs::write(&file, b"\x7fELF").unwrap();
        assert!(check_component(&file).is_err());
        assert!(check_component(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_checkout_is_found_from_within() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let inside = root.join("examples/digits");
        for made in [&inside, &root.join("runtime/cli"), &root.join("guest-sdk")] {
            fs::create_dir_all(made).unwrap();
        }
        assert_eq!(checkout(&inside), None);
        fs::write(root.join("guest-sdk/Cargo.toml"), "").unwrap();
        assert_eq!(checkout(&inside), Some(root));
    }
}
