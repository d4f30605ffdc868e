//! The only module that reads the environment and the config file, `~/.config/sandpiper/config.toml`.
//!
//! A flag wins over the environment (clap sees to that), which wins over the file, which wins over the default.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sandpiper_domain::TenantName;
use serde::{Deserialize, Serialize};

use crate::{
    args::Global,
    error::{CliError, Result},
};

/// The server of a developer's own machine.
const SERVER_DEFAULT: &str = "http://127.0.0.1:8080";

/// Errors of the engines below take a back-trace when the environment asks for one, which nobody is shown and which
/// makes each refusal of a model tens of times slower. Panics keep theirs. Call it before there is a second thread.
#[allow(clippy::disallowed_methods)]
pub(crate) fn settle_backtraces() {
    const POLICY: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(POLICY).is_none() {
        // SAFETY: `main` calls this first, while the process has one thread.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(POLICY, "0");
        }
    }
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) source: &'static str,
}

/// What the client verbs go by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) server: Sourced<String>,
    pub(crate) key: Option<Sourced<String>>,
    pub(crate) tenant: Option<Sourced<TenantName>>,
}

impl Settings {
    /// Puts flags, environment and file together.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        // A broken or missing file matters only where it is needed.
        let complete = global.server.is_some() && global.key.is_some() && global.tenant.is_some();
        let file = match path() {
            Some(path) if !complete => read(&path)?,
            _ => File::default(),
        };
        Self::merge(global, file)
    }

    fn merge(global: &Global, file: File) -> Result<Self> {
        let server = pick(&global.server, file.server)
            .unwrap_or(Sourced { value: SERVER_DEFAULT.to_owned(), source: "default" });
        let tenant = match pick(&global.tenant, file.tenant) {
            None => None,
            Some(Sourced { value, source }) => {
                let named = value.parse::<TenantName>().map_err(|error| {
                    CliError::usage("the tenant's name is no name")
                        .why(error)
                        .next(format!("correct it; it comes from the {source}"))
                })?;
                Some(Sourced { value: named, source })
            }
        };
        let value = server_url(&server.value)?;
        let server = Sourced { value, source: server.source };
        Ok(Settings { server, key: pick(&global.key, file.key), tenant })
    }
}

fn pick(flag: &Option<String>, file: Option<String>) -> Option<Sourced<String>> {
    let given = |value: &String| !value.trim().is_empty();
    let flag = flag.clone().filter(given).map(|value| (value, "command line or environment"));
    let file = file.filter(given).map(|value| (value, "config file"));
    flag.or(file).map(|(value, source)| Sourced { value: value.trim().to_owned(), source })
}

/// Checks a server's address and gives it without a slash at its end.
pub(crate) fn server_url(text: &str) -> Result<String> {
    let refused = |why: &str| {
        let next = format!("give it like {SERVER_DEFAULT}");
        Err(CliError::usage("the server's address is not usable").why(why).next(next))
    };
    let Ok(uri) = text.parse::<ureq::http::Uri>() else { return refused("it is no URL") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return refused("it must begin with http:// or https://");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refused("credentials belong into --key");
    }
    if uri.query().is_some() {
        return refused("it may have no query");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Where the file lies, whether it exists or not.
pub(crate) fn path() -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("sandpiper").join("config.toml"))
}

/// The file's content; a missing file is an empty one.
pub(crate) fn read(path: &Path) -> Result<File> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => {
            return Err(CliError::usage(format!("{} cannot be read", path.display())).why(error));
        }
    };
    toml::from_str(&text).map_err(|error| {
        CliError::usage(format!("{} is no valid config file", path.display()))
            // The rendered form of the error would quote the line, and with it perhaps the key.
            .why(error.message())
            .next("correct it, or delete it and use `sandpiper config set`")
    })
}

/// Replaces the file in one step; only its owner can read it, since it may hold a key.
pub(crate) fn write(path: &Path, file: &File) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        CliError::usage(format!("{} cannot be written", path.display())).why(error.to_string())
    };
    let text = toml::to_string(file).map_err(|error| failed(&error))?;
    let folder = path.parent().ok_or_else(|| failed(&"it has no folder"))?;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder).map_err(|error| failed(&error))?;
    // `tempfile` creates with mode 0600.
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    temporary.write_all(text.as_bytes()).map_err(|error| failed(&error))?;
    temporary.as_file().sync_all().map_err(|error| failed(&error))?;
    temporary.persist(path).map_err(|error| failed(&error))?;
    Ok(())
}

/// The permission bits of the file, where it exists.
pub(crate) fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.permissions().mode() & 0o777)
}

/// Shows enough of a key to tell it from another.
pub(crate) fn masked(key: &str) -> String {
    let shown: String = key.chars().take(6).collect();
    format!("{shown}… ({} characters)", key.chars().count())
}

#[allow(clippy::disallowed_methods)] // This module is where the environment is read.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(server: Option<&str>, key: Option<&str>, tenant: Option<&str>) -> Global {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Global { server: owned(server), key: owned(key), tenant: owned(tenant), json: false }
    }

    fn file() -> File {
        let text = "server = 'https://file/'\nkey = 'file-key'\ntenant = 'file-tenant'";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_default() {
        let settings =
            Settings::merge(&global(Some("http://flag:1"), None, Some("acme")), file()).unwrap();
        assert_eq!(settings.server.value, "http://flag:1");
        assert_eq!(settings.key.unwrap().source, "config file");
        assert_eq!(settings.tenant.unwrap().value.as_str(), "acme");

        let settings = Settings::merge(&global(Some(""), None, None), file()).unwrap();
        assert_eq!(
            settings.server,
            Sourced { value: "https://file".into(), source: "config file" }
        );

        let settings = Settings::merge(&global(None, None, None), File::default()).unwrap();
        assert_eq!(settings.server, Sourced { value: SERVER_DEFAULT.into(), source: "default" });
        assert!(settings.key.is_none() && settings.tenant.is_none());
    }

    #[test]
    fn bad_addresses_and_tenants_are_usage_errors() {
        for server in ["localhost:8080", "ftp://x", "http://", "http://a:b@c", "http://a?x", "a b"]
        {
            let error = Settings::merge(&global(Some(server), None, None), File::default());
            assert_eq!(error.unwrap_err().exit_code(), 2, "{server}");
        }
        let error = Settings::merge(&global(None, None, Some("A/b")), File::default());
        assert_eq!(error.unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_file_is_written_for_its_owner_alone_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/sandpiper/config.toml");
        assert_eq!(read(&path).unwrap(), File::default());
        write(&path, &file()).unwrap();
        write(&path, &file()).unwrap();
        assert_eq!(mode(&path), Some(0o600));
        assert_eq!(mode(path.parent().unwrap()), Some(0o700));
        assert_eq!(read(&path).unwrap(), file());
    }

    #[test]
    fn an_error_in_the_file_never_shows_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "key = 'secret-value' extra\n").unwrap();
        assert!(!read(&path).unwrap_err().text().contains("secret-value"));
        fs::write(&path, "token = 'x'\n").unwrap();
        assert!(read(&path).unwrap_err().text().contains("unknown field"));
    }

    #[test]
    fn a_key_is_masked() {
        assert_eq!(masked("sp_abcdefghij"), "sp_abc… (13 characters)");
    }
}
