//! From the first connection to the last: serve, say that it ends, drain, end.
//!
//! ```text
//! Serving ──SIGTERM──▶ Leaving ──drain_delay_ms──▶ Draining ──drain_ms at most──▶ ended
//!    └──SIGUSR2: a new process listens──────────────▲         (a second signal ends it at once)
//! ```
//!
//! A signal that comes while a new process takes over counts for both.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use hyper_util::server::graceful::GracefulShutdown;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    task::AbortHandle,
};

use super::{
    Server, serve_metrics,
    successor::{Passed, Predecessor, Successor},
    supervisor,
};
use crate::{
    app::App,
    config::{OwnCommand, ServeOptions, Settings},
    shutdown,
};

/// Clients that the kernel keeps for us until we accept them; it may be set to keep fewer.
const BACKLOG: u32 = 4096;

/// Where in its life a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// It says that it is not ready, and still does everything.
    Leaving,
    /// It takes no new connections, and what has no end of its own is ended.
    Draining,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and all that it did was done or had had its time.
    Drained,
    /// It was told twice, and ended at once.
    AtOnce,
}

/// Why no more connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Told,
    ToldTwice,
    /// By another process; and whether the two were told to end while it took over.
    Replaced {
        told: bool,
    },
    /// The data folder was given away, and could not be had back.
    Bereft,
}

struct Signals {
    stop: Stop,
    /// A new process is to take over.
    replace: Signal,
}

/// The node is to end.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            stop: Stop {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            replace: signal(SignalKind::user_defined2())?,
        })
    }
}

impl Stop {
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The sockets that are listened on.
struct Sockets {
    listener: TcpListener,
    metrics: Option<Arc<TcpListener>>,
}

impl Sockets {
    fn bind(options: &ServeOptions) -> anyhow::Result<Self> {
        let metrics = match options.metrics_listen {
            Some(address) => Some(Arc::new(bind(address)?)),
            None => None,
        };
        Ok(Sockets { listener: bind(options.listen)?, metrics })
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let open = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().with_context(|| {
        format!("cannot listen on {address}; is another server running there? choose another with --listen")
    })
}

/// Opens the node, serves until told to stop, then drains.
pub(crate) async fn serve(
    settings: Settings,
    metrics: PrometheusHandle,
    mut options: ServeOptions,
) -> anyhow::Result<Ended> {
    let command = OwnCommand::new()?;
    // From here on no signal ends the process by itself: SIGUSR2 would.
    let mut signals = Signals::new()?;
    let passed = options.inherited.map(|inherited| Predecessor::meet(inherited, &settings));
    let passed = passed.transpose()?;
    let app = App::open(settings, metrics)?;
    let (sockets, predecessor) = match passed {
        Some(Passed { predecessor, listener, metrics }) => {
            (Sockets { listener, metrics: metrics.map(Arc::new) }, Some(predecessor))
        }
        None => (Sockets::bind(&options)?, None),
    };
    let address = sockets.listener.local_addr()?;
    let scrapes = sockets.metrics.clone().map(|listener| {
        let task = tokio::spawn(serve_metrics(listener, app.clone()));
        task.abort_handle()
    });
    if let Some(predecessor) = predecessor {
        predecessor.relieve();
    }
    tracing::info!(%address, pid = std::process::id(), "listening");
    supervisor::ready();
    if let Some(on_ready) = options.on_ready.take() {
        on_ready(address);
    }
    let graceful = GracefulShutdown::new();
    let server = Server::new(app.clone());
    let why = accept(&server, &sockets, &graceful, &mut signals, &command).await;
    let ended = end(&app, sockets, scrapes, graceful, signals, why).await;
    anyhow::ensure!(
        why != Why::Bereft,
        "the data folder could not be taken back; the log says why"
    );
    Ok(ended)
}

/// Accepts connections until the node is to end or another process does it.
async fn accept(
    server: &Server,
    sockets: &Sockets,
    graceful: &GracefulShutdown,
    signals: &mut Signals,
    command: &OwnCommand,
) -> Why {
    let app = &server.app;
    let why = loop {
        tokio::select! {
            never = server.accept(&sockets.listener, graceful) => match never {},
            () = signals.stop.told() => break Why::Told,
            _ = signals.replace.recv() => {}
        }
        match replace(server, sockets, graceful, &mut signals.stop, command).await {
            Ok(Why::Told) => break Why::Told,
            Ok(why) => return why,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "no new process took over; this one goes on");
            }
        }
        let reclaimed = tokio::select! {
            reclaimed = shutdown::reclaim(app) => reclaimed,
            () = signals.stop.told() => break Why::Told,
        };
        if let Err(error) = reclaimed {
            let error = format!("{error:#}");
            tracing::error!(error, "the data folder could not be taken back; this process ends");
            break Why::Bereft;
        }
    };
    app.enter(Phase::Leaving);
    supervisor::stopping();
    let delay = Duration::from_millis(app.settings.drain_delay_ms);
    tracing::info!(delay_ms = app.settings.drain_delay_ms, "leaving");
    tokio::select! {
        never = server.accept(&sockets.listener, graceful) => match never {},
        () = tokio::time::sleep(delay) => why,
        () = signals.stop.told() => Why::ToldTwice,
    }
}

