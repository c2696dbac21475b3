//! A request of the model as the server would make it of an etcd call, and the answer as the client sees it.

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request as Operation;
use raft_kv::proto::etcdserverpb::response_op::Response as Outcome;
use raft_kv::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest,
};
use raft_kv::{Command, Response};

use super::model::{Answer, Op, Value};

fn key_bytes(key: u64) -> Bytes {
    Bytes::from(format!("key-{key}"))
}

pub(super) fn range(key: u64) -> RangeRequest {
    RangeRequest { key: key_bytes(key), ..RangeRequest::default() }
}

/// The command; `None` for a read.
pub(super) fn command(op: &Op) -> Option<Command> {
    let put = |key: u64, value: &Bytes| PutRequest {
        key: key_bytes(key),
        value: value.clone(),
        ..PutRequest::default()
    };
    Some(match op {
        Op::Put { key, value } => Command::put(put(*key, value)),
        Op::Swap { key, mod_revision, value } => {
            let compare = Compare {
                result: i32::from(CompareResult::Equal),
                target: i32::from(CompareTarget::Mod),
                key: key_bytes(*key),
                range_end: Bytes::new(),
                target_union: Some(TargetUnion::ModRevision(*mod_revision)),
            };
            let put = Operation::RequestPut(put(*key, value));
            let read = Operation::RequestRange(range(*key));
            Command::txn(TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(put) }],
                failure: vec![RequestOp { request: Some(read) }],
            })
        }
        Op::Delete { key } => Command::delete_range(DeleteRangeRequest {
            key: key_bytes(*key),
            ..DeleteRangeRequest::default()
        }),
        Op::Read { .. } => return None,
    })
}

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(-1, |header| header.revision)
}

fn found(response: &RangeResponse) -> Option<Value> {
    response.kvs.first().map(|kv| Value {
        value: kv.value.clone(),
        mod_revision: kv.mod_revision,
        create_revision: kv.create_revision,
        version: kv.version,
    })
}

/// The revision at which the key was read, and what it held.
pub(super) fn read_answer(response: &RangeResponse) -> (i64, Option<Value>) {
    (revision(response.header.as_ref()), found(response))
}

/// The answer in the model's words.
pub(super) fn answer(response: &Response) -> Answer {
    match response {
        Response::Put(put) => Answer::Put { revision: revision(put.header.as_ref()) },
        Response::DeleteRange(delete) => {
            Answer::Delete { revision: revision(delete.header.as_ref()), deleted: delete.deleted }
        }
        Response::Txn(txn) => {
            let read = txn.responses.iter().find_map(|response| match &response.response {
                Some(Outcome::ResponseRange(range)) => found(range),
                _ => None,
            });
            Answer::Swap {
                revision: revision(txn.header.as_ref()),
                swapped: txn.succeeded,
                found: read,
            }
        }
        Response::Compact(compact) => Answer::Put { revision: revision(compact.header.as_ref()) },
        Response::LeaseGrant(grant) => Answer::Put { revision: revision(grant.header.as_ref()) },
        Response::LeaseRevoke(revoke) => Answer::Put { revision: revision(revoke.header.as_ref()) },
        Response::LeaseRenew(_)
        | Response::LeaseExpire(_)
        | Response::Alarm(_)
        | Response::Auth(_)
        | Response::Downgrade
        | Response::Quota => Answer::Put { revision: -1 },
    }
}
