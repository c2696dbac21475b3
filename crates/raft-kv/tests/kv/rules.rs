//! etcd's rules for keys, one test each, with the texts that clients compare.

use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::response_op::Response as OpResponse;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::proto::mvccpb::KeyValue;
use raft_kv::{
    Code, Command, KvError, Response, Store, TXN_DEPTH_MAX, TXN_OPS_MAX, check_delete, check_put,
    check_range, check_txn,
};

use crate::common::{apply, compact, delete, everything, put, range};

/// A store with `keys`, each put once, from revision 2 on.
fn store_with(keys: &[&str]) -> Store {
    let mut store = Store::new();
    for key in keys {
        apply(&mut store, put(key, &format!("value of {key}"))).unwrap();
    }
    store
}

fn read(store: &Store, request: &RangeRequest) -> RangeResponse {
    store.reader().range(request).unwrap()
}

fn keys(response: &RangeResponse) -> Vec<&str> {
    response.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect()
}

fn get(store: &Store, key: &str) -> Option<KeyValue> {
    read(store, &range(key, "", 0)).kvs.pop()
}

fn txn(compare: Vec<Compare>, success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
    let wrap = |ops: Vec<Request>| {
        ops.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
    };
    TxnRequest { compare, success: wrap(success), failure: wrap(failure) }
}

fn run(store: &mut Store, request: TxnRequest) -> Result<TxnResponse, KvError> {
    let response = apply(store, Command::txn(request))?;
    let Response::Txn(response) = response else { panic!("{response:?}") };
    Ok(response)
}

fn put_op(key: &str, value: &str) -> Request {
    Request::RequestPut(put_request(key, value))
}

fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

fn delete_op(key: &str, range_end: &str) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        prev_kv: false,
    })
}

fn range_op(key: &str) -> Request {
    Request::RequestRange(range(key, "", 0))
}

fn compare(key: &str, result: CompareResult, union: TargetUnion) -> Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: key.to_owned().into(),
        range_end: bytes::Bytes::new(),
        target_union: Some(union),
    }
}

fn assert_error(error: KvError, code: Code, text: &str) {
    assert_eq!(error.code(), code);
    assert_eq!(error.to_string(), text);
}

// Headers and revisions.

#[test]
fn a_fresh_store_is_at_revision_1_and_the_first_write_makes_2() {
    let mut store = Store::new();
    assert_eq!(store.reader().revision(), 1);
    let Ok(Response::Put(response)) = apply(&mut store, put("k", "v")) else { panic!() };
    assert_eq!(response.header.unwrap().revision, 2);
    let kv = get(&store, "k").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (2, 2, 1, 0));
}

#[test]
fn a_read_of_the_past_carries_the_present_revision() {
    let store = store_with(&["a", "b", "c"]);
    let response = read(&store, &everything(2));
    assert_eq!(keys(&response), ["a"]);
    assert_eq!(response.header.unwrap().revision, 4);
}

