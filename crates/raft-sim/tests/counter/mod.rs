// Shared by the test, the example in the crate's documentation, and the swarm: a counter as a user of the library writes it.
use bytes::{BufMut as _, Bytes, BytesMut};
use raft_core::{
    ApplyContext, Command, DecodeError, Digest, Snapshot, SnapshotError, SnapshotSink,
    SnapshotSource, StateMachine,
};

#[derive(Default, Debug)]
pub(crate) struct Counter(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) struct Add(pub(crate) u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.0);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes = bytes.as_ref().try_into().map_err(|_| DecodeError("not 8 bytes".into()))?;
        Ok(Self(u64::from_le_bytes(bytes)))
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
        Self(self.0)
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        self.0 = Add::decode(source.read(0)?).map_err(|e| SnapshotError::Undecodable(e.0))?.0;
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(u128::from(self.0))
    }
}
