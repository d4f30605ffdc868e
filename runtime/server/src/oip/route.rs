//! The paths under `/v2`, taken apart.
//!
//! A model's name may hold one slash, `owner/name`, written as it is or as `%2F`: clients differ in what they escape. A
//! path that can be read with a short name is read so.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Server,
    Live,
    Ready,
    Models,
    AllStatistics,
    Model { name: Cow<'a, str>, version: Option<&'a str>, verb: Verb },
    Index,
    Load(Cow<'a, str>),
    Unload(Cow<'a, str>),
    Trace,
    Logging,
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
}

impl<'a> Route<'a> {
    /// Reads a path; `None` where it leads nowhere.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/v2")?;
        if matches!(path, "" | "/") {
            return Some(Route::Server);
        }
        // No path has more parts; what comes beyond the last makes the last one no word that is known.
        let mut parts = [""; 8];
        let mut count = 0;
        for part in path.strip_prefix('/')?.splitn(parts.len(), '/') {
            parts[count] = part;
            count += 1;
        }
        match &parts[..count] {
            ["health", "live"] => Some(Route::Live),
            ["health", "ready"] => Some(Route::Ready),
            ["models"] => Some(Route::Models),
            ["models", "stats"] => Some(Route::AllStatistics),
            ["models", rest @ ..] => Self::of_model(rest),
            ["repository", "index"] => Some(Route::Index),
            ["repository", "models", rest @ .., "load"] => Some(Route::Load(name_of(rest)?)),
            ["repository", "models", rest @ .., "unload"] => Some(Route::Unload(name_of(rest)?)),
            ["trace", "setting"] => Some(Route::Trace),
            ["logging"] => Some(Route::Logging),
            _ => None,
        }
    }

    fn of_model(parts: &[&'a str]) -> Option<Self> {
        (1..=2.min(parts.len())).find_map(|length| {
            let (name, rest) = parts.split_at(length);
            let (version, rest) = match rest {
                ["versions", version, rest @ ..] => (Some(*version), rest),
                rest => (None, rest),
            };
            let verb = match rest {
                [] => Verb::Metadata,
                ["ready"] => Verb::Ready,
                ["config"] => Verb::Config,
                ["stats"] => Verb::Statistics,
                ["infer"] => Verb::Infer,
                // A model has no trace settings of its own; they are the server's.
                ["trace", "setting"] if version.is_none() => return Some(Route::Trace),
                _ => return None,
            };
            Some(Route::Model { name: name_of(name)?, version, verb })
        })
    }

    /// The methods that the path answers to.
    pub(super) fn allows(&self) -> &'static str {
        match self {
            Route::Model { verb: Verb::Infer, .. } => "POST",
            Route::Index | Route::Load(_) | Route::Unload(_) => "POST",
            Route::Trace | Route::Logging => "GET, HEAD, POST",
            _ => "GET, HEAD",
        }
    }

    pub(super) fn is_allowed(&self, method: &Method) -> bool {
        self.allows().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// A name of one or two parts, unescaped.
fn name_of<'a>(parts: &[&'a str]) -> Option<Cow<'a, str>> {
    let unescape = |part: &'a str| percent_decode_str(part).decode_utf8().ok();
    match parts {
        [name] => unescape(name).filter(|name| !name.is_empty()),
        [owner, name] => Some(format!("{}/{}", unescape(owner)?, unescape(name)?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(path: &str) -> Option<(String, Option<String>, Verb)> {
        match Route::parse(path)? {
            Route::Model { name, version, verb } => {
                Some((name.into_owned(), version.map(str::to_owned), verb))
            }
            _ => None,
        }
    }

    #[test]
    fn models_are_named_in_every_way_that_clients_write_them() {
        let named = |name: &str, version: Option<&str>, verb| {
            Some((name.to_owned(), version.map(str::to_owned), verb))
        };
        for (path, name, version, verb) in [
            ("/v2/models/m", "m", None, Verb::Metadata),
            ("/v2/models/m/ready", "m", None, Verb::Ready),
            ("/v2/models/m/versions/3", "m", Some("3"), Verb::Metadata),
            ("/v2/models/m/versions/3/infer", "m", Some("3"), Verb::Infer),
            ("/v2/models/m/versions/3/ready", "m", Some("3"), Verb::Ready),
            ("/v2/models/m/config", "m", None, Verb::Config),
            ("/v2/models/m%402/stats", "m@2", None, Verb::Statistics),
            ("/v2/models/acme%2Fm/infer", "acme/m", None, Verb::Infer),
            ("/v2/models/acme/m/infer", "acme/m", None, Verb::Infer),
            ("/v2/models/acme/m/versions/2/infer", "acme/m", Some("2"), Verb::Infer),
            ("/v2/models/acme/m", "acme/m", None, Verb::Metadata),
            ("/v2/models/acme/ready", "acme", None, Verb::Ready),
        ] {
            assert_eq!(model(path), named(name, version, verb), "{path}");
        }
    }

    #[test]
    fn the_rest_of_the_paths_is_known() {
        for (path, route) in [
            ("/v2", Route::Server),
            ("/v2/", Route::Server),
            ("/v2/health/live", Route::Live),
            ("/v2/health/ready", Route::Ready),
            ("/v2/models", Route::Models),
            ("/v2/models/stats", Route::AllStatistics),
            ("/v2/repository/index", Route::Index),
            ("/v2/repository/models/m/load", Route::Load("m".into())),
            ("/v2/repository/models/a/m/unload", Route::Unload("a/m".into())),
            ("/v2/trace/setting", Route::Trace),
            ("/v2/models/m/trace/setting", Route::Trace),
            ("/v2/logging", Route::Logging),
        ] {
            assert_eq!(Route::parse(path), Some(route), "{path}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_none() {
        for path in [
            "/v20",
            "/v2/health",
            "/v2/models/",
            "/v2/models/a/b/c",
            "/v2/models/a/b/c/d/e/f/g/h/infer",
            "/v2/models/m/infer/",
            "/v2/models/%ff/infer",
            "/v2/repository/models/load",
            "/v2/repository/models/a/b/c/load",
            "/v2/systemsharedmemory/status",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(path in "/v2(/[a-z%0-9/]{0,40})?") {
            let _ = Route::parse(&path);
        }
    }
}
