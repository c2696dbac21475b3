//! A replicated counter. In three shells, with 0, 1 and 2 for the first number:
//! `cargo run -p rusty-raft --example counter -- 0 127.0.0.1:54100 127.0.0.1:54101 127.0.0.1:54102`
use bytes::{BufMut as _, Bytes, BytesMut};
use raft::core::{
    ApplyContext, Command, DecodeError, Digest, Snapshot, SnapshotError, SnapshotSink,
    SnapshotSource, StateMachine,
};

struct Counter(u64);

#[rustfmt::skip]
impl Command for Counter {
    fn encode(&self, out: &mut BytesMut) { out.put_u64_le(self.0); }
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

#[rustfmt::skip]
impl StateMachine for Counter {
    type Command = Self;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Self;
    fn apply(&mut self, _: ApplyContext, add: Self) -> u64 { self.0 += add.0; self.0 }
    fn query(&self, (): ()) -> u64 { self.0 }
    fn snapshot(&self) -> Self { Self(self.0) }
    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        *self = Self::decode(source.read(0)?).map_err(|e| SnapshotError::Undecodable(e.0))?;
        Ok(())
    }
    fn digest(&self) -> Digest { Digest(u128::from(self.0)) }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example talks to its user")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut peers: Vec<String> = std::env::args().skip(1).collect();
    let number: usize = if peers.is_empty() { 0 } else { peers.remove(0).parse()? };
    let address = peers.get(number).map_or("127.0.0.1:54100", String::as_str).to_owned();
    let data_dir = format!("target/counter_{number}");
    let builder = raft::Node::builder(Counter(0)).data_dir(data_dir);
    let node = builder.address(address).peers(peers).start().await?;
    loop {
        println!("{:?}, leader {:?}", node.propose(Counter(1)).await, node.status().leader);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
