//! Users, roles and permissions: etcd's refusals word for word, and who may do what against a naive model.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use raft_core::StateMachine as _;
use raft_kv::auth::Access;
use raft_kv::proto::authpb::Permission;
use raft_kv::proto::authpb::permission::Type;
use raft_kv::proto::etcdserverpb::compare::CompareTarget;
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Answer, Caller, Code, Command, KvError, Query, Response, Store};

use crate::common::{apply, restored};

const SEGMENT_BYTES: u64 = 256;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn enable() -> Command {
    Command::auth_enable(bytes("a secret of thirty-two bytes ...."))
}

fn user_add(name: &str) -> Command {
    Command::user_add(name.to_owned(), Some(bytes("$2a$10$hash")))
}

fn user_delete(name: &str) -> Command {
    Command::user_delete(AuthUserDeleteRequest { name: name.to_owned() })
}

fn change_password(name: &str) -> Command {
    Command::user_change_password(name.to_owned(), bytes("$2a$10$other"))
}

fn grant_role(user: &str, role: &str) -> Command {
    Command::user_grant_role(AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn revoke_role(user: &str, role: &str) -> Command {
    Command::user_revoke_role(AuthUserRevokeRoleRequest { name: user.into(), role: role.into() })
}

fn role_add(name: &str) -> Command {
    Command::role_add(AuthRoleAddRequest { name: name.to_owned() })
}

fn role_delete(name: &str) -> Command {
    Command::role_delete(AuthRoleDeleteRequest { role: name.to_owned() })
}

fn grant(role: &str, kind: Type, key: &str, range_end: &str) -> Command {
    let perm = Permission { perm_type: kind.into(), key: bytes(key), range_end: bytes(range_end) };
    Command::role_grant_permission(AuthRoleGrantPermissionRequest {
        name: role.to_owned(),
        perm: Some(perm),
    })
}

fn revoke(role: &str, key: &str, range_end: &str) -> Command {
    Command::role_revoke_permission(AuthRoleRevokePermissionRequest {
        role: role.to_owned(),
        key: bytes(key),
        range_end: bytes(range_end),
    })
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes("v"), ..PutRequest::default() }
}

fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(range_end), ..RangeRequest::default() }
}

fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: false }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Whoever `name` is, as of now.
fn caller(store: &Store, name: &str) -> Option<Caller> {
    Some(Caller::new(name.to_owned(), store.auth().state().revision()))
}

/// Applies what everybody here takes for granted.
#[track_caller]
fn ok(store: &mut Store, command: Command) {
    let caller = caller(store, "root");
    let answer = apply(store, command.by(caller));
    assert!(answer.is_ok(), "{answer:?}");
}

fn done(answer: Result<Response, KvError>) -> Result<(), KvError> {
    answer.map(drop)
}

/// Enabled, with root, and with alice, who may read and write `a/`, read `r/` and write `w/`.
fn enabled() -> Store {
    let mut store = Store::with_segment_bytes(SEGMENT_BYTES);
    for command in [
        user_add("root"),
        role_add("root"),
        grant_role("root", "root"),
        user_add("alice"),
        role_add("house"),
        grant("house", Type::Readwrite, "a/", "a0"),
        grant("house", Type::Read, "r/", "r0"),
        grant("house", Type::Write, "w/", "w0"),
        grant_role("alice", "house"),
        enable(),
    ] {
        ok(&mut store, command);
    }
    store
}

/// What alice hears.
#[track_caller]
fn alice(store: &mut Store, command: Command) -> Result<(), KvError> {
    let caller = caller(store, "alice");
    done(apply(store, command.by(caller)))
}

