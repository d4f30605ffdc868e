//! What belongs to one sandbox: the data of its store.

use std::{sync::Arc, time::Instant};

use sandpiper_domain::{
    Activity, Grant, InferenceBill, ModelSource, Payer, Share, Unmetered, Usage,
};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::{
    WasiCtx, WasiCtxView, WasiView,
    p2::{DynInputStream, DynOutputStream, DynPollable},
};
use wasmtime_wasi_http::{
    WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::{body::HostOutgoingBody, types::HostResponseOutparam},
};

use crate::{
    host::{
        http::NoEgress,
        log::Printer,
        nn::{HostContext, HostGraph, NnView},
    },
    invoke::Shared,
    limits::{FIELDS_BYTES_MAX, Limiter, RANDOM_BYTES_MAX, RESOURCES_MAX},
    log::{InvocationLog, LogStream},
};

/// What a guest may keep in its table from one request to the next: a few of the streams of its output.
const KEPT_RESOURCES_MAX: usize = 16;

/// The data of one store. What belongs to a request is put in place anew for each.
pub(crate) struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    egress: NoEgress,
    pub(crate) limiter: Limiter,
    pub(crate) shared: Arc<Shared>,
    pub(crate) usage: Usage,
    pub(crate) grant: Arc<Grant>,
    models: Arc<dyn ModelSource>,
    share: Share,
    activity: Arc<dyn Activity>,
    payer: Arc<dyn Payer>,
    bill: Option<Arc<InferenceBill>>,
    deadline: Instant,
    log: Arc<InvocationLog>,
}

/// What an invocation brings to its sandbox.
pub(crate) struct Terms {
    pub(crate) grant: Arc<Grant>,
    pub(crate) share: Share,
    pub(crate) activity: Arc<dyn Activity>,
    pub(crate) payer: Arc<dyn Payer>,
    pub(crate) deadline: Instant,
}

impl State {
    pub(crate) fn new(
        terms: Terms,
        models: Arc<dyn ModelSource>,
        shared: Arc<Shared>,
        log: Arc<InvocationLog>,
    ) -> Self {
        let Terms { grant, share, activity, payer, deadline } = terms;
        let mut wasi = WasiCtx::builder();
        wasi.stdout(Printer::new(log.clone(), LogStream::Stdout));
        wasi.stderr(Printer::new(log.clone(), LogStream::Stderr));
        wasi.max_random_size(RANDOM_BYTES_MAX).allow_tcp(false).allow_udp(false);
        for (name, value) in grant.env.iter() {
            wasi.env(name, value);
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        State {
            table,
            wasi: wasi.build(),
            http,
            egress: NoEgress,
            limiter: Limiter::new(&grant.sandbox),
            shared,
            usage: Usage::default(),
            grant,
            models,
            share,
            activity,
            payer,
            bill: None,
            deadline,
            log,
        }
    }

    /// Puts a request's own in place of the last one's. The environment and the limits are the version's and stay.
    pub(crate) fn begin(&mut self, terms: Terms, shared: Arc<Shared>, request_id: &Arc<str>) {
        let Terms { grant, share, activity, payer, deadline } = terms;
        self.log.begin(request_id.clone(), grant.sandbox.log_kib as usize * 1024);
        self.limiter.begin();
        (self.grant, self.share, self.activity) = (grant, share, activity);
        (self.shared, self.deadline, self.usage) = (shared, deadline, Usage::default());
        (self.payer, self.bill) = (payer, None);
    }

    /// Ends a request; `false` when something of it is left behind and the sandbox must go with it. What it printed
    /// last needs no line feed, and whoever counted the request is let go of.
    pub(crate) fn rest(&mut self) -> bool {
        self.log.end();
        self.activity = Arc::new(Unmetered);
        self.limiter.is_at_rest() && self.has_let_go()
    }

    /// Whether the table holds nothing that came with a request or costs the host much. The stream of a body never
    /// comes without its body, which is none of these.
    fn has_let_go(&mut self) -> bool {
        let mut kept = 0;
        self.table.iter_mut().all(|resource| {
            kept += 1;
            kept <= KEPT_RESOURCES_MAX
                && (resource.is::<DynOutputStream>()
                    || resource.is::<DynInputStream>()
                    || resource.is::<DynPollable>())
        })
    }

    /// Whether the guest holds a model open.
    pub(crate) fn holds_model(&mut self) -> bool {
        let mut all = self.table.iter_mut();
        all.any(|resource| resource.is::<HostGraph>() || resource.is::<HostContext>())
    }

    pub(crate) fn nn(&mut self) -> NnView<'_> {
        NnView {
            table: &mut self.table,
            limiter: &mut self.limiter,
            usage: &mut self.usage,
            scope: &self.grant.models,
            share: self.share,
            activity: &self.activity,
            brief: &self.shared.brief,
            bill: &mut self.bill,
            payer: &self.payer,
            models: &self.models,
            deadline: self.deadline,
        }
    }

    /// Whether the guest holds a body that it has begun and not finished.
    pub(crate) fn has_unfinished_body(&mut self) -> bool {
        self.table.iter_mut().any(|resource| resource.is::<HostOutgoingBody>())
    }

    /// Hands the guest the place for its response.
    pub(crate) fn new_response(
        &mut self,
        response: HostResponseOutparam,
    ) -> wasmtime::Result<Resource<HostResponseOutparam>> {
        Ok(self.table.push(response)?)
    }

    /// What the invocation has cost. Inferences that still run are paid for when they end.
    pub(crate) fn settle(&mut self) -> Usage {
        let cost = self.bill.take().map(|bill| bill.close()).unwrap_or_default();
        Usage {
            memory_bytes_max: self.limiter.memory_bytes_peak(),
            inference_queued: cost.queued,
            inference: cost.computed,
            ..self.usage
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}
