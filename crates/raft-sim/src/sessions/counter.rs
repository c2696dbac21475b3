//! What the swarm runs in sessions: a counter, in which a command that is applied twice can be seen for ever.

use bytes::{BufMut as _, Bytes, BytesMut};
use raft_core::{
    ApplyContext, Command, DecodeError, Digest, Rng, Snapshot, SnapshotError, SnapshotSink,
    SnapshotSource, StateMachine,
};

use super::ExactlyOnce;
use crate::profile::Profile;
use crate::workload::Ask;

/// The sum of everything that was added.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counter(u64);

/// Adds, and is answered with the sum.
#[derive(Clone, Debug)]
pub(crate) struct Add(pub(super) u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.0);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes = bytes.as_ref().try_into();
        bytes
            .map(|bytes| Self(u64::from_le_bytes(bytes)))
            .map_err(|_| DecodeError("not 8 bytes".into()))
    }
}

impl Snapshot for Counter {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        sink.put(&self.0.to_le_bytes()).map(|_| ())
    }
}

impl StateMachine for Counter {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Self;

    fn apply(&mut self, _: ApplyContext, add: Add) -> u64 {
        self.0 += add.0;
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Self {
        *self
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let sum = Add::decode(source.read(0)?);
        self.0 = sum.map_err(|error| SnapshotError::Undecodable(error.0))?.0;
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(u128::from(self.0))
    }
}

fn draw(rng: &mut Rng) -> Ask<Counter> {
    match rng.below(10) {
        0..=1 => Ask::Query(()),
        2 => Ask::Stale(()),
        3 => Ask::Barrier,
        // What is added tells the commands apart.
        _ => Ask::Command(Add(1 + rng.below(1 << 30))),
    }
}

/// The workload; fewer sessions than clients in every other run, so that some end early.
pub(crate) fn counter(profile: &Profile) -> ExactlyOnce<Counter> {
    let clients = u32::try_from(profile.clients).unwrap_or(u32::MAX);
    let few = profile.keys == 1 && clients > 2;
    ExactlyOnce::new(Counter::default, draw).sessions_max(if few { clients / 2 } else { 1000 })
}
