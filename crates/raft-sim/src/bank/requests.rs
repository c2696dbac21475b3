//! The bank's requests as the server would make them of etcd calls, and what is read of the answers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
};
use raft_kv::proto::mvccpb::KeyValue;
use raft_kv::{Command, Query, Response};

use super::DEPOSIT;

/// Where accounts begin, and where they are over.
pub(super) const ACCOUNTS: (&str, &str) = ("account/", "account0");
/// Where sessions begin, and where they are over: what no guest may see.
pub(super) const SESSIONS: (&str, &str) = ("session/", "session0");

/// One account as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Account {
    pub(super) balance: u64,
    /// The request that left it so.
    pub(super) by: u64,
    pub(super) mod_revision: i64,
    /// How often it was written.
    pub(super) version: i64,
}

impl Account {
    /// Nobody has changed it since it was opened.
    pub(super) const fn opened(&self) -> bool {
        self.version == 1
    }
}

/// All accounts at one revision.
pub(super) type Picture = BTreeMap<u64, Account>;

fn account_key(account: u64) -> Bytes {
    Bytes::from(format!("{}{account}", ACCOUNTS.0))
}

fn put_account(account: u64, balance: u64, by: u64) -> RequestOp {
    let put = PutRequest {
        key: account_key(account),
        value: Bytes::from(format!("{balance} {by}")),
        ..PutRequest::default()
    };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

fn unchanged(account: u64, mod_revision: i64) -> Compare {
    Compare {
        result: i32::from(CompareResult::Equal),
        target: i32::from(CompareTarget::Mod),
        key: account_key(account),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
    }
}

fn range((from, end): (&'static str, &'static str), revision: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from(from),
        range_end: Bytes::from(end),
        revision,
        ..RangeRequest::default()
    }
}

/// Opens all accounts, unless they are.
pub(super) fn open(accounts: u64, by: u64) -> Command {
    Command::txn(TxnRequest {
        compare: vec![unchanged(0, 0)],
        success: (0..accounts).map(|account| put_account(account, DEPOSIT, by)).collect(),
        failure: Vec::new(),
    })
}

/// Moves money if neither account has changed; otherwise reads all.
pub(super) fn transfer(known: &Picture, from: u64, to: u64, amount: u64, by: u64) -> Command {
    let all = Request::RequestRange(range(ACCOUNTS, 0));
    Command::txn(TxnRequest {
        compare: [from, to].map(|account| unchanged(account, known[&account].mod_revision)).into(),
        success: vec![
            put_account(from, known[&from].balance - amount, by),
            put_account(to, known[&to].balance + amount, by),
        ],
        failure: vec![RequestOp { request: Some(all) }],
    })
}

/// All accounts at this revision, 0 for the present.
pub(super) fn accounts(revision: i64) -> Query {
    Query::Range(range(ACCOUNTS, revision))
}

pub(super) fn sessions() -> Query {
    Query::Range(range(SESSIONS, 0))
}

pub(super) fn compact(revision: i64) -> Command {
    Command::compact(CompactionRequest { revision, physical: false })
}

pub(super) fn grant(id: i64) -> Command {
    Command::lease_grant(LeaseGrantRequest { id, ttl: 60 })
}

pub(super) fn revoke(id: i64) -> Command {
    Command::lease_revoke(LeaseRevokeRequest { id })
}

/// A key that lives as long as the lease.
pub(super) fn attach(id: i64) -> Command {
    Command::put(PutRequest {
        key: Bytes::from(format!("{}{id}", SESSIONS.0)),
        lease: id,
        ..PutRequest::default()
    })
}

pub(super) fn append(client: usize, number: u64) -> Command {
    Command::put(PutRequest {
        key: Bytes::from(format!("trail/{client}/{number}")),
        ..PutRequest::default()
    })
}

/// Deletes everything that this client has appended.
pub(super) fn sweep(client: usize) -> Command {
    Command::delete_range(DeleteRangeRequest {
        key: Bytes::from(format!("trail/{client}/")),
        range_end: Bytes::from(format!("trail/{client}0")),
        prev_kv: true,
    })
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

/// The revision that the answer to a command carries.
pub(super) fn revision_of(response: &Response) -> Option<i64> {
    let header = match response {
        Response::Put(response) => response.header.as_ref(),
        Response::DeleteRange(response) => response.header.as_ref(),
        Response::Txn(response) => response.header.as_ref(),
        Response::Compact(response) => response.header.as_ref(),
        Response::LeaseGrant(response) => response.header.as_ref(),
        Response::LeaseRevoke(response) => response.header.as_ref(),
        Response::Auth(header) => header.as_ref(),
        Response::LeaseRenew(_)
        | Response::LeaseExpire(_)
        | Response::Alarm(_)
        | Response::Downgrade
        | Response::Quota => None,
    };
    header.map(|header| header.revision)
}

/// What accounts hold.
///
/// # Panics
/// On a key or a value that nobody has written.
pub(super) fn picture(response: &RangeResponse) -> Picture {
    let pairs = response.kvs.iter().map(|pair| {
        let found = parse(pair);
        found.unwrap_or_else(|| panic!("nobody has written {pair:?}"))
    });
    pairs.collect()
}

fn parse(pair: &KeyValue) -> Option<(u64, Account)> {
    let account = std::str::from_utf8(&pair.key).ok()?.strip_prefix(ACCOUNTS.0)?.parse().ok()?;
    let (balance, by) = std::str::from_utf8(&pair.value).ok()?.split_once(' ')?;
    let (balance, by) = (balance.parse().ok()?, by.parse().ok()?);
    let (mod_revision, version) = (pair.mod_revision, pair.version);
    Some((account, Account { balance, by, mod_revision, version }))
}

/// The leases of the sessions that were found.
///
/// # Panics
/// On a session that carries another lease than its own.
pub(super) fn found_sessions(response: &RangeResponse) -> BTreeSet<i64> {
    let ids = response.kvs.iter().map(|pair| {
        let name = std::str::from_utf8(&pair.key).unwrap_or_default();
        let id = name.strip_prefix(SESSIONS.0).and_then(|id| id.parse().ok());
        assert!(id == Some(pair.lease), "{name} carries the lease {}", pair.lease);
        pair.lease
    });
    ids.collect()
}

pub(super) fn length<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}
