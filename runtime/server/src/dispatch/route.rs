//! Which version of which function a request is for, and whether its caller may have it.

use std::sync::{Arc, LazyLock};

use http::{HeaderValue, Request, Uri};
use hyper::body::Incoming;
use sandpiper_control::{Found, FunctionVersion, KeyError, Principal};
use sandpiper_domain::{Auth, Grant, Scope, Selector};
use time::OffsetDateTime;

use super::{PREFIX, bearer};
use crate::{app::App, functions::FunctionRuntime, respond::Problem, sticky, window::Trial};

/// `/fn/{tenant}/{function}[@{alias|version}]/{path…}`, taken apart.
///
/// The names are looked up as they are: what is no valid name is in no catalog.
pub(super) struct Route<'a> {
    tenant: &'a str,
    function: &'a str,
    /// `None` is `live`.
    selector: Option<Selector>,
    /// Where the guest's own path begins in the path and query.
    pub(super) rest: usize,
}

impl<'a> Route<'a> {
    pub(super) fn parse(uri: &'a Uri) -> Option<Self> {
        let path = uri.path();
        let (tenant, after) = path.strip_prefix(PREFIX)?.split_once('/')?;
        let name_end = after.find('/').unwrap_or(after.len());
        let (function, selector) = match after[..name_end].split_once('@') {
            Some((name, selector)) => (name, Some(selector.parse().ok()?)),
            None => (&after[..name_end], None),
        };
        let rest = path.len() - after.len() + name_end;
        Some(Route { tenant, function, selector, rest })
    }
}

/// What a request is for.
pub(super) struct Target {
    pub(super) version: Arc<FunctionVersion>,
    pub(super) grant: Arc<Grant>,
    pub(super) runtime: Arc<FunctionRuntime>,
    /// Where the guest's own path begins in the path and query.
    pub(super) rest: usize,
    /// The caller's `Authorization` is ours and not for the function to see.
    pub(super) strip_key: bool,
    /// What keeps the caller on this version from now on.
    pub(super) cookie: Option<HeaderValue>,
    /// There where a rollout has sent it.
    pub(super) trial: Option<Trial>,
}

/// Finds the function and checks that the caller may invoke it.
pub(super) fn find(app: &App, request: &Request<Incoming>) -> Result<Target, Problem> {
    let route = Route::parse(request.uri());
    let bearer = bearer(request.headers())?;
    let now = OffsetDateTime::now_utc;
    let mut cookie = None;
    let snapshot = app.catalog.snapshot();
    let found = route.as_ref().and_then(|route| {
        static LIVE: LazyLock<Selector> = LazyLock::new(Selector::default);
        let selector = route.selector.as_ref().unwrap_or(&LIVE);
        let (tenant, name) = (route.tenant, route.function);
        let found = snapshot.find_function(tenant, name, selector, |alias| {
            // Where the caller is, whatever alias it has named: its cookie is for there.
            let path = &request.uri().path()[..route.rest];
            let picked = sticky::pick(alias, tenant, name, path, request.headers());
            cookie = picked.1;
            picked.0
        })?;
        Some((found, selector, route.rest))
    });
    let is_public = found.is_some_and(|(found, ..)| found.version.manifest.auth == Auth::Public);
    let strip_key = if is_public {
        bearer.is_some_and(|key| app.catalog.find_key(key, now()) != Err(KeyError::Malformed))
    } else {
        let key = bearer.ok_or_else(Problem::no_key)?;
        check_caller(app.catalog.find_key(key, now())?, route.as_ref())?;
        true
    };
    let (found, selector, rest) = found.ok_or_else(Problem::not_found)?;
    let trial = app.rollouts.trial(&found, selector);
    let Found { tenant, version, grant, .. } = found;
    let runtime =
        app.functions.get(&tenant.name, &version.manifest.name, version, || app.admission(tenant));
    let (version, grant) = (version.clone(), grant.clone());
    Ok(Target { version, grant, runtime, rest, strip_key, cookie, trial })
}

/// Checks the caller of a request that is to become a job, and gives the version it asks for. Whoever has no key could
/// never fetch the result, so that one is needed for public functions too.
pub(super) fn caller_of_job(app: &App, request: &Request<Incoming>) -> Result<Selector, Problem> {
    let route = Route::parse(request.uri());
    let key = bearer(request.headers())?.ok_or_else(Problem::no_key)?;
    check_caller(app.catalog.find_key(key, OffsetDateTime::now_utc())?, route.as_ref())?;
    Ok(route.and_then(|route| route.selector).unwrap_or_default())
}

fn check_caller(principal: Principal, route: Option<&Route<'_>>) -> Result<(), Problem> {
    let Principal::Tenant { tenant, scopes, .. } = principal else { return Ok(()) };
    if route.is_none_or(|route| route.tenant != tenant.as_str()) {
        return Err(Problem::not_found());
    }
    if !scopes.contains(Scope::Invoke) {
        return Err(Problem::missing_scope(Scope::Invoke));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::request::own_uri, *};

    fn own(path: &str) -> Option<String> {
        let uri: Uri = path.parse().ok()?;
        let route = Route::parse(&uri)?;
        own_uri(&uri, route.rest).ok().map(|uri| uri.to_string())
    }

    #[test]
    fn the_function_sees_what_comes_after_its_name() {
        assert_eq!(own("/fn/acme/tj/echo?x").as_deref(), Some("/echo?x"));
        assert_eq!(own("/fn/acme/tj").as_deref(), Some("/"));
        assert_eq!(own("/fn/acme/tj/").as_deref(), Some("/"));
        assert_eq!(own("/fn/acme/tj?x=/y@z").as_deref(), Some("/?x=/y@z"));
        assert_eq!(own("/fn/acme/tj@3//a/../b%2f").as_deref(), Some("//a/../b%2f"));
        assert_eq!(own("http://host/fn/acme/tj@canary/e").as_deref(), Some("/e"));
    }

    #[test]
    fn what_names_no_version_is_no_route() {
        for path in ["/fn/", "/fn/acme", "/fn/acme/tj@0", "/fn/acme/tj@", "/fn/acme/tj@X"] {
            assert!(Route::parse(&path.parse().unwrap()).is_none(), "{path}");
        }
    }

    #[test]
    fn versions_and_aliases_are_told_apart() {
        let route = |path: &str| Route::parse(&path.parse().unwrap()).unwrap().selector;
        assert_eq!(route("/fn/acme/tj@3"), Some(Selector::Version(3)));
        assert_eq!(route("/fn/acme/tj@canary/x"), Some("canary".parse().unwrap()));
        assert_eq!(route("/fn/acme/tj/x@3"), None);
    }
}