#[test]
fn refusals_have_etcds_codes_and_words() {
    let all = [
        (KvError::RootUserNotExist, 9, "etcdserver: root user does not exist"),
        (KvError::RootRoleNotGranted, 9, "etcdserver: root user does not have root role"),
        (KvError::UserExists, 9, "etcdserver: user name already exists"),
        (KvError::UserEmpty, 3, "etcdserver: user name is empty"),
        (KvError::UserNotFound, 9, "etcdserver: user name not found"),
        (KvError::RoleExists, 9, "etcdserver: role name already exists"),
        (KvError::RoleNotFound, 9, "etcdserver: role name not found"),
        (KvError::RoleEmpty, 3, "etcdserver: role name is empty"),
        (KvError::AuthFailed, 3, "etcdserver: authentication failed, invalid user ID or password"),
        (
            KvError::NoPasswordUser,
            2,
            "auth: authentication failed, password was given for no password user",
        ),
        (KvError::PermissionNotGiven, 3, "etcdserver: permission not given"),
        (KvError::PermissionDenied, 7, "etcdserver: permission denied"),
        (KvError::RoleNotGranted, 9, "etcdserver: role is not granted to the user"),
        (KvError::PermissionNotGranted, 9, "etcdserver: permission is not granted to the role"),
        (KvError::AuthNotEnabled, 9, "etcdserver: authentication is not enabled"),
        (KvError::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
        (KvError::InvalidAuthManagement, 3, "etcdserver: invalid auth management"),
        (KvError::OldAuthRevision, 3, "etcdserver: revision of auth store is old"),
    ];
    for (error, code, text) in all {
        assert_eq!((error.code() as i32, error.message()), (code, text));
    }
    assert_eq!(KvError::PermissionDenied.code(), Code::PermissionDenied);
}

#[test]
fn what_cannot_be_managed_is_refused_and_changes_nothing() {
    let mut store = Store::new();
    let refused = |store: &mut Store, command: Command, expected: KvError| {
        let before = store.digest();
        let caller = caller(store, "root");
        assert_eq!(done(apply(store, command.by(caller))), Err(expected));
        assert_eq!(store.digest(), before);
    };
    refused(&mut store, enable(), KvError::RootUserNotExist);
    ok(&mut store, user_add("root"));
    refused(&mut store, enable(), KvError::RootRoleNotGranted);
    refused(&mut store, user_add("root"), KvError::UserExists);
    refused(&mut store, user_add(""), KvError::UserEmpty);
    refused(&mut store, user_delete("nobody"), KvError::UserNotFound);
    refused(&mut store, change_password("nobody"), KvError::UserNotFound);
    refused(&mut store, grant_role("nobody", "root"), KvError::UserNotFound);
    refused(&mut store, grant_role("root", "nothing"), KvError::RoleNotFound);
    refused(&mut store, revoke_role("nobody", "root"), KvError::UserNotFound);
    refused(&mut store, revoke_role("root", "root"), KvError::RoleNotGranted);
    refused(&mut store, role_add(""), KvError::RoleEmpty);
    refused(&mut store, role_delete("root"), KvError::RoleNotFound);
    ok(&mut store, role_add("r"));
    refused(&mut store, role_add("r"), KvError::RoleExists);
    refused(&mut store, grant("nothing", Type::Read, "k", ""), KvError::RoleNotFound);
    refused(&mut store, grant("r", Type::Read, "", ""), KvError::InvalidAuthManagement);
    refused(&mut store, grant("r", Type::Read, "b", "a"), KvError::InvalidAuthManagement);
    refused(&mut store, grant("r", Type::Read, "b", "b"), KvError::InvalidAuthManagement);
    let nothing = AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    refused(&mut store, Command::role_grant_permission(nothing), KvError::PermissionNotGiven);
    refused(&mut store, revoke("nothing", "k", ""), KvError::RoleNotFound);
    refused(&mut store, revoke("r", "k", ""), KvError::PermissionNotGranted);

    // The role root can be granted though nobody has added it.
    ok(&mut store, grant_role("root", "root"));
    ok(&mut store, role_add("root"));
    ok(&mut store, enable());
    refused(&mut store, user_delete("root"), KvError::InvalidAuthManagement);
    refused(&mut store, revoke_role("root", "root"), KvError::InvalidAuthManagement);
    refused(&mut store, role_delete("root"), KvError::InvalidAuthManagement);
    ok(&mut store, Command::auth_disable());
    ok(&mut store, role_delete("root"));
    ok(&mut store, user_delete("root"));
}

#[test]
fn the_auth_revision_counts_changes_as_etcd_does() {
    let mut store = Store::new();
    let revision = |store: &Store| store.auth().state().revision();
    assert_eq!(revision(&store), 1);
    for (command, bumps) in [
        (user_add("root"), true),
        (user_add("root"), false),
        (grant_role("root", "root"), true),
        (grant_role("root", "root"), false),
        (enable(), false),
        (enable(), false),
        (change_password("root"), true),
        (role_add("r"), true),
        (grant("r", Type::Read, "k", ""), true),
        (grant("r", Type::Read, "k", ""), true),
        (revoke("r", "k", ""), true),
        (role_delete("r"), true),
        (Command::auth_disable(), true),
        (Command::auth_disable(), false),
    ] {
        let before = revision(&store);
        let root = caller(&store, "root");
        done(apply(&mut store, command.clone().by(root))).ok();
        assert_eq!(revision(&store), before + u64::from(bumps), "{command:?}");
    }
    // What proves who somebody is ends with the password.
    let since = |store: &Store| store.auth().state().user("root").unwrap().since();
    let before = since(&store);
    ok(&mut store, role_add("other"));
    assert_eq!(since(&store), before);
    ok(&mut store, change_password("root"));
    assert_eq!(since(&store), revision(&store));
    // Keys are another matter.
    assert_eq!(store.revision(), 1);
}

#[test]
fn without_a_caller_nothing_goes_once_it_is_enabled() {
    let mut store = enabled();
    for command in [
        Command::put(put("a/1")),
        Command::delete_range(delete("a/1", "")),
        // Empty: nothing in it could be refused.
        Command::txn(TxnRequest::default()),
        Command::compact(CompactionRequest { revision: 1, physical: false }),
        Command::lease_grant(LeaseGrantRequest { ttl: 9, id: 9 }),
        Command::lease_revoke(LeaseRevokeRequest { id: 9 }),
        Command::auth_disable(),
        enable(),
        user_add("eve"),
    ] {
        assert_eq!(
            done(apply(&mut store, command.clone())),
            Err(KvError::UserEmpty),
            "{command:?}"
        );
    }
    for query in [
        Query::Range(range("a/1", "")),
        Query::Lease { id: 1, keys: false },
        Query::Leases,
        Query::MayRenew(1),
    ] {
        assert_eq!(store.query(query.clone()), Err(KvError::UserEmpty), "{query:?}");
    }
}

#[test]
fn a_caller_from_before_a_change_is_asked_to_look_again() {
    let mut store = enabled();
    let old = caller(&store, "alice");
    ok(&mut store, role_add("more"));
    let refused = apply(&mut store, Command::put(put("a/1")).by(old));
    assert_eq!(done(refused), Err(KvError::OldAuthRevision));
    assert_eq!(alice(&mut store, Command::put(put("a/1"))), Ok(()));
}

#[test]
fn a_caller_who_is_gone_may_nothing() {
    let mut store = enabled();
    let seen = caller(&store, "ghost");
    assert_eq!(
        done(apply(&mut store, Command::put(put("a/1")).by(seen.clone()))),
        Err(KvError::PermissionDenied)
    );
    assert_eq!(
        done(apply(
            &mut store,
            Command::lease_grant(LeaseGrantRequest { ttl: 9, id: 9 }).by(seen.clone())
        )),
        Err(KvError::PermissionDenied)
    );
    assert_eq!(done(apply(&mut store, user_add("x").by(seen))), Err(KvError::UserNotFound));
}

#[test]
fn only_root_manages() {
    let mut store = enabled();
    for command in [
        enable(),
        Command::auth_disable(),
        user_add("x"),
        user_delete("alice"),
        change_password("alice"),
        grant_role("alice", "root"),
        revoke_role("alice", "house"),
        role_add("x"),
        role_delete("house"),
        grant("house", Type::Readwrite, "\0", "\0"),
        revoke("house", "a/", "a0"),
        Command::compact(CompactionRequest { revision: 1, physical: false }),
    ] {
        assert_eq!(
            alice(&mut store, command.clone()),
            Err(KvError::PermissionDenied),
            "{command:?}"
        );
    }
    // Of herself and her role she may know.
    let state = store.auth().state();
    let is = caller(&store, "alice");
    let may = |access: Access<'_>| state.authorize(is.as_ref(), &access);
    assert_eq!(may(Access::UserGet("alice")), Ok(()));
    assert_eq!(may(Access::RoleGet("house")), Ok(()));
    assert_eq!(may(Access::UserGet("root")), Err(KvError::PermissionDenied));
    assert_eq!(may(Access::RoleGet("root")), Err(KvError::PermissionDenied));
    assert_eq!(may(Access::UserList), Err(KvError::PermissionDenied));
}

/// CVE-2026-33343: a transaction inside a transaction is no way around permissions; nor is a branch that does not run.
#[test]
fn every_operation_of_a_transaction_counts_however_deep() {
    let mut store = enabled();
    let allowed = op(Request::RequestPut(put("a/1")));
    for forbidden in [
        op(Request::RequestPut(put("secret"))),
        op(Request::RequestRange(range("secret", ""))),
        op(Request::RequestDeleteRange(delete("secret", ""))),
        op(Request::RequestRange(range("w/1", ""))),
        op(Request::RequestPut(put("r/1"))),
        op(Request::RequestPut(PutRequest { prev_kv: true, ..put("w/1") })),
        op(Request::RequestDeleteRange(DeleteRangeRequest { prev_kv: true, ..delete("w/", "w0") })),
        // Beyond the end of what she may, and without any end.
        op(Request::RequestRange(range("a/", "b"))),
        op(Request::RequestRange(range("a/", "\0"))),
    ] {
        let mut nested = TxnRequest { success: vec![forbidden.clone()], ..TxnRequest::default() };
        for depth in 0..4 {
            for (success, failure) in [
                (vec![allowed.clone()], vec![op(Request::RequestTxn(nested.clone()))]),
                (vec![allowed.clone(), op(Request::RequestTxn(nested.clone()))], vec![]),
            ] {
                let txn = TxnRequest { compare: vec![], success, failure };
                let answer = alice(&mut store, Command::txn(txn));
                assert_eq!(answer, Err(KvError::PermissionDenied), "{depth} {forbidden:?}");
            }
            nested = TxnRequest {
                failure: vec![op(Request::RequestTxn(nested))],
                ..TxnRequest::default()
            };
        }
        let compare = Compare {
            key: bytes("secret"),
            target: CompareTarget::Version.into(),
            ..Compare::default()
        };
        let txn = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
        assert_eq!(alice(&mut store, Command::txn(txn.clone())), Err(KvError::PermissionDenied));
        let nested =
            TxnRequest { success: vec![op(Request::RequestTxn(txn))], ..TxnRequest::default() };
        assert_eq!(alice(&mut store, Command::txn(nested)), Err(KvError::PermissionDenied));
    }
    assert_eq!(store.revision(), 1, "something was written");
    let fine = TxnRequest {
        compare: vec![Compare { key: bytes("r/1"), ..Compare::default() }],
        success: vec![op(Request::RequestPut(PutRequest { prev_kv: true, ..put("a/1") }))],
        failure: vec![op(Request::RequestTxn(TxnRequest {
            success: vec![op(Request::RequestDeleteRange(delete("w/", "w0")))],
            ..TxnRequest::default()
        }))],
    };
    assert_eq!(alice(&mut store, Command::txn(fine)), Ok(()));
}

/// CVE-2026-44283: the previous value needs the right to read; a lease needs the right to write all its keys.
#[test]
fn previous_values_and_leases_are_no_way_around_permissions() {
    let mut store = enabled();
    let with_prev = |key: &str| Command::put(PutRequest { prev_kv: true, ..put(key) });
    assert_eq!(alice(&mut store, Command::put(put("w/1"))), Ok(()));
    assert_eq!(alice(&mut store, with_prev("w/1")), Err(KvError::PermissionDenied));
    assert_eq!(alice(&mut store, with_prev("a/1")), Ok(()));
    let with_prev =
        |key: &str| Command::delete_range(DeleteRangeRequest { prev_kv: true, ..delete(key, "") });
    assert_eq!(alice(&mut store, with_prev("w/1")), Err(KvError::PermissionDenied));
    assert_eq!(alice(&mut store, with_prev("a/1")), Ok(()));

    let leased = |key: &str| PutRequest { lease: 7, ..put(key) };
    ok(&mut store, Command::lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }));
    assert_eq!(alice(&mut store, Command::put(leased("a/1"))), Ok(()));
    let query = |query: Query, store: &Store| store.query(query.by(caller(store, "alice")));
    assert_eq!(query(Query::MayRenew(7), &store), Ok(Answer::MayRenew));
    assert!(query(Query::Lease { id: 7, keys: true }, &store).is_ok());
    assert!(query(Query::Leases, &store).is_ok());

    // Once somebody else's key belongs to it, it is not hers any more.
    ok(&mut store, Command::put(leased("secret")));
    let denied = Err(KvError::PermissionDenied);
    assert_eq!(alice(&mut store, Command::put(leased("a/2"))), denied);
    let nested = TxnRequest {
        success: vec![op(Request::RequestPut(leased("a/2")))],
        ..TxnRequest::default()
    };
    assert_eq!(alice(&mut store, Command::txn(nested)), denied);
    assert_eq!(alice(&mut store, Command::lease_revoke(LeaseRevokeRequest { id: 7 })), denied);
    assert_eq!(query(Query::MayRenew(7), &store), Err(KvError::PermissionDenied));
    // CVE-2023-32082: the keys of a lease are not told to who may not read them.
    assert_eq!(query(Query::Lease { id: 7, keys: true }, &store), Err(KvError::PermissionDenied));
    assert_eq!(query(Query::Leases, &store), Err(KvError::PermissionDenied));
    let Ok(Answer::Lease(Some(state))) = query(Query::Lease { id: 7, keys: false }, &store) else {
        panic!("the seconds of a lease are for everybody");
    };
    assert!(state.keys.is_empty());
    ok(&mut store, Command::lease_revoke(LeaseRevokeRequest { id: 7 }));
}

