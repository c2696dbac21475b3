//! Every text by which clients tell etcd's errors apart, and the test that hears it, character for character.

use std::fs;
use std::path::Path;

/// File, test, and the texts that it compares; all but those of the last services begin with `etcdserver: `.
const HEARD: &[(&str, &str, &[&str])] = &[
    (
        "words",
        "requests_that_make_no_sense",
        &[
            "key is not provided",
            "key not found",
            "value is provided",
            "lease is provided",
            "too many operations in txn request",
            "duplicate key given in txn request",
            "invalid client api version",
            "invalid sort option",
            "request is too large",
            "too large lease TTL",
            "requested lease not found",
            "lease already exists",
        ],
    ),
    (
        "words",
        "members_that_cannot_come_go_or_lead",
        &[
            "given member URLs are invalid",
            "member not found",
            "Peer URLs already exists",
            "can only promote a learner member",
            "can only promote a learner member which is in sync with leader",
            "too many learner members in cluster",
            "not leader",
            "rpc not supported for learner",
            "bad leader transferee",
        ],
    ),
    ("etcdctl", "a_stock_etcdctl_manages_users_and_comes_in_as_one", &["user name is empty"]),
    (
        "auth",
        "managing_is_refused_in_etcds_words",
        &[
            "role name is empty",
            "authentication failed, invalid user ID or password",
            "permission not given",
            "invalid auth management",
            "root user does not exist",
            "root user does not have root role",
            "user name already exists",
            "user name not found",
            "role name already exists",
            "role name not found",
            "role is not granted to the user",
            "permission is not granted to the role",
            "authentication is not enabled",
        ],
    ),
    (
        "errors",
        "what_is_hard_to_bring_about_is_said_in_etcds_words",
        &[
            "revision of auth store is old",
            "member ID already exist",
            "not capable",
            "leader changed",
            "request timed out, possibly due to previous leader failure",
            "request timed out, possibly due to connection lost",
        ],
    ),
    (
        "maintenance",
        "a_corrupt_cluster_and_downgrades_are_told_in_etcds_words",
        &[
            "wrong downgrade target version format",
            "invalid downgrade target version",
            "cluster has a downgrade job in progress",
            "no inflight downgrade job",
            "corrupt cluster",
        ],
    ),
    (
        "kv",
        "every_member_takes_every_operation",
        &[
            "mvcc: required revision has been compacted",
            "mvcc: required revision is a future revision",
        ],
    ),
    (
        "maintenance",
        "a_full_store_refuses_to_grow_until_there_is_space_and_the_alarm_is_disarmed",
        &["mvcc: database space exceeded"],
    ),
    (
        "no_quorum",
        "without_a_quorum_everybody_hears_what_etcd_says",
        &["too many requests", "request timed out"],
    ),
    (
        "words",
        "the_last_member_stays",
        &["re-configuration failed due to not enough started members"],
    ),
    ("auth", "who_may_not_is_refused_and_who_may_is_not", &["permission denied"]),
    ("gateway", "users_come_in_with_an_authorization_header", &["invalid auth token"]),
    (
        "watches",
        "streams_that_need_a_leader_end_without_one_and_all_end_with_the_member",
        &["no leader", "server stopped"],
    ),
    ("membership", "a_member_that_is_needed_is_not_removed", &["unhealthy cluster"]),
    (
        "words",
        "whoever_said_how_long_it_waits_hears_when_that_is_over",
        &["context deadline exceeded"],
    ),
    (
        "recipes",
        "an_election_has_one_leader_and_its_listeners_hear_everything",
        &["election: no leader", "election: not leader", "\"leader\" field must be provided"],
    ),
    (
        "watches",
        "watchers_of_one_stream_come_and_go_with_etcds_answers",
        &["mvcc: duplicate watch ID provided on the WatchStream"],
    ),
    (
        "auth",
        "watchers_hear_what_they_may_and_no_more_once_they_may_not",
        &["rpc error: code = PermissionDenied desc = {DENIED}"],
    ),
];

/// The texts of etcd's table that no client hears from us, and why.
const UNHEARD: &[(&str, &str)] = &[
    (
        "cluster ID mismatch",
        "etcd's members say it to each other when they compare hashes; ours end the connection in the handshake",
    ),
    (
        "cluster version not found during downgrade",
        "etcd has no version until its members have agreed on one; ours is that of the program, from the start",
    ),
    (
        "request timed out, waiting for the applied index took too long",
        "etcd's leader renews leases beside its log and waits for it first; our renewals are entries of the log",
    ),
    ("watch canceled", "whoever cancels a call listens no more"),
    ("request canceled", "whoever cancels a call listens no more"),
];

#[test]
fn every_text_of_etcd_is_heard_in_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/service");
    let errors = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/etcd/errors.rs");
    let mut seen: Vec<&str> = Vec::new();
    for (file, name, texts) in HEARD {
        let path =
            if *file == "errors" { errors.clone() } else { tests.join(format!("{file}.rs")) };
        let source = fs::read_to_string(&path).unwrap();
        // The program's own words, where both stand in one file, are what is compared and not what it is compared with.
        let source = source.split("mod tests {").last().unwrap();
        assert!(source.contains(&format!("fn {name}(")), "{file}.rs has no test {name}");
        for text in *texts {
            // Alone, after the prefix or after the words of a time-out, and to the end of the text.
            let quoted = text.replace('"', "\\\"");
            let whole = ["\"", "\"etcdserver: "].map(|before| format!("{before}{quoted}\""));
            let found = whole.iter().any(|whole| source.contains(whole));
            assert!(found, "{text:?} is not compared in {file}.rs");
            assert!(!seen.contains(text), "{text:?} stands here twice");
            seen.push(text);
        }
    }
    // What the program can say without one of these is a text that etcd does not have.
    for (text, why) in UNHEARD {
        let source = fs::read_to_string(&errors).unwrap();
        assert!(!source.contains(text), "{text:?} is said after all, though {why}");
        assert!(!seen.contains(text), "{text:?} stands here twice");
        seen.push(text);
    }
    assert_eq!(
        seen.len(),
        68,
        "section 3 of the contract has so many texts, and the watch contract two"
    );
}
