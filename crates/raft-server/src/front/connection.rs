//! One accepted connection: told apart by its first bytes, then served.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tonic::codegen::Service as _;

use super::admission::Ticket;
use super::authority::Mended;
use super::budget::Metered;
use super::gone::gone;
use super::wire::Wire;
use super::{Doors, Security, deadline};
use crate::metrics::{Measured, Metrics, Received};
use crate::tls::{CommonName, PEER_PROTOCOL};

/// What an HTTP/2 client sends first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to introduce itself, and an HTTP/1 client to finish a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests in flight on one HTTP/2 connection, at most.
pub(super) const STREAMS_MAX: u32 = 4096;
/// Bytes a client may send ahead on one stream: a whole request of the usual limit.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Bytes a client may send ahead on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// An HTTP/2 client that says nothing is asked whether it lives …
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// … and has this long to answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an HTTP/1 request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The first byte of TLS.
const TLS_HANDSHAKE: u8 = 22;
/// The wait for the rest of what a TLS client says first, when it comes in pieces.
const HELLO_WAIT: Duration = Duration::from_millis(5);
/// Bytes of what a TLS client says first, at most.
const HELLO_BYTES_MAX: usize = 16 << 10;
/// What Go's server says to those who speak HTTP where TLS is spoken.
const NOT_SECURED: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// What a connection turned out to be.
pub(super) enum Introduced {
    /// A peer: its first byte is still unread.
    Peer(TcpStream),
    /// An HTTP/2 client whose preface has been read.
    Http2(Rewound, Option<CommonName>),
    /// Anything else is left to the HTTP/1 parser to judge.
    Http1(Rewound, Option<CommonName>),
}

/// Waits for the first bytes, and for TLS. `None` when the connection closes, takes too long or is not for this door.
pub(super) async fn introduce(
    stream: TcpStream,
    doors: Doors,
    security: &Security,
) -> Option<Introduced> {
    match tokio::time::timeout(HEAD_TIMEOUT, first_bytes(stream, doors, security)).await {
        Ok(Ok(introduced)) => introduced,
        Ok(Err(error)) => {
            tracing::debug!("a connection broke before it said anything: {error}");
            None
        }
        Err(_) => {
            tracing::debug!("a connection said nothing for {HEAD_TIMEOUT:?}");
            None
        }
    }
}

async fn first_bytes(
    mut stream: TcpStream,
    doors: Doors,
    security: &Security,
) -> io::Result<Option<Introduced>> {
    let mut first = [0u8; 1];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if raft::transport::first_byte_is_peer(first[0]) {
        // Without TLS no peer is heard where TLS is spoken.
        return Ok((doors.peers && !security.peers).then_some(Introduced::Peer(stream)));
    }
    let is_secured = first[0] == TLS_HANDSHAKE;
    if doors.peers && security.peers && is_secured {
        let is_peer = !(doors.clients && doors.secured) || offers_peer_protocol(&stream).await?;
        if is_peer {
            return Ok(Some(Introduced::Peer(stream)));
        }
    }
    if !doors.clients {
        return Ok(None);
    }
    match (&security.clients, doors.secured) {
        (Some(tls), true) if is_secured => {
            let (stream, name) = tls.welcome(stream).await?;
            preface(Wire::Secured(Box::new(stream)), name.map(CommonName)).await
        }
        (_, true) => {
            stream.write_all(NOT_SECURED).await?;
            Ok(None)
        }
        (_, false) => preface(Wire::Plain(stream), None).await,
    }
}

