//! Alarms and announced downgrades: what they forbid, and that they outlive a snapshot.

use raft_core::StateMachine as _;
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Command, KvError, Response, Store};

use crate::common::{apply, compact, delete, put, restored};

fn alarm(store: &mut Store, action: AlarmAction, member_id: u64, kind: AlarmType) -> Vec<u64> {
    let request = AlarmRequest { action: action.into(), member_id, alarm: kind.into() };
    let Ok(Response::Alarm(answer)) = apply(store, Command::alarm(request)) else {
        panic!("an alarm is never refused");
    };
    answer.alarms.iter().map(|alarm| alarm.member_id).collect()
}

fn txn_with_put_in(branch: fn(&mut TxnRequest) -> &mut Vec<RequestOp>) -> Command {
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    let inner = RequestOp { request: Some(Request::RequestPut(put)) };
    let mut txn = TxnRequest::default();
    branch(&mut txn).push(inner);
    Command::txn(txn)
}

#[test]
fn without_space_the_store_may_shrink_but_not_grow() {
    let mut store = Store::new();
    apply(&mut store, put("a", "1")).unwrap();
    let lease = LeaseGrantRequest { id: 7, ttl: 60 };
    apply(&mut store, Command::lease_grant(lease)).unwrap();
    assert_eq!(alarm(&mut store, AlarmAction::Activate, 9, AlarmType::Nospace), [9]);
    for refused in [
        put("b", "2"),
        txn_with_put_in(|txn| &mut txn.success),
        txn_with_put_in(|txn| &mut txn.failure),
        Command::lease_grant(LeaseGrantRequest { id: 8, ttl: 60 }),
    ] {
        assert_eq!(apply(&mut store, refused), Err(KvError::NoSpace));
    }
    for allowed in [
        delete("a"),
        compact(2),
        Command::txn(TxnRequest::default()),
        Command::lease_renew(vec![7]),
        Command::lease_revoke(LeaseRevokeRequest { id: 7 }),
    ] {
        assert!(apply(&mut store, allowed).is_ok());
    }

    // A member that is restored knows.
    let mut store = restored(&store, 1 << 20);
    assert_eq!(apply(&mut store, put("b", "2")), Err(KvError::NoSpace));
    assert_eq!(alarm(&mut store, AlarmAction::Activate, 5, AlarmType::Nospace), [5]);
    assert_eq!(alarm(&mut store, AlarmAction::Get, 0, AlarmType::None), [5, 9]);
    assert_eq!(alarm(&mut store, AlarmAction::Deactivate, 9, AlarmType::Nospace), [9]);
    assert_eq!(apply(&mut store, put("b", "2")), Err(KvError::NoSpace));
    assert_eq!(alarm(&mut store, AlarmAction::Deactivate, 0, AlarmType::Nospace), [5]);
    assert!(apply(&mut store, put("b", "2")).is_ok());
}

#[test]
fn a_corrupt_cluster_changes_nothing_more() {
    let mut store = Store::new();
    apply(&mut store, put("a", "1")).unwrap();
    alarm(&mut store, AlarmAction::Activate, 9, AlarmType::Corrupt);
    for refused in [put("b", "2"), delete("a"), compact(2), Command::txn(TxnRequest::default())] {
        assert_eq!(apply(&mut store, refused), Err(KvError::Corrupt));
    }
    assert_eq!(alarm(&mut store, AlarmAction::Deactivate, 9, AlarmType::Corrupt), [9]);
    assert!(apply(&mut store, delete("a")).is_ok());
}

#[test]
fn one_downgrade_at_a_time() {
    let mut store = Store::new();
    let mut downgrade = |to: &str| apply(&mut store, Command::downgrade(to.to_owned()));
    assert_eq!(downgrade(""), Err(KvError::NoDowngrade));
    assert_eq!(downgrade("3.6.0"), Ok(Response::Downgrade));
    assert_eq!(downgrade("3.6.0"), Err(KvError::DowngradeInProgress));
    let store_2 = restored(&store, 1 << 20);
    assert_eq!(store_2.reader().notices().downgrade.as_deref(), Some("3.6.0"));
    assert_eq!(store_2.digest(), store.digest());
    assert_eq!(apply(&mut store, Command::downgrade(String::new())), Ok(Response::Downgrade));
}

#[test]
fn the_least_of_the_members_quotas_holds_for_every_command() {
    let mut store = Store::new();
    // Two versions of a byte each way, and no third.
    let two = 2 * (64 + 2);
    let refused = Err(KvError::NoSpace);
    for (member, bytes) in [(1, u64::MAX), (2, two), (3, 1 << 20)] {
        assert_eq!(apply(&mut store, Command::quota(member, bytes)), Ok(Response::Quota));
    }
    assert_eq!(store.reader().notices().quota(), Some(two));
    apply(&mut store, put("a", "1")).unwrap();
    assert_eq!(apply(&mut store, put("a", "12")), refused, "one byte too many");
    apply(&mut store, put("b", "1")).unwrap();
    let mut store = restored(&store, 1 << 20);
    assert_eq!(apply(&mut store, put("c", "1")), refused);
    assert_eq!(apply(&mut store, txn_with_put_in(|txn| &mut txn.failure)), refused);
    let grant = || Command::lease_grant(LeaseGrantRequest { id: 8, ttl: 60 });
    assert_eq!(apply(&mut store, grant()), refused);
    // No alarm is needed for that, and none for going on when there is space: made, or said by who had the least.
    for key in ["a", "b"] {
        apply(&mut store, delete(key)).unwrap();
    }
    let newest = store.revision();
    apply(&mut store, compact(newest)).unwrap();
    assert_eq!(store.reader().notices().alarms.len(), 0);
    apply(&mut store, put("c", "1")).unwrap();
    assert_eq!(apply(&mut store, put("d", "1")), refused);
    apply(&mut store, Command::quota(2, 1 << 30)).unwrap();
    apply(&mut store, put("d", "1")).unwrap();
    // A member that is gone says nothing more.
    for (member, least) in [(3, Some(1 << 30)), (2, Some(u64::MAX)), (1, None)] {
        apply(&mut store, Command::quota(member, 0)).unwrap();
        assert_eq!(store.reader().notices().quota(), least);
    }
    apply(&mut store, put("e", "1")).unwrap();
}

#[test]
fn growth_is_what_a_command_may_add() {
    assert_eq!(put("key", "value").growth(), 64 + 8);
    assert_eq!(delete("key").growth(), 0);
    assert_eq!(txn_with_put_in(|txn| &mut txn.failure).growth(), 64 + 1);
    let nested = TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                success: vec![RequestOp {
                    request: Some(Request::RequestPut(PutRequest {
                        key: "k".into(),
                        value: "12".into(),
                        ..PutRequest::default()
                    })),
                }],
                ..TxnRequest::default()
            })),
        }],
        ..TxnRequest::default()
    };
    assert_eq!(Command::txn(nested).growth(), 64 + 3);
}
