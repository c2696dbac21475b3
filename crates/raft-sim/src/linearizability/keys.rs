//! Without revisions: a search for each group of keys.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::model::Store;
use super::{
    CONFIGURATIONS_MAX, Compare, History, Key, Operation, Request, Response, Value, Verdict,
    Violation,
};

/// Checks a history without looking at revisions.
///
/// A history is linearizable when its parts about disjoint keys are (Herlihy and Wing), so that each group of keys
/// which transactions tie together is searched alone. [`Verdict::Undecided`] when a search takes too long, when more
/// than 128 operations on one group are under way at once or more than 128 have no answer, and for transactions that
/// compare revisions.
#[must_use]
pub fn by_keys(history: &History) -> Verdict {
    let mut configurations = 0;
    let mut violation: Option<Violation> = None;
    let mut undecided = false;
    for group in groups(history) {
        match Search::new(history, group).map(|search| search.run(&mut configurations)) {
            Some(Verdict::Linearizable) => {}
            Some(Verdict::Violation(found)) => {
                if violation.as_ref().is_none_or(|earlier| found.time < earlier.time) {
                    violation = Some(found);
                }
            }
            Some(Verdict::Undecided { .. }) | None => undecided = true,
        }
    }
    match violation {
        Some(violation) => Verdict::Violation(violation),
        None if undecided => Verdict::Undecided { configurations },
        None => Verdict::Linearizable,
    }
}

fn keys(request: &Request, found: &mut Vec<Key>) {
    match request {
        Request::Get(key) | Request::Put(key, _) | Request::Delete(key) => found.push(*key),
        Request::Txn(compares, then, otherwise) => {
            found.extend(compares.iter().map(|compare| match compare {
                Compare::Value(key, _) | Compare::ModRevision(key, _) => *key,
            }));
            then.iter().chain(otherwise).for_each(|request| keys(request, found));
        }
    }
}

/// The key that stands for all that are tied to `key`.
fn root(parent: &mut HashMap<Key, Key>, key: Key) -> Key {
    let mut at = key;
    while let Some(above) = parent.get(&at).copied().filter(|above| *above != at) {
        at = above;
    }
    parent.insert(key, at);
    at
}

/// Positions of operations, apart where no transaction ties their keys together.
fn groups(history: &History) -> Vec<Vec<usize>> {
    let mut parent: HashMap<Key, Key> = HashMap::new();
    let mut first = Vec::with_capacity(history.operations.len());
    let mut found = Vec::new();
    for operation in &history.operations {
        found.clear();
        keys(&operation.request, &mut found);
        for pair in found.windows(2) {
            let (a, b) = (root(&mut parent, pair[0]), root(&mut parent, pair[1]));
            parent.insert(a, b);
        }
        first.push(found.first().copied());
    }
    let mut groups: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (position, key) in first.into_iter().enumerate() {
        if let Some(key) = key {
            groups.entry(root(&mut parent, key)).or_default().push(position);
        }
    }
    groups.into_values().collect()
}

fn compares_revisions(request: &Request) -> bool {
    let Request::Txn(compares, then, otherwise) = request else {
        return false;
    };
    compares.iter().any(|compare| matches!(compare, Compare::ModRevision(..)))
        || then.iter().chain(otherwise).any(compares_revisions)
}

/// Equal but for revisions.
fn same(a: &Response, b: &Response) -> bool {
    match (a, b) {
        (Response::Get(a), Response::Get(b)) => a.map(|s| s.value) == b.map(|s| s.value),
        (Response::Txn(a, x), Response::Txn(b, y)) => {
            a == b && x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        _ => a == b,
    }
}

/// The answers of a group in order; at each, the operations under way.
///
/// Putting operations as late as possible loses no order, so the search goes from answer to answer: before each, the
/// operation that it answers must have had its place, and whatever else was under way may have (Lowe's
/// just-in-time linearization).
struct Search<'a> {
    history: &'a History,
    /// Operations with an answer, by its time: position and slot.
    answered: Vec<(usize, u32)>,
    /// For each of them, those under way just before the answer, as positions by slot.
    under_way: Vec<Vec<(usize, u32)>>,
    /// Operations without an answer, in the order of their calls.
    unknown: Vec<usize>,
}

/// Where a search stands.
#[derive(Clone)]
struct At {
    /// All answers before this one are explained.
    answer: usize,
    /// Slots of operations that have their place and no answer yet.
    placed: u128,
    /// Those of the operations without answers that have their place.
    unknown: u128,
    store: Store,
}

/// What may come next.
#[derive(Clone, Copy)]
enum Next {
    Known(usize, u32),
    Unknown(usize),
}

/// What exists.
type Values = Vec<(Key, Value)>;

/// Slots that fit the masks.
const SLOTS: u32 = 128;

