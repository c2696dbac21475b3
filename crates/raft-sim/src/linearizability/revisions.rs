//! The order is known where revisions are: a write stands at the revision it made, a read after the write of the
//! revision it saw. Reads of one revision change nothing and stand in the order of their calls.

use std::collections::{BTreeMap, HashSet};

use super::model::{Store, fingerprint};
use super::{CONFIGURATIONS_MAX, History, Key, Request, Response, Value, Verdict, Violation};

/// Checks a history whose answers carry revisions. Near linear, but for revisions that only operations without an
/// answer can have made: which one made which is searched.
#[must_use]
pub fn by_revisions(history: &History) -> Verdict {
    by_revisions_within(history, CONFIGURATIONS_MAX)
}

/// As [`by_revisions`], with an order of the operations without an answer tried at most this often.
#[must_use]
pub fn by_revisions_within(history: &History, configurations_max: u64) -> Verdict {
    check(history, &BTreeMap::new(), configurations_max)
}

/// Checks a history of which a log says what each revision was made by: `witness` holds positions in the history by
/// revision, at least of the operations without an answer that took effect. One pass.
#[must_use]
pub fn by_witness(history: &History, witness: &BTreeMap<u64, usize>) -> Verdict {
    check(history, witness, CONFIGURATIONS_MAX)
}

fn check(history: &History, witness: &BTreeMap<u64, usize>, configurations_max: u64) -> Verdict {
    let found = order(history, witness, configurations_max);
    let Err(Problem::Wrong(mut violation)) = found else {
        return match found {
            Err(Problem::GivenUp(configurations)) => Verdict::Undecided { configurations },
            Ok(()) | Err(Problem::Wrong(_)) => Verdict::Linearizable,
        };
    };
    // A prefix of a linearizable history is linearizable: the shortest one that is not is found by halving. What was
    // on its way then has no answer, which is what the search is for. (A witness is not consulted: it knows more
    // than had been seen.)
    let times = history.answer_times();
    let (mut low, mut high) = (0, times.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let (prefix, positions) = history.until(times[middle]);
        match order(&prefix, &BTreeMap::new(), configurations_max) {
            Err(Problem::Wrong(found)) => {
                let at = |position: &usize| positions[*position];
                let operations = found.operations.iter().map(at).collect();
                violation = Violation { time: times[middle], operations, ..found };
                high = middle;
            }
            Ok(()) | Err(Problem::GivenUp(_)) => low = middle + 1,
        }
    }
    Verdict::Violation(violation)
}

enum Problem {
    Wrong(Violation),
    GivenUp(u64),
}

fn wrong(history: &History, mut operations: Vec<usize>, reason: String) -> Problem {
    operations.sort_by_key(|position| {
        let answer = history.operations[*position].answer.as_ref();
        std::cmp::Reverse(answer.map_or(0, |answer| answer.returned))
    });
    let answered = operations.iter().filter_map(|p| history.operations[*p].answer.as_ref());
    let time = answered.map(|answer| answer.returned).max().unwrap_or(0);
    Problem::Wrong(Violation { time, operations, reason })
}

/// Everything that was seen at one revision.
#[derive(Clone, Copy)]
struct Slot {
    /// Which operation made it, if that is known.
    writer: Option<usize>,
    /// The reads of it: a range of positions in one list of all of them.
    reads: (usize, usize),
    /// What it can have been made by must have been called by then: the first answer of all that stands after it.
    deadline: u64,
}

fn order(
    history: &History,
    witness: &BTreeMap<u64, usize>,
    configurations_max: u64,
) -> Result<(), Problem> {
    let first = history.first_revision;
    let mut known: Vec<(u64, bool, u64, usize)> = Vec::with_capacity(history.operations.len());
    let mut unknown = Vec::new();
    let mut demands = BTreeMap::new();
    let of_witness: HashSet<usize> = witness.values().copied().collect();
    for (position, operation) in history.operations.iter().enumerate() {
        let Some(answer) = &operation.answer else {
            if !of_witness.contains(&position) {
                unknown.push(position);
            }
            continue;
        };
        let writes = answer.response.changed();
        if answer.revision < first + u64::from(writes) {
            let reason = format!("the store begins at revision {first}");
            return Err(wrong(history, vec![position], reason));
        }
        known.push((answer.revision, !writes, operation.called, position));
        for demand in seen(&operation.request, &answer.response) {
            demands.entry(demand.0).or_insert_with(Vec::new).push((demand.1, demand.2, position));
        }
    }
    for (revision, position) in witness {
        let Some(operation) = history.operations.get(*position) else {
            continue;
        };
        if operation.answer.is_none() {
            known.push((*revision, false, operation.called, *position));
        } else if operation.answer.as_ref().is_some_and(|answer| answer.revision != *revision) {
            let reason = format!("the log has it at revision {revision}");
            return Err(wrong(history, vec![*position], reason));
        }
    }
    known.sort_unstable();
    real_time(history, &known)?;
    let (slots, reads) = slots(history, &known)?;
    for (revision, seen) in &demands {
        if *revision > first + u64::try_from(slots.len()).unwrap_or(u64::MAX) - 1 {
            let positions = seen.iter().map(|(_, _, position)| *position).take(1).collect();
            let reason = format!("revision {revision} is seen before the store gets there");
            return Err(wrong(history, positions, reason));
        }
    }
    Replay {
        history,
        slots: &slots,
        reads: &reads,
        unknown: &unknown,
        seen_somewhere: seen_somewhere(history, &unknown, &demands),
        configurations_max,
        demands: &demands,
        used: vec![false; unknown.len()],
        used_fingerprint: 0,
        store: Store::new(first),
    }
    .run()
}