/// Has a new process take over. After an error, this one has yet to take the data folder back.
async fn replace(
    server: &Server,
    sockets: &Sockets,
    graceful: &GracefulShutdown,
    stop: &mut Stop,
    command: &OwnCommand,
) -> anyhow::Result<Why> {
    let app = &server.app;
    anyhow::ensure!(
        supervisor::allows_replacement(std::process::id()),
        "this is the first process of its container, which ends with it; start a new container instead"
    );
    let prepared = async {
        let successor = Successor::start(command, &sockets.listener, sockets.metrics.as_deref());
        let successor = successor.await?;
        shutdown::pause(app).await;
        anyhow::Ok(successor)
    };
    // It gets ready while this process goes on.
    let mut successor = tokio::select! {
        never = server.accept(&sockets.listener, graceful) => match never {},
        () = stop.told() => return Ok(Why::Told),
        successor = prepared => successor?,
    };
    // From here on new clients wait, for the one process or the other.
    tokio::select! {
        () = shutdown::release(app) => {}
        () = stop.told() => return Ok(Why::Told),
    }
    let Some((served, told)) = serves(&mut successor, stop).await else {
        return Ok(Why::ToldTwice);
    };
    match served {
        Ok(()) => {}
        Err(_) if told => return Ok(Why::Told),
        Err(error) => {
            return Err(error.context("the new process could not take over; its log says why"));
        }
    }
    let pid = successor.let_go();
    supervisor::replaced_by(pid);
    tracing::info!(pid, "a new process has taken over");
    Ok(Why::Replaced { told })
}

/// Waits until the new process serves, or cannot; says too whether this one was told to end meanwhile, or nothing where
/// it was told twice.
async fn serves(successor: &mut Successor, stop: &mut Stop) -> Option<(anyhow::Result<()>, bool)> {
    let mut told = false;
    let (process, serves) = successor.take_over();
    let mut serves = std::pin::pin!(serves);
    loop {
        tokio::select! {
            served = &mut serves => return Some((served, told)),
            () = stop.told() => {
                if told {
                    return None;
                }
                told = true;
                // It may serve by now, or be about to: it ends as this process does.
                process.terminate();
            }
        }
    }
}

/// Lets what runs come to its end, as long as the settings allow.
async fn end(
    app: &Arc<App>,
    sockets: Sockets,
    scrapes: Option<AbortHandle>,
    graceful: GracefulShutdown,
    mut signals: Signals,
    why: Why,
) -> Ended {
    if why == Why::ToldTwice {
        return Ended::AtOnce;
    }
    app.enter(Phase::Draining);
    drop(sockets);
    let is_replaced = matches!(why, Why::Replaced { .. });
    if let (true, Some(scrapes)) = (is_replaced, scrapes) {
        scrapes.abort();
    }
    let limit = Duration::from_millis(app.settings.drain_ms);
    tracing::info!(connections = graceful.count(), "draining");
    let mut stopped = std::pin::pin!(shutdown::stop(app, graceful.shutdown(), limit));
    // Whoever replaced the node may tell the old process to end, which it does already.
    let mut may_be_told = why == Why::Replaced { told: false };
    loop {
        tokio::select! {
            () = &mut stopped => return Ended::Drained,
            () = signals.stop.told() => match may_be_told {
                true => may_be_told = false,
                false => {
                    tracing::warn!("told to end a second time: ending at once");
                    return Ended::AtOnce;
                }
            },
        }
    }
}