/// CVE-2026-73499: the right to one key is not the right to all that come after it.
#[test]
fn the_right_to_one_key_is_no_right_to_what_follows() {
    let mut store = enabled();
    ok(&mut store, role_add("one"));
    ok(&mut store, grant("one", Type::Read, "k", ""));
    ok(&mut store, user_add("bob"));
    ok(&mut store, grant_role("bob", "one"));
    let state = store.auth().state();
    let is = caller(&store, "bob");
    let watch = |key: &str, range_end: &str| {
        let request = WatchCreateRequest {
            key: bytes(key),
            range_end: bytes(range_end),
            ..WatchCreateRequest::default()
        };
        state.authorize(is.as_ref(), &Access::WatchCreate(&request))
    };
    assert_eq!(watch("k", ""), Ok(()));
    for (key, end) in [("k", "\0"), ("k", "l"), ("", ""), ("\0", "\0"), ("", "\0"), ("l", "k")] {
        assert_eq!(watch(key, end), Err(KvError::PermissionDenied), "{key:?} {end:?}");
    }
    let read =
        |key: &str, end: &str| state.authorize(is.as_ref(), &Access::Range(&range(key, end)));
    assert_eq!(read("k", ""), Ok(()));
    assert_eq!(read("k", "\0"), Err(KvError::PermissionDenied));
    assert_eq!(read("\0", "\0"), Err(KvError::PermissionDenied));
}

