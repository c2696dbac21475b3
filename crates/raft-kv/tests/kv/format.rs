//! Bytes of version 1, which must decode for ever, and bytes that are none.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use raft_core::{
    BlobId, Command as _, MemorySnapshot, Snapshot, SnapshotError, SnapshotSink, SnapshotSource,
    StateMachine,
};
use raft_kv::proto::authpb::Permission;
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::compare::TargetUnion;
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Caller, Command, Expiry, Store};

use crate::common::{apply, compact, delete, put};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn commands() -> Vec<(&'static str, Command)> {
    let put_request = PutRequest {
        key: "k".into(),
        value: "v".into(),
        lease: 5,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
    };
    let delete_request =
        DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    let txn = TxnRequest {
        compare: vec![Compare {
            result: 3,
            target: 2,
            key: "k".into(),
            range_end: "l".into(),
            target_union: Some(TargetUnion::ModRevision(7)),
        }],
        success: vec![RequestOp { request: Some(Request::RequestPut(put_request.clone())) }],
        failure: vec![RequestOp { request: Some(Request::RequestTxn(TxnRequest::default())) }],
    };
    vec![
        (PUT, Command::put(put_request)),
        (DELETE, Command::delete_range(delete_request)),
        (TXN, Command::txn(txn)),
        (COMPACT, Command::compact(CompactionRequest { revision: 300, physical: true })),
        (GRANT, Command::lease_grant(LeaseGrantRequest { ttl: 60, id: 7 })),
        (REVOKE, Command::lease_revoke(LeaseRevokeRequest { id: 7 })),
        (RENEW, Command::lease_renew(vec![7, -1])),
        (ALARM, alarm(AlarmAction::Activate, 9)),
        (QUOTA, Command::quota(9, 300)),
        (DOWNGRADE, Command::downgrade(String::from("3.6"))),
        (EXPIRE, Command::lease_expire(raft_core::Term(3), vec![Expiry { id: 7, renewals: 300 }])),
    ]
}

const PUT: &str = "010a0e0a016b1201761805200128013001";
const DELETE: &str = "0112080a01611201621801";
const TXN: &str =
    "011a250a0d080310021a016b30078204016c1210120e0a016b12017618052001280130011a022200";
const GRANT: &str = "012a04083c1007";
const REVOKE: &str = "0132020807";
const RENEW: &str = "013a120a100700000000000000ffffffffffffffff";
const EXPIRE: &str = "0142100803120c09070000000000000010ac02";
const ALARM: &str = "01f20106080110091801";
const DOWNGRADE: &str = "01fa01050a03332e36";
const QUOTA: &str = "0182020c09090000000000000010ac02";
const COMPACT: &str = "01220508ac021001";

#[test]
fn commands_of_version_1_encode_and_decode_as_ever() {
    for (golden, command) in commands() {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        assert_eq!(hex(&out), golden);
        let is_new = golden == QUOTA;
        assert_eq!(command.feature_level(), if is_new { 2 } else { 1 }, "{command:?}");
        assert_eq!(Command::decode(Bytes::from(unhex(golden))), Ok(command));
    }
}

