//! From the first connection to the last: serve, say that it ends, drain, end.
//!
//! ```text
//! Serving ──SIGTERM──▶ Leaving ──drain_delay_ms──▶ Draining ──drain_ms at most──▶ ended
//!    └──SIGUSR2: a new process listens──────────────▲         (a second signal ends it at once)
//! ```

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
    Replaced,
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
    if let Some(on_ready) = options.on_ready.take() {
        on_ready(address);
    }
    let graceful = GracefulShutdown::new();
    let server = Server::new(app.clone());
    let why = accept(&server, &sockets, &graceful, &mut signals, &command).await;
    Ok(end(&app, sockets, scrapes, graceful, signals, why).await)
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
    loop {
        tokio::select! {
            never = server.accept(&sockets.listener, graceful) => match never {},
            () = signals.stop.told() => break,
            _ = signals.replace.recv() => {}
        }
        // It gets ready while this process goes on.
        let successor = Successor::start(command, &sockets.listener, sockets.metrics.as_deref());
        let successor = tokio::select! {
            never = server.accept(&sockets.listener, graceful) => match never {},
            () = signals.stop.told() => break,
            successor = successor => successor,
        };
        let replaced = match successor {
            Ok(successor) => successor.take_over(app).await,
            Err(error) => Err(error),
        };
        match replaced {
            Ok(pid) => {
                tracing::info!(pid, "a new process has taken over");
                return Why::Replaced;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "no new process took over; this one goes on");
            }
        }
    }
    app.enter(Phase::Leaving);
    let delay = Duration::from_millis(app.settings.drain_delay_ms);
    tracing::info!(delay_ms = app.settings.drain_delay_ms, "leaving");
    tokio::select! {
        never = server.accept(&sockets.listener, graceful) => match never {},
        () = tokio::time::sleep(delay) => Why::Told,
        () = signals.stop.told() => Why::ToldTwice,
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
    if let (Why::Replaced, Some(scrapes)) = (why, scrapes) {
        scrapes.abort();
    }
    let limit = Duration::from_millis(app.settings.drain_ms);
    tracing::info!(connections = graceful.count(), "draining");
    let mut stopped = std::pin::pin!(shutdown::stop(app, graceful.shutdown(), limit));
    // Whoever replaced the node may tell the old process to end, which it does already.
    let mut may_be_told = why == Why::Replaced;
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