#[test]
fn what_members_do_by_themselves_needs_no_caller() {
    let mut store = enabled();
    ok(&mut store, Command::lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }));
    assert_eq!(
        apply(&mut store, Command::lease_renew(vec![7])),
        Ok(Response::LeaseRenew(vec![60]))
    );
    let expiry = vec![raft_kv::Expiry { id: 7, renewals: 1 }];
    let ended = apply(&mut store, Command::lease_expire(raft_core::Term(1), expiry));
    assert_eq!(ended, Ok(Response::LeaseExpire(vec![7])));
}

#[test]
fn views_see_changes_before_the_keys_that_were_written_under_them() {
    let mut store = enabled();
    let view = store.auth();
    assert_eq!(view.epoch(), view.state().revision());
    let mut changes = store.auth_changes();
    let context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(changes.poll(&context).is_pending());
    let root = caller(&store, "root");
    let id = raft_core::ApplyContext::at(raft_core::EntryId::new(1, 1));
    store.apply(id, Command::auth_disable().by(root)).unwrap();
    assert_ne!(view.epoch(), 0, "not published yet");
    store.flush();
    assert_eq!(view.epoch(), 0);
    assert_eq!(changes.poll(&context), std::task::Poll::Ready(0));
    assert!(changes.poll(&context).is_pending());
    let reader = restored(&store, SEGMENT_BYTES).auth();
    assert_eq!(*reader.state(), *view.state());
}

