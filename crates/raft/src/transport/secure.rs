//! Connections that somebody else secures. How is the embedder's to say ([`Security`]); without it a connection is
//! plain TCP, and all that it pays for the possibility is a comparison for each read and write.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A connection whose bytes are secured on their way.
pub trait SecureStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> SecureStream for T {}

/// On its way to a secured connection; stays on the raft thread.
pub type Securing = Pin<Box<dyn Future<Output = io::Result<Box<dyn SecureStream>>>>>;

/// Secures the connections between members, and makes sure that a member is at the other end: TLS in the server.
/// Called on the raft thread; both ways must end by themselves when the other end is silent, or be dropped.
pub trait Security: fmt::Debug + Send + Sync {
    /// Whether only members get through.
    fn authenticates(&self) -> bool;

    /// Secures a connection that was dialled to `address` (`host:port`).
    fn dial(&self, tcp: TcpStream, address: &str) -> Securing;

    /// Secures a connection that another member has dialled.
    fn accept(&self, tcp: TcpStream) -> Securing;
}

/// A connection in both directions.
pub(super) enum Connected {
    Plain(TcpStream),
    Secured(Box<dyn SecureStream>),
}

impl Connected {
    /// Its two directions.
    pub(super) fn split(self) -> (ReadHalf, Rc<WriteHalf>) {
        match self {
            Self::Plain(tcp) => {
                let (read, write) = tcp.into_split();
                (ReadHalf::Plain(read), Rc::new(WriteHalf::Plain(write)))
            }
            Self::Secured(stream) => {
                let (read, write) = tokio::io::split(stream);
                (ReadHalf::Secured(read), Rc::new(WriteHalf::Secured(RefCell::new(write))))
            }
        }
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Secured(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Secured(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Secured(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Secured(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// What comes in on a connection.
pub(super) enum ReadHalf {
    Plain(OwnedReadHalf),
    Secured(tokio::io::ReadHalf<Box<dyn SecureStream>>),
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadHalf")
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_read(context, buffer),
            Self::Secured(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

/// What goes out on a connection. Shared on one thread; no borrow outlives a poll.
pub(super) enum WriteHalf {
    Plain(OwnedWriteHalf),
    Secured(RefCell<tokio::io::WriteHalf<Box<dyn SecureStream>>>),
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteHalf")
    }
}

impl WriteHalf {
    /// Writes what the system takes at once. A secured connection takes nothing this way.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(half) => half.try_write(bytes),
            Self::Secured(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes some of `bytes`, which are not empty. Cancelling writes nothing.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(half) => loop {
                match half.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        half.writable().await?;
                    }
                    result => return result,
                }
            },
            Self::Secured(half) => {
                poll_fn(|context| Pin::new(&mut *half.borrow_mut()).poll_write(context, bytes))
                    .await
            }
        }
    }

    /// Sends what was written and still lies here.
    pub(super) async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Secured(half) => {
                poll_fn(|context| Pin::new(&mut *half.borrow_mut()).poll_flush(context)).await
            }
        }
    }

    /// Ends the connection in this direction.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Plain(half) => {
                let stream: &TcpStream = half.as_ref();
                Ok(rustix::net::shutdown(stream, rustix::net::Shutdown::Write)?)
            }
            Self::Secured(half) => {
                poll_fn(|context| Pin::new(&mut *half.borrow_mut()).poll_shutdown(context)).await
            }
        }
    }
}
