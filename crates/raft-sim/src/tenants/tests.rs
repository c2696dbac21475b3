//! The checks of watchers and leases see what they are there for: one answer is tampered with.

use bytes::Bytes;
use raft_core::Term;
use raft_kv::proto::etcdserverpb::watch_create_request::FilterType;
use raft_kv::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use raft_kv::proto::mvccpb::Event;

use super::Tenants;
use super::model::{Model, Op, revision_of};
use super::promises::Promises;
use super::watch::Watch;
use crate::marks::Marks;
use crate::profile::{Options, Profile};
use crate::run::run_with;

/// Some history: puts of two keys, both in one revision, a deletion, a key that comes back.
fn model() -> Model {
    let mut model = Model::new();
    let put = |key, value: &'static str| Op::Put { key, value: Bytes::from(value), lease: 0 };
    for op in [
        put(0, "a"),
        put(1, "b"),
        Op::Several { keys: vec![0, 1], value: Bytes::from("c") },
        Op::Delete { from: 0, to: 1 },
        put(0, "d"),
    ] {
        assert!(model.apply(&op, Term(1)).is_ok());
    }
    model
}

fn request(range_end: &'static str) -> WatchCreateRequest {
    let (key, range_end) = (Bytes::from("k000"), Bytes::from(range_end));
    WatchCreateRequest { key, range_end, start_revision: 1, prev_kv: true, ..Default::default() }
}

fn response(revision: i64, events: Vec<Event>) -> WatchResponse {
    let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
    WatchResponse { header, watch_id: 1, events, ..WatchResponse::default() }
}

/// A watcher of everything hears what happened, each revision by itself, after `tamper` did something to all of it. What it
/// finds wrong with that.
fn heard(request: WatchCreateRequest, tamper: impl Fn(&mut Vec<WatchResponse>)) -> Option<String> {
    let model = model();
    let mut watch = Watch::new(request);
    drop(watch.ask());
    let created = WatchResponse { created: true, ..response(1, Vec::new()) };
    let mut responses = vec![created];
    for revision in 2..=model.revision() {
        let events = model.events().iter().filter(|event| revision_of(event) == revision);
        responses.push(response(revision, events.cloned().collect()));
    }
    tamper(&mut responses);
    let hearing = std::panic::AssertUnwindSafe(|| {
        for response in &responses {
            watch.hear(response, &model);
        }
        assert!(watch.is_up_to_date(&model), "something is missing in the end");
    });
    let panic = std::panic::catch_unwind(hearing).err()?;
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
}

fn says(what: &str, tamper: impl Fn(&mut Vec<WatchResponse>)) {
    let found = heard(request("l"), tamper).unwrap_or_default();
    assert!(found.contains(what), "{what}: {found}");
}

#[test]
fn whatever_a_watcher_must_not_be_told_is_seen() {
    assert_eq!(heard(request("l"), |_| {}), None);
    says("I23 ordered, reliable", |all| drop(all.remove(2)));
    says("missing in the end", |all| drop(all.pop()));
    says("I23 unique", |all| all.push(all[5].clone()));
    says("I23 ordered, reliable", |all| all.swap(4, 5));
    says("I23 ordered, unique", |all| all.insert(4, all[2].clone()));
    says("I23 atomic", |all| drop(all[3].events.pop()));
    says("I23 bookmarkable", |all| all[1].header = all[2].header);
    says("I23 prevKV", |all| all[3].events[0].prev_kv = None);
    says("I23 prevKV", |all| all[3].events[0].prev_kv = all[3].events[1].prev_kv.clone());
    says("I23 isCreate", |all| {
        let kv = all[3].events[0].kv.as_mut();
        kv.expect("there is one").create_revision = 4;
    });
    says("did not ask", |all| all.insert(2, response(2, Vec::new())));
    says("of the future", |all| all.push(response(99, Vec::new())));
}

#[test]
fn a_watcher_of_one_key_hears_of_no_other_and_of_nothing_that_is_filtered() {
    let all_of_it = heard(request(""), |_| {}).unwrap_or_default();
    assert!(all_of_it.contains("I23 filter"), "{all_of_it}");
    let only = |all: &mut Vec<WatchResponse>| {
        for response in all.iter_mut() {
            response.events.retain(|event| event.kv.as_ref().is_some_and(|kv| kv.key == "k000"));
        }
        all.retain(|response| response.created || !response.events.is_empty());
    };
    assert_eq!(heard(request(""), only), None);
    let filters = vec![i32::from(FilterType::Nodelete)];
    let found = heard(WatchCreateRequest { filters, ..request("l") }, |_| {}).unwrap_or_default();
    assert!(found.contains("I23 filter"), "{found}");
}

#[test]
fn a_watcher_takes_up_where_it_was() {
    let model = model();
    let mut watch = Watch::new(request("l"));
    drop(watch.ask());
    watch.hear(&WatchResponse { created: true, ..response(1, Vec::new()) }, &model);
    watch.hear(&response(2, model.events()[..1].to_vec()), &model);
    // Half of a revision in fragments, then the stream is gone: all of it must come again.
    watch.lost();
    assert!(!watch.is_up_to_date(&model));
    drop(watch.ask());
    watch.hear(&WatchResponse { created: true, ..response(6, Vec::new()) }, &model);
    watch.hear(&response(6, model.events()[1..].to_vec()), &model);
    assert!(watch.is_up_to_date(&model));
}

#[test]
#[should_panic(expected = "lease 7 ran out")]
fn a_lease_that_ends_before_what_was_told_is_seen() {
    let mut promises = Promises::default();
    promises.told(7, 1, 100_000, 200_000);
    promises.expired(7, 1_100_000);
}

#[test]
#[should_panic(expected = "lease 7 ran out")]
fn a_promise_of_a_lease_that_has_ended_is_seen() {
    let mut promises = Promises::default();
    promises.told(7, 1, 0, 10_000);
    promises.expired(7, 1_300_000);
    promises.told(7, 1, 1_290_000, 1_310_000);
}

#[test]
fn a_slow_answer_promises_from_when_it_was_asked_for() {
    let mut promises = Promises::default();
    promises.told(7, 1, 100_000, 900_000);
    promises.expired(7, 1_400_000);
}

#[test]
fn sound_runs_end_leases_and_tell_watchers() {
    let mut marks = Marks::default();
    for seed in 0..6 {
        let run = run_with(seed, &Options::default(), |profile: &Profile| {
            Tenants::new(&Profile { clock: 0, ..profile.clone() })
        });
        marks.add(&run.unwrap_or_else(|failure| panic!("{failure}")).marks);
    }
    for what in ["tenants: leases end", "tenants: events are told", "tenants: progress is told"] {
        assert!(marks.count(what) > 10, "{what}: {}", marks.count(what));
    }
}