/// Tells HTTP/2 from HTTP/1 by what a client says first.
async fn preface(mut stream: Wire, name: Option<CommonName>) -> io::Result<Option<Introduced>> {
    let mut read = BytesMut::with_capacity(HTTP2_PREFACE.len());
    loop {
        let matching = read.len().min(HTTP2_PREFACE.len());
        if read[..matching] != HTTP2_PREFACE[..matching] {
            return Ok(Some(Introduced::Http1(Rewound { read: read.freeze(), stream }, name)));
        }
        if matching == HTTP2_PREFACE.len() {
            return Ok(Some(Introduced::Http2(Rewound { read: read.freeze(), stream }, name)));
        }
        let mut rest = (&mut stream).take((HTTP2_PREFACE.len() - read.len()) as u64);
        if rest.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether what a TLS client says first, which stays unread, offers the protocol of members.
async fn offers_peer_protocol(stream: &TcpStream) -> io::Result<bool> {
    let mut bytes = vec![0u8; HELLO_BYTES_MAX];
    let mut known = 0;
    loop {
        let count = stream.peek(&mut bytes).await?;
        if count == known {
            // Nothing more has come.
            tokio::time::sleep(HELLO_WAIT).await;
            continue;
        }
        known = count;
        let mut acceptor = rustls::server::Acceptor::default();
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(hello
                    .alpn()
                    .is_some_and(|mut names| names.any(|name| name == PEER_PROTOCOL)));
            }
            Ok(None) if count < HELLO_BYTES_MAX => {}
            // The handshake with a client will say what is wrong.
            Ok(None) | Err(_) => return Ok(false),
        }
    }
}

/// Serves HTTP/2 until the client leaves, or `stop` and the requests under way are answered.
pub(super) async fn serve_http2(
    (io, name): (Rewound, Option<CommonName>),
    serving: (Router, Arc<Metrics>),
    streams_max: u32,
    stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(serving.clone(), request, name.as_ref()));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let io = TokioIo::new(Mended::new(Metered::new(io)));
    let mut connection = pin!(builder.serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    report(ended);
}

/// Serves HTTP/1 likewise. The ticket is given back when the first request's head is there.
pub(super) async fn serve_http1(
    (io, name): (Rewound, Option<CommonName>),
    serving: (Router, Arc<Metrics>),
    stop: watch::Receiver<bool>,
    ticket: Ticket,
) {
    let ticket = Mutex::new(Some(ticket));
    let socket = io.stream.beside();
    let endless = Arc::new(Notify::new());
    let begun = Arc::clone(&endless);
    let service = service_fn(move |request| {
        drop(ticket.lock().unwrap_or_else(PoisonError::into_inner).take());
        let (answered, begun) = (answer(serving.clone(), request, name.as_ref()), begun.clone());
        async move {
            let response = answered.await?;
            if response.size_hint().exact().is_none() {
                begun.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = gone(socket, &endless) => Ok(()),
        () = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    report(ended);
}

fn answer(
    (mut router, metrics): (Router, Arc<Metrics>),
    mut request: hyper::Request<Incoming>,
    name: Option<&CommonName>,
) -> impl Future<Output = Result<hyper::Response<Measured<Body>>, Infallible>> + use<> {
    if let Some(name) = name {
        request.extensions_mut().insert(name.clone());
    }
    let call = metrics.begin(request.uri().path());
    let deadline = deadline::of(request.headers());
    let request = request.map(|body| Received::new(body, call.as_ref()));
    async move {
        let answer = router.call(request);
        let mut response = match deadline {
            None => answer.await?,
            Some(time) => match tokio::time::timeout(time, answer).await {
                Ok(answer) => answer?,
                Err(_) => deadline::passed(),
            },
        };
        crate::etcd::polish(&mut response);
        let (parts, body) = response.into_parts();
        let body = Measured::new(body, &parts.headers, call);
        Ok(hyper::Response::from_parts(parts, body))
    }
}

/// Returns once `stop` is true.
pub(super) async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    stop.wait_for(|stop| *stop).await.ok();
}

fn report(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a client's connection ended: {error}");
    }
}

/// Hands a peer's connection over as the standard library has it.
pub(super) fn into_std(stream: TcpStream, from: SocketAddr) -> Option<std::net::TcpStream> {
    match stream.into_std() {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::warn!("the connection of peer {from} cannot be handed over: {error}");
            None
        }
    }
}

/// A stream some of whose bytes were read already and are read again first.
#[derive(Debug)]
pub(super) struct Rewound {
    read: Bytes,
    stream: Wire,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Says that it does not take several buffers at once. To one that does, `h2` hands every message over 256 bytes by
/// itself, with a system call of its own; to this one it hands small answers to many requests together.
impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
