//! openraft. Its users write the log, the state machine and the network; here, as in its own benchmark, the log is an
//! ordered map behind a lock that nobody contends for, and the network is a call of the other member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use openraft::alias::{
    EntryOf, EntryPayloadOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::entry::RaftEntry as _;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine};
use openraft::{
    AnyError, Config, EntryPayload, OptionalSend, Raft, RaftLogReader, RaftNetworkV2,
    RaftSnapshotBuilder, RaftTypeConfig, Vote,
};

use crate::Group;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Payload;
    type R = u64;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote<LeaderId>;
    type Payload = EntryPayloadOf<Self>;
    type Entry = openraft::alias::DefaultEntryOf<Self>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = AnyError;
}

/// Nobody waits for these locks: each is taken for a moment, by the one task that writes or reads.
#[derive(Default)]
pub struct Log {
    vote: Mutex<Option<VoteOf<Types>>>,
    entries: Mutex<BTreeMap<u64, EntryOf<Types>>>,
    purged: Mutex<Option<LogIdOf<Types>>>,
}

fn locked<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().expect("nobody panics")
}

impl RaftLogReader<Types> for Arc<Log> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        Ok(locked(&self.entries).range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(*locked(&self.vote))
    }
}

impl RaftLogStorage<Types> for Arc<Log> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged = *locked(&self.purged);
        let last = locked(&self.entries).values().next_back().map(|entry| entry.log_id());
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        *locked(&self.vote) = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        locked(&self.entries).extend(entries.into_iter().map(|entry| (entry.index(), entry)));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index() + 1);
        locked(&self.entries).split_off(&from);
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        *locked(&self.purged) = Some(upto);
        let mut entries = locked(&self.entries);
        *entries = entries.split_off(&(upto.index() + 1));
        Ok(())
    }
}

#[derive(Default)]
struct State {
    counter: u64,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<State>>);

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = u64;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, u64>, io::Error> {
        let state = locked(&self.0);
        let meta = SnapshotMetaOf::<Types> {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        Ok(SnapshotOf::<Types, u64> { meta, snapshot: state.counter })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = u64;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let state = locked(&self.0);
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = locked(&self.0);
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(payload) => state.counter += 1 + payload.0.len() as u64,
                EntryPayload::Membership(membership) => {
                    state.membership =
                        StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(state.counter);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        counter: u64,
    ) -> Result<(), io::Error> {
        let mut state = locked(&self.0);
        state.counter = counter;
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, u64>>, io::Error> {
        self.build_snapshot().await.map(Some)
    }
}

type Member = Raft<Types, Machine>;

/// Calls the others.
#[derive(Clone, Default)]
struct Router(Arc<Mutex<BTreeMap<u64, Member>>>);

struct Call(Member);

fn unreachable(error: impl std::error::Error + 'static) -> Unreachable<Types> {
    Unreachable::new(&AnyError::new(&error))
}

impl RaftNetworkFactory<Types> for Router {
    type Network = Call;

    async fn new_client(&mut self, target: u64, _: &()) -> Call {
        Call(locked(&self.0)[&target].clone())
    }
}

impl RaftNetworkV2<Types> for Call {
    type SnapshotData = u64;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.0.append_entries(rpc).await.map_err(|error| RPCError::Unreachable(unreachable(error)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.0.vote(rpc).await.map_err(|error| RPCError::Unreachable(unreachable(error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, u64>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let installed = self.0.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| StreamingError::Unreachable(unreachable(error)))
    }
}

impl Group for Member {
    async fn propose(&self, payload: Bytes) {
        self.client_write(Payload(payload)).await.expect("a proposal is applied");
    }

    async fn propose_many(&self, payloads: Vec<Bytes>) {
        let answers = self.client_write_many(payloads.into_iter().map(Payload)).await;
        let mut answers = answers.expect("the leader takes proposals");
        while let Some(answer) = answers.try_next().await.expect("members run") {
            answer.expect("a proposal is applied");
        }
    }
}

/// Three members on this runtime, with the settings of openraft's own benchmark.
pub async fn start() -> anyhow::Result<Member> {
    let config = Config {
        election_timeout_min: 200,
        election_timeout_max: 2000,
        purge_batch_size: 1024,
        max_payload_entries: 1024,
        ..Config::default()
    };
    let config = Arc::new(config.validate()?);
    let router = Router::default();
    for id in 0..3 {
        let member = Raft::new(
            id,
            Arc::clone(&config),
            router.clone(),
            Arc::new(Log::default()),
            Machine::default(),
        )
        .await?;
        locked(&router.0).insert(id, member);
    }
    let members: Vec<Member> = locked(&router.0).values().cloned().collect();
    members[0].initialize(BTreeSet::from([0, 1, 2])).await?;
    for member in &members {
        let wait = member.wait(Some(Duration::from_secs(10)));
        wait.applied_index_at_least(Some(1), "the first leader's entry").await?;
    }
    let leader = members[0].current_leader().await;
    let leader = leader.ok_or_else(|| anyhow::anyhow!("no leader"))?;
    Ok(members[usize::try_from(leader)?].clone())
}
