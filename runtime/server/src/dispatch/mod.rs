//! The life of one invocation: [`route`] and key, the [`request`] as the guest sees it, then [`run`]: gates, code,
//! sandbox.
//!
//! Everything up to the sandbox reads memory alone. Whoever may not know of a function gets the same answer whether it
//! exists or not: 401 without a key, 404 with somebody else's.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use sandpiper_domain::Lane;

use crate::{
    app::App,
    edge::{self, EdgeBody, Peer},
    jobs::{self, Accepted},
    respond::{Problem, REQUEST_ID},
};

mod request;
mod route;
mod run;

use request::for_guest;
use route::{Target, caller_of_job, find};
pub(crate) use run::{Work, run};

/// Where functions live.
pub(crate) const PREFIX: &str = "/fn/";

/// Answers a request under [`PREFIX`].
pub(crate) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Response<EdgeBody> {
    let request_id = edge::request_id(&request);
    let header = HeaderValue::from_str(&request_id).unwrap_or(HeaderValue::from_static("none"));
    let mut response = match invoke(app, peer, request, &request_id, &header).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(&request_id),
    };
    response.headers_mut().insert(REQUEST_ID, header);
    response
}

async fn invoke(
    app: &Arc<App>,
    peer: &Peer,
    request: Request<Incoming>,
    request_id: &Arc<str>,
    request_id_header: &HeaderValue,
) -> Result<Response<EdgeBody>, Problem> {
    let target = find(app, &request)?;
    let job = jobs::prefers_async(request.headers()).then(|| caller_of_job(app, &request));
    let job = job.transpose()?;
    let (request, overflow) = for_guest(request, &target, peer, request_id_header)?;
    let Target { version, grant, runtime, cookie, trial, .. } = target;
    let limit_mib = grant.sandbox.request_body_mib;
    if let Some(selector) = job {
        let accepted = jobs::accept(app, Accepted { version, grant, selector }, request).await;
        if overflow.is_some_and(|overflow| overflow.load(Relaxed)) {
            return Err(Problem::too_large("request's body", limit_mib));
        }
        return accepted;
    }
    let lane = Lane::Interactive;
    let request_id = request_id.clone();
    let work = Work { version, grant, runtime, lane, request_id, trial };
    let response = run(app, work, request).await;
    // Whatever the guest made of it: the body was cut off.
    if overflow.is_some_and(|overflow| overflow.load(Relaxed)) {
        return Err(Problem::too_large("request's body", limit_mib));
    }
    let mut response = response?;
    if let Some(cookie) = cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// The token of `Authorization: Bearer …`. Several such headers are refused: two readers could pick different ones.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::bad_request("there is more than one Authorization header"));
    }
    let token = first.and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_authorizations_are_one_too_many() {
        let mut headers = HeaderMap::new();
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("bearer  abc "));
        assert_eq!(bearer(&headers).unwrap(), Some("abc"));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer def"));
        assert!(bearer(&headers).is_err());
    }
}
