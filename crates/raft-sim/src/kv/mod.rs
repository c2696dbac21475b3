//! The first workload of the key-value store: few keys, puts, swaps, deletes and reads. Every answer is compared with a
//! [`Model`] that is fed by the committed log; in the end the whole history of the clients is checked for linearizability
//! without it.

mod model;
mod recorder;
mod translate;

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_core::{EntryId, Index, Rng};
use raft_kv::{Command, KvError, Query, Response, Store};

use crate::marks::Marks;
use crate::profile::Profile;
use crate::workload::{Ask, Call, Workload};
use model::{Answer, Model, Op};
use recorder::Recorder;

/// What clients ask of the store, and what it must answer.
#[derive(Debug)]
pub(crate) struct KeyValue {
    keys: u64,
    value_bytes: u64,
    store_segment_bytes: u64,
    next_value: u64,
    /// After everything that is applied anywhere.
    model: Model,
    /// The model's revision after each command.
    revisions: BTreeMap<Index, i64>,
    /// The command that brought each revision.
    brought: BTreeMap<i64, Index>,
    /// What each request was, until its answer is known.
    asked: BTreeMap<u64, Op>,
    /// What clients must be told of their committed commands.
    expected: BTreeMap<u64, Answer>,
    /// What clients saw.
    recorder: Recorder,
}

impl KeyValue {
    pub(crate) fn new(profile: &Profile) -> Self {
        Self {
            keys: profile.keys,
            value_bytes: profile.value_bytes,
            store_segment_bytes: profile.store_segment_bytes,
            next_value: 0,
            model: Model::default(),
            revisions: BTreeMap::new(),
            brought: BTreeMap::new(),
            asked: BTreeMap::new(),
            expected: BTreeMap::new(),
            recorder: Recorder::new(),
        }
    }

    /// A value that is unlike any other.
    fn value(&mut self, rng: &mut Rng) -> Bytes {
        self.next_value += 1;
        let len = usize::try_from(rng.below(self.value_bytes + 1)).unwrap_or(0);
        let mut text = self.next_value.to_string();
        while text.len() < len {
            text.push('.');
        }
        Bytes::from(text)
    }
}

impl Workload for KeyValue {
    type Machine = Store;

    fn machine(&self) -> Store {
        Store::with_segment_bytes(self.store_segment_bytes)
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Store> {
        let kind = rng.below(10);
        let key = rng.below(self.keys);
        let op = match kind {
            0..=3 => Op::Put { key, value: self.value(rng) },
            4 => {
                let mod_revision = self.model.mod_revision(key);
                Op::Swap { key, mod_revision, value: self.value(rng) }
            }
            5 => Op::Delete { key },
            _ => Op::Read { key },
        };
        let command = translate::command(&op);
        if command.is_none() && kind == 9 {
            return Ask::Barrier;
        }
        self.recorder.called(call, &op);
        self.asked.insert(call.number, op);
        command.map_or_else(|| Ask::Query(Query::Range(translate::range(key))), Ask::Command)
    }

    fn command(&mut self, call: &Call, rng: &mut Rng) -> Command {
        let op = Op::Put { key: 0, value: self.value(rng) };
        let command = translate::command(&op).expect("a put is a command");
        self.recorder.called(call, &op);
        self.asked.insert(call.number, op);
        command
    }

    fn applied(&mut self, call: &Call, at: EntryId, _: Command) {
        let op = self.asked.remove(&call.number).expect("what is applied was asked, once");
        let before = self.model.revision();
        let answer = self.model.apply(&op);
        if self.model.revision() > before {
            self.recorder.committed(call, self.model.revision());
        }
        self.expected.insert(call.number, answer);
        self.revisions.insert(at.index, self.model.revision());
        self.brought.entry(self.model.revision()).or_insert(at.index);
    }

    fn responded(&mut self, call: &Call, now: u64, response: Result<Response, KvError>) {
        let answer = match response {
            Ok(response) => translate::answer(&response),
            Err(error) => panic!("{call:?} fails: {error:?}"),
        };
        let expected = self.expected.remove(&call.number);
        assert!(Some(&answer) == expected.as_ref(), "{call:?}: {answer:?}, not {expected:?}");
        self.recorder.wrote(call, now, &answer);
    }

    fn refused(&mut self, call: &Call) {
        self.recorder.refused(call);
    }

    /// A linearizable read sees everything that was answered before it was asked (I13).
    fn answered(
        &mut self,
        call: &Call,
        now: u64,
        answer: Result<raft_kv::Answer, KvError>,
    ) -> Index {
        let asked = self.asked.remove(&call.number);
        let (Some(Op::Read { key }), Ok(raft_kv::Answer::Range(response))) = (&asked, &answer)
        else {
            panic!("{asked:?} answers {answer:?}");
        };
        let (revision, found) = translate::read_answer(response);
        let at_least = self.revisions.range(..=call.floor).next_back().map_or(1, |(_, r)| *r);
        assert!(
            revision >= at_least,
            "I13: a read sees revision {revision}, but {at_least} was answered before it was asked"
        );
        assert!(revision <= self.model.revision(), "a read sees revision {revision} of the future");
        let expected = self.model.at(*key, revision);
        assert!(
            found.as_ref() == expected,
            "a read of key {key} at revision {revision} sees {found:?}, not {expected:?}"
        );
        self.recorder.read(call, now, revision, found.as_ref());
        // Whoever asks next must not see less.
        self.brought.get(&revision).copied().unwrap_or_default()
    }

    fn end(&mut self, marks: &mut Marks) {
        self.recorder.check(marks);
    }
}

#[cfg(test)]
mod tests;