/// Everything by linear search over lists.
#[derive(Clone, Debug, Default)]
struct Model {
    enabled: bool,
    /// Names with the roles.
    users: BTreeMap<String, Vec<String>>,
    roles: BTreeMap<String, Vec<(String, String, Type)>>,
}

impl Model {
    /// Whether every key of a small world that the range holds is granted to the user.
    fn may(&self, user: &str, kind: Type, key: &str, end: &str) -> bool {
        let Some(roles) = self.users.get(user) else { return false };
        if roles.iter().any(|role| role == "root") {
            return true;
        }
        let holds = |from: &str, to: &str, key: &str| match to {
            "" => key == from,
            "\0" => key >= from,
            _ => key >= from && key < to,
        };
        let granted = |key: &str| {
            roles.iter().filter_map(|role| self.roles.get(role)).flatten().any(|(from, to, has)| {
                (*has == kind || *has == Type::Readwrite) && holds(from, to, key)
            })
        };
        world().iter().filter(|at| *at == key || holds(key, end, at)).all(|at| granted(at))
    }

    fn root_or(&self, user: &str, change: Result<(), KvError>) -> Result<(), KvError> {
        match self.users.get(user) {
            _ if !self.enabled => change,
            None => Err(KvError::UserNotFound),
            Some(roles) if roles.iter().any(|role| role == "root") => change,
            Some(_) => Err(KvError::PermissionDenied),
        }
    }

    fn allows(&self, user: &str, kind: Type, key: &str, end: &str) -> Result<(), KvError> {
        if !self.enabled || self.may(user, kind, key, end) {
            Ok(())
        } else {
            Err(KvError::PermissionDenied)
        }
    }

