use std::collections::BTreeMap;

use raft_core::Rng;

use super::model::Store;
use super::*;

/// Clients that work at random on one store; each operation takes effect at one moment within its time.
fn random_history(
    rng: &mut Rng,
    clients: u32,
    operations: u32,
    keys: u64,
) -> (History, Vec<usize>) {
    let mut planned = Vec::new();
    let mut free = vec![0u64; usize::try_from(clients).unwrap()];
    for number in 0..operations {
        let client = rng.below(u64::from(clients));
        let at = &mut free[usize::try_from(client).unwrap()];
        let called = *at + 1 + rng.below(4);
        let effect = called + rng.below(8);
        let returned = effect + rng.below(8);
        *at = returned;
        let key = Key(u32::try_from(rng.below(keys)).unwrap());
        let value = Value(if rng.chance(1, 2) { u64::from(number) + 10 } else { rng.below(3) });
        let request = match rng.below(8) {
            0..3 => Request::Get(key),
            3..6 => Request::Put(key, value),
            6 => Request::Delete(key),
            _ => {
                let expected = rng.chance(1, 2).then(|| Value(rng.below(3)));
                let other = Key(u32::try_from(rng.below(keys)).unwrap());
                let otherwise = vec![Request::Get(other)];
                let compare = Compare::Value(key, expected);
                Request::Txn(vec![compare], vec![Request::Put(key, value)], otherwise)
            }
        };
        let client = u32::try_from(client).unwrap();
        planned.push((effect, returned, Operation { client, called, request, answer: None }));
    }
    let mut order: Vec<usize> = (0..planned.len()).collect();
    order.sort_by_key(|position| planned[*position].0);
    let mut history = History::new();
    let mut store = Store::new(history.first_revision);
    for position in &order {
        let (_, returned, operation) = &mut planned[*position];
        let response = store.apply(&operation.request);
        operation.answer = Some(Answer { returned: *returned, revision: store.revision, response });
    }
    history.operations = planned.into_iter().map(|(_, _, operation)| operation).collect();
    (history, order)
}

/// Makes something of it different, or unknown.
fn spoil(rng: &mut Rng, history: &mut History) {
    for _ in 0..rng.below(6) {
        let count = u64::try_from(history.operations.len()).unwrap();
        let position = usize::try_from(rng.below(count)).unwrap();
        let operation = &mut history.operations[position];
        match rng.below(7) {
            0 => operation.answer = None,
            1 => {
                if let Some(answer) = &mut operation.answer {
                    answer.revision = 1 + rng.below(count);
                }
            }
            2..5 => {
                if let Some(Answer { response: Response::Get(seen), .. }) = &mut operation.answer {
                    let value = Value(rng.below(3));
                    *seen = rng
                        .chance(2, 3)
                        .then(|| Stored { value, mod_revision: 2 + rng.below(count) });
                }
            }
            _ => {
                if let Some(answer) = &mut operation.answer {
                    let earlier = rng.below(6);
                    operation.called = operation.called.saturating_sub(earlier);
                    answer.returned = answer.returned.max(operation.called);
                }
            }
        }
    }
}

/// Every order of all operations with answers and any of the others.
fn brute_force(history: &History, store: &Store, done: u32, revisions: bool) -> bool {
    let operations = &history.operations;
    let open = |position: &usize| done & (1 << position) == 0;
    let mut left = (0..operations.len()).filter(open).peekable();
    if left.clone().all(|position| operations[position].answer.is_none()) {
        return true;
    }
    let first_return = left.clone().map(|position| operations[position].returned()).min().unwrap();
    left.any(|position| {
        let operation = &operations[position];
        let mut after = store.clone();
        let response = after.apply(&operation.request);
        let fits = operation.answer.as_ref().is_none_or(|answer| {
            if revisions {
                answer.response == response && answer.revision == after.revision
            } else {
                without_revisions(&answer.response) == without_revisions(&response)
            }
        });
        operation.called <= first_return
            && fits
            && brute_force(history, &after, done | (1 << position), revisions)
    })
}

fn without_revisions(response: &Response) -> Response {
    match response {
        Response::Get(seen) => Response::Get(seen.map(|seen| Stored { mod_revision: 0, ..seen })),
        Response::Txn(holds, list) => {
            Response::Txn(*holds, list.iter().map(without_revisions).collect())
        }
        Response::Put | Response::Delete(_) => response.clone(),
    }
}

