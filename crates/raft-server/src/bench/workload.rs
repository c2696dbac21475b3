//! Which requests are sent.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use raft::core::Rng;
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request as Op;
use raft_kv::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};

use super::link::{Link, Rpc, frame};
use super::{Load, Plan};

/// Random bytes from which values are cut.
const POOL_BYTES: usize = 64 << 10;
/// Keys that one transaction writes before a run; etcd's default limit is 128.
const FILL_KEYS: u64 = 100;

/// One request, ready to be sent.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) rpc: Rpc,
    pub(super) frame: Bytes,
    pub(super) reads: bool,
}

/// Makes requests. Each thread has its own.
#[derive(Debug)]
pub(super) struct Workload {
    load: Load,
    serializable: bool,
    prefix: String,
    key_bytes: usize,
    keys: u64,
    value_bytes: usize,
    rng: Rng,
    pool: Bytes,
}

impl Workload {
    /// The requests of a plan; threads with other numbers make others.
    pub(super) fn new(plan: &Plan, thread: usize) -> Self {
        let mut rng = Rng::new(0x6265_6e63_6800 + u64::try_from(thread).unwrap_or(0));
        let mut pool = BytesMut::with_capacity(POOL_BYTES + plan.value_bytes + 8);
        while pool.len() < POOL_BYTES + plan.value_bytes {
            pool.put_u64(rng.next_u64());
        }
        Self {
            load: plan.load,
            serializable: plan.serializable,
            prefix: plan.prefix.clone(),
            key_bytes: plan.key_bytes,
            keys: plan.keys,
            value_bytes: plan.value_bytes,
            rng,
            pool: pool.freeze(),
        }
    }

    /// The key with this number.
    pub(super) fn key(&self, number: u64) -> Bytes {
        format!("{}{number:0width$}", self.prefix, width = self.key_bytes).into()
    }

    fn value(&mut self) -> Bytes {
        let places = u64::try_from(POOL_BYTES).unwrap_or(1);
        let start = usize::try_from(self.rng.next_u64() % places).unwrap_or(0);
        self.pool.slice(start..start + self.value_bytes)
    }

    /// A write of this key, or of a random one.
    fn put(&mut self, number: Option<u64>) -> PutRequest {
        let number = number.unwrap_or_else(|| self.rng.next_u64());
        let (key, value) = (self.key(number % self.keys), self.value());
        PutRequest { key, value, ..PutRequest::default() }
    }

    fn range(&mut self, count: u64) -> RangeRequest {
        let first = self.rng.next_u64() % self.keys.saturating_sub(count - 1).max(1);
        RangeRequest {
            key: self.key(first),
            range_end: if count > 1 { self.key(first + count) } else { Bytes::new() },
            serializable: self.serializable,
            ..RangeRequest::default()
        }
    }

    fn txn(&mut self) -> TxnRequest {
        let put = self.put(None);
        let compare = Compare {
            key: put.key.clone(),
            target: CompareTarget::Version.into(),
            result: CompareResult::Greater.into(),
            target_union: Some(TargetUnion::Version(0)),
            ..Compare::default()
        };
        let op = RequestOp { request: Some(Op::RequestPut(put)) };
        TxnRequest { compare: vec![compare], success: vec![op.clone()], failure: vec![op] }
    }

    /// The next request, which is due at `due` (watchers read that out of the value) and puts the key of this number if
    /// there is one.
    pub(super) fn next(&mut self, due: u64, number: Option<u64>) -> Prepared {
        let write = |rpc, frame| Prepared { rpc, frame, reads: false };
        let read = |frame| Prepared { rpc: Rpc::Range, frame, reads: true };
        match self.load {
            Load::Put => write(Rpc::Put, frame(&self.put(number))),
            Load::Txn => write(Rpc::Txn, frame(&self.txn())),
            Load::Get => read(frame(&self.range(1))),
            Load::Range { count } => read(frame(&self.range(u64::from(count)))),
            Load::Mixed { read_percent } => {
                if self.rng.next_u64() % 100 < u64::from(read_percent) {
                    read(frame(&self.range(1)))
                } else {
                    write(Rpc::Put, frame(&self.put(number)))
                }
            }
            Load::Watch { .. } => {
                let mut value = BytesMut::with_capacity(self.value_bytes.max(8));
                value.put_u64(due);
                value.extend_from_slice(&self.value().slice(8.min(self.value_bytes)..));
                let (key, value) = (self.watched(), value.freeze());
                write(Rpc::Put, frame(&PutRequest { key, value, ..PutRequest::default() }))
            }
        }
    }

