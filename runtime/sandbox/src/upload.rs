//! Judges an upload before anything is compiled: what it is, what it imports and exports.

use bytes::Bytes;
use sandpiper_domain::Digest;
use sha2::{Digest as _, Sha256};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload};

use crate::nesting;

/// The one version of `wasi:nn` that is offered. Pre-release versions match exactly or not at all.
const NN_VERSION: &str = "0.2.0-rc-2024-10-28";

/// Every interface a function may import, besides `wasi:nn`.
const INTERFACES: &[(&str, &[&str])] = &[
    (
        "wasi:cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("wasi:clocks", &["wall-clock", "monotonic-clock"]),
    ("wasi:random", &["random", "insecure", "insecure-seed"]),
    ("wasi:io", &["error", "poll", "streams"]),
    ("wasi:filesystem", &["types", "preopens"]),
    (
        "wasi:sockets",
        &[
            "network",
            "instance-network",
            "tcp",
            "tcp-create-socket",
            "udp",
            "udp-create-socket",
            "ip-name-lookup",
        ],
    ),
    ("wasi:http", &["types", "outgoing-handler"]),
];
const NN_INTERFACES: &[&str] = &["tensor", "graph", "inference", "errors"];

/// Why an upload was rejected. Texts are for the tenant who uploaded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum UploadError {
    #[error("the upload is empty")]
    Empty,
    #[error("the upload is not WebAssembly")]
    NotWasm,
    #[error("the upload is machine code; only WebAssembly is accepted")]
    Precompiled,
    #[error("the upload is a core module without component metadata")]
    CoreModule,
    #[error("the core module cannot be made a component: {0}")]
    Componentise(String),
    #[error("the component is malformed: {0}")]
    Malformed(String),
    #[error("the component does not export wasi:http/incoming-handler@0.2.x")]
    NoIncomingHandler,
    #[error("the component imports what is not offered: {}", .0.join(", "))]
    Imports(Vec<String>),
    #[error("the component cannot be compiled: {0}")]
    Compile(String),
    #[error(
        "the component needs {needed_mib} MiB of memory to start; its limit is {limit_mib} MiB"
    )]
    Memory { needed_mib: u64, limit_mib: u64 },
}

impl UploadError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            UploadError::Empty => "send the component as the request's body",
            UploadError::NotWasm | UploadError::Precompiled => {
                "upload the .wasm file that the wasm32-wasip2 target builds"
            }
            UploadError::CoreModule => {
                "build for wasm32-wasip2, or bind a world with wit-bindgen so that the module carries its types"
            }
            UploadError::NoIncomingHandler => {
                "export the handler of the world wasi:http/proxy, for example with #[handler] of sandpiper-guest"
            }
            UploadError::Imports(names) if names.iter().any(|name| name.starts_with("wasi:nn")) => {
                "wasi:nn is offered at 0.2.0-rc-2024-10-28, which must match exactly"
            }
            UploadError::Imports(_) => {
                "a function may import WASI 0.2 (cli, clocks, random, io, filesystem, sockets, http) and wasi:nn"
            }
            UploadError::Memory { .. } => {
                "raise limits.memory_mib in the manifest, or build with less initial memory"
            }
            _ => return None,
        })
    }
}

/// An upload that passed: a component and the interfaces it imports.
#[derive(Debug, Clone)]
pub struct Component {
    /// The component itself; a core module has become one.
    pub bytes: Bytes,
    /// The sha256 of its bytes.
    pub digest: Digest,
    /// Its imports, as `wasi:http/types@0.2.4`.
    pub imports: Vec<String>,
}

/// Judges `bytes`. Takes time in proportion to their number and blocks while it does.
pub fn check(bytes: Bytes) -> Result<Component, UploadError> {
    if bytes.is_empty() {
        return Err(UploadError::Empty);
    }
    if bytes.starts_with(b"\x7fELF") || wasmtime::Engine::detect_precompiled(&bytes).is_some() {
        return Err(UploadError::Precompiled);
    }
    nesting::check(&bytes)?;
    // The tools below are written for their callers' own files: a panic in them is the upload's fault.
    let judged = nesting::on_deep_stack("check", || {
        let component = match bytes.get(..8) {
            Some(b"\0asm\x01\0\0\0") => componentise(&bytes)?,
            Some([b'\0', b'a', b's', b'm', _, _, 1, 0]) => bytes,
            _ => return Err(UploadError::NotWasm),
        };
        let imports = check_interfaces(&component)?;
        let digest = Digest(Sha256::digest(&component).into());
        Ok(Component { bytes: component, digest, imports })
    });
    let unparsed = || Err(UploadError::Malformed("it cannot be parsed".to_owned()));
    judged.ok().flatten().unwrap_or_else(unparsed)
}

fn componentise(module: &[u8]) -> Result<Bytes, UploadError> {
    let has_metadata = Parser::new(0).parse_all(module).any(|payload| {
        matches!(payload, Ok(Payload::CustomSection(section)) if section.name().starts_with("component-type"))
    });
    if !has_metadata {
        return Err(UploadError::CoreModule);
    }
    // Parts of a guest are often built against different releases of WASI 0.2.
    wit_component::ComponentEncoder::default()
        .merge_imports_based_on_semver(true)
        .module(module)
        .and_then(|encoder| {
            encoder.adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
            )
        })
        .and_then(|mut encoder| encoder.encode())
        .map(Bytes::from)
        .map_err(|error| UploadError::Componentise(short(&format!("{error:#}"))))
}

