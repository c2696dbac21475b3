//! Random commands, reads and restores: the store and the naive model agree about every answer.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use raft_core::StateMachine;
use raft_kv::proto::etcdserverpb::compare::TargetUnion;
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Answer, Command, Expiry, Query, Response, Store};

use crate::common::{apply, everything, restored};
use crate::model::Model;

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Range(RangeRequest),
    Grant(LeaseGrantRequest),
    Revoke(i64),
    Renew(Vec<i64>),
    /// The leases, how many renewals the leader missed, whether it still leads.
    Expire(Vec<i64>, u64, bool),
    /// The store goes on from its own snapshot.
    Restore,
    /// A second store is made of a snapshot and must stay equal from then on.
    Fork,
    /// Removal from memory goes on by a few versions.
    Slice(usize),
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        12 => prop::sample::select(vec!["a", "aa", "ab", "b", "c", "d\0", "d"]),
        1 => prop::sample::select(vec!["\0", "\u{7f}", ""]),
    ]
    .prop_map(Bytes::from)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from("\0")),
        3 => key(),
    ]
}

fn flag() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.3)
}

fn put() -> impl Strategy<Value = PutRequest> {
    let value = prop_oneof![4 => "[a-c]{0,3}", 1 => Just(String::new())].prop_map(Bytes::from);
    let lease = prop_oneof![8 => Just(0), 4 => lease()];
    let rare = prop::bool::weighted(0.1);
    (key(), value, lease, flag(), rare, rare).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value { Bytes::new() } else { value },
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn lease() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![7, 8, -9, i64::MAX])
}

fn grant() -> impl Strategy<Value = LeaseGrantRequest> {
    let ttl = prop_oneof![8 => 1..100_i64, 1 => Just(9_000_000_001)];
    let id = prop_oneof![12 => lease(), 1 => Just(0)];
    (id, ttl).prop_map(|(id, ttl)| LeaseGrantRequest { id, ttl })
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), range_end(), flag()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn bound() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0), 1 => 1..40_i64]
}

fn range() -> impl Strategy<Value = RangeRequest> {
    let revision = prop_oneof![4 => Just(0), 6 => 1..40_i64, 1 => Just(-3)];
    let limit = prop_oneof![2 => Just(0), 3 => 1..4_i64, 1 => Just(-1)];
    let sort = (0..3_i32, 0..5_i32);
    let filters = (bound(), bound(), bound(), bound());
    let flags = (flag(), prop::bool::weighted(0.1));
    (key(), range_end(), revision, limit, sort, flags, filters).prop_map(
        |(key, range_end, revision, limit, sort, flags, filters)| RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order: sort.0,
            sort_target: sort.1,
            serializable: false,
            keys_only: flags.0,
            count_only: flags.1,
            min_mod_revision: filters.0,
            max_mod_revision: filters.1,
            min_create_revision: filters.2,
            max_create_revision: filters.3,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let union = prop_oneof![
        (0..3_i64).prop_map(TargetUnion::Version),
        (0..30_i64).prop_map(TargetUnion::CreateRevision),
        (0..30_i64).prop_map(TargetUnion::ModRevision),
        "[a-c]{0,3}".prop_map(|value| TargetUnion::Value(value.into())),
        (0..2_i64).prop_map(TargetUnion::Lease),
    ];
    (0..4_i32, key(), range_end(), union).prop_map(|(result, key, range_end, union)| Compare {
        result,
        target: match union {
            TargetUnion::Version(_) => 0,
            TargetUnion::CreateRevision(_) => 1,
            TargetUnion::ModRevision(_) => 2,
            TargetUnion::Value(_) => 3,
            TargetUnion::Lease(_) => 4,
        },
        key,
        range_end,
        target_union: Some(union),
    })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let leaf = prop_oneof![
        put().prop_map(Request::RequestPut),
        delete().prop_map(Request::RequestDeleteRange),
        range().prop_map(Request::RequestRange),
    ];
    let op = leaf.prop_recursive(2, 12, 3, |inner| {
        let ops = || vec(inner.clone(), 0..3);
        (vec(compare(), 0..2), ops(), ops()).prop_map(|(compare, success, failure)| {
            Request::RequestTxn(TxnRequest {
                compare,
                success: wrap(success),
                failure: wrap(failure),
            })
        })
    });
    let ops = vec(op, 0..4);
    (vec(compare(), 0..3), ops.clone(), ops).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success: wrap(success),
        failure: wrap(failure),
    })
}

fn read_only_txn() -> impl Strategy<Value = TxnRequest> {
    let ops = || vec(range().prop_map(Request::RequestRange), 0..3);
    (vec(compare(), 0..2), ops(), ops()).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success: wrap(success),
        failure: wrap(failure),
    })
}

fn wrap(ops: Vec<Request>) -> Vec<RequestOp> {
    ops.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => put().prop_map(Step::Put),
        5 => delete().prop_map(Step::Delete),
        8 => txn().prop_map(Step::Txn),
        2 => read_only_txn().prop_map(Step::Txn),
        3 => (0..40_i64, flag())
            .prop_map(|(revision, physical)| Step::Compact(CompactionRequest { revision, physical })),
        8 => range().prop_map(Step::Range),
        6 => grant().prop_map(Step::Grant),
        2 => lease().prop_map(Step::Revoke),
        2 => vec(lease(), 0..4).prop_map(Step::Renew),
        3 => (vec(lease(), 0..4), prop_oneof![3 => Just(0), 1 => Just(1)], prop::bool::weighted(0.8))
            .prop_map(|(ids, missed, leads)| Step::Expire(ids, missed, leads)),
        1 => Just(Step::Restore),
        1 => Just(Step::Fork),
        2 => (1..8_usize).prop_map(Step::Slice),
    ]
}

