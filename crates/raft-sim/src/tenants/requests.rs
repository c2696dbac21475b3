//! The tenants' operations as the server would propose them, and what is read of the answers.

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use raft_kv::{Command, Query, Response};

use super::model::{Done, Op, name};

fn put(key: u64, value: &Bytes, lease: i64) -> PutRequest {
    PutRequest { key: name(key), value: value.clone(), lease, ..PutRequest::default() }
}

/// What is proposed.
pub(super) fn command(op: &Op) -> Command {
    match op {
        Op::Put { key, value, lease } => Command::put(put(*key, value, *lease)),
        Op::Several { keys, value } => {
            let puts = keys
                .iter()
                .map(|key| RequestOp { request: Some(Request::RequestPut(put(*key, value, 0))) });
            Command::txn(TxnRequest { success: puts.collect(), ..TxnRequest::default() })
        }
        Op::Delete { from, to } => Command::delete_range(DeleteRangeRequest {
            key: name(*from),
            range_end: name(*to),
            prev_kv: false,
        }),
        Op::Compact { revision, physical } => {
            Command::compact(CompactionRequest { revision: *revision, physical: *physical })
        }
        Op::Grant { id, ttl } => Command::lease_grant(LeaseGrantRequest { id: *id, ttl: *ttl }),
        Op::Renew { id } => Command::lease_renew(vec![*id]),
        Op::Revoke { id } => Command::lease_revoke(LeaseRevokeRequest { id: *id }),
        Op::Expire { term, leases } => Command::lease_expire(*term, leases.clone()),
    }
}

/// All keys at this revision, 0 for the present.
pub(super) fn all(revision: i64) -> Query {
    Query::Range(RangeRequest {
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        revision,
        ..RangeRequest::default()
    })
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

/// What an answer says. Nothing that anybody asked for is answered with anything else.
pub(super) fn done(response: &Response) -> Option<Done> {
    let done = match response {
        Response::Put(response) => Done::Wrote(revision(response.header.as_ref())),
        Response::Txn(response) => Done::Wrote(revision(response.header.as_ref())),
        Response::Compact(response) => Done::Wrote(revision(response.header.as_ref())),
        Response::LeaseRevoke(response) => Done::Wrote(revision(response.header.as_ref())),
        Response::DeleteRange(response) => {
            Done::Deleted(revision(response.header.as_ref()), response.deleted)
        }
        Response::LeaseGrant(response) => Done::Granted(response.id, response.ttl),
        Response::LeaseRenew(ttls) => Done::Renewed(ttls.first().copied()?),
        Response::LeaseExpire(ended) => Done::Expired(ended.clone()),
        Response::Auth(_) | Response::Alarm(_) | Response::Downgrade | Response::Quota => {
            return None;
        }
    };
    Some(done)
}
