//! Writers under load, and what they know of every write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use raft_kv::proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_sim::linearizability::{Key, Request, Value};
use tonic::transport::Channel;

use crate::MEMBERS;
use crate::cluster::channel;
use crate::history::{Seen, own_key, value_number};

/// What a client knows of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// Every write of a run to a key of its own; none is written twice.
pub(crate) type Ledger = BTreeMap<String, Fate>;

/// What writers share.
pub(crate) struct Load {
    pub(crate) addresses: Vec<String>,
    pub(crate) stop: AtomicBool,
    pub(crate) acknowledged: AtomicU64,
    /// When the kill came, in microseconds since `began`; never, before it.
    pub(crate) killed_at: AtomicU64,
    /// When the first write succeeded that was begun after the kill.
    pub(crate) first_success: AtomicU64,
    began: Instant,
    /// Between the requests of one client.
    pause: Duration,
    /// Keys whose writes were acknowledged, for readers; only with a pause.
    written: Mutex<Vec<String>>,
}

impl Load {
    pub(crate) fn on(addresses: Vec<String>) -> Arc<Self> {
        Self::with_pause(addresses, Duration::ZERO)
    }

    /// A light load, of which every acknowledged write can be read while it goes on.
    pub(crate) fn with_pause(addresses: Vec<String>, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            addresses,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            killed_at: AtomicU64::new(u64::MAX),
            first_success: AtomicU64::new(u64::MAX),
            began: Instant::now(),
            pause,
            written: Mutex::default(),
        })
    }

    /// One of the keys whose writes were acknowledged, chosen by `number`.
    pub(crate) fn any_acknowledged(&self, number: u64) -> Option<String> {
        let written = self.written.lock().ok()?;
        let count = u64::try_from(written.len()).ok()?;
        written.get(usize::try_from(number.checked_rem(count)?).ok()?).cloned()
    }

    /// Notes an acknowledged write for readers.
    fn note(&self, key: &str) {
        if self.pause > Duration::ZERO
            && let Ok(mut written) = self.written.lock()
        {
            written.push(key.to_owned());
        }
    }

    pub(crate) fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Keys that all clients write and read.
const SHARED_KEYS: u64 = 8;

/// What one client knows in the end.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) ledger: Ledger,
    pub(crate) seen: Seen,
}

/// What a client does next.
enum Step {
    /// Writes a key of its own.
    Own,
    /// Writes one of those that all share.
    Write(u64),
    /// Reads one of them.
    Read(u64),
}

const fn step(number: u64) -> Step {
    match number % 4 {
        0 => Step::Write(number / 4 % SHARED_KEYS),
        2 => Step::Read(number / 4 % SHARED_KEYS),
        _ => Step::Own,
    }
}

