//! A client's request as the server would make it of an etcd call, and the answer as the client sees it.

use bytes::{Bytes, BytesMut};
use raft::error::{ProposeError, ReadError};
use raft::node::NodeRequest;
use raft::node::driver::Input;
use raft::node::entry_header::EntryHeader;
use raft_core::{Command as _, Index, NodeId, Rng};
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request as Operation;
use raft_kv::proto::etcdserverpb::response_op::Response as Outcome;
use raft_kv::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest,
};
use raft_kv::{Answer as Found, Command, KvError, Query, Response};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::check::RequestId;
use crate::model::{Answer, Op, Value};
use crate::profile::pick;
use crate::world::{Happening, World};

fn key_bytes(key: u64) -> Bytes {
    Bytes::from(format!("key-{key}"))
}

pub(crate) fn range(key: u64) -> RangeRequest {
    RangeRequest { key: key_bytes(key), ..RangeRequest::default() }
}

/// The command; `None` for a read.
pub(crate) fn command(op: &Op) -> Option<Command> {
    let put = |key: u64, value: &Bytes| PutRequest {
        key: key_bytes(key),
        value: value.clone(),
        ..PutRequest::default()
    };
    Some(match op {
        Op::Put { key, value } => Command::put(put(*key, value)),
        Op::Swap { key, mod_revision, value } => {
            let compare = Compare {
                result: i32::from(CompareResult::Equal),
                target: i32::from(CompareTarget::Mod),
                key: key_bytes(*key),
                range_end: Bytes::new(),
                target_union: Some(TargetUnion::ModRevision(*mod_revision)),
            };
            let put = Operation::RequestPut(put(*key, value));
            let read = Operation::RequestRange(range(*key));
            Command::txn(TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(put) }],
                failure: vec![RequestOp { request: Some(read) }],
            })
        }
        Op::Delete { key } => Command::delete_range(DeleteRangeRequest {
            key: key_bytes(*key),
            ..DeleteRangeRequest::default()
        }),
        Op::Read { .. } => return None,
    })
}