    /// Does what a step says, and answers what the store must answer.
    fn step(&mut self, step: &Step) -> Result<(), KvError> {
        let by = step.by.as_str();
        match &step.what {
            What::Put(key) => self.allows(by, Type::Write, key, ""),
            What::Delete(key, end) => self.allows(by, Type::Write, key, end),
            What::Range(key, end) => self.allows(by, Type::Read, key, end),
            What::Grant(role, kind, key, end) => {
                let sound = end.is_empty() || end == "\0" || key < end;
                let refused = if !sound {
                    Err(KvError::InvalidAuthManagement)
                } else if self.roles.contains_key(role) {
                    Ok(())
                } else {
                    Err(KvError::RoleNotFound)
                };
                self.root_or(by, refused)?;
                let permissions = self.roles.get_mut(role).unwrap();
                permissions.retain(|(from, to, _)| (from, to) != (key, end));
                permissions.push((key.clone(), end.clone(), *kind));
                Ok(())
            }
            What::Revoke(role, key, end) => {
                let there = match self.roles.get(role) {
                    None => Err(KvError::RoleNotFound),
                    Some(all) if all.iter().any(|(from, to, _)| (from, to) == (key, end)) => Ok(()),
                    Some(_) => Err(KvError::PermissionNotGranted),
                };
                self.root_or(by, there)?;
                let permissions = self.roles.get_mut(role).unwrap();
                permissions.retain(|(from, to, _)| (from, to) != (key, end));
                Ok(())
            }
            What::Enable => {
                let root = self.users.get("root");
                let change = match root {
                    _ if self.enabled => Ok(()),
                    None => Err(KvError::RootUserNotExist),
                    Some(roles) if roles.iter().any(|role| role == "root") => Ok(()),
                    Some(_) => Err(KvError::RootRoleNotGranted),
                };
                self.root_or(by, change)?;
                self.enabled = true;
                Ok(())
            }
            What::Disable => {
                self.root_or(by, Ok(()))?;
                self.enabled = false;
                Ok(())
            }
            What::UserAdd(name) => {
                let exists = self.users.contains_key(name);
                self.root_or(by, if exists { Err(KvError::UserExists) } else { Ok(()) })?;
                self.users.insert(name.clone(), vec![]);
                Ok(())
            }
            What::UserDelete(name) => {
                let change = if self.enabled && name == "root" {
                    Err(KvError::InvalidAuthManagement)
                } else if self.users.contains_key(name) {
                    Ok(())
                } else {
                    Err(KvError::UserNotFound)
                };
                self.root_or(by, change)?;
                self.users.remove(name);
                Ok(())
            }
            What::RoleAdd(name) => {
                let exists = self.roles.contains_key(name);
                self.root_or(by, if exists { Err(KvError::RoleExists) } else { Ok(()) })?;
                self.roles.insert(name.clone(), vec![]);
                Ok(())
            }
            What::RoleDelete(name) => {
                let change = if self.enabled && name == "root" {
                    Err(KvError::InvalidAuthManagement)
                } else if self.roles.contains_key(name) {
                    Ok(())
                } else {
                    Err(KvError::RoleNotFound)
                };
                self.root_or(by, change)?;
                self.roles.remove(name);
                for roles in self.users.values_mut() {
                    roles.retain(|role| role != name);
                }
                Ok(())
            }
            What::GrantRole(user, role) => {
                let change = if !self.users.contains_key(user) {
                    Err(KvError::UserNotFound)
                } else if role != "root" && !self.roles.contains_key(role) {
                    Err(KvError::RoleNotFound)
                } else {
                    Ok(())
                };
                self.root_or(by, change)?;
                let roles = self.users.get_mut(user).unwrap();
                roles.retain(|has| has != role);
                roles.push(role.clone());
                Ok(())
            }
            What::RevokeRole(user, role) => {
                let change = if self.enabled && user == "root" && role == "root" {
                    Err(KvError::InvalidAuthManagement)
                } else {
                    match self.users.get(user) {
                        None => Err(KvError::UserNotFound),
                        Some(roles) if roles.contains(role) => Ok(()),
                        Some(_) => Err(KvError::RoleNotGranted),
                    }
                };
                self.root_or(by, change)?;
                self.users.get_mut(user).unwrap().retain(|has| has != role);
                Ok(())
            }
        }
    }
}

/// Keys and range ends that the property test uses, and the first key after each: a gap in what is granted that is not
/// at one of them cannot come to be.
fn world() -> Vec<String> {
    let mut world: Vec<String> =
        KEYS.iter().flat_map(|key| [(*key).to_owned(), format!("{key}\0")]).collect();
    world.push("\u{7f}".to_owned());
    world
}

const KEYS: [&str; 5] = ["a", "ab", "b", "ba", "c"];

#[derive(Clone, Debug)]
enum What {
    Put(String),
    Delete(String, String),
    Range(String, String),
    Grant(String, Type, String, String),
    Revoke(String, String, String),
    Enable,
    Disable,
    UserAdd(String),
    UserDelete(String),
    RoleAdd(String),
    RoleDelete(String),
    GrantRole(String, String),
    RevokeRole(String, String),
}

#[derive(Clone, Debug)]
struct Step {
    by: String,
    what: What,
}

fn one_of(names: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    proptest::sample::select(names).prop_map(str::to_owned)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let user = one_of(&["root", "root", "alice", "bob"]);
    let role = one_of(&["root", "r1", "r2"]);
    let key = one_of(&KEYS);
    let end = one_of(&["", "", "\0", "ab", "b", "ba", "c"]);
    let kind = proptest::sample::select(&[Type::Read, Type::Write, Type::Readwrite][..]);
    let what = prop_oneof![
        6 => key.clone().prop_map(What::Put),
        6 => (key.clone(), end.clone()).prop_map(|(key, end)| What::Delete(key, end)),
        6 => (key.clone(), end.clone()).prop_map(|(key, end)| What::Range(key, end)),
        6 => (role.clone(), kind, key.clone(), end.clone())
            .prop_map(|(role, kind, key, end)| What::Grant(role, kind, key, end)),
        2 => (role.clone(), key, end).prop_map(|(role, key, end)| What::Revoke(role, key, end)),
        2 => Just(What::Enable),
        1 => Just(What::Disable),
        2 => user.clone().prop_map(What::UserAdd),
        1 => user.clone().prop_map(What::UserDelete),
        2 => role.clone().prop_map(What::RoleAdd),
        1 => role.clone().prop_map(What::RoleDelete),
        5 => (user.clone(), role.clone()).prop_map(|(user, role)| What::GrantRole(user, role)),
        2 => (user.clone(), role).prop_map(|(user, role)| What::RevokeRole(user, role)),
    ];
    vec((user, what).prop_map(|(by, what)| Step { by, what }), 1..120)
}

