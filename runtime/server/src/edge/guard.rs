//! Guards a connection where hyper does not.
//!
//! - hyper has a timeout for an HTTP/1.1 head, but none while it still waits for the bytes that tell HTTP/1.1 from
//!   HTTP/2: a client that sends `PRI` and nothing more would stay for ever.
//! - It has none for writing: a client that never reads would keep its response in memory.
//! - It closes at once after a refusal that came before the body was read. The kernel answers what still arrives with a
//!   reset, and a client that writes first and reads then never sees why it was refused.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// The start of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client that was refused may go on sending before it is cut off.
const LINGER: Duration = Duration::from_secs(5);

/// A stream whose protocol must be clear before a deadline, and whose reader must go on reading.
pub(crate) struct Guarded<S> {
    stream: S,
    /// Gone once the protocol is clear.
    deadline: Option<Pin<Box<Sleep>>>,
    matched: usize,
    stall_timeout: Duration,
    /// There while a write waits.
    stall: Option<Pin<Box<Sleep>>>,
    /// Set when a request was answered whose body had not been read.
    unread: Arc<AtomicBool>,
    /// There while a refused client is read to its end.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    pub(crate) fn new(
        stream: S,
        timeout: Duration,
        stall_timeout: Duration,
        unread: Arc<AtomicBool>,
    ) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(timeout)));
        Guarded {
            stream,
            deadline,
            matched: 0,
            stall_timeout,
            stall: None,
            unread,
            lingering: None,
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if PREFACE.get(self.matched) != Some(byte) {
                self.deadline = None;
                return;
            }
            self.matched += 1;
        }
        if self.matched == PREFACE.len() {
            self.deadline = None;
        }
    }

    /// Passes a write's outcome on, unless it has waited for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall = None;
            return outcome;
        }
        let timeout = self.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match stall.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.deadline.is_none() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        match read {
            Poll::Ready(Ok(())) => {
                let fresh = buffer.filled()[before..].to_vec();
                self.see(&fresh);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match self.deadline.as_mut().map(|d| d.as_mut().poll(context)) {
                Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                _ => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            match Pin::new(&mut self.stream).poll_shutdown(context) {
                Poll::Ready(Ok(())) if self.unread.load(Relaxed) => {
                    self.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
                }
                outcome => return outcome,
            }
        }
        self.poll_discard(context)
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    /// Reads what still comes and throws it away, until the client has ended or its time has.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 8192];
        loop {
            if self.lingering.as_mut().is_none_or(|end| end.as_mut().poll(context).is_ready()) {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn guarded(stream: DuplexStream, timeout: Duration, stall: Duration) -> Guarded<DuplexStream> {
        Guarded::new(stream, timeout, stall, Arc::default())
    }

    /// Whether a client that pauses after `first` for longer than the timeout is still read.
    async fn reads_on_after(first: &[u8]) -> bool {
        let (mut client, server) = duplex(64);
        let mut guarded = guarded(server, Duration::from_millis(20), Duration::from_secs(60));
        client.write_all(first).await.unwrap();
        let mut buffer = vec![0; first.len()];
        guarded.read_exact(&mut buffer).await.unwrap();
        let late = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = client.write_all(b"x").await;
        };
        let (read, _) = tokio::join!(guarded.read_u8(), late);
        read.is_ok()
    }

    #[tokio::test]
    async fn only_an_unclear_beginning_times_out() {
        assert!(!reads_on_after(b"").await);
        assert!(!reads_on_after(b"P").await);
        assert!(!reads_on_after(&PREFACE[..23]).await);
        assert!(reads_on_after(PREFACE).await);
        assert!(reads_on_after(b"PO").await);
        assert!(reads_on_after(b"G").await);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up() {
        let (_client, server) = duplex(16);
        let mut guarded = guarded(server, Duration::from_secs(60), Duration::from_millis(20));
        assert!(guarded.write_all(&[0; 17]).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_served() {
        let (mut client, server) = duplex(16);
        let mut guarded = guarded(server, Duration::from_secs(60), Duration::from_secs(5));
        let slow = async {
            for _ in 0..64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                client.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(guarded.write_all(&[0; 64]), slow);
        written.unwrap();
    }

    #[tokio::test]
    async fn a_refused_client_is_read_to_its_end() {
        let (mut client, server) = duplex(16);
        let unread = Arc::new(AtomicBool::new(true));
        let minute = Duration::from_secs(60);
        let mut guarded = Guarded::new(server, minute, minute, unread);
        let sends = async {
            client.write_all(&[0; 1000]).await.unwrap();
            drop(client);
        };
        let (closed, ()) = tokio::join!(guarded.shutdown(), sends);
        closed.unwrap();
    }
}
