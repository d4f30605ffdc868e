//! `sandpiper new`: starts a function from a template.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::Context;
use crate::{
    args::{New, Template},
    error::{CliError, Result},
    project::{BUILT_IN, MANIFEST, checkout},
};

/// A file to be written: its path in the new folder and its template.
type Source = (&'static str, &'static str);

const CARGO: Source = ("Cargo.toml", include_str!("../../templates/Cargo.toml.txt"));
const IGNORE: Source = (".gitignore", "/target/\n");
const HELLO: [Source; 3] = [
    (MANIFEST, include_str!("../../templates/hello.manifest.txt")),
    ("src/lib.rs", include_str!("../../templates/hello.rs.txt")),
    ("README.md", include_str!("../../templates/hello.readme.txt")),
];
const MODEL: [Source; 3] = [
    (MANIFEST, include_str!("../../templates/model.manifest.txt")),
    ("src/lib.rs", include_str!("../../templates/model.rs.txt")),
    ("README.md", include_str!("../../templates/model.readme.txt")),
];

/// Names that Cargo refuses for a package, or that a dependency of the template has.
const TAKEN: &str = " abstract alloc as async await become box break const continue core crate do dyn else enum \
    extern false final fn for gen if impl in let loop macro match mod move mut override priv proc-macro pub ref \
    return sandpiper-guest self serde static std struct super test trait true try type typeof unsafe unsized use \
    virtual where while yield build deps examples incremental ";