    /// The key that is watched.
    pub(super) fn watched(&self) -> Bytes {
        format!("{}watched", self.prefix).into()
    }

    /// When the write of this value was due.
    pub(super) fn due_of(value: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
    }

    /// Writes every `step`th hundred of the keys, beginning with the `first`.
    ///
    /// # Errors
    /// In words, as [`Link::ask`] says: each transaction has the timeout.
    pub(super) async fn fill(
        &mut self,
        link: &Link,
        (first, step): (u64, u64),
        timeout: Duration,
    ) -> Result<(), String> {
        let mut block = first;
        while block.saturating_mul(FILL_KEYS) < self.keys {
            let begin = block * FILL_KEYS;
            let mut success = Vec::new();
            // Small enough for the limit on a request, whatever the value's size.
            let mut bytes = 0;
            for number in begin..(begin + FILL_KEYS).min(self.keys) {
                let (key, value) = (self.key(number), self.value());
                bytes += key.len() + value.len();
                let put = PutRequest { key, value, ..PutRequest::default() };
                success.push(RequestOp { request: Some(Op::RequestPut(put)) });
                if bytes > 512 << 10 {
                    Self::write(link, std::mem::take(&mut success), timeout).await?;
                    bytes = 0;
                }
            }
            if !success.is_empty() {
                Self::write(link, success, timeout).await?;
            }
            block += step;
        }
        Ok(())
    }

    async fn write(link: &Link, success: Vec<RequestOp>, timeout: Duration) -> Result<(), String> {
        let txn = TxnRequest { success, ..TxnRequest::default() };
        let _: TxnResponse = link.ask(Rpc::Txn, &txn, timeout).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::tests::plan;
    use super::*;

    #[test]
    fn sizes_are_as_asked() {
        let mut workload = Workload::new(&plan(), 0);
        let prepared = workload.next(0, None);
        let put = PutRequest::decode(prepared.frame.slice(5..)).unwrap();
        assert_eq!((prepared.rpc, prepared.reads), (Rpc::Put, false));
        assert_eq!((put.key.len(), put.value.len()), (plan().prefix.len() + 16, 256));
    }

    #[test]
    fn keys_can_be_written_in_order() {
        let mut workload = Workload::new(&plan(), 0);
        for number in [0, 1, 999, 1000] {
            let prepared = workload.next(0, Some(number));
            let put = PutRequest::decode(prepared.frame.slice(5..)).unwrap();
            assert_eq!(put.key, workload.key(number % 1000));
        }
    }

    #[test]
    fn a_mix_has_as_many_reads_as_asked() {
        let mut workload =
            Workload::new(&Plan { load: Load::Mixed { read_percent: 30 }, ..plan() }, 0);
        let reads = (0..10_000).filter(|_| workload.next(0, None).reads).count();
        assert!((2800..3200).contains(&reads), "{reads}");
    }

    #[test]
    fn watchers_find_in_the_value_when_it_was_due() {
        for value_bytes in [8, 256] {
            let load = Load::Watch { watchers: 1, streams: 1 };
            let mut workload = Workload::new(&Plan { load, value_bytes, ..plan() }, 0);
            let put = PutRequest::decode(workload.next(77, None).frame.slice(5..)).unwrap();
            assert_eq!((Workload::due_of(&put.value), put.value.len()), (Some(77), value_bytes));
        }
    }

    #[test]
    fn threads_write_different_things() {
        let (mut a, mut b) = (Workload::new(&plan(), 0), Workload::new(&plan(), 1));
        assert_ne!(a.next(0, None).frame, b.next(0, None).frame);
    }
}
