use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use raft_core::{EntryId, MemorySnapshot, Session};

use super::*;

/// Remembers every command that reached it.
#[derive(Debug, Default)]
struct Adder(Vec<u64>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Add(u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.0);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        u64::decode(bytes).map(Self)
    }
}

struct Sum(Vec<u64>);

impl Snapshot for Sum {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        sink.put(&bytes).map(drop)
    }
}

impl StateMachine for Adder {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Sum;

    fn apply(&mut self, _: ApplyContext, Add(number): Add) -> u64 {
        self.0.push(number);
        self.0.iter().sum()
    }

    fn query(&self, (): ()) -> u64 {
        self.0.iter().sum()
    }

    fn snapshot(&self) -> Sum {
        Sum(self.0.clone())
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let bytes = source.read(0)?;
        let numbers = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok());
        self.0 = numbers.map(u64::from_le_bytes).collect();
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(self.0.iter().fold(0, |digest: u128, number| {
            digest.wrapping_mul(31).wrapping_add(u128::from(*number))
        }))
    }
}

/// The state machine under a log of its own.
struct Log {
    machine: Sessions<Adder>,
    last: u64,
}

impl Log {
    fn new() -> Self {
        Self { machine: Sessions::new(Adder::default()), last: 0 }
    }

    fn apply(
        &mut self,
        session: Option<(u64, u64)>,
        command: SessionCommand<Add>,
    ) -> SessionResponse<u64> {
        self.last += 1;
        let session = session.map(|(id, sequence)| Session { id, sequence });
        let context = ApplyContext { id: EntryId::new(self.last, 1), session };
        self.machine.apply(context, command)
    }

    fn open(&mut self, sessions_max: u32) -> u64 {
        let opened = self.apply(None, SessionCommand::Open { sessions_max });
        assert_eq!(opened, SessionResponse::Opened(self.last), "named like its entry");
        self.last
    }

    fn add(&mut self, session: u64, sequence: u64, number: u64) -> SessionResponse<u64> {
        self.apply(Some((session, sequence)), SessionCommand::Command(Add(number)))
    }
}

fn picture(machine: &Sessions<Adder>) -> MemorySnapshot {
    let mut snapshot = MemorySnapshot::default();
    machine.snapshot().write(&mut snapshot).unwrap();
    snapshot
}

use SessionResponse::{Applied, Ended, NoSession, Outdated};

#[test]
fn a_command_that_arrives_again_is_answered_and_not_applied() {
    let mut log = Log::new();
    let session = log.open(10);
    assert_eq!(log.add(session, 1, 5), Applied(5));
    assert_eq!(log.add(session, 1, 5), Applied(5));
    assert_eq!(log.add(session, 2, 7), Applied(12));
    assert_eq!(log.add(session, 1, 5), Outdated { newest: 2 });
    assert_eq!(log.machine.machine().0, [5, 7]);
}

#[test]
fn without_a_session_each_try_counts() {
    let mut log = Log::new();
    log.apply(None, SessionCommand::Command(Add(1)));
    assert_eq!(log.apply(None, SessionCommand::Command(Add(1))), Applied(2));
}

#[test]
fn a_session_that_has_ended_applies_nothing() {
    let mut log = Log::new();
    let session = log.open(10);
    assert_eq!(log.apply(None, SessionCommand::Close { session }), Ended(1));
    assert_eq!(log.apply(None, SessionCommand::Close { session }), Ended(0));
    assert_eq!(log.add(session, 1, 5), NoSession);
    assert_eq!(log.machine.machine().0, []);
}

#[test]
fn those_that_have_been_silent_longest_make_room() {
    let mut log = Log::new();
    let (first, second) = (log.open(2), log.open(2));
    log.add(first, 1, 1);
    let third = log.open(2);
    assert_eq!(log.add(second, 1, 1), NoSession);
    assert_eq!(log.add(first, 2, 1), Applied(2));
    assert_eq!(log.add(third, 1, 1), Applied(3));
    // None at all is one: the session just opened.
    let fourth = log.open(0);
    assert_eq!(log.add(third, 2, 1), NoSession);
    assert_eq!(log.add(fourth, 1, 1), Applied(4));
}

