//! Watchers: how long until they hear of a write.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use prost::Message as _;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::watch;

use super::board::Phase;
use super::link::{Rpc, frame, unframe};
use super::worker::Desk;
use super::workload::Workload;

/// One stream with all its watchers created.
pub(super) struct Watching {
    /// Kept open: its end is the stream's.
    _requests: SendStream<Bytes>,
    answers: RecvStream,
    received: BytesMut,
}

impl Watching {
    /// The next message; none when the stream has ended.
    async fn next(&mut self) -> Option<Result<WatchResponse, String>> {
        loop {
            if let Some(message) = unframe(&mut self.received) {
                let answer = WatchResponse::decode(message);
                return Some(answer.map_err(|error| error.to_string()));
            }
            let chunk = match self.answers.data().await? {
                Ok(chunk) => chunk,
                Err(error) => return Some(Err(error.to_string())),
            };
            if let Err(error) = self.answers.flow_control().release_capacity(chunk.len()) {
                return Some(Err(error.to_string()));
            }
            self.received.extend_from_slice(&chunk);
        }
    }
}

/// Opens a stream on a link and creates its watchers.
///
/// # Errors
/// In words: why that fails.
pub(super) async fn begin(desk: &Desk, link: usize, watchers: usize) -> Result<Watching, String> {
    let create = WatchCreateRequest {
        key: desk.workload.borrow().watched(),
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let create = frame(&create);
    let mut first = BytesMut::new();
    for _ in 0..watchers {
        first.extend_from_slice(&create);
    }
    let link = &desk.links[link % desk.links.len()];
    let begun = async {
        let (requests, answers) = link.stream(Rpc::Watch, first.freeze()).await?;
        let mut watching = Watching { _requests: requests, answers, received: BytesMut::new() };
        for _ in 0..watchers {
            let answer = watching.next().await.ok_or("a watch ended before it began")??;
            if !answer.created || answer.canceled {
                return Err(format!("a watch was refused: {}", answer.cancel_reason));
            }
        }
        Ok(watching)
    };
    let begun = tokio::time::timeout(desk.plan.timeout, begun).await;
    begun.unwrap_or_else(|_| Err(format!("no watch within {:?}", desk.plan.timeout)))
}

/// Counts what is heard, until the run is over or the stream ends.
pub(super) async fn listen(
    desk: Rc<Desk>,
    mut watching: Watching,
    mut phases: watch::Receiver<Phase>,
) {
    loop {
        let answer = tokio::select! {
            biased;
            answer = watching.next() => answer,
            _ = phases.wait_for(|phase| *phase == Phase::Over) => return,
        };
        let now = desk.board.now();
        let tally = &mut *desk.tally.borrow_mut();
        let answer = match answer {
            Some(Ok(answer)) if !answer.canceled => answer,
            Some(Ok(answer)) => {
                tally.fail(format!("a watch was cancelled: {}", answer.cancel_reason));
                continue;
            }
            Some(Err(error)) => return tally.fail(format!("a watch broke: {error}")),
            None => return tally.fail(String::from("a watch ended")),
        };
        let mut events = 0;
        for event in &answer.events {
            events += 1;
            let due = event.kv.as_ref().and_then(|kv| Workload::due_of(&kv.value));
            // What somebody else wrote is no measurement.
            let Some(due) = due.filter(|due| *due <= now) else { continue };
            if desk.board.counts(due) {
                tally.deliveries.saturating_record(now - due);
                tally.deliveries_in_window += u64::from(desk.board.in_window(now));
            }
        }
        desk.board.delivered(events);
    }
}