impl<'a> Search<'a> {
    fn new(history: &'a History, group: Vec<usize>) -> Option<Self> {
        if group.iter().any(|p| compares_revisions(&history.operations[*p].request)) {
            return None;
        }
        let operation = |position: &usize| -> &Operation { &history.operations[*position] };
        let (mut known, mut unknown): (Vec<usize>, Vec<usize>) =
            group.into_iter().partition(|position| operation(position).answer.is_some());
        unknown.sort_by_key(|position| operation(position).called);
        if unknown.len() > usize::try_from(SLOTS).ok()? {
            return None;
        }
        let mut calls = known.clone();
        calls.sort_by_key(|position| operation(position).called);
        known.sort_by_key(|position| operation(position).returned());
        let mut calls = calls.into_iter().peekable();
        let mut under_way: Vec<(usize, u32)> = Vec::new();
        let mut answered = Vec::with_capacity(known.len());
        let mut snapshots = Vec::with_capacity(known.len());
        for position in known {
            let returned = operation(&position).returned();
            // What is called in the moment of an answer overlaps it.
            while let Some(call) = calls.next_if(|call| operation(call).called <= returned) {
                let slot =
                    (0..SLOTS).find(|slot| under_way.iter().all(|(_, used)| used != slot))?;
                under_way.push((call, slot));
            }
            snapshots.push(under_way.clone());
            let place = under_way.iter().position(|(other, _)| *other == position)?;
            answered.push(under_way.swap_remove(place));
        }
        Some(Self { history, answered, under_way: snapshots, unknown })
    }

    fn run(&self, configurations: &mut u64) -> Verdict {
        let store = Store::new(0);
        let mut at = At { answer: 0, placed: 0, unknown: 0, store };
        let mut choices: Vec<(At, Vec<Next>)> = Vec::new();
        let mut visited: HashSet<(usize, u128, u128, Values)> = HashSet::new();
        let mut furthest = (0, Vec::new());
        loop {
            self.settle(&mut at);
            if at.answer == self.answered.len() {
                return Verdict::Linearizable;
            }
            if at.answer >= furthest.0 {
                furthest = (at.answer, at.store.values());
            }
            let next = self.next(&at);
            let is_new = next.len() < 2
                || visited.insert((at.answer, at.placed, at.unknown, at.store.values()));
            if is_new && !next.is_empty() {
                choices.push((at, next));
            }
            // The last choice that has something left.
            at = loop {
                *configurations += 1;
                if *configurations > CONFIGURATIONS_MAX {
                    return Verdict::Undecided { configurations: *configurations };
                }
                let Some((from, rest)) = choices.last_mut() else {
                    return Verdict::Violation(self.violation(furthest));
                };
                let Some(next) = rest.pop() else {
                    choices.pop();
                    continue;
                };
                let from = if rest.is_empty() {
                    choices.pop().map(|(from, _)| from)
                } else {
                    Some(from.clone())
                };
                if let Some(after) = from.and_then(|from| self.place(from, next)) {
                    break after;
                }
            };
        }
    }

    /// Passes answers that are explained, and gives a place to whatever fits here and changes nothing: no order that
    /// puts it later explains more.
    fn settle(&self, at: &mut At) {
        while at.answer < self.answered.len() {
            let (_, slot) = self.answered[at.answer];
            if at.placed & (1 << slot) != 0 {
                at.placed &= !(1 << slot);
                at.answer += 1;
                continue;
            }
            let before = at.placed;
            for (position, slot) in &self.under_way[at.answer] {
                let operation = &self.history.operations[*position];
                let Some(answer) = &operation.answer else {
                    continue;
                };
                if at.placed & (1 << slot) == 0
                    && !answer.response.changed()
                    && same(&at.store.answer(&operation.request), &answer.response)
                {
                    at.placed |= 1 << slot;
                }
            }
            if at.placed == before {
                return;
            }
        }
    }

    /// What may come next, the likeliest last.
    fn next(&self, at: &At) -> Vec<Next> {
        let (answering, slot) = self.answered[at.answer];
        let returned = self.history.operations[answering].returned();
        let mut next: Vec<Next> = Vec::new();
        for (number, position) in self.unknown.iter().enumerate().rev() {
            let operation = &self.history.operations[*position];
            if at.unknown & (1 << number) == 0 && operation.called <= returned {
                next.push(Next::Unknown(number));
            }
        }
        let free =
            self.under_way[at.answer].iter().filter(|(_, slot)| at.placed & (1 << slot) == 0);
        let mut free: Vec<(usize, u32)> =
            free.copied().filter(|(position, _)| *position != answering).collect();
        free.sort_by_key(|(position, _)| {
            std::cmp::Reverse(self.history.operations[*position].returned())
        });
        next.extend(free.into_iter().map(|(position, slot)| Next::Known(position, slot)));
        next.push(Next::Known(answering, slot));
        next
    }

    fn place(&self, mut at: At, next: Next) -> Option<At> {
        match next {
            Next::Known(position, slot) => {
                let operation = &self.history.operations[position];
                let response = at.store.apply(&operation.request);
                let answer = operation.answer.as_ref()?;
                if !same(&response, &answer.response) {
                    return None;
                }
                at.placed |= 1 << slot;
            }
            Next::Unknown(number) => {
                let operation = &self.history.operations[self.unknown[number]];
                // Without an effect it may as well not have happened.
                if !at.store.apply(&operation.request).changed() {
                    return None;
                }
                at.unknown |= 1 << number;
            }
        }
        Some(at)
    }

    fn violation(&self, (answer, values): (usize, Values)) -> Violation {
        let (answering, _) = self.answered[answer];
        let others = self.under_way[answer].iter().map(|(position, _)| *position);
        let mut operations = vec![answering];
        operations.extend(others.filter(|position| *position != answering));
        let values: Vec<String> =
            values.iter().map(|(key, value)| format!("{} = {}", key.0, value.0)).collect();
        Violation {
            time: self.history.operations[answering].returned(),
            operations,
            reason: format!(
                "no order explains the first of these answers; the search came as far as [{}] with what follows \
                 it under way",
                values.join(", ")
            ),
        }
    }
}
