//! A connection that is given up when its other end takes nothing of what it is sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] when none of them gets anywhere for a while. A client that
/// reads slowly is not one that reads nothing: every byte taken starts the time anew.
pub(crate) struct Patient<S> {
    stream: S,
    patience: Duration,
    /// The end of the patience; `waiting` says whether it is running.
    end: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, end: Box::pin(tokio::time::sleep(patience)), waiting: false }
    }

    /// Passes on what a write came to, unless it has been waiting for too long.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waiting = false;
            return write;
        }
        if !self.waiting {
            self.waiting = true;
            self.end.as_mut().reset(Instant::now() + self.patience);
        }
        self.end.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket's flush does nothing, and says nothing of the writes.
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::net::{TcpListener, TcpStream};

    const PART: usize = 1 << 20;

    /// Two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (here, listener.accept().await.unwrap().0)
    }

    async fn write(to: &mut Patient<TcpStream>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = poll_fn(|cx| Pin::new(&mut *to).poll_write(cx, rest)).await?;
            rest = &rest[n..];
        }
        Ok(())
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn a_write_that_nobody_takes_fails() {
        run(async {
            let (here, there) = pair().await;
            let mut here = Patient::new(here, Duration::from_millis(100));
            tokio::time::sleep(Duration::from_millis(150)).await;
            let began = Instant::now();
            let error = write(&mut here, &vec![1; 64 * PART]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() >= Duration::from_millis(100), "idle time does not count");
            drop(there);
        });
    }

    #[test]
    fn a_slow_reader_is_waited_for() {
        run(async {
            let (here, there) = pair().await;
            let mut here = Patient::new(here, Duration::from_millis(500));
            let reader = tokio::spawn(async move {
                let (mut taken, mut part) = (0, vec![0; PART]);
                loop {
                    there.readable().await.unwrap();
                    match there.try_read(&mut part) {
                        Ok(0) => return taken,
                        Ok(n) => taken += n,
                        Err(_) => continue,
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            let began = Instant::now();
            write(&mut here, &vec![1; 40 * PART]).await.unwrap();
            assert!(began.elapsed() > Duration::from_millis(500), "longer than one wait may be");
            drop(here);
            assert_eq!(reader.await.unwrap(), 40 * PART);
        });
    }
}