#[test]
fn sessions_silent_since_an_index_are_ended_by_command() {
    let mut log = Log::new();
    let (silent, busy) = (log.open(10), log.open(10));
    log.add(busy, 1, 1);
    let since = SessionCommand::Expire { silent_since: Index(busy + 1) };
    assert_eq!(log.apply(None, since), Ended(1));
    assert_eq!(log.add(silent, 1, 1), NoSession);
    assert_eq!(log.add(busy, 2, 1), Applied(2));
}

/// In logs and snapshots for ever: these bytes never change.
#[test]
fn version_1_is_fixed() {
    let cases: [(SessionCommand<Add>, &[u8]); 4] = [
        (SessionCommand::Command(Add(3)), &[0xa5, 1, 3, 0, 0, 0, 0, 0, 0, 0]),
        (SessionCommand::Open { sessions_max: 258 }, &[0xa5, 2, 2, 1, 0, 0]),
        (SessionCommand::Close { session: 4 }, &[0xa5, 3, 4, 0, 0, 0, 0, 0, 0, 0]),
        (SessionCommand::Expire { silent_since: Index(5) }, &[0xa5, 4, 5, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (command, bytes) in cases {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        assert_eq!(&out[..], bytes);
        assert_eq!(SessionCommand::decode(out.freeze()).unwrap(), command);
    }
    let mut log = Log::new();
    let session = log.open(9);
    log.add(session, 6, 7);
    let snapshot = picture(&log.machine);
    assert_eq!(&snapshot.read(0).unwrap()[..], &[1, 1, 0, 0, 0, 37, 0, 0, 0, 0, 0, 0, 0]);
    let table = [
        &[1, 0, 0, 0, 0, 0, 0, 0][..],
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 0, 0, 0, 0, 0, 0],
        &[1, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(&snapshot.read(1).unwrap()[..], table.concat());
}

#[test]
fn what_is_no_session_command_is_refused() {
    let good = [0xa5, 2, 1, 0, 0, 0];
    assert!(SessionCommand::<Add>::decode(Bytes::copy_from_slice(&good)).is_ok());
    let longer = [&good[..], &[0]].concat();
    for bytes in [&b""[..], &good[1..], &good[..5], &longer, &[0xa5], &[0xa5, 5], &[0xa5, 1, 3]] {
        let decoded = SessionCommand::<Add>::decode(Bytes::copy_from_slice(bytes));
        assert!(decoded.is_err(), "{bytes:?}: {decoded:?}");
    }
}

#[test]
fn a_table_larger_than_a_blob_comes_back() {
    let mut machine = Sessions::new(Large);
    for index in 1..=5 {
        let id = EntryId::new(index, 1);
        machine.apply(ApplyContext::at(id), SessionCommand::Open { sessions_max: 9 });
        let session = Some(Session { id: index, sequence: 1 });
        let context = ApplyContext { id: EntryId::new(index + 10, 1), session };
        machine.apply(context, SessionCommand::Command(Add(index)));
    }
    let mut snapshot = MemorySnapshot::default();
    machine.snapshot().write(&mut snapshot).unwrap();
    assert_eq!(snapshot.blobs().len(), 1 + 3);
    let mut restored = Sessions::new(Large);
    restored.restore(&snapshot).unwrap();
    assert_eq!(restored.digest(), machine.digest());
}

/// Sixty-four mebibytes of answers, half a mebibyte each, are a hundred and twenty-eight sessions.
#[test]
fn remembered_responses_have_a_limit() {
    let mut machine = Sessions::new(Large);
    for session in 1..=130 {
        let id = EntryId::new(session, 1);
        machine.apply(ApplyContext::at(id), SessionCommand::Open { sessions_max: 1000 });
    }
    let mut add = |index: u64, session: u64, sequence: u64| {
        let session = Some(Session { id: session, sequence });
        let context = ApplyContext { id: EntryId::new(index, 1), session };
        machine.apply(context, SessionCommand::Command(Add(index)))
    };
    for session in 1..=129 {
        assert!(matches!(add(1000 + session, session, 1), Applied(_)));
    }
    assert!(matches!(add(2001, 130, 1), NoSession), "silent since it was opened");
    assert!(matches!(add(2002, 1, 1), NoSession), "silent longest then");
    assert!(matches!(add(2003, 2, 1), Applied(_)), "within the limit again");
}

/// Has no state, and answers with half a mebibyte.
#[derive(Debug)]
struct Large;

impl StateMachine for Large {
    type Command = Add;
    type Response = Bytes;
    type Query = ();
    type Answer = ();
    type Snapshot = Nothing;

    fn apply(&mut self, _: ApplyContext, Add(number): Add) -> Bytes {
        Bytes::from(number.to_le_bytes().repeat(1 << 16))
    }

    fn query(&self, (): ()) {}

    fn snapshot(&self) -> Nothing {
        Nothing
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        assert!(source.blobs().is_empty());
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(0)
    }
}

struct Nothing;

impl Snapshot for Nothing {
    fn write(self, _: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        Ok(())
    }
}

/// What a client, or the network in its place, does next.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(usize),
    /// The session's next command.
    Next(usize),
    /// Some earlier command of it arrives again.
    Again(usize, u64),
    Expire(u64),
    /// The member goes on from a snapshot.
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::Open),
        1 => (0..8_usize).prop_map(Step::Close),
        6 => (0..8_usize).prop_map(Step::Next),
        6 => (0..8_usize, 0..4_u64).prop_map(|(session, back)| Step::Again(session, back)),
        1 => (0..40_u64).prop_map(Step::Expire),
        1 => Just(Step::Restore),
    ];
    vec(step, 1..80)
}

proptest! {
    /// However often commands arrive, none is applied twice, none after a later one of its session, and whoever is told
    /// "applied" hears the first answer.
    #[test]
    fn nothing_is_applied_twice(steps in steps()) {
        let mut log = Log::new();
        let mut sessions = Vec::new();
        let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
        let mut answers: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for step in steps {
            let pick = |number: usize| sessions.get(number % sessions.len().max(1)).copied();
            match step {
                Step::Open => sessions.push(log.open(4)),
                Step::Close(number) => {
                    if let Some(session) = pick(number) {
                        log.apply(None, SessionCommand::Close { session });
                    }
                }
                Step::Next(number) | Step::Again(number, _) => {
                    let Some(session) = pick(number) else { continue };
                    let newest = sequences.entry(session).or_default();
                    let sequence = if let Step::Again(_, back) = step {
                        newest.saturating_sub(back)
                    } else {
                        *newest += 1;
                        *newest
                    };
                    // The number names the command.
                    match log.add(session, sequence, session * 1000 + sequence) {
                        Applied(answer) => {
                            let first = *answers.entry((session, sequence)).or_insert(answer);
                            prop_assert_eq!(first, answer);
                        }
                        Outdated { newest } => prop_assert!(newest > sequence),
                        NoSession => {}
                        SessionResponse::Opened(_) | Ended(_) | SessionResponse::Forgotten => {
                            prop_assert!(false);
                        }
                    }
                }
                Step::Expire(back) => {
                    let silent_since = Index(log.last.saturating_sub(back));
                    log.apply(None, SessionCommand::Expire { silent_since });
                }
                Step::Restore => {
                    let snapshot = picture(&log.machine);
                    let mut restored = Sessions::new(Adder::default());
                    restored.restore(&snapshot).unwrap();
                    prop_assert_eq!(restored.digest(), log.machine.digest());
                    log.machine = restored;
                }
            }
        }
        let applied = &log.machine.machine().0;
        let once: BTreeSet<u64> = applied.iter().copied().collect();
        prop_assert_eq!(once.len(), applied.len());
        for pair in applied.windows(2) {
            prop_assert!(pair[0] / 1000 != pair[1] / 1000 || pair[0] < pair[1]);
        }
    }

    /// A snapshot of anything restores or is refused.
    #[test]
    fn arbitrary_blobs_never_panic(blobs in vec(vec(any::<u8>(), 0..60), 0..4), well_formed: bool) {
        let mut snapshot = MemorySnapshot::default();
        if well_formed {
            let bytes: usize = blobs.iter().map(Vec::len).sum();
            let mut head = BytesMut::new();
            head.put_u8(1);
            head.put_u32_le(u32::try_from(blobs.len()).unwrap());
            head.put_u64_le(u64::try_from(bytes).unwrap());
            snapshot.put(&head).unwrap();
        }
        for blob in &blobs {
            snapshot.put(blob).unwrap();
        }
        snapshot.put(b"").unwrap();
        let mut machine = Sessions::new(Adder::default());
        if machine.restore(&snapshot).is_ok() {
            let again = picture(&machine);
            let mut second = Sessions::new(Adder::default());
            second.restore(&again).unwrap();
            prop_assert_eq!(second.digest(), machine.digest());
        }
    }
}
