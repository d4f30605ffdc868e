//! Telling somebody that a job has ended, at an address that they named. The address is the tenant's choice, so that
//! nothing within the operator's network may be reached through it, whatever its name resolves to.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use http::Uri;
use metrics::counter;
use sandpiper_control::{Calls, DataFolder, DueWebhook, OpenError, Tenant};
use sandpiper_domain::{JobId, TenantName};
use serde_json::json;
use sha2::Sha256;
use ureq::{
    Agent,
    config::Config,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{now_ms, retry};
use crate::app::App;

const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 1_024;
const CALLS_MAX: u32 = 8;
/// Calls at once, and of one tenant. Each waits on a thread.
pub(super) const CALLERS: usize = 64;
const CALLS_OF_TENANT: usize = 2;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What a webhook's signature is made with.
pub(crate) struct Secrets(Hmac<Sha256>);

impl Secrets {
    pub(super) fn open(folder: &DataFolder) -> Result<Self, OpenError> {
        let key = folder.webhook_key()?;
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(&key);
        Ok(Secrets(Hmac::new(&block.into())))
    }

    /// The secret that a tenant checks signatures with. One that gets a name again gets no secret again.
    pub(crate) fn of(&self, tenant: &Tenant) -> String {
        let mut mac = self.0.clone();
        let born_ns = tenant.created_at.unix_timestamp_nanos();
        mac.update(format!("webhook/{}/{born_ns}", tenant.name).as_bytes());
        hex(&mac.finalize().into_bytes())
    }

    /// `t=<unix>,v1=<hex HMAC-SHA256(secret, "<t>.<body>")>`.
    fn sign(&self, tenant: &Tenant, unix_s: u64, body: &str) -> Option<String> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.of(tenant).as_bytes()).ok()?;
        mac.update(format!("{unix_s}.{body}").as_bytes());
        Some(format!("t={unix_s},v1={}", hex(&mac.finalize().into_bytes())))
    }
}

fn born_ms(tenant: &Tenant) -> i128 {
    tenant.created_at.unix_timestamp_nanos() / 1_000_000
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a webhook may be called as far as its text tells; what its name resolves to is checked at each call.
pub(super) fn check(url: &str, allowed: &[IpAddr]) -> Result<(), &'static str> {
    let uri: Uri = url.parse().map_err(|_| "it is no URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("its scheme is neither http nor https");
    }
    let authority = uri.authority().ok_or("it names no host")?;
    if authority.as_str().contains('@') {
        return Err("it holds a name or a password");
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name.is_empty() {
        return Err("it names no host");
    }
    let address = host.parse::<IpAddr>().ok();
    let is_allowed =
        |address: IpAddr| is_public(address) || allowed.contains(&address.to_canonical());
    match address {
        Some(address) if is_allowed(address) => Ok(()),
        Some(_) => Err("its address is private, local or reserved"),
        None if name == "localhost" || name.ends_with(".localhost") => Err("it is this machine"),
        // `127.1`, `0x7f.1` and `2130706433` are addresses to a resolver.
        None if name.split('.').next_back().is_some_and(is_number) => {
            Err("its host is a number and no address")
        }
        None => Ok(()),
    }
}

fn is_number(label: &str) -> bool {
    let digits = label.strip_prefix("0x").unwrap_or(label);
    !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && (label.starts_with("0x") || digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether an address is one of the internet at large.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (b == 18 || b == 19))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99);
    !is_special
}

/// Global unicast without what embeds or translates to an IPv4 address, and without the documentation's.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let is_global = a & 0xe000 == 0x2000;
    let is_translated = a == 0x2002 || (a == 0x2001 && b < 0x0200);
    let is_documentation = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    is_global && !is_translated && !is_documentation
}

/// Resolves names to the addresses that may be called. It looks at what is connected to, so that a name that changes
/// its address between a check and the call gains nothing.
#[derive(Debug)]
struct PublicResolver {
    inner: DefaultResolver,
    allowed: Vec<IpAddr>,
}

impl Resolver for PublicResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut public = self.empty();
        for address in self.inner.resolve(uri, config, timeout)?.iter() {
            let ip = address.ip();
            if is_public(ip) || self.allowed.contains(&ip.to_canonical()) {
                public.push(*address);
            }
        }
        if public.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(public) }
    }
}

fn agent(allowed: Vec<IpAddr>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .user_agent(concat!("sandpiper/", env!("CARGO_PKG_VERSION")))
        .build();
    let resolver = PublicResolver { inner: DefaultResolver::default(), allowed };
    Agent::with_parts(config, DefaultConnector::default(), resolver)
}

/// The calls that are being made.
#[derive(Default)]
struct Made(Mutex<HashMap<JobId, TenantName>>);

impl Made {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, TenantName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls for Made {
    fn room(&self, tenant: &TenantName) -> usize {
        let made = self.lock();
        CALLS_OF_TENANT.saturating_sub(made.values().filter(|other| *other == tenant).count())
    }