fn check_interfaces(component: &[u8]) -> Result<Vec<String>, UploadError> {
    let malformed =
        |error: wasmparser::BinaryReaderError| UploadError::Malformed(short(error.message()));
    let mut depth = 0usize;
    let (mut imports, mut has_handler) = (Vec::new(), false);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    has_handler |=
                        is_offered_as(export.name.name, "wasi:http", &["incoming-handler"]);
                }
            }
            _ => {}
        }
    }
    let offenders: Vec<String> =
        imports.iter().filter(|name| !is_offered(name)).take(20).map(|name| short(name)).collect();
    if !offenders.is_empty() {
        return Err(UploadError::Imports(offenders));
    }
    if !has_handler {
        return Err(UploadError::NoIncomingHandler);
    }
    Ok(imports)
}

fn is_offered(name: &str) -> bool {
    let nn =
        NN_INTERFACES.iter().any(|interface| name == format!("wasi:nn/{interface}@{NN_VERSION}"));
    nn || INTERFACES.iter().any(|(package, interfaces)| is_offered_as(name, package, interfaces))
}

/// Whether `name` is one of the package's interfaces at any release 0.2.x.
fn is_offered_as(name: &str, package: &str, interfaces: &[&str]) -> bool {
    let Some((path, version)) = name.split_once('@') else { return false };
    let Some((of, interface)) = path.split_once('/') else { return false };
    let version = semver::Version::parse(version);
    of == package
        && interfaces.contains(&interface)
        && version.is_ok_and(|v| v.major == 0 && v.minor == 2 && v.pre.is_empty())
}

/// The first line, cut at 300 characters: tools put whole back-traces and files into their errors.
pub(crate) fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(wat: &str) -> Result<Component, UploadError> {
        check(Bytes::from(wat::parse_str(wat).unwrap()))
    }

    const HANDLER: &str =
        r#"(instance $i) (export "wasi:http/incoming-handler@0.2.3" (instance $i))"#;

    #[test]
    fn types_that_nest_as_deeply_as_they_may_end_no_process() {
        use crate::nesting::tests::{nested, section};
        let component = [b"\0asm\x0d\0\x01\0".to_vec(), nested(40_000)].concat();
        let content = [b"\x10component-type:x".to_vec(), component.clone()].concat();
        let module = [b"\0asm\x01\0\0\0".to_vec(), section(0, &content)].concat();
        for bytes in [component, module] {
            assert!(check(bytes.into()).is_err());
        }
    }

    #[test]
    fn what_is_no_component_is_named() {
        assert_eq!(check(Bytes::new()).unwrap_err(), UploadError::Empty);
        assert_eq!(check(Bytes::from_static(b"hello")).unwrap_err(), UploadError::NotWasm);
        assert_eq!(check(Bytes::from_static(b"\0asm")).unwrap_err(), UploadError::NotWasm);
        assert_eq!(
            check(Bytes::from_static(b"\x7fELF\x02\x01")).unwrap_err(),
            UploadError::Precompiled
        );
        assert_eq!(judge("(module)").unwrap_err(), UploadError::CoreModule);
        assert_eq!(judge("(component)").unwrap_err(), UploadError::NoIncomingHandler);
        let code = wasmtime::Engine::default().precompile_component(b"(component)".as_slice());
        if let Ok(code) = code {
            assert_eq!(check(code.into()).unwrap_err(), UploadError::Precompiled);
        }
    }

    #[test]
    fn imports_outside_the_list_are_all_named() {
        let wat = format!(
            r#"(component
                (import "wasi:io/poll@0.2.9" (instance))
                (import "wasi:keyvalue/store@0.2.0" (instance))
                (import "wasi:http/types@0.3.0" (instance))
                (import "wasi:nn/graph@0.2.0-rc-2024-08-19" (instance))
                (import "my-function" (func))
                {HANDLER})"#
        );
        let Err(UploadError::Imports(names)) = judge(&wat) else { panic!("not refused") };
        assert_eq!(
            names,
            [
                "wasi:keyvalue/store@0.2.0",
                "wasi:http/types@0.3.0",
                "wasi:nn/graph@0.2.0-rc-2024-08-19",
                "my-function"
            ]
        );
    }

    #[test]
    fn only_the_outermost_component_counts() {
        let wat = format!(
            r#"(component
                (component (import "wasi:keyvalue/store@0.2.0" (instance)))
                (import "wasi:nn/graph@0.2.0-rc-2024-10-28" (instance))
                {HANDLER})"#
        );
        assert_eq!(judge(&wat).unwrap().imports, ["wasi:nn/graph@0.2.0-rc-2024-10-28"]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(mut bytes in proptest::collection::vec(0u8.., 0..300), kind in 0..3) {
            let magic: &[u8] = match kind { 0 => b"\0asm\x01\0\0\0", 1 => b"\0asm\x0d\0\x01\0", _ => b"" };
            bytes.splice(0..0, magic.iter().copied());
            let _ = check(bytes.into());
        }
    }
}
