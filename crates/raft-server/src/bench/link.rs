//! One connection to a member: gRPC on `h2`, reconnecting by itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tonic::{Code, Status};

/// Bytes that a server may send ahead, per call and per connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Between attempts to connect again.
const RETRY: Duration = Duration::from_millis(50);

/// The calls that are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rpc {
    Put,
    Range,
    DeleteRange,
    Txn,
    Watch,
}

impl Rpc {
    const ALL: [Self; 5] = [Self::Put, Self::Range, Self::DeleteRange, Self::Txn, Self::Watch];

    const fn path(self) -> &'static str {
        match self {
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Range => "/etcdserverpb.KV/Range",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Watch => "/etcdserverpb.Watch/Watch",
        }
    }

    const fn place(self) -> usize {
        match self {
            Self::Put => 0,
            Self::Range => 1,
            Self::DeleteRange => 2,
            Self::Txn => 3,
            Self::Watch => 4,
        }
    }
}

/// A message as gRPC frames it: a flag, the length, the message.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows: it cannot be too small.
    message.encode(&mut frame).ok();
    frame.freeze()
}

/// Takes the first complete message out of what was received.
pub(super) fn unframe(received: &mut BytesMut) -> Option<Bytes> {
    let header: [u8; 5] = received.get(..5)?.try_into().ok()?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    let end = 5usize.checked_add(usize::try_from(length).ok()?)?;
    if received.len() < end {
        return None;
    }
    Some(received.split_to(end).freeze().slice(5..))
}

/// What is the same in every request.
#[derive(Debug)]
struct Head {
    uris: Vec<Uri>,
    headers: HeaderMap,
}

impl Head {
    fn new(endpoint: &str, token: Option<&str>) -> Result<Self, String> {
        let uris = Rpc::ALL.iter().map(|rpc| format!("http://{endpoint}{}", rpc.path()).parse());
        let uris: Result<Vec<Uri>, _> = uris.collect();
        let uris = uris.map_err(|_| format!("{endpoint:?} is no address"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if let Some(token) = token {
            let token = token.parse().map_err(|_| "the token is no text")?;
            headers.insert(HeaderName::from_static("token"), token);
        }
        Ok(Self { uris, headers })
    }

    fn request(&self, rpc: Rpc) -> Option<Request<()>> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uris.get(rpc.place())?.clone();
        *request.headers_mut() = self.headers.clone();
        Some(request)
    }
}

/// A socket that wants whole buffers. To one that takes several buffers at once, `h2` hands every message over 256 bytes
/// by itself, with a system call of its own; to this one it hands many small messages together.
struct Joined(TcpStream);

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A connection. Belongs to one thread.
pub(super) struct Link {
    endpoint: String,
    head: Head,
    /// With the number of its connection; none while there is no connection that takes requests.
    sender: RefCell<Option<(u64, SendRequest<Bytes>)>>,
    /// Connections so far.
    connections: Cell<u64>,
    connected: Notify,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// In words: why that fails. Later on the link connects again by itself.
    pub(super) async fn open(endpoint: &str, token: Option<&str>) -> Result<Rc<Self>, String> {
        let link = Rc::new(Self {
            endpoint: endpoint.to_owned(),
            head: Head::new(endpoint, token)?,
            sender: RefCell::new(None),
            connections: Cell::new(0),
            connected: Notify::new(),
        });
        let connection =
            link.connect().await.map_err(|error| format!("{endpoint} does not answer: {error}"))?;
        let keeper = Rc::clone(&link);
        tokio::task::spawn_local(async move { keeper.keep(connection).await });
        Ok(link)
    }

    async fn connect(&self) -> Result<h2::client::Connection<Joined, Bytes>, String> {
        let socket = TcpStream::connect(&self.endpoint).await.map_err(|error| error.to_string())?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false);
        let (sender, connection) =
            builder.handshake(Joined(socket)).await.map_err(|error| error.to_string())?;
        let number = self.connections.get() + 1;
        self.connections.set(number);
        self.sender.replace(Some((number, sender)));
        self.connected.notify_waiters();
        Ok(connection)
    }

    /// Drives the connection, and the next one when it breaks.
    async fn keep(&self, connection: h2::client::Connection<Joined, Bytes>) {
        let mut next = Some(connection);
        loop {
            if let Some(connection) = next.take() {
                if let Err(error) = connection.await {
                    tracing::debug!("the connection to {} broke: {error}", self.endpoint);
                }
                self.sender.replace(None);
            }
            tokio::time::sleep(RETRY).await;
            next = self.connect().await.ok();
        }
    }

    /// Waits for a connection.
    async fn sender(&self) -> (u64, SendRequest<Bytes>) {
        loop {
            let connected = self.connected.notified();
            let sender = self.sender.borrow().clone();
            if let Some(sender) = sender {
                return sender;
            }
            connected.await;
        }
    }