#[test]
fn a_command_of_another_version_or_kind_is_refused_with_a_reason() {
    for (bytes, reason) in [
        (&b""[..], "the key-value command is empty"),
        (b"\x02\x0a\x00", "the key-value command has version 2; this program knows 1"),
        (b"\x01", "the key-value command is of a kind that this program does not know"),
        (b"\x01\xba\x02\x00", "the key-value command is of a kind that this program does not know"),
    ] {
        let error = Command::decode(Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(error.0, reason);
    }
    let damaged = Command::decode(Bytes::from_static(b"\x01\x0a\x05")).unwrap_err();
    assert!(damaged.0.starts_with("the key-value command is damaged"), "{damaged}");
}

fn alarm(action: AlarmAction, member_id: u64) -> Command {
    let alarm = AlarmType::Nospace.into();
    Command::alarm(AlarmRequest { action: action.into(), member_id, alarm })
}

/// Two lives of a key, a tombstone, a transaction's worth of one revision, a compaction, two leases, an alarm, a downgrade.
fn small_store() -> Store {
    let mut store = Store::new();
    for command in [
        put("a", "1"),
        put("b", "2"),
        put("a", "3"),
        delete("b"),
        put("b", "4"),
        Command::delete_range(DeleteRangeRequest {
            key: "a".into(),
            range_end: "c".into(),
            prev_kv: false,
        }),
        compact(4),
        Command::lease_grant(LeaseGrantRequest { id: 7, ttl: 60 }),
        Command::lease_grant(LeaseGrantRequest { id: -1, ttl: 300 }),
        Command::lease_renew(vec![7, 7, 8]),
        alarm(AlarmAction::Activate, 9),
        Command::downgrade(String::from("3.6")),
    ] {
        apply(&mut store, command).unwrap();
    }
    store
}

const SEGMENT: &str = "524b565301030000016200010001320100000161020200013301000101620100000162000100013401000101610001010162";
const LEASES: &str = "524b564c01ffffffffffffffffff01ac0200073c02";
const HEAD: &str = "524b564804070589030106010201010903332e3600";
/// As it was before there were users.
const HEAD_3: &str = "524b564803070589030106010201010903332e36";

#[test]
fn snapshots_are_written_and_read_as_ever() {
    let store = small_store();
    let mut snapshot = MemorySnapshot::default();
    store.snapshot().write(&mut snapshot).unwrap();
    let blobs: Vec<_> =
        (0..snapshot.blobs().len()).map(|i| hex(&snapshot.read(i).unwrap())).collect();
    assert_eq!(blobs, [SEGMENT, LEASES, HEAD]);

    for head in [HEAD, HEAD_3] {
        let restored = restore(&[unhex(SEGMENT), unhex(LEASES), unhex(head)]).unwrap();
        assert_eq!(restored.digest(), store.digest());
        assert_eq!(restored.revision(), 7);
    }
}

/// With what two members said about how large the store may become; nobody's head is of version 5 before.
const HEAD_5: &str = "524b564805070589030106010201010903332e36000209e807ac02808040";

#[test]
fn quotas_are_written_and_read_as_ever() {
    let mut store = small_store();
    for (member, bytes) in [(300, 1 << 20), (9, 1_000), (7, 5), (7, 0)] {
        apply(&mut store, Command::quota(member, bytes)).unwrap();
    }
    let mut snapshot = MemorySnapshot::default();
    store.snapshot().write(&mut snapshot).unwrap();
    let head = snapshot.read(snapshot.blobs().len() - 1).unwrap();
    assert_eq!(hex(&head), HEAD_5);
    let restored = restore(&[unhex(SEGMENT), unhex(LEASES), unhex(HEAD_5)]).unwrap();
    assert_eq!(restored.reader().notices(), store.reader().notices());
    assert_eq!(restored.digest(), store.digest());
    assert_ne!(restored.digest(), small_store().digest());
    // Without them the head is the old one again.
    for member in [300, 9] {
        apply(&mut store, Command::quota(member, 0)).unwrap();
    }
    assert_eq!(store.digest(), small_store().digest());
    for (quotas, reason) in [
        ("00", "the head has a version without need"),
        ("0209e8070905", "the quotas are not in order"),
        ("010900", "the quotas are not in order"),
        ("0109", "a blob ends within a number"),
    ] {
        let head = format!("524b564805070589030106010201010903332e3600{quotas}");
        let error = restore(&[unhex(SEGMENT), unhex(LEASES), unhex(&head)]).err();
        let expected = format!("key-value store: {reason}");
        assert_eq!(error, Some(SnapshotError::Undecodable(expected)), "{quotas}");
    }
}

/// A user with a password and one without, a role, authentication on and changed since.
fn store_with_users() -> Store {
    let mut store = Store::new();
    let root = Some(Caller::new("root".into(), 99));
    for (_, command) in auth_commands() {
        apply(&mut store, command.by(root.clone())).unwrap();
    }
    store
}

fn auth_commands() -> Vec<(&'static str, Command)> {
    let perm = Permission { perm_type: 2, key: "a".into(), range_end: "b".into() };
    let (name, user, role) = (String::from, String::from, String::from);
    vec![
        (USER_ADD, Command::user_add(name("root"), Some("$2a$".into()))),
        (USER_ADD_BARE, Command::user_add(name("bare"), None)),
        (ROLE_ADD, Command::role_add(AuthRoleAddRequest { name: name("r") })),
        (
            GRANT_ROLE,
            Command::user_grant_role(AuthUserGrantRoleRequest {
                user: user("root"),
                role: role("root"),
            }),
        ),
        (
            GRANT_PERMISSION,
            Command::role_grant_permission(AuthRoleGrantPermissionRequest {
                name: name("r"),
                perm: Some(perm.clone()),
            }),
        ),
        (
            REVOKE_PERMISSION,
            Command::role_revoke_permission(AuthRoleRevokePermissionRequest {
                role: role("r"),
                key: perm.key.clone(),
                range_end: perm.range_end.clone(),
            }),
        ),
        (
            GRANT_PERMISSION,
            Command::role_grant_permission(AuthRoleGrantPermissionRequest {
                name: name("r"),
                perm: Some(perm),
            }),
        ),
        (
            GRANT_ROLE_R,
            Command::user_grant_role(AuthUserGrantRoleRequest {
                user: user("bare"),
                role: role("r"),
            }),
        ),
        (
            REVOKE_ROLE,
            Command::user_revoke_role(AuthUserRevokeRoleRequest {
                name: name("bare"),
                role: role("r"),
            }),
        ),
        (ENABLE, Command::auth_enable("secret".into())),
        (DISABLE, Command::auth_disable()),
        (ENABLE, Command::auth_enable("secret".into())),
        (CHANGE_PASSWORD, Command::user_change_password(name("root"), "$2b$".into())),
        (ROLE_ADD_2, Command::role_add(AuthRoleAddRequest { name: name("s") })),
        (ROLE_DELETE, Command::role_delete(AuthRoleDeleteRequest { role: role("s") })),
        (USER_ADD_EVE, Command::user_add(name("eve"), None)),
        (USER_DELETE, Command::user_delete(AuthUserDeleteRequest { name: name("eve") })),
    ]
}

const USER_ADD: &str = "015a0c0a04726f6f74120424326124";
const USER_ADD_BARE: &str = "015a080a04626172651801";
const USER_ADD_EVE: &str = "015a070a036576651801";
const USER_DELETE: &str = "0162050a03657665";
const CHANGE_PASSWORD: &str = "016a0c0a04726f6f74120424326224";
const GRANT_ROLE: &str = "01720c0a04726f6f741204726f6f74";
const GRANT_ROLE_R: &str = "0172090a0462617265120172";
const REVOKE_ROLE: &str = "017a090a0462617265120172";
const ROLE_ADD: &str = "018201030a0172";
const ROLE_ADD_2: &str = "018201030a0173";
const ROLE_DELETE: &str = "018a01030a0173";
const GRANT_PERMISSION: &str = "0192010d0a0172120808021201611a0162";
const REVOKE_PERMISSION: &str = "019a01090a01721201611a0162";
const ENABLE: &str = "014a080a06736563726574";
const DISABLE: &str = "015200";
const PUT_BY: &str = "010a030a016bc2020a0a05616c69636510ac02";
const AUTH: &str = "524b564101080110101a06736563726574220e0a0a0a046261726522020801100322180a140a04726f6f741204243262241a04726f6f742200100c2a0d0a0172120808021201611a0162";
const AUTH_HEAD: &str = "524b56480401000000000000000001";

#[test]
fn commands_about_users_encode_and_decode_as_ever() {
    let put = Command::put(PutRequest { key: "k".into(), ..PutRequest::default() });
    let by = (PUT_BY, put.by(Some(Caller::new("alice".into(), 300))));
    for (golden, command) in auth_commands().into_iter().chain([by]) {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        assert_eq!(hex(&out), golden, "{command:?}");
        assert_eq!(Command::decode(Bytes::from(unhex(golden))), Ok(command));
    }
}

#[test]
fn users_and_roles_are_written_and_read_as_ever() {
    let store = store_with_users();
    let mut snapshot = MemorySnapshot::default();
    store.snapshot().write(&mut snapshot).unwrap();
    let blobs: Vec<_> =
        (0..snapshot.blobs().len()).map(|i| hex(&snapshot.read(i).unwrap())).collect();
    assert_eq!(blobs, [AUTH, AUTH_HEAD]);
    let restored = restore(&[unhex(AUTH), unhex(AUTH_HEAD)]).unwrap();
    assert_eq!(*restored.auth().state(), *store.auth().state());
    assert_eq!(restored.digest(), store.digest());
    let without = restore(&[unhex(AUTH_HEAD)]).err();
    assert!(without.is_some(), "users and roles are missing");
}

/// More than one blob holds.
#[test]
fn many_users_come_through_a_snapshot() {
    let mut store = Store::new();
    for n in 0..300 {
        let name = format!("{n}-{}", "x".repeat(10_000));
        apply(&mut store, Command::user_add(name, None)).unwrap();
    }
    let mut snapshot = MemorySnapshot::default();
    store.snapshot().write(&mut snapshot).unwrap();
    assert!(snapshot.blobs().len() > 3, "they fit into {} blobs", snapshot.blobs().len());
    let mut restored = Store::new();
    restored.restore(&snapshot).unwrap();
    assert_eq!(*restored.auth().state(), *store.auth().state());
}

fn restore(blobs: &[Vec<u8>]) -> Result<Store, SnapshotError> {
    let mut snapshot = MemorySnapshot::default();
    for blob in blobs {
        snapshot.put(blob).unwrap();
    }
    let mut store = Store::new();
    store.restore(&snapshot).map(|()| store)
}

/// The same lease twice.
fn leased(leases: &[u8]) -> Vec<u8> {
    let last = &leases[leases.len() - 3..];
    [&leases[..5], last, last].concat()
}

#[test]
fn a_snapshot_that_makes_no_sense_is_refused_with_a_reason() {
    let (segment, leases, head) = (unhex(SEGMENT), unhex(LEASES), unhex(HEAD));
    let newer = |blob: &[u8]| {
        let mut blob = blob.to_vec();
        blob[4] = 9;
        blob
    };
    for (blobs, reason) in [
        (vec![], "the snapshot is empty"),
        (vec![segment.clone()], "a blob is no head"),
        (vec![head.clone()], "the number of segments is not what the head says"),
        (vec![head.clone(), leases.clone(), head.clone()], "a blob is no segment"),
        (vec![segment.clone(), segment.clone(), head.clone()], "a blob is no list of leases"),
        (
            vec![segment[..segment.len() - 1].to_vec(), leases.clone(), head.clone()],
            "a blob ends early",
        ),
        (
            vec![newer(&segment), leases.clone(), head.clone()],
            "the segment has format version 9; this program knows 1",
        ),
        (
            vec![segment.clone(), newer(&leases), head.clone()],
            "the list of leases has format version 9; this program knows 1",
        ),
        (
            vec![segment.clone(), leases[..leases.len() - 3].to_vec(), head.clone()],
            "the number of leases is not what the head says",
        ),
        (vec![segment.clone(), leased(&leases), head.clone()], "the leases' ids do not ascend"),
        (
            vec![segment, leases, newer(&head)],
            "the head has format version 9; this program knows 5",
        ),
    ] {
        let error = restore(&blobs).err();
        let expected = format!("key-value store: {reason}");
        assert_eq!(error, Some(SnapshotError::Undecodable(expected)));
    }
}

/// Says that it has a blob that it cannot deliver.
struct Missing(Vec<BlobId>);

impl SnapshotSource for Missing {
    fn blobs(&self) -> &[BlobId] {
        &self.0
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        Err(SnapshotError::Missing(self.0[position]))
    }
}

#[test]
fn a_missing_blob_is_reported_as_such() {
    let id = BlobId::of(b"x");
    assert_eq!(Store::new().restore(&Missing(vec![id])), Err(SnapshotError::Missing(id)));
}

/// Changes some bytes, cuts some off.
fn mutate(mut bytes: Vec<u8>, changes: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
    for (place, byte) in changes {
        if !bytes.is_empty() {
            let place = place % bytes.len();
            bytes[place] ^= byte;
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(cut % (bytes.len() + 1));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_command_and_no_snapshot(
        bytes in vec(any::<u8>(), 0..80),
        version in any::<bool>(),
    ) {
        let mut command = bytes.clone();
        if version {
            command.insert(0, 1);
        }
        // Whatever decodes can also be applied.
        if let Ok(command) = Command::decode(command.into()) {
            apply(&mut small_store(), command).ok();
        }
        let with_magic = |magic: &[u8]| [magic, &[1], &bytes[..]].concat();
        restore(&[with_magic(b"RKVS"), with_magic(b"RKVL"), with_magic(b"RKVH")]).ok();
        restore(&[with_magic(b"RKVS"), unhex(LEASES), unhex(HEAD)]).ok();
        restore(&[unhex(SEGMENT), with_magic(b"RKVL"), unhex(HEAD)]).ok();
        restore(&[unhex(SEGMENT), unhex(LEASES), with_magic(b"RKVH")]).ok();
        restore(&[with_magic(b"RKVA"), unhex(AUTH_HEAD)]).ok();
    }

    #[test]
    fn mutated_bytes_never_panic(
        which in 0..11_usize,
        changes in vec((any::<usize>(), any::<u8>()), 0..4),
        head_changes in vec((any::<usize>(), any::<u8>()), 0..2),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        let golden = unhex(commands()[which].0);
        if let Ok(command) = Command::decode(mutate(golden, &changes, cut).into()) {
            apply(&mut small_store(), command).ok();
        }
        let segment = mutate(unhex(SEGMENT), &changes, cut);
        let head = mutate(unhex(HEAD), &head_changes, None);
        let leases = mutate(unhex(LEASES), &head_changes, None);
        restore(&[unhex(SEGMENT), leases, unhex(HEAD)]).ok();
        let users = mutate(unhex(AUTH), &changes, cut);
        if let Ok(mut store) = restore(&[users, unhex(AUTH_HEAD)]) {
            apply(&mut store, Command::user_add("new".into(), None)).ok();
            store.digest();
        }
        let all = auth_commands();
        let golden = unhex(all[which % all.len()].0);
        if let Ok(command) = Command::decode(mutate(golden, &changes, cut).into()) {
            apply(&mut store_with_users(), command).ok();
        }
        if let Ok(mut store) = restore(&[segment, unhex(LEASES), head]) {
            // What was accepted behaves like a store.
            apply(&mut store, alarm(AlarmAction::Deactivate, 0)).unwrap();
            let corrupt = AlarmRequest {
                action: AlarmAction::Deactivate.into(),
                alarm: AlarmType::Corrupt.into(),
                member_id: 0,
            };
            apply(&mut store, Command::alarm(corrupt)).unwrap();
            for key in ["a", "b"] {
                apply(&mut store, put(key, "new")).unwrap();
                apply(&mut store, delete(key)).unwrap();
            }
            let revision = store.revision();
            apply(&mut store, compact(revision)).unwrap();
            store.digest();
        }
    }
}