/// Header and command, as the handle encodes them.
pub(crate) fn payload(command: &Command, proposer: NodeId, request: u64) -> Bytes {
    let mut payload = BytesMut::new();
    EntryHeader { proposer, request, session: None }.encode(&mut payload);
    command.encode(&mut payload);
    payload.freeze()
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

fn found(response: &RangeResponse) -> Option<Value> {
    response.kvs.first().map(|kv| Value {
        value: kv.value.clone(),
        mod_revision: kv.mod_revision,
        create_revision: kv.create_revision,
        version: kv.version,
    })
}

pub(crate) fn read_answer(response: &RangeResponse) -> Answer {
    Answer::Read { revision: revision(response.header.as_ref()), found: found(response) }
}

/// The answer in the model's words.
pub(crate) fn answer(response: &Response) -> Answer {
    match response {
        Response::Put(put) => Answer::Put { revision: revision(put.header.as_ref()) },
        Response::DeleteRange(delete) => {
            Answer::Delete { revision: revision(delete.header.as_ref()), deleted: delete.deleted }
        }
        Response::Txn(txn) => {
            let read = txn.responses.iter().find_map(|response| match &response.response {
                Some(Outcome::ResponseRange(range)) => found(range),
                _ => None,
            });
            Answer::Swap {
                revision: revision(txn.header.as_ref()),
                swapped: txn.succeeded,
                found: read,
            }
        }
        Response::Compact(compact) => Answer::Put { revision: revision(compact.header.as_ref()) },
        Response::LeaseGrant(grant) => Answer::Put { revision: revision(grant.header.as_ref()) },
        Response::LeaseRevoke(revoke) => Answer::Put { revision: revision(revoke.header.as_ref()) },
        Response::LeaseRenew(_)
        | Response::LeaseExpire(_)
        | Response::Alarm(_)
        | Response::Auth(_)
        | Response::Downgrade => Answer::Put { revision: -1 },
    }
}

type Written = Result<Result<Response, KvError>, ProposeError>;
type Ranged = Result<Result<Found, KvError>, ReadError>;

/// What a client waits for.
#[derive(Debug)]
enum Waiting {
    Write(RequestId, oneshot::Receiver<Written>),
    Read(u64, oneshot::Receiver<Ranged>),
    Barrier(oneshot::Receiver<Result<Index, ReadError>>),
}

/// A client with one request at a time.
#[derive(Debug)]
pub(crate) struct Client {
    rng: Rng,
    waits: Option<Request>,
    /// Whom it asks as long as that one answers.
    home: Option<usize>,
}

impl Client {
    pub(crate) const fn new(rng: Rng) -> Self {
        Self { rng, waits: None, home: None }
    }
}

#[derive(Debug)]
struct Request {
    machine: usize,
    /// What was answered to anybody before it asked.
    floor: Index,
    asked: u64,
    waiting: Waiting,
}

/// A request is answered after the settings' three seconds, also with an error; a pause or a full inbox may add
/// to that.
const ANSWER_MAX: u64 = 6_000_000;

/// How long clients ask, and then ask nothing.
const WINDOW: u64 = 500_000;

impl World {
    /// A client's turn: it asks, unless it still waits.
    pub(crate) fn client(&mut self, client: usize) {
        let quiet = self.profile.quiet_windows && (self.now / WINDOW) % 2 == 1;
        if self.clients[client].waits.is_none() && !self.healed && !quiet {
            self.ask(client);
        }
        if self.clients[client].waits.is_none() {
            self.think(client);
        }
    }

    fn think(&mut self, client: usize) {
        let pause = 100 + self.clients[client].rng.below(self.profile.think_max);
        self.later(pause, Happening::Client(client));
    }

    fn ask(&mut self, client: usize) {
        let any = pick(&mut self.clients[client].rng, self.machines.len());
        let machine = match self.clients[client].home {
            Some(home) => home,
            None if self.profile.sticky => self.leader().unwrap_or(any),
            None => any,
        };
        self.clients[client].home = self.profile.sticky.then_some(machine);
        if self.machines[machine].process.is_none() {
            self.clients[client].home = None;
            return;
        }
        let kind = self.clients[client].rng.below(10);
        let key = self.clients[client].rng.below(self.profile.keys);
        let op = match kind {
            0..=3 => Op::Put { key, value: self.value(client) },
            4 => {
                let mod_revision = self.oracle.mod_revision(key);
                Op::Swap { key, mod_revision, value: self.value(client) }
            }
            5 => Op::Delete { key },
            _ => Op::Read { key },
        };
        self.request(client, machine, op, kind == 9);
    }

    /// A value that is unlike any other.
    fn value(&mut self, client: usize) -> Bytes {
        self.next_value += 1;
        let len = self.clients[client].rng.below(self.profile.value_bytes + 1);
        let len = usize::try_from(len).unwrap_or(0);
        let mut text = self.next_value.to_string();
        while text.len() < len {
            text.push('.');
        }
        Bytes::from(text)
    }

    pub(crate) fn request(&mut self, client: usize, machine: usize, op: Op, barrier: bool) {
        let (floor, asked) = (self.oracle.floor(), self.now);
        let Some(process) = self.process(machine) else { return };
        let proposer = process.driver.node();
        let request = process.next_request;
        process.next_request += 1;
        let (asks, waiting) = match (&op, command(&op)) {
            (_, Some(command)) => {
                let (waiter, answer) = oneshot::channel();
                let payload = payload(&command, proposer, request);
                let id = (proposer, request);
                self.oracle.proposed(id, op);
                let asks = NodeRequest::Propose { request, payload, permit: None, waiter };
                (asks, Waiting::Write(id, answer))
            }
            (Op::Read { key }, None) if !barrier => {
                let (waiter, answer) = oneshot::channel();
                let query = Query::Range(range(*key));
                let asks = NodeRequest::Query { query, linearizable: true, waiter };
                (asks, Waiting::Read(*key, answer))
            }
            (_, None) => {
                let (waiter, answer) = oneshot::channel();
                (NodeRequest::ReadIndex { waiter }, Waiting::Barrier(answer))
            }
        };
        self.clients[client].waits = Some(Request { machine, floor, asked, waiting });
        self.wake(machine, Input::Request(asks));
    }

    /// Whoever asked the process on this machine will never know.
    pub(crate) fn clients_lost(&mut self, machine: usize) {
        self.poll_clients(machine);
        for client in 0..self.clients.len() {
            let waits = &mut self.clients[client].waits;
            if waits.take_if(|request| request.machine == machine).is_some() {
                self.oracle.unknown += 1;
                self.clients[client].home = None;
                self.think(client);
            }
        }
    }

    /// Takes in the answers that a process has given.
    pub(crate) fn poll_clients(&mut self, machine: usize) {
        for client in 0..self.clients.len() {
            let mine = self.clients[client].waits.take_if(|request| request.machine == machine);
            let Some(mut request) = mine else { continue };
            let floor = request.floor;
            let mut content = true;
            let answered = match &mut request.waiting {
                Waiting::Write(id, answer) => match answer.try_recv() {
                    Ok(outcome) => {
                        content = outcome.is_ok();
                        self.wrote(*id, floor, outcome);
                        true
                    }
                    Err(error) => {
                        content = false;
                        self.nothing(machine, request.asked, error)
                    }
                },
                Waiting::Read(key, answer) => match answer.try_recv() {
                    Ok(Ok(Ok(Found::Range(response)))) => {
                        self.oracle.read(*key, floor, &read_answer(&response));
                        true
                    }
                    Ok(Ok(other)) => panic!("a read of key {key} answers {other:?}"),
                    Ok(Err(_)) => {
                        content = false;
                        true
                    }
                    Err(error) => {
                        content = false;
                        self.nothing(machine, request.asked, error)
                    }
                },
                Waiting::Barrier(answer) => match answer.try_recv() {
                    Ok(Ok(index)) => {
                        self.oracle.barrier(floor, index);
                        true
                    }
                    Ok(Err(_)) => true,
                    Err(error) => self.nothing(machine, request.asked, error),
                },
            };
            if answered {
                if !content {
                    self.clients[client].home = None;
                }
                self.note(client as u64);
                self.think(client);
            } else {
                self.clients[client].waits = Some(request);
            }
        }
    }

    /// No answer yet. True when there will never be one.
    fn nothing(&mut self, machine: usize, asked: u64, error: TryRecvError) -> bool {
        match error {
            // The process may have been about to end.
            TryRecvError::Closed => {
                let ending = self.failing.contains_key(&machine);
                assert!(ending, "L5: n{} drops a request", machine + 1);
                self.oracle.unknown += 1;
                true
            }
            TryRecvError::Empty => {
                let waited = self.now - asked;
                assert!(waited < ANSWER_MAX, "L5: n{} never answers a request", machine + 1);
                let gives_up = waited >= self.profile.patience && !self.healed;
                self.oracle.unknown += u64::from(gives_up);
                gives_up
            }
        }
    }

    fn wrote(&mut self, id: RequestId, floor: Index, outcome: Written) {
        match outcome {
            Ok(Ok(response)) => self.oracle.answered(id, floor, &answer(&response)),
            Ok(Err(error)) => panic!("{id:?} fails: {error:?}"),
            Err(error) if error.is_definite() => self.oracle.refused(id),
            Err(_) => self.oracle.unknown += 1,
        }
    }

    /// Whether no client waits.
    pub(crate) fn clients_idle(&self) -> bool {
        self.clients.iter().all(|client| client.waits.is_none())
    }

    /// A fresh write through every member, by the first client.
    pub(crate) fn write_through(&mut self, machine: usize) {
        let op = Op::Put { key: 0, value: self.value(0) };
        self.request(0, machine, op, false);
    }
}