#[test]
fn a_key_that_is_made_again_begins_a_new_life() {
    let mut store = store_with(&["a"]);
    apply(&mut store, put("a", "second")).unwrap();
    apply(&mut store, delete("a")).unwrap();
    assert_eq!(get(&store, "a"), None);
    apply(&mut store, put("a", "third")).unwrap();
    let kv = get(&store, "a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    let old = store.reader().get(&"a".into(), 3).unwrap().unwrap();
    assert_eq!((old.create_revision, old.mod_revision, old.version), (2, 3, 2));
}

#[test]
fn a_tombstone_is_an_event_with_key_and_revision_only() {
    let mut store = store_with(&["a"]);
    apply(&mut store, delete("a")).unwrap();
    let events = store.reader().events(3, 10, usize::MAX).unwrap();
    assert_eq!(events.next, 4);
    let expected = KeyValue { key: "a".into(), mod_revision: 3, ..KeyValue::default() };
    assert_eq!(events.events.len(), 1);
    assert_eq!(events.events[0].r#type, 1);
    assert_eq!(events.events[0].kv, Some(expected));
}

// Range.

#[test]
fn range_without_a_key_is_refused() {
    let error = check_range(&RangeRequest::default()).unwrap_err();
    assert_error(error, Code::InvalidArgument, "etcdserver: key is not provided");
    assert_eq!(Store::new().reader().range(&RangeRequest::default()), Err(error));
}

#[test]
fn range_with_an_unknown_sort_option_is_refused() {
    for (sort_order, sort_target) in [(3, 0), (0, 5), (-1, 0)] {
        let request = RangeRequest { sort_order, sort_target, ..range("a", "", 0) };
        assert_error(
            check_range(&request).unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: invalid sort option",
        );
    }
}

#[test]
fn range_of_the_future_is_refused() {
    let store = store_with(&["a"]);
    assert_error(
        store.reader().range(&range("a", "", 3)).unwrap_err(),
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

#[test]
fn range_ends_mean_one_key_a_range_from_key_or_everything() {
    let store = store_with(&["a", "b", "b\0", "c"]);
    assert_eq!(keys(&read(&store, &range("b", "", 0))), ["b"]);
    assert_eq!(keys(&read(&store, &range("a", "c", 0))), ["a", "b", "b\0"]);
    assert_eq!(keys(&read(&store, &range("b", "\0", 0))), ["b", "b\0", "c"]);
    assert_eq!(keys(&read(&store, &range("\0", "\0", 0))), ["a", "b", "b\0", "c"]);
    assert_eq!(read(&store, &range("c", "a", 0)).count, 0);
    assert_eq!(read(&store, &range("b", "b", 0)).count, 0);
}

#[test]
fn count_is_of_the_whole_range_whatever_limit_and_filters_say() {
    let store = store_with(&["a", "b", "c", "d"]);
    let limited = read(&store, &RangeRequest { limit: 2, ..everything(0) });
    assert_eq!((keys(&limited), limited.count, limited.more), (vec!["a", "b"], 4, true));
    let filtered = read(&store, &RangeRequest { min_mod_revision: 4, ..everything(0) });
    assert_eq!((keys(&filtered), filtered.count, filtered.more), (vec!["c", "d"], 4, false));
    let counted = read(&store, &RangeRequest { count_only: true, limit: 1, ..everything(0) });
    assert_eq!((keys(&counted), counted.count, counted.more), (vec![], 4, false));
}

#[test]
fn more_is_set_only_when_the_limit_cut_something_off() {
    let store = store_with(&["a", "b"]);
    for (limit, more) in [(1, true), (2, false), (3, false), (0, false), (-1, false)] {
        assert_eq!(read(&store, &RangeRequest { limit, ..everything(0) }).more, more, "{limit}");
    }
}

#[test]
fn the_limit_applies_after_sorting() {
    let store = store_with(&["a", "b", "c"]);
    let request = RangeRequest {
        limit: 2,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Mod.into(),
        ..everything(0)
    };
    let response = read(&store, &request);
    assert_eq!((keys(&response), response.more, response.count), (vec!["c", "b"], true, 3));
}

#[test]
fn a_sort_target_without_an_order_sorts_ascending() {
    let mut store = store_with(&["a", "b", "c"]);
    apply(&mut store, put("a", "again")).unwrap();
    let request = RangeRequest { sort_target: SortTarget::Version.into(), ..everything(0) };
    assert_eq!(keys(&read(&store, &request)), ["b", "c", "a"]);
}

#[test]
fn every_sort_target_works_in_both_directions() {
    let mut store = Store::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "9"), ("c", "4"), ("c", "2")] {
        apply(&mut store, put(key, value)).unwrap();
    }
    let expected = [
        (SortTarget::Key, ["a", "b", "c"]),
        (SortTarget::Version, ["a", "b", "c"]),
        (SortTarget::Create, ["a", "b", "c"]),
        (SortTarget::Mod, ["a", "b", "c"]),
        (SortTarget::Value, ["c", "a", "b"]),
    ];
    for (target, mut order) in expected {
        for sort_order in [SortOrder::Ascend, SortOrder::Descend] {
            let request = RangeRequest {
                sort_target: target.into(),
                sort_order: sort_order.into(),
                ..everything(0)
            };
            assert_eq!(keys(&read(&store, &request)), order, "{target:?} {sort_order:?}");
            order.reverse();
        }
    }
}

#[test]
fn keys_only_empties_the_values_and_nothing_else() {
    let store = store_with(&["a"]);
    let response = read(&store, &RangeRequest { keys_only: true, ..everything(0) });
    let expected = KeyValue {
        key: "a".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        ..KeyValue::default()
    };
    assert_eq!(response.kvs, [expected]);
}

#[test]
fn the_four_filters_bound_mod_and_create_revision_inclusively() {
    let mut store = store_with(&["a", "b", "c"]);
    apply(&mut store, put("a", "again")).unwrap();
    let found = |request: RangeRequest| keys(&read(&store, &request)).join(" ");
    assert_eq!(found(RangeRequest { min_mod_revision: 4, ..everything(0) }), "a c");
    assert_eq!(found(RangeRequest { max_mod_revision: 4, ..everything(0) }), "b c");
    assert_eq!(found(RangeRequest { min_create_revision: 3, ..everything(0) }), "b c");
    assert_eq!(found(RangeRequest { max_create_revision: 3, ..everything(0) }), "a b");
}

// Put.

#[test]
fn put_without_a_key_is_refused() {
    let error = check_put(&put_request("", "v")).unwrap_err();
    assert_error(error, Code::InvalidArgument, "etcdserver: key is not provided");
    assert_eq!(apply(&mut Store::new(), put("", "v")), Err(error));
}

#[test]
fn put_with_a_value_and_ignore_value_is_refused() {
    let request = PutRequest { ignore_value: true, ..put_request("k", "v") };
    assert_error(
        check_put(&request).unwrap_err(),
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
}

#[test]
fn put_with_a_lease_and_ignore_lease_is_refused() {
    let request = PutRequest { ignore_lease: true, lease: 1, ..put_request("k", "v") };
    assert_error(
        check_put(&request).unwrap_err(),
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );
}

#[test]
fn put_that_keeps_what_is_not_there_is_refused_and_changes_nothing() {
    let mut store = Store::new();
    for request in [
        PutRequest { ignore_value: true, ..put_request("k", "") },
        PutRequest { ignore_lease: true, ..put_request("k", "v") },
    ] {
        assert_error(
            apply(&mut store, Command::put(request)).unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: key not found",
        );
        assert_eq!(store.revision(), 1);
    }
}

#[test]
fn put_under_a_lease_that_does_not_exist_is_refused() {
    let request = PutRequest { lease: 7, ..put_request("k", "v") };
    assert_error(
        apply(&mut Store::new(), Command::put(request)).unwrap_err(),
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
}

#[test]
fn put_that_ignores_the_value_keeps_it() {
    let mut store = store_with(&["k"]);
    let request = PutRequest { ignore_value: true, ..put_request("k", "") };
    apply(&mut store, Command::put(request)).unwrap();
    let kv = get(&store, "k").unwrap();
    assert_eq!((kv.value.as_ref(), kv.version), (b"value of k".as_ref(), 2));
}

#[test]
fn put_returns_the_version_before_when_asked() {
    let mut store = store_with(&["k"]);
    let request = PutRequest { prev_kv: true, ..put_request("k", "new") };
    let Ok(Response::Put(response)) = apply(&mut store, Command::put(request.clone())) else {
        panic!()
    };
    assert_eq!(response.prev_kv.unwrap().value, "value of k");
    apply(&mut store, delete("k")).unwrap();
    let Ok(Response::Put(response)) = apply(&mut store, Command::put(request)) else { panic!() };
    assert_eq!(response.prev_kv, None);
}

#[test]
fn a_key_with_its_value_beyond_the_limit_is_refused() {
    let request = PutRequest {
        key: "k".into(),
        value: vec![0; raft_kv::KEY_VALUE_BYTES_MAX].into(),
        ..PutRequest::default()
    };
    assert_error(
        check_put(&request).unwrap_err(),
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
}

// DeleteRange.

#[test]
fn delete_without_a_key_is_refused() {
    assert_error(
        check_delete(&DeleteRangeRequest::default()).unwrap_err(),
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
}

#[test]
fn deleting_nothing_does_not_move_the_revision() {
    let mut store = store_with(&["a"]);
    let Ok(Response::DeleteRange(response)) = apply(&mut store, delete("b")) else { panic!() };
    assert_eq!((response.deleted, response.header.unwrap().revision), (0, 2));
    assert_eq!(store.revision(), 2);
}

#[test]
fn a_range_is_deleted_in_one_revision_and_returned_when_asked() {
    let mut store = store_with(&["a", "b", "c"]);
    let request = DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: true };
    let Ok(Response::DeleteRange(response)) = apply(&mut store, Command::delete_range(request))
    else {
        panic!()
    };
    assert_eq!((response.deleted, response.header.unwrap().revision), (2, 5));
    let before: Vec<_> = response.prev_kvs.iter().map(|kv| kv.mod_revision).collect();
    assert_eq!(before, [2, 3]);
    let events = store.reader().events(5, 10, usize::MAX).unwrap().events;
    assert!(events.iter().all(|event| event.kv.as_ref().unwrap().mod_revision == 5));
}

// Txn.

#[test]
fn an_empty_txn_succeeds_and_does_not_move_the_revision() {
    let mut store = Store::new();
    let response = run(&mut store, TxnRequest::default()).unwrap();
    assert!(response.succeeded);
    assert_eq!(response.responses, []);
    assert_eq!(response.header.unwrap().revision, 1);
}

#[test]
fn a_read_only_txn_does_not_move_the_revision() {
    let mut store = store_with(&["a"]);
    let response = run(&mut store, txn(vec![], vec![range_op("a")], vec![])).unwrap();
    assert_eq!(response.header.unwrap().revision, 2);
    assert_eq!(store.revision(), 2);
}

#[test]
fn all_writes_of_a_txn_share_one_revision_and_keep_their_order() {
    let mut store = store_with(&["c"]);
    let ops = vec![put_op("b", "1"), delete_op("c", ""), put_op("a", "2")];
    let response = run(&mut store, txn(vec![], ops, vec![])).unwrap();
    assert_eq!(response.header.unwrap().revision, 3);
    let events = store.reader().events(3, 10, usize::MAX).unwrap().events;
    let order: Vec<_> = events.into_iter().map(|event| event.kv.unwrap().key).collect();
    assert_eq!(order, ["b", "c", "a"]);
}

#[test]
fn inner_headers_carry_the_revision_only_and_that_of_a_nested_txn_nothing() {
    let mut store = store_with(&["a"]);
    let nested = Request::RequestTxn(txn(vec![], vec![], vec![]));
    let ops = vec![range_op("a"), delete_op("x", ""), put_op("b", ""), range_op("a"), nested];
    let response = run(&mut store, txn(vec![], ops, vec![])).unwrap();
    let headers = response.responses.into_iter().map(|op| match op.response.unwrap() {
        OpResponse::ResponseRange(response) => response.header,
        OpResponse::ResponsePut(response) => response.header,
        OpResponse::ResponseDeleteRange(response) => response.header,
        OpResponse::ResponseTxn(response) => response.header,
    });
    let headers: Vec<_> = headers.map(Option::unwrap).collect();
    let of = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
    assert_eq!(headers, [of(2), of(2), of(3), of(3), of(0)]);
}

#[test]
fn ops_see_earlier_ops_of_the_same_txn() {
    let mut store = Store::new();
    let ops = vec![range_op("a"), put_op("a", "1"), range_op("a")];
    let response = run(&mut store, txn(vec![], ops, vec![])).unwrap();
    let counts: Vec<_> = response
        .responses
        .iter()
        .filter_map(|op| match op.response.as_ref() {
            Some(OpResponse::ResponseRange(response)) => Some(response.count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [0, 1]);
}

#[test]
fn nested_compares_are_evaluated_before_any_write() {
    let mut store = Store::new();
    let absent = compare("a", CompareResult::Equal, TargetUnion::Version(0));
    let nested = txn(vec![absent], vec![put_op("b", "a was absent")], vec![]);
    let ops = vec![put_op("a", "1"), Request::RequestTxn(nested)];
    run(&mut store, txn(vec![], ops, vec![])).unwrap();
    assert_eq!(get(&store, "b").unwrap().value, "a was absent");
}

#[test]
fn a_missing_key_has_zero_numbers() {
    let store = &mut Store::new();
    for zero in [
        TargetUnion::Version(0),
        TargetUnion::CreateRevision(0),
        TargetUnion::ModRevision(0),
        TargetUnion::Lease(0),
    ] {
        let request = txn(vec![compare("a", CompareResult::Equal, zero)], vec![], vec![]);
        assert!(run(store, request).unwrap().succeeded);
    }
}

#[test]
fn a_missing_key_never_matches_a_value_not_even_a_different_one() {
    let mut store = Store::new();
    for result in [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less] {
        let value = compare("a", result, TargetUnion::Value("x".into()));
        assert!(!run(&mut store, txn(vec![value], vec![], vec![])).unwrap().succeeded);
    }
}

#[test]
fn every_key_of_a_range_must_pass_a_range_compare() {
    let mut store = store_with(&["a", "b"]);
    for (result, succeeded) in [(CompareResult::Less, false), (CompareResult::Greater, true)] {
        let mut all = compare("a", result, TargetUnion::CreateRevision(1));
        all.range_end = "c".into();
        let request = txn(vec![all], vec![], vec![]);
        assert_eq!(run(&mut store, request).unwrap().succeeded, succeeded);
    }
    let mut some = compare("a", CompareResult::Equal, TargetUnion::CreateRevision(2));
    some.range_end = "\0".into();
    assert!(!run(&mut store, txn(vec![some], vec![], vec![])).unwrap().succeeded);
}

#[test]
fn a_failing_op_changes_nothing() {
    let mut store = store_with(&["a"]);
    let keep = Request::RequestPut(PutRequest { ignore_value: true, ..put_request("x", "") });
    let future = Request::RequestRange(range("a", "", 9));
    for (op, text) in [
        (keep, "etcdserver: key not found"),
        (future, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        let error = run(&mut store, txn(vec![], vec![put_op("b", ""), op], vec![])).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!((get(&store, "b"), store.revision()), (None, 2));
    }
}

#[test]
fn a_txn_of_more_than_128_ops_is_refused_and_nested_budgets_shrink() {
    let puts = |count: usize| (0..count).map(|i| put_op(&format!("{i:03}"), "")).collect();
    assert_eq!(check_txn(&txn(vec![], puts(128), puts(128)), TXN_OPS_MAX), Ok(()));
    let error = check_txn(&txn(vec![], puts(129), vec![]), TXN_OPS_MAX).unwrap_err();
    assert_error(error, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    let nested =
        |count| txn(vec![], vec![Request::RequestTxn(txn(vec![], puts(count), vec![]))], vec![]);
    assert_eq!(check_txn(&nested(127), TXN_OPS_MAX), Ok(()));
    assert_eq!(check_txn(&nested(128), TXN_OPS_MAX), Err(KvError::TooManyOps));
}

#[test]
fn txns_nest_at_most_16_deep() {
    let nested = |depth: usize| {
        (1..depth).fold(TxnRequest::default(), |inner, _| {
            txn(vec![], vec![Request::RequestTxn(inner)], vec![])
        })
    };
    assert_eq!(check_txn(&nested(TXN_DEPTH_MAX), TXN_OPS_MAX), Ok(()));
    assert_eq!(check_txn(&nested(TXN_DEPTH_MAX + 1), TXN_OPS_MAX), Err(KvError::TooManyOps));
}

#[test]
fn a_key_that_is_put_twice_is_refused_wherever_it_stands() {
    let nested = |success, failure| Request::RequestTxn(txn(vec![], success, failure));
    let refused = [
        vec![put_op("a", "1"), put_op("a", "2")],
        vec![put_op("a", "1"), delete_op("a", "")],
        vec![delete_op("a", "c"), put_op("b", "")],
        vec![put_op("a", ""), nested(vec![put_op("a", "")], vec![])],
        vec![put_op("a", ""), nested(vec![], vec![put_op("a", "")])],
        vec![nested(vec![put_op("a", "")], vec![]), nested(vec![], vec![put_op("a", "")])],
        vec![nested(vec![], vec![delete_op("a", "")]), put_op("a", "")],
        vec![nested(vec![delete_op("a", "b")], vec![]), nested(vec![put_op("a", "")], vec![])],
    ];
    for ops in refused {
        // In either branch.
        for request in [txn(vec![], ops.clone(), vec![]), txn(vec![], vec![], ops.clone())] {
            assert_error(
                check_txn(&request, TXN_OPS_MAX).unwrap_err(),
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            );
        }
    }
}

#[test]
fn deletes_may_overlap_and_exclusive_branches_may_put_the_same_key() {
    let nested = |success, failure| Request::RequestTxn(txn(vec![], success, failure));
    let accepted = [
        txn(vec![], vec![put_op("a", "")], vec![put_op("a", "")]),
        txn(vec![], vec![delete_op("a", "c"), delete_op("b", "")], vec![]),
        txn(vec![], vec![nested(vec![put_op("a", "")], vec![put_op("a", "")])], vec![]),
        txn(vec![], vec![delete_op("a", "b"), put_op("b", "")], vec![]),
        // etcd reads these range ends as they stand and sees no overlap, not even of the first key: found by the same
        // random requests to etcd and to us.
        txn(vec![], vec![delete_op("a", "\0"), put_op("b", "")], vec![]),
        txn(vec![], vec![delete_op("a", "\0"), put_op("a", "")], vec![]),
        txn(vec![], vec![delete_op("b", "a"), put_op("b", "")], vec![]),
        txn(vec![], vec![delete_op("b", "b"), put_op("b", "")], vec![]),
    ];
    for request in accepted {
        assert_eq!(check_txn(&request, TXN_OPS_MAX), Ok(()));
    }
}

#[test]
fn a_key_that_a_txn_deletes_and_puts_begins_a_new_life() {
    let mut store = store_with(&["a", "b"]);
    let ops = vec![delete_op("a", "\0"), put_op("b", "new")];
    run(&mut store, txn(vec![], ops, vec![])).unwrap();
    let kv = get(&store, "b").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (4, 4, 1));
    assert_eq!(keys(&read(&store, &everything(0))), ["b"]);
}

#[test]
fn the_checks_of_ops_run_in_both_branches_of_a_txn() {
    let bad = [
        (put_op("", ""), KvError::EmptyKey),
        (delete_op("", ""), KvError::EmptyKey),
        (range_op(""), KvError::EmptyKey),
        (
            Request::RequestRange(RangeRequest { sort_order: 9, ..range("a", "", 0) }),
            KvError::InvalidSortOption,
        ),
    ];
    for (op, error) in bad {
        let requests = [txn(vec![], vec![op.clone()], vec![]), txn(vec![], vec![], vec![op])];
        for request in requests {
            assert_eq!(check_txn(&request, TXN_OPS_MAX), Err(error));
        }
    }
    let no_kind =
        TxnRequest { success: vec![RequestOp { request: None }], ..TxnRequest::default() };
    assert_eq!(check_txn(&no_kind, TXN_OPS_MAX), Err(KvError::KeyNotFound));
    let unnamed = compare("", CompareResult::Equal, TargetUnion::Version(0));
    let request = txn(vec![unnamed], vec![], vec![]);
    assert_eq!(check_txn(&request, TXN_OPS_MAX), Err(KvError::EmptyKey));
}

// Compact.

#[test]
fn compacting_the_same_or_an_older_revision_again_is_refused() {
    let mut store = store_with(&["a", "b", "c"]);
    let Ok(Response::Compact(response)) = apply(&mut store, compact(3)) else { panic!() };
    assert_eq!(response.header.unwrap().revision, 4);
    for revision in [3, 2, 0, -5] {
        assert_error(
            apply(&mut store, compact(revision)).unwrap_err(),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
    }
}

#[test]
fn compacting_the_future_is_refused() {
    assert_error(
        apply(&mut Store::new(), compact(2)).unwrap_err(),
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
}

#[test]
fn reading_at_the_compacted_revision_still_works_and_below_it_does_not() {
    let mut store = store_with(&["a", "a", "b", "a"]);
    apply(&mut store, delete("b")).unwrap();
    let before = read(&store, &everything(4));
    apply(&mut store, compact(4)).unwrap();
    assert_eq!(read(&store, &everything(4)), before);
    assert_error(
        store.reader().range(&everything(3)).unwrap_err(),
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
    let inside = txn(vec![], vec![Request::RequestRange(range("a", "", 3))], vec![]);
    assert_eq!(run(&mut store, inside), Err(KvError::Compacted));
}

#[test]
fn compaction_frees_the_memory_of_what_nobody_can_read() {
    let mut store = Store::new();
    for i in 0..10_000 {
        apply(&mut store, put(&format!("{}", i % 10), "v")).unwrap();
    }
    let logical_size = store.logical_size();
    let physical = CompactionRequest { revision: store.revision(), physical: true };
    apply(&mut store, Command::compact(physical)).unwrap();
    assert_eq!(store.versions_in_memory(), 10);
    assert_eq!(store.logical_size(), logical_size / 1_000);
}

#[test]
fn history_from_the_compacted_revision_on_is_complete() {
    let mut store = store_with(&["a", "b"]);
    apply(&mut store, delete("a")).unwrap();
    apply(&mut store, put("a", "again")).unwrap();
    apply(&mut store, Command::compact(CompactionRequest { revision: 4, physical: true })).unwrap();
    let events = store.reader().events(4, 10, usize::MAX).unwrap().events;
    let kinds: Vec<_> = events.iter().map(|event| event.r#type).collect();
    assert_eq!(kinds, [1, 0], "the deletion at the compacted revision itself is kept");
    assert_eq!(store.reader().events(3, 10, usize::MAX), Err(KvError::Compacted));
}

#[test]
fn events_come_in_whole_revisions() {
    let mut store = store_with(&["a"]);
    let ops = vec![put_op("x", ""), put_op("y", ""), put_op("z", "")];
    run(&mut store, txn(vec![], ops, vec![])).unwrap();
    apply(&mut store, put("b", "")).unwrap();
    let reader = store.reader();
    let lengths =
        |from, max| reader.events(from, max, usize::MAX).map(|e| (e.events.len(), e.next)).unwrap();
    assert_eq!(lengths(1, 2), (1, 3));
    assert_eq!(lengths(1, 3), (1, 3));
    assert_eq!(lengths(3, 1), (3, 4), "a revision that does not fit comes alone");
    assert_eq!(lengths(3, 4), (4, 5));
    assert_eq!(lengths(5, 4), (0, 5));
    assert_eq!(lengths(9, 4), (0, 9), "the future is waited for");
}

#[test]
fn a_store_that_was_never_compacted_can_be_compacted_at_0_once() {
    let mut store = store_with(&["a"]);
    assert!(apply(&mut store, compact(0)).is_ok());
    assert_eq!(apply(&mut store, compact(0)), Err(KvError::Compacted));
    assert_eq!(apply(&mut store, compact(1)).map(|_| ()), Ok(()));
}
