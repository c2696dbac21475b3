//! What the members replicate: a list of numbers.

use bytes::{Bytes, BytesMut};
use raft::core::{
    ApplyContext, BlobId, Command, DecodeError, Digest, Snapshot, SnapshotError, SnapshotSink,
    SnapshotSource, StateMachine,
};

/// Every number that was added, in order.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Vec<u64>);

/// Adds one.
#[derive(Debug)]
pub(crate) struct Add(pub(crate) u64);

impl Add {
    /// Adds nothing.
    pub(crate) const NOTHING: Self = Self(u64::MAX);
}

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes =
            bytes.as_ref().try_into().map_err(|_| DecodeError(String::from("not 8 bytes")))?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

/// What can be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    /// All numbers.
    All,
    /// How many there are, and the last one, if there is one.
    Last,
}

#[derive(Debug)]
pub(crate) struct Picture(Vec<u64>);

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        for part in self.0.chunks(1 << 16) {
            let bytes: Vec<u8> = part.iter().flat_map(|number| number.to_le_bytes()).collect();
            if !sink.reuse(BlobId::of(&bytes))? {
                sink.put(&bytes)?;
            }
        }
        Ok(())
    }
}

impl StateMachine for Numbers {
    type Command = Add;
    /// How many numbers there are now.
    type Response = usize;
    type Query = Question;
    type Answer = Vec<u64>;
    type Snapshot = Picture;

    fn apply(&mut self, _: ApplyContext, command: Add) -> usize {
        if command.0 != Add::NOTHING.0 {
            self.0.push(command.0);
        }
        self.0.len()
    }

    fn query(&self, question: Question) -> Vec<u64> {
        match question {
            Question::All => self.0.clone(),
            Question::Last => {
                let count = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
                [count].into_iter().chain(self.0.last().copied()).collect()
            }
        }
    }

    fn snapshot(&self) -> Picture {
        Picture(self.0.clone())
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        self.0.clear();
        for position in 0..source.blobs().len() {
            let bytes = source.read(position)?;
            let numbers = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok());
            self.0.extend(numbers.map(u64::from_le_bytes));
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(0)
    }
}
