//! Watching over a web socket: each message of the client is a request, each answer a message, in the gateway's JSON.

use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response as HttpResponse};
use raft_kv::proto::etcdserverpb::WatchRequest;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::places::Place;
use super::streams::{REQUESTS_MAX, error_line, line};
use super::{json, refusal, with_metadata};
use crate::etcd::http::method_not_allowed;
use crate::etcd::watch::{Answers, Requests};
use crate::etcd::{Etcd, MESSAGE_ROOM_BYTES};

/// How browsers, which cannot set headers, pass a token: as a protocol behind this one, as etcd takes it.
const BEARER: &str = "Bearer";

/// Watches for as long as the socket is open.
pub(super) async fn watch(
    State(etcd): State<Arc<Etcd>>,
    place: Option<Extension<Place>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> HttpResponse {
    let Ok(upgrade) = upgrade else { return method_not_allowed().await };
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let requests: Requests = Box::pin(ReceiverStream::new(requests));
    let bytes_max = etcd.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES) * 4 / 3;
    match etcd.watch(with_metadata(&with_token(headers), requests)) {
        Ok(answers) => upgrade
            .protocols([BEARER])
            .max_message_size(bytes_max)
            .max_frame_size(bytes_max)
            .on_upgrade(move |socket| async move {
                serve(socket, answers, sender).await;
                drop(place);
            })
            .into_response(),
        Err(status) => refusal(&status),
    }
}

/// Adds the token that comes as a protocol, unless there is one already.
fn with_token(mut headers: HeaderMap) -> HeaderMap {
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|it| it.to_str().ok());
    let token = protocols
        .and_then(|protocols| protocols.strip_prefix(BEARER)?.trim_start().strip_prefix(','))
        .and_then(|token| HeaderValue::from_str(token.trim()).ok());
    if let Some(token) = token
        && !headers.contains_key(header::AUTHORIZATION)
    {
        headers.insert(header::AUTHORIZATION, token);
    }
    headers
}

/// Carries messages both ways until either side ends.
async fn serve(
    mut socket: WebSocket,
    mut answers: Answers,
    requests: mpsc::Sender<Result<WatchRequest, Status>>,
) {
    loop {
        let text = tokio::select! {
            message = socket.recv() => {
                let request = match message {
                    Some(Ok(Message::Text(text))) => read(text.as_bytes()),
                    Some(Ok(Message::Binary(bytes))) => read(&bytes),
                    // The library answers these by itself.
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                // The stream reads what it is asked before it answers.
                if requests.send(request).await.is_err() {
                    return;
                }
                continue;
            }
            answer = answers.next() => match answer {
                Some(Ok(message)) => line("WatchResponse", &message),
                Some(Err(status)) => error_line(&status),
                None => return,
            },
        };
        if socket.send(Message::text(text)).await.is_err() {
            return;
        }
    }
}

fn read(text: &[u8]) -> Result<WatchRequest, Status> {
    json::decode("WatchRequest", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_come_as_a_protocol() {
        let token = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let headers = with_token(headers);
            headers.get("authorization").map(|token| token.to_str().unwrap().to_owned())
        };
        assert_eq!(token("sec-websocket-protocol", "Bearer, a.1").as_deref(), Some("a.1"));
        assert_eq!(token("sec-websocket-protocol", "chat"), None);
        assert_eq!(token("authorization", "b.2").as_deref(), Some("b.2"));
    }
}