pub(super) fn run(context: &Context, arguments: &New) -> Result<()> {
    let (name, here) = (arguments.name.as_str(), Path::new("."));
    let sdk = sdk(here, arguments.sdk.as_deref(), Path::new(BUILT_IN))?;
    let files = render(name, arguments.template, &sdk);
    let folder = here.join(name);
    let failed = |path: &Path, error: io::Error| {
        let error = CliError::usage(format!("{} cannot be written", path.display())).why(error);
        error.next("choose another name, or go to a folder where you may write")
    };
    // A folder that exists is never written into, not even an empty one: it may be somebody's.
    fs::create_dir(&folder).map_err(|error| failed(&folder, error))?;
    fs::create_dir(folder.join("src")).map_err(|error| failed(&folder, error))?;
    for (path, text) in &files {
        let path = folder.join(path);
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    let paths: Vec<_> = files.iter().map(|(path, _)| *path).collect();
    context.ui.result(&json!({ "name": name, "folder": name, "files": paths }), |_| {
        format!(
            "made {name}/ with {}\nnext: cd {name} && cargo test && sandpiper deploy",
            paths.join(", ")
        )
    })
}

/// The files of a new function.
fn render(name: &str, template: Template, sdk: &str) -> Vec<(&'static str, String)> {
    let package = match TAKEN.contains(&format!(" {name} ")) {
        true => format!("{name}-function"),
        false => name.to_owned(),
    };
    let wasm = package.replace('-', "_");
    let own = match template {
        Template::Hello => HELLO,
        Template::Model => MODEL,
    };
    let fill = |(path, text): Source| {
        let text = text.replace("{{name}}", name).replace("{{package}}", &package);
        (path, text.replace("{{wasm}}", &wasm).replace("{{sdk}}", sdk))
    };
    [CARGO, IGNORE].into_iter().chain(own).map(fill).collect()
}

/// The dependency on the guest SDK: the one that is named, that of the checkout around us, or that of the checkout
/// where this program was `built_in`. There is no other place: no registry has it.
fn sdk(here: &Path, named: Option<&Path>, built_in: &Path) -> Result<String> {
    let path = match named {
        Some(path) => named_sdk(path)?,
        None => match (checkout(here), here.canonicalize()) {
            (Some(root), Ok(here)) => {
                // The checkout is around the new folder, so a relative path survives a move of both.
                let depth = here.strip_prefix(&root).map_or(0, |rest| rest.components().count());
                std::iter::repeat_n("..", depth + 1).collect::<PathBuf>().join("guest-sdk")
            }
            _ => checkout(built_in).ok_or_else(|| no_sdk(built_in))?.join("guest-sdk"),
        },
    };
    let text = toml::Value::String(path.to_string_lossy().into_owned());
    Ok(format!("{{ path = {text} }}"))
}

fn no_sdk(built_in: &Path) -> CliError {
    let why = format!(
        "the crate sandpiper-guest is in no registry; there is no checkout of Sandpiper around this folder, and none any \
         more at {}, where this program was built",
        built_in.display()
    );
    let error = CliError::usage("the guest SDK is not found").why(why);
    error.next("use --sdk PATH, the folder `guest-sdk` of a checkout")
}

/// The SDK's own folder, or that of the checkout it is named by.
fn named_sdk(path: &Path) -> Result<PathBuf> {
    let refused = || {
        CliError::usage(format!("there is no guest SDK at {}", path.display()))
            .next("name the folder `guest-sdk` of a Sandpiper checkout")
    };
    let path = path.canonicalize().map_err(|error| refused().why(error))?;
    let found = [path.clone(), path.join("guest-sdk")].into_iter().find(|folder| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("name = \"sandpiper-guest\"")
    });
    found.ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use sandpiper_domain::Manifest;

    use super::*;

    fn file<'a>(files: &'a [(&'static str, String)], name: &str) -> &'a str {
        &files.iter().find(|(path, _)| *path == name).unwrap().1
    }

    #[test]
    fn every_template_renders_to_a_valid_manifest_and_package() {
        for template in [Template::Hello, Template::Model] {
            let files = render("my-fn", template, "{ path = \"/sdk\" }");
            assert!(files.iter().all(|(_, text)| !text.contains("{{")), "{files:?}");
            let manifest = Manifest::parse(file(&files, MANIFEST)).unwrap();
            assert_eq!(manifest.name.as_str(), "my-fn");
            let component = manifest.build.component.unwrap();
            assert!(component.ends_with("/my_fn.wasm"), "{component}");
            let cargo: toml::Table = toml::from_str(file(&files, "Cargo.toml")).unwrap();
            assert_eq!(cargo["package"]["name"].as_str(), Some("my-fn"));
            let sdk = &cargo["dependencies"]["sandpiper-guest"];
            assert_eq!(sdk["path"].as_str(), Some("/sdk"));
        }
    }

    #[test]
    fn a_name_that_cargo_refuses_gets_another_package_name() {
        for name in ["fn", "test", "serde", "core"] {
            let files = render(name, Template::Hello, "{ path = \"/sdk\" }");
            assert!(file(&files, "Cargo.toml").contains(&format!("\"{name}-function\"")));
            assert!(file(&files, MANIFEST).contains(&format!("/{name}_function.wasm")));
        }
    }

    #[test]
    fn the_sdk_is_the_one_named_or_around_us_or_where_we_were_built() {
        let folder = tempfile::tempdir().unwrap();
        let root = &folder.path().canonicalize().unwrap();
        for made in ["runtime/cli", "guest-sdk", "mine/deep"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        fs::write(root.join("guest-sdk/Cargo.toml"), "[package]\nname = \"sandpiper-guest\"")
            .unwrap();
        let path = |depth: &str| format!("{{ path = \"{depth}guest-sdk\" }}");
        let gone = Path::new("/nowhere/runtime/cli");
        assert_eq!(sdk(root, None, gone).unwrap(), path("../"));
        assert_eq!(sdk(&root.join("mine/deep"), None, gone).unwrap(), path("../../../"));

        let elsewhere = tempfile::tempdir().unwrap();
        let elsewhere = elsewhere.path();
        let absolute = path(&format!("{}/", root.display()));
        assert_eq!(sdk(elsewhere, None, &root.join("runtime/cli")).unwrap(), absolute);
        assert_eq!(sdk(elsewhere, Some(root), gone).unwrap(), absolute);
        assert!(sdk(elsewhere, Some(elsewhere), gone).is_err());
        let error = sdk(elsewhere, None, gone).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.text().contains("--sdk PATH") && error.text().contains("/nowhere"));
    }
}