/// What the store answers to a step.
fn take(store: &mut Store, step: &Step) -> Result<(), KvError> {
    let by = caller(store, &step.by);
    let command = match &step.what {
        What::Put(key) => Command::put(put(key)),
        What::Delete(key, end) => Command::delete_range(delete(key, end)),
        What::Range(key, end) => {
            let asked = store.query(Query::Range(range(key, end)).by(by.clone()));
            // The decision of the member that takes a request and that of the store are the same.
            let first =
                store.auth().state().authorize(by.as_ref(), &Access::Range(&range(key, end)));
            assert_eq!(asked.as_ref().map(drop), first.as_ref().map(drop));
            let in_txn = TxnRequest {
                success: vec![op(Request::RequestRange(range(key, end)))],
                ..TxnRequest::default()
            };
            let answer = done(apply(store, Command::txn(in_txn).by(by)));
            assert_eq!(asked.map(drop), answer);
            return answer;
        }
        What::Grant(role, kind, key, end) => grant(role, *kind, key, end),
        What::Revoke(role, key, end) => revoke(role, key, end),
        What::Enable => enable(),
        What::Disable => Command::auth_disable(),
        What::UserAdd(name) => user_add(name),
        What::UserDelete(name) => user_delete(name),
        What::RoleAdd(name) => role_add(name),
        What::RoleDelete(name) => role_delete(name),
        What::GrantRole(user, role) => grant_role(user, role),
        What::RevokeRole(user, role) => revoke_role(user, role),
    };
    done(apply(store, command.by(by)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_store_decides_as_the_naive_model_and_so_does_one_from_a_snapshot(
        steps in steps(),
        pick in 0_usize..120,
    ) {
        let mut store = Store::with_segment_bytes(SEGMENT_BYTES);
        let mut other = Store::with_segment_bytes(SEGMENT_BYTES);
        let mut model = Model::default();
        // Most steps need somebody who may take them.
        let first = [
            What::UserAdd("root".into()),
            What::GrantRole("root".into(), "root".into()),
            What::UserAdd("alice".into()),
            What::RoleAdd("r1".into()),
            What::GrantRole("alice".into(), "r1".into()),
        ];
        let first = first.map(|what| Step { by: "root".into(), what });
        for (place, step) in first.iter().chain(&steps).enumerate() {
            let expected = model.step(step);
            prop_assert_eq!(take(&mut store, step), expected, "{:?} of {:?}", step, model);
            if place == pick {
                other = restored(&store, SEGMENT_BYTES);
            } else {
                prop_assert_eq!(take(&mut other, step), expected);
            }
            let state = store.auth().state();
            prop_assert_eq!(state.is_enabled(), model.enabled);
            prop_assert!(state.users().eq(model.users.keys().map(String::as_str)));
            prop_assert!(state.roles().eq(model.roles.keys().map(String::as_str)));
        }
        prop_assert_eq!(store.digest(), other.digest());
        prop_assert_eq!(restored(&store, SEGMENT_BYTES).digest(), store.digest());
        prop_assert_eq!(&*store.auth().state(), &*other.auth().state());
    }
}

/// Rights to ranges: what a part of a request needs, said by whoever drew it.
type Needs = Vec<(Type, String, String)>;

fn ops(depth: u32) -> BoxedStrategy<Vec<(RequestOp, Needs)>> {
    let key = one_of(&KEYS);
    let end = one_of(&["", "", "\0", "ab", "b", "ba", "c"]);
    let get = (key.clone(), end.clone()).prop_map(|(key, end)| {
        (op(Request::RequestRange(range(&key, &end))), vec![(Type::Read, key, end)])
    });
    let set = (key.clone(), any::<bool>()).prop_map(|(key, prev_kv)| {
        let mut needs = vec![(Type::Write, key.clone(), String::new())];
        if prev_kv {
            needs.push((Type::Read, key.clone(), String::new()));
        }
        (op(Request::RequestPut(PutRequest { prev_kv, ..put(&key) })), needs)
    });
    let remove = (key, end, any::<bool>()).prop_map(|(key, end, prev_kv)| {
        let mut needs = vec![(Type::Write, key.clone(), end.clone())];
        if prev_kv {
            needs.push((Type::Read, key.clone(), end.clone()));
        }
        (
            op(Request::RequestDeleteRange(DeleteRangeRequest { prev_kv, ..delete(&key, &end) })),
            needs,
        )
    });
    let leaf = prop_oneof![3 => get, 3 => set, 2 => remove];
    if depth == 0 {
        return vec(leaf, 0..3).boxed();
    }
    let nested = txn(depth - 1).prop_map(|(txn, needs)| (op(Request::RequestTxn(txn)), needs));
    vec(prop_oneof![4 => leaf, 1 => nested], 0..3).boxed()
}

fn txn(depth: u32) -> BoxedStrategy<(TxnRequest, Needs)> {
    let compare = (one_of(&KEYS), one_of(&["", "", "\0", "b"]));
    (vec(compare, 0..2), ops(depth), ops(depth))
        .prop_map(|(compares, success, failure)| {
            let mut needs = Vec::new();
            let compare = compares.into_iter().map(|(key, end)| {
                needs.push((Type::Read, key.clone(), end.clone()));
                Compare {
                    key: bytes(&key),
                    range_end: bytes(&end),
                    target: CompareTarget::Version.into(),
                    ..Compare::default()
                }
            });
            let compare = compare.collect();
            let mut unpack = |ops: Vec<(RequestOp, Vec<_>)>| {
                let (ops, inner): (Vec<_>, Vec<_>) = ops.into_iter().unzip();
                needs.extend(inner.into_iter().flatten());
                ops
            };
            let (success, failure) = (unpack(success), unpack(failure));
            (TxnRequest { compare, success, failure }, needs)
        })
        .boxed()
}

/// Every key that an answer shows, however deep.
fn shown(txn: &TxnResponse, keys: &mut Vec<Bytes>) {
    use raft_kv::proto::etcdserverpb::response_op::Response;
    for op in &txn.responses {
        match &op.response {
            Some(Response::ResponseRange(range)) => {
                keys.extend(range.kvs.iter().map(|kv| kv.key.clone()));
            }
            Some(Response::ResponsePut(put)) => {
                keys.extend(put.prev_kv.iter().map(|kv| kv.key.clone()));
            }
            Some(Response::ResponseDeleteRange(delete)) => {
                keys.extend(delete.prev_kvs.iter().map(|kv| kv.key.clone()));
            }
            Some(Response::ResponseTxn(txn)) => shown(txn, keys),
            None => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the role and the tree: it is refused exactly when some leaf of it is not granted, and no answer shows
    /// a key that may not be read.
    #[test]
    fn a_tree_is_allowed_when_every_leaf_is_and_shows_nothing_else(
        granted in vec(
            (
                proptest::sample::select(&[Type::Read, Type::Write, Type::Readwrite][..]),
                one_of(&KEYS),
                one_of(&["", "\0", "b", "c", "\u{7f}"]),
            ),
            0..4,
        ),
        (tree, needs) in txn(3),
    ) {
        let mut store = Store::with_segment_bytes(SEGMENT_BYTES);
        let mut model = Model { enabled: true, ..Model::default() };
        model.users.insert("alice".into(), vec!["r".into()]);
        model.roles.insert("r".into(), vec![]);
        for command in [
            user_add("root"),
            grant_role("root", "root"),
            user_add("alice"),
            role_add("r"),
            grant_role("alice", "r"),
        ] {
            ok(&mut store, command);
        }
        for (kind, key, end) in granted {
            let sound = end.is_empty() || end == "\0" || key < end;
            let command = grant("r", kind, &key, &end);
            let by = caller(&store, "root");
            prop_assert_eq!(apply(&mut store, command.by(by)).is_ok(), sound);
            if sound {
                let permissions = model.roles.get_mut("r").unwrap();
                permissions.retain(|(from, to, _)| (from, to) != (&key, &end));
                permissions.push((key, end, kind));
            }
        }
        ok(&mut store, enable());
        for key in KEYS {
            ok(&mut store, Command::put(put(key)));
        }
        let before = store.digest();
        let allowed =
            needs.iter().all(|(kind, key, end)| model.may("alice", *kind, key, end));
        let by = caller(&store, "alice");
        let first = store.auth().state().authorize(by.as_ref(), &Access::Txn(&tree));
        prop_assert_eq!(first, if allowed { Ok(()) } else { Err(KvError::PermissionDenied) });
        match apply(&mut store, Command::txn(tree).by(by)) {
            Ok(Response::Txn(answer)) => {
                prop_assert!(allowed);
                let mut keys = Vec::new();
                shown(&answer, &mut keys);
                for key in keys {
                    let key = std::str::from_utf8(&key).unwrap();
                    prop_assert!(model.may("alice", Type::Read, key, ""), "{} is shown", key);
                }
            }
            Err(KvError::PermissionDenied) => {
                prop_assert!(!allowed);
                prop_assert_eq!(store.digest(), before);
            }
            // A key that is put twice, and the like: decided about after the permission.
            other => prop_assert!(allowed, "{:?}", other),
        }
    }
}
