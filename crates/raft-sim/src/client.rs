//! Clients: each asks one member after the other for what the [`Workload`] says, one request at a time.

use bytes::{Bytes, BytesMut};
use raft::error::{ProposeError, ReadError};
use raft::node::NodeRequest;
use raft::node::driver::Input;
use raft::node::entry_header::EntryHeader;
use raft_core::{Command, Index, NodeId, Rng, Session, StateMachine};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::check::RequestId;
use crate::profile::pick;
use crate::workload::{Ask, Call, Workload};
use crate::world::{Happening, World};

/// Header and command, as the handle encodes them.
fn payload(
    command: &impl Command,
    proposer: NodeId,
    request: u64,
    session: Option<Session>,
) -> Bytes {
    let mut payload = BytesMut::new();
    EntryHeader { proposer, request, session }.encode(&mut payload);
    command.encode(&mut payload);
    payload.freeze()
}

/// What a client waits for.
enum Waiting<S: StateMachine> {
    Write(RequestId, oneshot::Receiver<Result<S::Response, ProposeError>>),
    /// Whether it is linearizable.
    Read(bool, oneshot::Receiver<Result<S::Answer, ReadError>>),
    Barrier(oneshot::Receiver<Result<Index, ReadError>>),
}

/// A client with one request at a time.
pub(crate) struct Client<S: StateMachine> {
    rng: Rng,
    waits: Option<Request<S>>,
    /// Whom it asks as long as that one answers.
    home: Option<usize>,
}

impl<S: StateMachine> Client<S> {
    pub(crate) const fn new(rng: Rng) -> Self {
        Self { rng, waits: None, home: None }
    }

    /// Whether it waits for nothing.
    pub(crate) const fn is_idle(&self) -> bool {
        self.waits.is_none()
    }
}

struct Request<S: StateMachine> {
    machine: usize,
    call: Call,
    waiting: Waiting<S>,
}

/// A request is answered after the settings' three seconds, also with an error; a pause or a full inbox may add
/// to that.
const ANSWER_MAX: u64 = 6_000_000;

/// How long clients ask, and then ask nothing.
const WINDOW: u64 = 500_000;

impl<W: Workload> World<W> {
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

    fn client_mut(&mut self, client: usize) -> &mut Client<W::Machine> {
        match self.on_errand(client) {
            Some(machine) => &mut self.errands[machine],
            None => &mut self.clients[client],
        }
    }

    fn think(&mut self, client: usize) {
        if let Some(machine) = self.on_errand(client) {
            return self.attend_soon(machine);
        }
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
        let call = self.call(client);
        let ask = self.load.ask(&call, &mut self.clients[client].rng);
        self.request(call, machine, ask);
    }

    pub(crate) fn call(&mut self, client: usize) -> Call {
        let number = self.next_call;
        self.next_call += 1;
        Call { number, client, asked: self.now, floor: self.oracle.floor() }
    }

    pub(crate) fn request(&mut self, call: Call, machine: usize, ask: Ask<W::Machine>) {
        let Some(process) = self.process(machine) else { return };
        let proposer = process.driver.node();
        let request = process.next_request;
        process.next_request += 1;
        let mut propose = |command, session| {
            let (waiter, answer) = oneshot::channel();
            let payload = payload(&command, proposer, request, session);
            let id = (proposer, request);
            self.oracle.proposed(id, call, payload.clone());
            let asks = NodeRequest::Propose { request, payload, permit: None, waiter };
            (asks, Waiting::Write(id, answer))
        };
        let (asks, waiting) = match ask {
            Ask::Command(command) => propose(command, None),
            Ask::InSession(command, session) => propose(command, Some(session)),
            Ask::Query(query) => {
                let (waiter, answer) = oneshot::channel();
                let asks = NodeRequest::Query { query, linearizable: true, waiter };
                (asks, Waiting::Read(true, answer))
            }
            Ask::Stale(query) => {
                let (waiter, answer) = oneshot::channel();
                let asks = NodeRequest::Query { query, linearizable: false, waiter };
                (asks, Waiting::Read(false, answer))
            }
            Ask::Barrier => {
                let (waiter, answer) = oneshot::channel();
                (NodeRequest::ReadIndex { waiter }, Waiting::Barrier(answer))
            }
        };
        self.client_mut(call.client).waits = Some(Request { machine, call, waiting });
        self.wake(machine, Input::Request(asks));
    }

    /// Whoever asked the process on this machine will never know.
    pub(crate) fn clients_lost(&mut self, machine: usize) {
        self.poll_clients(machine);
        for client in 0..self.clients.len() + self.errands.len() {
            let waits = &mut self.client_mut(client).waits;
            if waits.take_if(|request| request.machine == machine).is_some() {
                self.oracle.unknown += 1;
                self.client_mut(client).home = None;
                self.think(client);
            }
        }
    }

    /// Takes in the answers that a process has given.
    pub(crate) fn poll_clients(&mut self, machine: usize) {
        for client in 0..self.clients.len() + self.errands.len() {
            let mine = self.client_mut(client).waits.take_if(|request| request.machine == machine);
            let Some(mut request) = mine else { continue };
            let call = request.call;
            let mut content = true;
            let answered = match &mut request.waiting {
                Waiting::Write(id, answer) => match answer.try_recv() {
                    Ok(outcome) => {
                        content = outcome.is_ok();
                        self.wrote(&call, *id, outcome);
                        true
                    }
                    Err(error) => {
                        content = false;
                        self.nothing(machine, call.asked, error)
                    }
                },
                Waiting::Read(linearizable, answer) => match answer.try_recv() {
                    Ok(Ok(answer)) => {
                        if *linearizable {
                            let seen = self.load.answered(&call, self.now, answer);
                            self.oracle.read(seen);
                        } else {
                            self.load.answered_stale(&call, self.now, answer);
                        }
                        true
                    }
                    Ok(Err(_)) => {
                        content = false;
                        true
                    }
                    Err(error) => {
                        content = false;
                        self.nothing(machine, call.asked, error)
                    }
                },
                Waiting::Barrier(answer) => match answer.try_recv() {
                    Ok(Ok(index)) => {
                        self.oracle.barrier(call.floor, index);
                        self.load.passed(&call, index);
                        true
                    }
                    Ok(Err(_)) => true,
                    Err(error) => self.nothing(machine, call.asked, error),
                },
            };
            if answered {
                if !content {
                    self.client_mut(client).home = None;
                }
                self.note(client as u64);
                self.think(client);
            } else {
                self.client_mut(client).waits = Some(request);
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

    fn wrote(
        &mut self,
        call: &Call,
        id: RequestId,
        outcome: Result<<W::Machine as StateMachine>::Response, ProposeError>,
    ) {
        match outcome {
            Ok(response) => {
                self.oracle.answered(id, call.floor);
                self.load.responded(call, self.now, response);
            }
            Err(error) if error.is_definite() => {
                self.oracle.refused(id);
                self.load.refused(call);
            }
            Err(_) => self.oracle.unknown += 1,
        }
    }

    /// Whether no client waits.
    pub(crate) fn clients_idle(&self) -> bool {
        self.clients.iter().chain(&self.errands).all(Client::is_idle)
    }

    /// A fresh write through every member, by the first client.
    pub(crate) fn write_through(&mut self, machine: usize) {
        let call = self.call(0);
        let command = self.load.command(&call, &mut self.clients[0].rng);
        self.request(call, machine, Ask::Command(command));
    }
}
