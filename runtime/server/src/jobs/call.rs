//! One request of a job or of a line of a batch, from what was kept of it to what became of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full};
use sandpiper_control::{Counted, Found};
use sandpiper_domain::{FunctionName, JobId, JobRequest, JobResult, Lane, Selector, TenantName};

use super::{retry, worker::Attempt};
use crate::{
    admission::Transferred,
    app::App,
    dispatch::{self, Work},
    respond::{Problem, REQUEST_ID},
    sticky,
};

const JOB: HeaderName = HeaderName::from_static("x-sandpiper-job");
const ATTEMPT: HeaderName = HeaderName::from_static("x-sandpiper-attempt");

/// One invocation for a job or a line of a batch.
pub(crate) struct Call<'a> {
    pub(crate) tenant: &'a TenantName,
    pub(crate) function: &'a FunctionName,
    pub(crate) selector: &'a Selector,
    pub(crate) request: &'a JobRequest,
    pub(crate) body: Bytes,
    pub(crate) lane: Lane,
    pub(crate) id: JobId,
    pub(crate) attempt: u32,
    pub(crate) created_ms: u64,
    pub(crate) result_bytes_max: usize,
}

impl Call<'_> {
    pub(crate) async fn make(&self, app: &Arc<App>) -> Attempt {
        let Some(request) = self.request() else {
            return Attempt::Hopeless("the request cannot be read any more".to_owned());
        };
        let Some(work) = self.work(app, request.headers()) else {
            return Attempt::Hopeless("the function is gone, or that version of it".to_owned());
        };
        let version = work.version.version;
        let meter = work.runtime.meter.clone();
        let ran = dispatch::run(app, work, request).await;
        let is_refused = matches!(&ran, Err(problem) if retry::is_refusal(problem));
        if self.lane == Lane::Batch && self.attempt == 1 && !is_refused {
            // A line is billed as a request's body would be; that of a job was when it came.
            Transferred::new(meter, Counted::BytesIn).add(self.body.len());
        }
        let response = match ran {
            Ok(response) => response,
            Err(problem) => {
                if retry::is_of_tenant(&problem) {
                    let pause_ms = u64::from(problem.retry_after_s.unwrap_or(1)) * 1_000;
                    app.jobs.pauses.begin(self.tenant, self.lane, pause_ms);
                }
                return refused(&problem);
            }
        };
        let (parts, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                let error = "the function failed while it answered".to_owned();
                return Attempt::Failed { error, retry_after_s: None };
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.result_bytes_max {
                let limit_mib = self.result_bytes_max >> 20;
                let error = format!("result_too_large: the result is larger than {limit_mib} MiB");
                return Attempt::Hopeless(error);
            }
            bytes.extend_from_slice(&data);
        }
        if retry::is_failure(parts.status) {
            let after = parts.headers.get(header::RETRY_AFTER);
            let retry_after_s = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let error = format!("the function answered {}", parts.status.as_u16());
            return Attempt::Failed { error, retry_after_s };
        }
        let headers = parts.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        Attempt::Answered(JobResult {
            status: parts.status.as_u16(),
            headers: headers.collect(),
            body: bytes.freeze(),
            version,
        })
    }

    /// The version that the request is for now, whatever it was when the job came.
    fn work(&self, app: &Arc<App>, headers: &HeaderMap) -> Option<Work> {
        let snapshot = app.catalog.snapshot();
        let (tenant, function) = (self.tenant.as_str(), self.function.as_str());
        let found = snapshot.find_function(tenant, function, self.selector, |alias| {
            sticky::pick(alias, tenant, function, "", headers).0
        })?;
        let trial = app.rollouts.trial(&found, self.selector);
        let Found { tenant, version, grant, .. } = found;
        // Whoever took the name of a tenant that is gone must not run its jobs.
        let tenant_ms = tenant.created_at.unix_timestamp_nanos() / 1_000_000;
        if tenant_ms > i128::from(self.created_ms) {
            return None;
        }
        let admission = || app.admission(tenant);
        let runtime = app.functions.get(&tenant.name, self.function, version, admission);
        let request_id = self.id.to_string().into();
        let (version, grant) = (version.clone(), grant.clone());
        Some(Work { version, grant, runtime, lane: self.lane, request_id, trial })
    }

    fn request(&self) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::<Bytes>::new(self.body.clone()));
        *request.method_mut() = self.request.method.parse().ok()?;
        *request.uri_mut() = self.request.path_and_query.parse().ok()?;
        let headers = request.headers_mut();
        for (name, value) in &self.request.headers {
            let name = name.parse::<HeaderName>().ok()?;
            headers.append(name, HeaderValue::from_bytes(value).ok()?);
        }
        let id = HeaderValue::from_str(&self.id.to_string()).ok()?;
        headers.insert(REQUEST_ID, id.clone());
        headers.insert(JOB, id);
        headers.insert(ATTEMPT, self.attempt.into());
        Some(request)
    }
}

fn refused(problem: &Problem) -> Attempt {
    let error = format!("{}: {}", problem.code, problem.message);
    let retry_after_s = problem.retry_after_s.map(u64::from);
    if retry::is_refusal(problem) {
        return Attempt::Refused { error, retry_after_s };
    }
    match problem.status.is_server_error() {
        true => Attempt::Failed { error, retry_after_s },
        false => Attempt::Hopeless(error),
    }
}