    /// This connection takes no more requests, though it may still bring answers: a server that stops says so
    /// (`GOAWAY`) before it closes. Whoever asks from now on waits for the next connection, which the keeper makes once
    /// this one has ended; asking this one again would fail at once, every time, and never let the keeper run.
    fn give_up(&self, number: u64) {
        let mut sender = self.sender.borrow_mut();
        if sender.as_ref().is_some_and(|(current, _)| *current == number) {
            *sender = None;
        }
    }

    async fn send(
        &self,
        rpc: Rpc,
        frame: Bytes,
        last: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let request = self.head.request(rpc).ok_or(h2::Reason::INTERNAL_ERROR)?;
        let (number, sender) = self.sender().await;
        let sent = match sender.ready().await {
            Ok(mut sender) => sender.send_request(request, false),
            Err(error) => Err(error),
        };
        let (response, mut stream) = sent.inspect_err(|_| self.give_up(number))?;
        stream.send_data(frame, last)?;
        Ok((response, stream))
    }

    /// One call with one message each way. The answer's bytes, frames included, go to `sink`.
    ///
    /// # Errors
    /// In words that are the same for all failures of the same kind, so that they can be counted.
    pub(super) async fn call(
        &self,
        rpc: Rpc,
        frame: Bytes,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<(), String> {
        let (response, _stream) = self.send(rpc, frame, true).await.map_err(broken)?;
        let response = response.await.map_err(broken)?;
        let (head, mut body) = response.into_parts();
        if let Some(outcome) = outcome(&head.headers) {
            return outcome;
        }
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
            sink(&chunk);
        }
        let trailers = body.trailers().await.map_err(broken)?;
        trailers
            .and_then(|trailers| outcome(&trailers))
            .unwrap_or_else(|| Err(format!("no gRPC: HTTP status {}", head.status)))
    }

    /// One call, its answer decoded.
    ///
    /// # Errors
    /// As [`call`](Self::call), and when no answer comes within `timeout`.
    pub(super) async fn ask<A: Message + Default>(
        &self,
        rpc: Rpc,
        message: &impl Message,
        timeout: Duration,
    ) -> Result<A, String> {
        let mut received = BytesMut::new();
        let call = self.call(rpc, frame(message), |chunk| received.extend_from_slice(chunk));
        let called = tokio::time::timeout(timeout, call).await;
        called.map_err(|_| format!("no answer within {timeout:?}"))??;
        let answer = unframe(&mut received).ok_or("an answer without a message")?;
        A::decode(answer).map_err(|error| format!("an answer that cannot be read: {error}"))
    }

    /// Begins a call of many messages each way.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub(super) async fn stream(
        &self,
        rpc: Rpc,
        first: Bytes,
    ) -> Result<(SendStream<Bytes>, RecvStream), String> {
        let (response, stream) = self.send(rpc, first, false).await.map_err(broken)?;
        let response = response.await.map_err(broken)?;
        if let Some(Err(error)) = outcome(response.headers()) {
            return Err(error);
        }
        Ok((stream, response.into_body()))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` wants")]
fn broken(error: h2::Error) -> String {
    if error.is_io() || error.is_go_away() {
        return String::from("the connection broke");
    }
    error.to_string()
}

/// What the headers or trailers say about how the call ended.
fn outcome(headers: &HeaderMap) -> Option<Result<(), String>> {
    if headers.get("grpc-status")? == "0" {
        return Some(Ok(()));
    }
    let status = Status::from_header_map(headers).unwrap_or_else(|| Status::new(Code::Unknown, ""));
    Some(Err(format!("{:?}: {}", status.code(), status.message())))
}

#[cfg(test)]
mod tests {
    use raft_kv::proto::etcdserverpb::PutRequest;

    use super::*;

    #[test]
    fn every_call_has_its_place() {
        for (place, rpc) in Rpc::ALL.iter().enumerate() {
            assert_eq!(rpc.place(), place);
        }
    }

    #[test]
    fn frames_come_apart_as_they_were_put_together() {
        let message =
            PutRequest { key: "k".into(), value: vec![7; 300].into(), ..PutRequest::default() };
        let bytes = frame(&message);
        let mut received = BytesMut::new();
        for byte in &bytes[..bytes.len() - 1] {
            received.put_u8(*byte);
            assert_eq!(unframe(&mut received), None);
        }
        received.extend_from_slice(&bytes[bytes.len() - 1..]);
        received.extend_from_slice(&bytes);
        for _ in 0..2 {
            let message_again = unframe(&mut received).unwrap();
            assert_eq!(PutRequest::decode(message_again).unwrap(), message);
        }
        assert!(received.is_empty());
    }

    #[test]
    fn a_status_says_how_a_call_ended() {
        let mut headers = HeaderMap::new();
        assert_eq!(outcome(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(outcome(&headers), Some(Ok(())));
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("no%20leader"));
        assert_eq!(outcome(&headers), Some(Err(String::from("Unavailable: no leader"))));
    }
}