/// Writes one key after the other through changing members until told to stop; every fourth time one that all clients
/// write, and reads one of those as often.
pub(crate) async fn write(load: Arc<Load>, run: String, client: usize) -> Record {
    let mut record = Record::default();
    let mut member = client % MEMBERS;
    let mut connection: Option<KvClient<Channel>> = None;
    let mut number = 0u64;
    while !load.stop.load(Ordering::Relaxed) {
        let Some(kv) = &mut connection else {
            connection = channel(&load.addresses[member]).await.ok().map(KvClient::new);
            if connection.is_none() {
                member = (member + 1) % MEMBERS;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            continue;
        };
        number += 1;
        let content = match step(number) {
            Step::Read(shared) => {
                match read(&load, kv, &run, client, shared, &mut record.seen).await {
                    Fate::Acknowledged => continue,
                    Fate::Refused | Fate::Unknown => None,
                }
            }
            Step::Own => {
                let name = format!("{run}/{client}/{number}");
                let value = value_of(&name);
                Some((name, value, own_key(client, number)))
            }
            Step::Write(shared) => {
                let value = Bytes::from(value_number(client, number).to_string());
                Some((shared_name(&run, shared), value, shared_key(shared)))
            }
        };
        let mut fate = Fate::Unknown;
        if let Some((name, value, key)) = content {
            let put = PutRequest { key: Bytes::from(name.clone()), value, ..PutRequest::default() };
            let asked = load.micros();
            let request = Request::Put(key, Value(value_number(client, number)));
            record.seen.called(client, asked, request);
            let answer = tokio::time::timeout(Duration::from_secs(10), kv.put(put)).await;
            fate = match answer {
                Ok(Ok(answer)) => {
                    let revision = answer.get_ref().header.as_ref().map_or(0, |h| h.revision);
                    record.seen.written(load.micros(), revision);
                    load.acknowledged.fetch_add(1, Ordering::Relaxed);
                    if asked >= load.killed_at.load(Ordering::Relaxed) {
                        load.first_success.fetch_min(load.micros(), Ordering::Relaxed);
                    }
                    Fate::Acknowledged
                }
                Ok(Err(status)) => fate_of(&status),
                Err(_) => Fate::Unknown,
            };
            if fate == Fate::Refused {
                record.seen.forget();
            }
            if matches!(step(number), Step::Own) {
                if fate == Fate::Acknowledged {
                    load.note(&name);
                }
                record.ledger.insert(name, fate);
            }
        }
        if fate != Fate::Acknowledged {
            connection = None;
            member = (member + 1) % MEMBERS;
        }
        if load.pause > Duration::ZERO {
            tokio::time::sleep(load.pause).await;
        }
    }
    record
}

fn shared_name(run: &str, shared: u64) -> String {
    format!("{run}/shared/{shared}")
}

fn shared_key(shared: u64) -> Key {
    Key(u32::try_from(shared).unwrap_or(u32::MAX))
}

/// A linearizable read of a key that all clients write.
async fn read(
    load: &Load,
    kv: &mut KvClient<Channel>,
    run: &str,
    client: usize,
    shared: u64,
    seen: &mut Seen,
) -> Fate {
    let range =
        RangeRequest { key: Bytes::from(shared_name(run, shared)), ..RangeRequest::default() };
    seen.called(client, load.micros(), Request::Get(shared_key(shared)));
    match tokio::time::timeout(Duration::from_secs(10), kv.range(range)).await {
        Ok(Ok(answer)) => {
            seen.read(load.micros(), answer.get_ref());
            Fate::Acknowledged
        }
        Ok(Err(_)) | Err(_) => {
            seen.forget();
            Fate::Unknown
        }
    }
}

/// The revision of the store, linearizably, through one member.
pub(crate) async fn revision(address: &str) -> Result<i64> {
    let mut kv = KvClient::new(channel(address).await?);
    let range = RangeRequest { key: Bytes::from_static(b"any"), ..RangeRequest::default() };
    let answer = kv.range(range).await?.into_inner();
    Ok(answer.header.map_or(0, |header| header.revision))
}

pub(crate) fn value_of(key: &str) -> Bytes {
    Bytes::from(format!("value of {key} {}", "x".repeat(64)))
}

/// The server promises that whatever is not "request timed out" was not and will not be applied. What the
/// connection itself reports is unknown.
pub(crate) fn fate_of(status: &tonic::Status) -> Fate {
    let words = status.message();
    if words.starts_with("etcdserver: ") && !words.starts_with("etcdserver: request timed out") {
        Fate::Refused
    } else {
        Fate::Unknown
    }
}

/// Reads everything through one member and compares it with what the writers know.
pub(crate) async fn check_ledger(address: &str, ledger: &Ledger) -> Result<()> {
    let stored = read_all(address).await?;
    for (key, fate) in ledger {
        match (fate, stored.get(key.as_bytes())) {
            (Fate::Acknowledged, None) => bail!("{address}: the acknowledged write {key} is lost"),
            (Fate::Refused, Some(_)) => bail!("{address}: the refused write {key} was applied"),
            (_, Some(value)) => {
                ensure!(*value == value_of(key), "{address}: {key} has a wrong value");
            }
            (_, None) => {}
        }
    }
    for key in stored.keys() {
        let known = std::str::from_utf8(key)
            .is_ok_and(|key| ledger.contains_key(key) || key.contains("/shared/"));
        ensure!(known, "{address}: {key:?} was never written");
    }
    Ok(())
}

async fn read_all(address: &str) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut kv = KvClient::new(channel(address).await?).max_decoding_message_size(256 << 20);
    let mut stored = BTreeMap::new();
    let mut from = Bytes::from_static(b"\0");
    loop {
        let range = RangeRequest {
            key: from.clone(),
            range_end: Bytes::from_static(b"\0"),
            limit: 10_000,
            ..RangeRequest::default()
        };
        let answer: RangeResponse = kv.range(range).await?.into_inner();
        for pair in answer.kvs {
            from = Bytes::from([&pair.key[..], b"\0"].concat());
            stored.insert(pair.key, pair.value);
        }
        if !answer.more {
            return Ok(stored);
        }
    }
}