/// Thousands of small histories, right and wrong: the checkers say what trying every order says, and the prefix that
/// a violation names is the shortest.
#[test]
fn checkers_agree_with_trying_every_order() {
    let mut right = [0; 2];
    let mut wrong = [0; 2];
    for seed in 0..6000 {
        let mut rng = Rng::new(seed);
        let clients = 1 + u32::try_from(rng.below(4)).unwrap();
        let count = 2 + u32::try_from(rng.below(5)).unwrap();
        let keys = 1 + rng.below(2);
        let (mut history, _) = random_history(&mut rng, clients, count, keys);
        spoil(&mut rng, &mut history);
        for (kind, revisions) in [true, false].into_iter().enumerate() {
            let check = |history: &History| {
                if revisions { by_revisions(history) } else { by_keys(history) }
            };
            let truth = |history: &History| {
                brute_force(history, &Store::new(history.first_revision), 0, revisions)
            };
            let verdict = check(&history);
            match &verdict {
                Verdict::Linearizable => {
                    assert!(truth(&history), "seed {seed}, {revisions}: {history:#?}");
                    right[kind] += 1;
                }
                Verdict::Violation(violation) => {
                    let text = violation.explain(&history);
                    assert!(!truth(&history), "seed {seed}, {revisions}: {text}\n{history:#?}");
                    assert!(!violation.operations.is_empty(), "seed {seed}: {text}");
                    let (prefix, _) = history.until(violation.time);
                    assert!(!truth(&prefix), "seed {seed}, {revisions}: {text}\n{history:#?}");
                    let (shorter, _) = history.until(violation.time - 1);
                    assert!(truth(&shorter), "seed {seed}, {revisions}: {text}\n{history:#?}");
                    wrong[kind] += 1;
                }
                Verdict::Undecided { .. } => panic!("seed {seed}: given up on {history:#?}"),
            }
        }
    }
    assert!(right.iter().chain(&wrong).all(|count| *count > 500), "{right:?} {wrong:?}");
}

/// The log knows which of the operations without answers took effect.
#[test]
fn the_log_is_a_witness_for_what_has_no_answer() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (mut history, order) = random_history(&mut rng, 4, 60, 3);
        let mut witness = BTreeMap::new();
        for position in order {
            let operation = &mut history.operations[position];
            let answer = operation.answer.as_ref().unwrap();
            if answer.response.changed() {
                witness.insert(answer.revision, position);
            }
            if rng.chance(1, 3) {
                operation.answer = None;
            }
        }
        assert_eq!(by_witness(&history, &witness), Verdict::Linearizable, "seed {seed}");
        assert_eq!(by_revisions(&history), Verdict::Linearizable, "seed {seed}");
    }
}

/// One answer among many that was true a moment too early.
#[test]
fn a_single_stale_read_is_found() {
    for seed in 0..5 {
        let (mut history, _) = random_history(&mut Rng::new(seed), 8, 1500, 40);
        assert_eq!(by_revisions(&history), Verdict::Linearizable);
        assert_eq!(by_keys(&history), Verdict::Linearizable);
        let stale = make_one_read_stale(&mut history, 700).unwrap();
        for verdict in [by_revisions(&history), by_keys(&history)] {
            let Verdict::Violation(violation) = verdict else { panic!("seed {seed}: {verdict:?}") };
            let text = violation.explain(&history);
            // Without revisions it may take until a later answer to show that no order is left.
            assert!(
                violation.operations.contains(&stale)
                    || violation.time > history.operations[stale].returned(),
                "seed {seed}, {stale}: {text}"
            );
            assert!(violation.operations.len() <= 9, "seed {seed}: {text}");
        }
    }
}

/// The first read from position `from` on that can be answered with what its key held before a put that was over when
/// it was called, itself begun after the put of that earlier value was over: wrong with and without revisions.
fn make_one_read_stale(history: &mut History, from: usize) -> Option<usize> {
    let operations = &history.operations;
    let mut puts: Vec<(u64, Key, Value, &Operation)> = operations
        .iter()
        .filter_map(|put| match put.request {
            // Values from 10 on are written once.
            Request::Put(key, value) if value.0 >= 10 => {
                Some((put.answer.as_ref()?.revision, key, value, put))
            }
            Request::Get(_) | Request::Put(..) | Request::Delete(_) | Request::Txn(..) => None,
        })
        .collect();
    puts.sort_by_key(|(revision, ..)| *revision);
    let (position, revision, value) = (from..operations.len()).find_map(|position| {
        let read = &operations[position];
        let Request::Get(key) = read.request else { return None };
        let before = |at: u64| {
            puts.iter().rev().find(move |(_, other, _, put)| *other == key && put.returned() < at)
        };
        let (_, _, _, newer) = before(read.called)?;
        let (revision, _, value, _) = before(newer.called)?;
        Some((position, *revision, *value))
    })?;
    let answer = history.operations[position].answer.as_mut()?;
    answer.response = Response::Get(Some(Stored { value, mod_revision: revision }));
    answer.revision = revision;
    Some(position)
}