    fn has(&self, job: JobId) -> bool {
        self.lock().contains_key(&job)
    }
}

/// Makes the calls that are due, tenant by tenant in turn, until the node goes.
pub(super) async fn tell(app: Weak<App>) {
    let Some(first) = app.upgrade() else { return };
    let agent = agent(first.settings.webhook_private.clone());
    let wake = first.jobs.webhook_wake.clone();
    let callers = first.jobs.callers.clone();
    drop(first);
    let made = Arc::<Made>::default();
    let mut after = None;
    loop {
        let _ = tokio::time::timeout(LOOK_INTERVAL, wake.notified()).await;
        let Some(app) = app.upgrade() else { return };
        let free = CALLERS - made.lock().len().min(CALLERS);
        if app.jobs.is_stopped() || free == 0 {
            continue;
        }
        let (last, calls) = (after.clone(), made.clone());
        let look =
            move |app: &App| app.jobs.queue.due_webhooks(now_ms(), last.as_ref(), &*calls, free);
        let due = match app.blocking(look).await {
            Ok(Ok(due)) => due,
            Ok(Err(error)) => {
                tracing::error!(%error, "the webhooks that are due cannot be read");
                continue;
            }
            Err(_) => continue,
        };
        for call in due {
            after = Some(call.tenant.clone());
            made.lock().insert(call.id, call.tenant.clone());
            let (app, agent) = (app.clone(), agent.clone());
            let (made, wake, callers) = (made.clone(), wake.clone(), callers.clone());
            tokio::spawn(async move {
                let id = call.id;
                // Whoever hands the queue over waits for these.
                let _caller = callers.acquire_owned().await;
                if !app.jobs.is_stopped() {
                    one(&app, agent, call).await;
                }
                // It is on the disk by now how the call went: it is not due any more.
                made.lock().remove(&id);
                wake.notify_one();
            });
        }
    }
}

async fn one(app: &Arc<App>, agent: Agent, call: DueWebhook) {
    let calls = call.calls + 1;
    // Whoever took the name of a tenant that is gone knows nothing of its jobs.
    let tenant = app.catalog.snapshot().tenant(&call.tenant).cloned();
    let tenant = tenant.filter(|tenant| born_ms(tenant) <= i128::from(call.created_ms));
    let (delivered, again) = match tenant {
        Some(tenant) => {
            let told = call.clone();
            let deliver = move |app: &App| deliver(app, &agent, &tenant, &told);
            let delivered = app.blocking(deliver).await.unwrap_or(false);
            let again = (!delivered && calls < CALLS_MAX)
                .then(|| now_ms() + retry::pause_ms(calls, rand::random()));
            (delivered, again)
        }
        None => (false, None),
    };
    let outcome = match (delivered, again) {
        (true, _) => "delivered",
        (false, Some(_)) => "retried",
        (false, None) => "given_up",
    };
    counter!("sandpiper_webhooks_total", "outcome" => outcome).increment(1);
    if let Err(error) = app.jobs.queue.webhook_called(&call, delivered, again).await {
        tracing::error!(%error, "the end of a webhook's call could not be noted");
    }
}

/// One call; true where the answer is 2xx. Blocks.
fn deliver(app: &App, agent: &Agent, tenant: &Tenant, call: &DueWebhook) -> bool {
    let id = call.id.to_string();
    let body = json!({
        "id": id,
        "function": call.function,
        "state": call.state,
        "status": call.status,
        "attempts": call.attempts,
        "result_url": format!("/api/v1/jobs/{id}/result"),
    });
    let body = body.to_string();
    let Some(signature) = app.jobs.secrets.sign(tenant, now_ms() / 1_000, &body) else {
        return false;
    };
    let request = agent
        .post(&call.url)
        .header("content-type", "application/json")
        .header("x-sandpiper-signature", signature);
    match request.send(&body) {
        Ok(mut answer) => {
            let _ = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
            answer.status().is_success()
        }
        Err(error) => {
            tracing::debug!(job = %call.id, %error, "a webhook could not be called");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_everybodys_are_refused() {
        for url in [
            "http://127.0.0.1/",
            "http://10.0.0.1:8080/x",
            "http://172.16.5.5/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest/meta-data",
            "http://100.64.0.1/",
            "http://0.0.0.0/",
            "http://255.255.255.255/",
            "http://224.0.0.1/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[fc00::1]/",
            "http://[fe80::1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://user:password@example.com/",
            "ftp://example.com/",
            "/relative",
            "example.com",
            "http://",
        ] {
            assert!(check(url, &[]).is_err(), "{url}");
        }
        for url in ["http://example.com/x?y", "https://1.1.1.1:8443/", "https://[2606:4700::1111]/"]
        {
            assert_eq!(check(url, &[]), Ok(()), "{url}");
        }
        let allowed = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        assert_eq!(check("http://127.0.0.1:9/", &allowed), Ok(()));
        assert!(check("http://127.0.0.2:9/", &allowed).is_err());
    }

    #[test]
    fn a_name_that_resolves_to_a_private_address_is_not_called() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let call = agent(Vec::new()).get(format!("http://localhost:{port}/")).call();
        assert!(matches!(call, Err(ureq::Error::HostNotFound)), "{call:?}");
        assert!(listener.accept().is_err(), "nobody came");
    }
}
