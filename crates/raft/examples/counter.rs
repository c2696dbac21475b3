//! A replicated counter: one member, or several on this machine.
//!
//! ```text
//! cargo run -p rusty-raft --example counter -- 0 127.0.0.1:54100 127.0.0.1:54101 127.0.0.1:54102
//! ```
//!
//! with 0, 1 and 2 in three shells. Each adds one to the counter every second, through whichever member.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft::core::{
    ApplyContext, Command, DecodeError, Digest, Snapshot, SnapshotError, SnapshotSink,
    SnapshotSource, StateMachine,
};

#[derive(Default)]
struct Counter(u64);
struct Add(u64);
struct Picture(u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes = bytes.as_ref().try_into().map_err(|_| DecodeError("not 8 bytes".into()))?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        sink.put(&self.0.to_le_bytes()).map(|_| ())
    }
}

#[rustfmt::skip]
impl StateMachine for Counter {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Picture;
    fn apply(&mut self, _: ApplyContext, add: Add) -> u64 { self.0 += add.0; self.0 }
    fn query(&self, (): ()) -> u64 { self.0 }
    fn snapshot(&self) -> Picture { Picture(self.0) }
    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let add = Add::decode(source.read(0)?).map_err(|error| SnapshotError::Undecodable(error.0))?;
        self.0 = add.0;
        Ok(())
    }
    fn digest(&self) -> Digest { Digest(u128::from(self.0)) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let number: usize = arguments.next().unwrap_or_default().parse().unwrap_or(0);
    let mut peers: Vec<String> = arguments.collect();
    if peers.is_empty() {
        peers.push("127.0.0.1:54100".into());
    }
    let address = peers.get(number).ok_or("no such member")?.clone();
    let data_dir = format!("target/counter_{number}");
    let node = raft::Node::builder(Counter::default())
        .data_dir(data_dir)
        .address(address)
        .peers(peers)
        .start()
        .await?;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        match node.propose(Add(1)).await {
            Ok(count) => eprintln!("{count}, by leader {:?}", node.status().leader),
            Err(error) => eprintln!("{error}"),
        }
    }
}