/// Runs one command on the model.
fn model_apply(
    model: &mut Model,
    step: &Step,
) -> Option<(Command, Result<Response, raft_kv::KvError>)> {
    match step {
        Step::Put(request) => {
            Some((Command::put(request.clone()), model.put(request).map(Response::Put)))
        }
        Step::Delete(request) => Some((
            Command::delete_range(request.clone()),
            model.delete(request).map(Response::DeleteRange),
        )),
        Step::Txn(request) => {
            Some((Command::txn(request.clone()), model.txn(request).map(Response::Txn)))
        }
        Step::Compact(request) => {
            Some((Command::compact(*request), model.compact(request).map(Response::Compact)))
        }
        Step::Grant(request) => {
            Some((Command::lease_grant(*request), model.grant(request).map(Response::LeaseGrant)))
        }
        Step::Revoke(id) => Some((
            Command::lease_revoke(LeaseRevokeRequest { id: *id }),
            model.revoke(*id).map(Response::LeaseRevoke),
        )),
        Step::Renew(ids) => {
            let ttls = model.renew(ids);
            Some((Command::lease_renew(ids.clone()), Ok(Response::LeaseRenew(ttls))))
        }
        Step::Expire(ids, missed, leads) => {
            let expiry = |id: &i64| Expiry {
                id: *id,
                renewals: model.renewals(*id) - missed.min(&model.renewals(*id)),
            };
            let leases: Vec<Expiry> = ids.iter().map(expiry).collect();
            let ended = model.expire(*leads, &leases);
            let term = raft_core::Term(if *leads { 1 } else { 2 });
            Some((Command::lease_expire(term, leases), Ok(Response::LeaseExpire(ended))))
        }
        Step::Range(_) | Step::Restore | Step::Fork | Step::Slice(_) => None,
    }
}

fn check_leases(store: &Store, model: &Model) {
    assert_eq!(store.query(Query::Leases), Ok(Answer::Leases(model.leases())));
    for id in [0, 7, 8, -9, i64::MAX] {
        assert_eq!(
            store.query(Query::Lease { id, keys: true }),
            Ok(Answer::Lease(model.lease(id)))
        );
    }
}

fn check_history(store: &Store, model: &Model) {
    let reader = store.reader();
    assert_eq!(reader.revision(), model.revision);
    for at in 1..=model.revision + 1 {
        let request = everything(at);
        assert_eq!(reader.range(&request), model.range(&request), "at {at}");
        let events = reader.events(at, usize::MAX, usize::MAX).map(|events| events.events);
        assert_eq!(events, model.events(at), "events from {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_the_model(steps in vec(step(), 1..60)) {
        let mut model = Model::new();
        let mut store = Store::with_segment_bytes(256);
        let mut fork: Option<Store> = None;
        for step in steps {
            if let Step::Txn(request) = &step
                && raft_kv::is_read_only(request)
            {
                prop_assert_eq!(store.reader().txn(request), model.clone().txn(request));
            }
            if let Some((command, expected)) = model_apply(&mut model, &step) {
                prop_assert_eq!(&apply(&mut store, command.clone()), &expected, "{:?}", step);
                if let Some(fork) = &mut fork {
                    prop_assert_eq!(&apply(fork, command), &expected);
                }
                continue;
            }
            match step {
                Step::Range(request) => {
                    let expected = model.range(&request);
                    prop_assert_eq!(&store.reader().range(&request), &expected);
                    let answer = expected.map(Answer::Range);
                    prop_assert_eq!(&store.query(Query::Range(request)), &answer);
                }
                Step::Restore => {
                    let digest = store.digest();
                    store = restored(&store, 256);
                    prop_assert_eq!(store.digest(), digest);
                }
                Step::Fork => fork = Some(restored(&store, 256)),
                Step::Slice(budget) => {
                    store.compact_slice(budget);
                }
                Step::Put(_)
                | Step::Delete(_)
                | Step::Txn(_)
                | Step::Compact(_)
                | Step::Grant(_)
                | Step::Revoke(_)
                | Step::Renew(_)
                | Step::Expire(..) => {}
            }
        }
        check_history(&store, &model);
        check_leases(&store, &model);
        if let Some(fork) = fork {
            prop_assert_eq!(fork.digest(), store.digest());
            prop_assert_eq!(fork.logical_size(), store.logical_size());
            check_history(&fork, &model);
        }
        let fresh = restored(&store, 256);
        prop_assert_eq!(fresh.digest(), store.digest());
        check_history(&fresh, &model);
        check_leases(&fresh, &model);
        while store.compact_slice(usize::MAX) {}
        check_history(&store, &model);
        // What is left in memory is exactly what the snapshot holds.
        prop_assert_eq!(store.versions_in_memory(), fresh.versions_in_memory());
    }
}
