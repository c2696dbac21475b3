//! Requests that no honest client sends: each gets an error, and whoever behaves beside them notices nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use raft_kv::proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, DowngradeRequest, HashKvRequest,
    LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, request_op::Request as Op,
};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::gateway::send;
use crate::support::{Members, PATIENCE, channel_to, get, put, range};

/// Bytes as they are, for messages that no library would write.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// Sends bytes as the message of a call.
async fn call(address: &str, path: &'static str, message: Vec<u8>) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel_to(address));
    grpc.ready().await.unwrap();
    let request = Request::new(Bytes::from(message));
    grpc.unary(request, path.parse().unwrap(), Raw).await.map(tonic::Response::into_inner)
}

/// A field that holds bytes, as protobuf writes it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend(content);
    out
}

/// Transactions in transactions.
fn nested(depth: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..depth {
        // RequestOp.request_txn within TxnRequest.success.
        inner = field(2, &field(4, &inner));
    }
    inner
}

/// A client that behaves: writes and reads its own writes until it is told to stop.
async fn behave(address: String, stop: Arc<AtomicBool>, rounds: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let n = rounds.fetch_add(1, Ordering::Relaxed).to_string();
        put(&address, "good", &n).await.unwrap();
        assert_eq!(get(&address, "good").await.unwrap(), Some(n));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_honest_client_sends_is_refused_and_touches_nobody() {
    let members = Members::start(3);
    members.leader().await;
    let address = members.addresses[0].as_str();
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let good = tokio::spawn(behave(address.to_owned(), Arc::clone(&stop), Arc::clone(&rounds)));

    // Deep nesting, as protobuf and as JSON.
    for depth in [17, 10_000] {
        let refused = call(address, "/etcdserverpb.KV/Txn", nested(depth)).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::InvalidArgument | Code::Internal),
            "depth {depth}: {refused:?}"
        );
    }
    let deep =
        format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(10_000), "}]}".repeat(10_000));
    assert_eq!(send(address, "POST", "/v3/kv/txn", &deep).status, 400);

    // A value of 100 MB: refused by its length, before it is read.
    let put_of = |value: Vec<u8>| PutRequest {
        key: "huge".into(),
        value: value.into(),
        ..PutRequest::default()
    };
    let huge = put_of(vec![0; 100 << 20]).encode_to_vec();
    let refused = call(address, "/etcdserverpb.KV/Put", huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n";
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 429");

    // Text that is no UTF-8, where text is due.
    let url = field(1, b"http://\xff\xfe:1");
    let refused = call(address, "/etcdserverpb.Cluster/MemberAdd", url).await.unwrap_err();
    assert!(matches!(refused.code(), Code::InvalidArgument | Code::Internal), "{refused:?}");
    // Keys and values are bytes: these are fine.
    let odd = PutRequest { key: vec![0xff, 0xfe].into(), ..put_of(vec![0x80]) };
    call(address, "/etcdserverpb.KV/Put", odd.encode_to_vec()).await.unwrap();

    // Messages that end early, or are something else.
    for half in [&[0x0a_u8, 0x7f][..], &[0xff; 16], &[0x08], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]]
    {
        let refused = call(address, "/etcdserverpb.KV/Range", half.to_vec()).await.unwrap_err();
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::Internal), "{refused:?}");
    }

    // Negative numbers and enumerations that do not exist: an answer of some kind, and the same member afterwards.
    let negative = RangeRequest {
        key: "good".into(),
        limit: -1,
        revision: -1,
        min_mod_revision: -1,
        max_mod_revision: -1,
        ..RangeRequest::default()
    };
    for (path, message) in [
        ("/etcdserverpb.KV/Range", negative.encode_to_vec()),
        ("/etcdserverpb.KV/RangeStream", negative.encode_to_vec()),
        (
            "/etcdserverpb.KV/Range",
            RangeRequest { sort_order: -7, sort_target: 99, ..negative.clone() }.encode_to_vec(),
        ),
        ("/etcdserverpb.KV/Put", PutRequest { lease: -1, ..put_of(Vec::new()) }.encode_to_vec()),
        (
            "/etcdserverpb.KV/Compact",
            CompactionRequest { revision: -1, physical: true }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.KV/Compact",
            CompactionRequest { revision: i64::MIN, physical: false }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.KV/Compact",
            CompactionRequest { revision: i64::MAX, physical: false }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.Lease/LeaseGrant",
            LeaseGrantRequest { id: -1, ttl: i64::MIN }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.Lease/LeaseGrant",
            LeaseGrantRequest { id: 0, ttl: i64::MAX }.encode_to_vec(),
        ),
        ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: i64::MIN }.encode_to_vec()),
        (
            "/etcdserverpb.Lease/LeaseTimeToLive",
            LeaseTimeToLiveRequest { id: i64::MIN, keys: true }.encode_to_vec(),
        ),
        ("/etcdserverpb.Maintenance/HashKV", HashKvRequest { revision: -1 }.encode_to_vec()),
        ("/etcdserverpb.Maintenance/HashKV", HashKvRequest { revision: i64::MAX }.encode_to_vec()),
        (
            "/etcdserverpb.Maintenance/Alarm",
            AlarmRequest { action: 99, member_id: u64::MAX, alarm: -3 }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.Maintenance/Alarm",
            AlarmRequest { action: 1, member_id: u64::MAX, alarm: 99 }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.Maintenance/Downgrade",
            DowngradeRequest { action: 99, version: "3.6".to_owned() }.encode_to_vec(),
        ),
        ("/etcdserverpb.KV/Txn", strange_txn().encode_to_vec()),
    ] {
        if let Err(status) = call(address, path, message).await {
            let broken =
                matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Internal);
            assert!(!broken, "{path}: {status:?}");
        }
    }

    // Ranges that end before they begin are empty.
    assert_eq!(range(address, "z", "a").await.unwrap().count, 0);
    let nothing = DeleteRangeRequest {
        key: "z".into(),
        range_end: "a".into(),
        ..DeleteRangeRequest::default()
    };
    call(address, "/etcdserverpb.KV/DeleteRange", nothing.encode_to_vec()).await.unwrap();

    // Connections that break off in the middle of a message.
    for cut in [10, 30, 60] {
        let mut half =
            b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"key\":\""
                .to_vec();
        half.truncate(cut);
        TcpStream::connect(address).unwrap().write_all(&half).unwrap();
    }

    let before = rounds.load(Ordering::Relaxed);
    while rounds.load(Ordering::Relaxed) < before + 10 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    good.await.unwrap();
    assert_eq!(get(address, "huge").await.unwrap(), None);
    for address in &members.addresses {
        put(address, "after", "all").await.unwrap();
    }
}

/// Comparisons and operations of kinds that do not exist.
fn strange_txn() -> TxnRequest {
    let compare = Compare { result: 99, target: -1, key: "good".into(), ..Compare::default() };
    let range = RangeRequest { key: "good".into(), sort_target: 77, ..RangeRequest::default() };
    let op = RequestOp { request: Some(Op::RequestRange(range)) };
    TxnRequest {
        compare: vec![compare],
        success: vec![op, RequestOp { request: None }],
        failure: Vec::new(),
    }
}