/// Keys, values and the revisions at which an answer says that they were written.
fn seen(request: &Request, response: &Response) -> Vec<(u64, Key, Value)> {
    match (request, response) {
        (Request::Get(key), Response::Get(Some(stored))) => {
            vec![(stored.mod_revision, *key, stored.value)]
        }
        (Request::Txn(_, then, otherwise), Response::Txn(holds, responses)) => {
            let list = if *holds { then } else { otherwise };
            list.iter()
                .zip(responses)
                .flat_map(|(request, response)| seen(request, response))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// No operation stands after one that was called only when it had returned.
fn real_time(history: &History, known: &[(u64, bool, u64, usize)]) -> Result<(), Problem> {
    let mut latest: Option<(u64, usize)> = None;
    for (revision, _, called, position) in known {
        let returned = history.operations[*position].returned();
        if let Some((later_called, before)) = latest
            && returned < later_called
        {
            let reason = format!(
                "the one answered at {returned} with revision {revision} would stand after the one called at {later_called}"
            );
            return Err(wrong(history, vec![before, *position], reason));
        }
        if latest.is_none_or(|(at, _)| *called > at) {
            latest = Some((*called, *position));
        }
    }
    Ok(())
}

fn slots(
    history: &History,
    known: &[(u64, bool, u64, usize)],
) -> Result<(Vec<Slot>, Vec<usize>), Problem> {
    let first = history.first_revision;
    let mut reads = Vec::new();
    let mut slots: Vec<Slot> = Vec::new();
    let empty = |at| Slot { writer: None, reads: (at, at), deadline: u64::MAX };
    slots.push(empty(0));
    for (revision, is_read, _, position) in known {
        let offset = usize::try_from(revision - first).unwrap_or(usize::MAX);
        // A revision that is not backed by that many operations needs no memory to be wrong.
        if offset > history.operations.len() {
            let reason = "there were not that many writes".to_owned();
            return Err(wrong(history, vec![*position], reason));
        }
        while slots.len() <= offset {
            slots.push(empty(reads.len()));
        }
        let slot = &mut slots[offset];
        if *is_read {
            reads.push(*position);
            slot.reads.1 = reads.len();
            slot.deadline = slot.deadline.min(history.operations[*position].returned());
        } else if let Some(other) = slot.writer.replace(*position) {
            let reason = format!("both made revision {revision}");
            return Err(wrong(history, vec![other, *position], reason));
        }
    }
    let mut deadline = u64::MAX;
    for slot in slots.iter_mut().rev() {
        deadline = deadline.min(slot.deadline);
        slot.deadline = deadline;
        if let Some(writer) = slot.writer {
            deadline = deadline.min(history.operations[writer].returned());
        }
    }
    Ok((slots, reads))
}

/// Does everything again, in order, and compares.
struct Replay<'a> {
    history: &'a History,
    slots: &'a [Slot],
    reads: &'a [usize],
    unknown: &'a [usize],
    /// Of each of them: what it writes was seen, so that it is needed where that was written.
    seen_somewhere: Vec<bool>,
    configurations_max: u64,
    /// By revision: what somebody saw written then, and who.
    demands: &'a BTreeMap<u64, Vec<(Key, Value, usize)>>,
    used: Vec<bool>,
    used_fingerprint: u128,
    store: Store,
}

/// A revision of which it is not known what made it.
struct Choice {
    offset: usize,
    candidates: Vec<usize>,
    taken: Option<usize>,
    recorded: usize,
    revision: u64,
}

impl Replay<'_> {
    fn run(mut self) -> Result<(), Problem> {
        let mut choices: Vec<Choice> = Vec::new();
        let mut failed: HashSet<(usize, u128, u128)> = HashSet::new();
        let mut deepest: Option<(usize, Problem)> = None;
        let mut configurations = 0u64;
        let mut offset = 0;
        while offset < self.slots.len() {
            let step = if offset == 0 || self.slots[offset].writer.is_some() {
                self.replay(offset, self.slots[offset].writer)
            } else {
                self.store.record();
                let here = (offset, self.store.fingerprint, self.used_fingerprint);
                let candidates =
                    if failed.insert(here) { self.candidates(offset) } else { Vec::new() };
                choices.push(Choice {
                    offset,
                    candidates,
                    taken: None,
                    recorded: self.store.recorded(),
                    revision: self.store.revision,
                });
                Err(self.nobody(offset))
            };
            let Err(mut problem) = step else {
                offset += 1;
                continue;
            };
            // Back to the last choice that has something left.
            loop {
                if deepest.as_ref().is_none_or(|(deepest, _)| offset > *deepest) {
                    deepest = Some((offset, problem));
                }
                let Some(choice) = choices.last_mut() else {
                    return Err(deepest.map_or(Problem::GivenUp(configurations), |(_, p)| p));
                };
                configurations += 1;
                if configurations > self.configurations_max {
                    return Err(Problem::GivenUp(configurations));
                }
                offset = choice.offset;
                self.store.rewind(choice.recorded, choice.revision);
                if let Some(taken) = choice.taken.take() {
                    self.used[taken] = false;
                    self.used_fingerprint ^= fingerprint([number(taken)]);
                }
                let Some(next) = choice.candidates.pop() else {
                    choices.pop();
                    problem = self.nobody(offset);
                    continue;
                };
                choice.taken = Some(next);
                self.used[next] = true;
                self.used_fingerprint ^= fingerprint([number(next)]);
                match self.replay(offset, Some(self.unknown[next])) {
                    Ok(()) => break,
                    Err(found) => problem = found,
                }
            }
            offset += 1;
        }
        Ok(())
    }

    fn revision(&self, offset: usize) -> u64 {
        self.history.first_revision + number(offset)
    }

    /// Nothing can have made this revision, as far as was tried.
    fn nobody(&self, offset: usize) -> Problem {
        let revision = self.revision(offset);
        let demands = self.demands.get(&revision).into_iter().flatten();
        let mut positions: Vec<usize> = demands.map(|(_, _, position)| *position).collect();
        if positions.is_empty() {
            let later = &self.slots[offset..];
            let first = later
                .iter()
                .find_map(|slot| slot.writer.or_else(|| self.reads.get(slot.reads.0).copied()));
            positions.extend(first);
        }
        wrong(self.history, positions, format!("nothing can have made revision {revision}"))
    }

    /// What may have made this revision, the likeliest last.
    fn candidates(&self, offset: usize) -> Vec<usize> {
        let demands = self.demands.get(&self.revision(offset));
        let deadline = self.slots[offset].deadline;
        let mut candidates: Vec<usize> = (0..self.unknown.len())
            .filter(|candidate| {
                let operation = &self.history.operations[self.unknown[*candidate]];
                let fits = demands
                    .into_iter()
                    .flatten()
                    .all(|(key, value, _)| may_write(&operation.request, *key, *value));
                !self.used[*candidate] && operation.called <= deadline && fits
            })
            .collect();
        candidates.sort_by_key(|candidate| {
            let needed = demands.is_none() && self.seen_somewhere[*candidate];
            let called = self.history.operations[self.unknown[*candidate]].called;
            (!needed, std::cmp::Reverse(called))
        });
        candidates
    }

    fn replay(&mut self, offset: usize, writer: Option<usize>) -> Result<(), Problem> {
        let revision = self.revision(offset);
        let (from, to) = self.slots[offset].reads;
        for position in writer.into_iter().chain(self.reads[from..to].iter().copied()) {
            let operation = &self.history.operations[position];
            let response = self.store.apply(&operation.request);
            let answered = operation.answer.as_ref().is_none_or(|a| a.response == response);
            if !answered || self.store.revision != revision {
                let reason = format!(
                    "in the order of revisions the answer would be {response:?} at revision {}",
                    self.store.revision
                );
                return Err(wrong(self.history, vec![position], reason));
            }
        }
        Ok(())
    }
}

/// Of each operation without an answer, whether somebody has seen what only it may have written.
fn seen_somewhere(
    history: &History,
    unknown: &[usize],
    demands: &BTreeMap<u64, Vec<(Key, Value, usize)>>,
) -> Vec<bool> {
    let seen: HashSet<(Key, Value)> =
        demands.values().flatten().map(|(key, value, _)| (*key, *value)).collect();
    let needed = |position: &usize| writes_any(&history.operations[*position].request, &seen);
    unknown.iter().map(needed).collect()
}

fn writes_any(request: &Request, seen: &HashSet<(Key, Value)>) -> bool {
    match request {
        Request::Put(key, value) => seen.contains(&(*key, *value)),
        Request::Txn(_, then, otherwise) => {
            then.iter().chain(otherwise).any(|request| writes_any(request, seen))
        }
        Request::Get(_) | Request::Delete(_) => false,
    }
}

fn may_write(request: &Request, key: Key, value: Value) -> bool {
    match request {
        Request::Put(k, v) => *k == key && *v == value,
        Request::Txn(_, then, otherwise) => {
            then.iter().chain(otherwise).any(|request| may_write(request, key, value))
        }
        Request::Get(_) | Request::Delete(_) => false,
    }
}

fn number(position: usize) -> u64 {
    u64::try_from(position).unwrap_or(u64::MAX)
}
