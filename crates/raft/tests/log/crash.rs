//! Crash at every operation of a scripted run, by process crash and by power loss; then the promises.

use raft::log::{DataState, LatchError, Log};
use raft_core::{EntryId, Fetch, Index, NodeId, Persist, SnapshotMeta, Term};
use raft_sim::{Crash, SimDisk};

use crate::support::{
    Model, Script, dir, expect_formed, formed, identity, open, options, store_snapshot,
};

/// What a run was doing when it stopped: the model before and after the step.
struct Stopped {
    formed: bool,
    before: Model,
    after: Model,
    epoch: u64,
}

type Step = fn(&mut Script, &mut Log<SimDisk>, &SimDisk) -> Result<(), LatchError>;

fn write(log: &mut Log<SimDisk>, batch: Vec<Persist>) -> Result<(), LatchError> {
    let count = batch.len();
    let tickets = log.write(batch)?;
    assert_eq!(tickets.len(), count);
    Ok(())
}

/// Every kind of write, with rolls, a truncation that reaches back over segments, compaction, a snapshot
/// install over a conflicting log, seals between some of them.
const STEPS: &[Step] = &[
    |s, log, _| {
        let persist = s.hard_state(1, Some(2));
        let persist = s.append(persist, &[0, 10]);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.empty();
        let first = s.append(persist, &[700]);
        let persist = s.empty();
        let second = s.append(persist, &[3, 1200]);
        write(log, vec![first, second])
    },
    |_, log, _| log.seal_if_idle(),
    |s, log, _| {
        let persist = s.empty();
        let persist = s.truncate(persist, 4);
        let persist = s.append(persist, &[40]);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.empty();
        let persist = s.append(persist, &[3000, 3000, 3000]);
        write(log, vec![persist])
    },
    |_, log, _| log.seal_if_idle(),
    |s, log, _| {
        let persist = s.empty();
        let persist = s.append(persist, &[5000]);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.hard_state(3, None);
        let persist = s.truncate(persist, 5);
        let persist = s.append(persist, &[20, 4000, 4000]);
        write(log, vec![persist])
    },
    |s, _, disk| store_snapshot(disk.clone(), &s.meta_at(6)),
    |s, log, _| {
        let persist = s.empty();
        let persist = s.compact(persist, 5);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.empty();
        let persist = s.append(persist, &[9000]);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.hard_state(4, Some(9));
        write(log, vec![persist])
    },
    |s, _, disk| store_snapshot(disk.clone(), &installed(s)),
    |s, log, _| {
        let meta = installed(s);
        let persist = s.empty();
        let persist = s.reset(persist, &meta);
        write(log, vec![persist])
    },
    |s, log, _| {
        let persist = s.empty();
        let persist = s.append(persist, &[100, 100]);
        write(log, vec![persist])
    },
    |_, log, _| log.seal_if_idle(),
];

/// A leader's snapshot that ends within this node's log, at another term.
fn installed(s: &Script) -> SnapshotMeta {
    let mut meta = s.meta_at(6);
    meta.last_included = EntryId::new(7, 4);
    meta.digest.0 ^= 1;
    meta
}

/// Runs the script until the fuse blows.
fn run(disk: &SimDisk, steps: &[Step]) -> Option<Stopped> {
    let mut script = Script::new(3);
    let nothing = script.model.clone();
    let stopped = |formed, before: &Model, after: &Model, epoch| {
        Some(Stopped { formed, before: before.clone(), after: after.clone(), epoch })
    };
    let Ok(opened) = open(disk.clone(), &dir()) else {
        return stopped(false, &nothing, &nothing, 0);
    };
    let mut log = opened.log;
    if log.form(&script.formed).is_err() {
        return stopped(false, &nothing, &nothing, log.epoch());
    }
    for step in steps {
        let before = script.model.clone();
        if step(&mut script, &mut log, disk).is_err() {
            return stopped(true, &before, &script.model, log.epoch());
        }
    }
    let epoch = log.epoch();
    if log.close().is_err() {
        return stopped(true, &script.model, &script.model, epoch);
    }
    None
}

fn check(disk: &SimDisk, stopped: &Stopped, context: &str) -> Option<Model> {
    let opened = open(disk.clone(), &dir()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let state = match opened.state {
        DataState::Formed(state) => state,
        DataState::Damaged(state) => panic!("{context}: {:?} are damaged", state.missing),
        DataState::Empty { .. } => {
            assert!(!stopped.formed, "{context}: the cluster is forgotten");
            return None;
        }
    };
    let found = Model::of(&state);
    let (before, after) = (&stopped.before, &stopped.after);
    let promises = [before.hard_state, after.hard_state];
    assert!(promises.contains(&found.hard_state), "{context}: {:?}", found.hard_state);
    let log = |model: &Model| (model.log_start, model.log_start_digest, model.entries.clone());
    assert!(
        log(&found) == log(before) || log(&found) == log(after),
        "{context}: found {:?}..{:?}, before {:?}, after {:?}",
        found.log_start,
        found.last().0,
        before.last().0,
        after.last().0,
    );
    // The term is never behind the log (B6).
    assert!(found.last().0.term <= found.hard_state.current_term, "{context}");
    assert!(
        state.epoch > stopped.epoch,
        "{context}: epoch {} after {}",
        state.epoch,
        stopped.epoch
    );
    assert!(state.recovered.snapshot.last_included.index >= found.log_start.index, "{context}");
    for entry in &found.entries {
        let fetch = fetch(entry.id.index.0, entry.id.index.0);
        assert_eq!(opened.log.read(&fetch).as_deref(), Some(&[entry.clone()][..]), "{context}");
    }
    Some(found)
}

fn fetch(from: u64, to: u64) -> Fetch {
    Fetch {
        to: NodeId::new(1, 1),
        from_index: Index(from),
        to_index: Index(to),
        bytes_max: usize::MAX,
        term: Term(1),
    }
}

#[test]
fn the_script_runs_and_is_recovered() {
    let disk = SimDisk::new();
    assert!(run(&disk, STEPS).is_none());
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert!(!state.unclean);
    assert_eq!(state.recovered.log_start, EntryId::new(7, 4));
    assert_eq!(state.recovered.entries.len(), 2);
}

/// B2, B5, B17, B18, B22, B42; decisions 6 to 9; mutations 2, 3, 5, 21, 22, 26, 27.
#[test]
fn crash_at_every_operation() {
    let whole = SimDisk::new();
    assert!(run(&whole, STEPS).is_none());
    let operations = whole.operations();
    assert!(operations > 100, "{operations}");
    for fuse in 0..operations {
        let crashed = SimDisk::new();
        crashed.set_fuse(Some(fuse));
        let stopped = run(&crashed, STEPS).unwrap();
        assert!(crashed.is_blown());
        for kind in 0..5u64 {
            let disk = crashed.fork();
            let context = format!("operation {fuse}, crash {kind}");
            let first = match kind {
                0 => Crash::Process,
                seed => Crash::Power(seed * 1000 + fuse),
            };
            disk.crash(first);
            let found = check(&disk, &stopped, &context);
            // What recovery returned may be relied upon: it survives a power loss right afterwards (decision 6).
            let Some(found) = found else { continue };
            disk.crash(Crash::Power(fuse));
            let again = Stopped { formed: true, before: found.clone(), after: found, epoch: 0 };
            check(&disk, &again, &format!("{context}, power lost again"));
        }
    }
}

/// Recovery itself may be interrupted anywhere.
#[test]
fn crash_at_every_operation_of_recovery() {
    let disk = SimDisk::new();
    disk.set_fuse(Some(60));
    let stopped = run(&disk, STEPS).unwrap();
    for seed in 0..6 {
        let crashed = disk.fork();
        crashed.crash(if seed == 0 { Crash::Process } else { Crash::Power(seed) });
        for fuse in 0..40 {
            let again = crashed.fork();
            again.set_fuse(Some(fuse));
            let finished = open(again.clone(), &dir()).is_ok();
            again.crash(Crash::Power(seed + fuse));
            check(&again, &stopped, &format!("seed {seed}, recovery stopped at {fuse}"));
            if finished {
                break;
            }
        }
    }
}

/// Mutation 26, decision 11: the first failed sync is the last thing that the log does. What was not
/// acknowledged may be lost; what was, is there.
#[test]
fn the_first_failed_sync_latches() {
    for skip in 0..6 {
        let disk = SimDisk::new();
        let mut script = Script::new(3);
        let mut log = open(disk.clone(), &dir()).unwrap().log;
        log.form(&script.formed).unwrap();
        disk.fail_sync(".log", skip);
        let mut acknowledged = script.model.clone();
        let mut failed = false;
        for n in 1..12 {
            let persist = script.hard_state(n, None);
            let persist = script.append(persist, &[300]);
            match log.write(vec![persist]) {
                Ok(tickets) => {
                    assert!(!failed, "a write succeeded after a failed sync");
                    assert_eq!(tickets.len(), 1);
                    acknowledged = script.model.clone();
                }
                Err(error) => {
                    failed = true;
                    assert!(error.path.to_string_lossy().ends_with(".log"), "{error}");
                }
            }
        }
        assert!(failed && log.status().latched);
        assert!(log.seal_if_idle().is_err() && log.close().is_err());
        disk.crash(Crash::Power(skip));
        let (_, state) = expect_formed(open(disk, &dir()).unwrap());
        let found = Model::of(&state).entries;
        assert!(found.starts_with(&acknowledged.entries), "an acknowledged entry is gone");
    }
}

/// A failed sync leaves pages in the cache that are called clean. A process crash shows them to recovery,
/// a power loss then must not take back what recovery returned.
#[test]
fn recovery_does_not_trust_the_page_cache() {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    log.write(vec![persist]).unwrap();
    disk.fail_sync(".log", 0);
    let persist = script.empty();
    let persist = script.append(persist, &[10, 2000]);
    log.write(vec![persist]).unwrap_err();
    disk.crash(Crash::Process);
    let (_, state) = expect_formed(open(disk.clone(), &dir()).unwrap());
    let found = Model::of(&state);
    assert_eq!(found.entries.len(), 2, "the cache still shows them");
    disk.crash(Crash::Power(1));
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), found);
}

/// Decision 11: no space for a next segment is no failure; what waits becomes durable once there is space.
#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let used: usize = disk.files().iter().map(|(_, bytes)| bytes.len()).sum();
    disk.set_capacity(Some(u64::try_from(used).unwrap() + 1000));
    let persist = script.hard_state(1, None);
    log.write(vec![persist]).unwrap();
    let mut durable = 0;
    for _ in 0..8 {
        let persist = script.empty();
        let persist = script.append(persist, &[3000]);
        durable += log.write(vec![persist]).unwrap().len();
        log.seal_if_idle().unwrap();
    }
    let status = log.status();
    assert!(status.full && !status.latched, "{status:?}");
    assert!(status.stalled > 0 && status.stalled + durable == 8, "{status:?}");
    // Promises go on: the slots need no space. They do not overtake the entries that wait before them.
    disk.set_capacity(None);
    log.seal_if_idle().unwrap();
    assert!(!log.status().full);
    assert_eq!(log.write(Vec::new()).unwrap().len(), 8 - durable);
    disk.crash(Crash::Power(3));
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);
}

/// A write larger than a segment gets one of its own size.
#[test]
fn a_large_write_gets_a_large_segment() {
    let disk = SimDisk::new();
    let mut script = Script::new(1);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    let persist = script.append(persist, &[100_000, 5]);
    log.write(vec![persist]).unwrap();
    let read = log.read(&fetch(1, 2)).unwrap();
    assert_eq!(read, script.model.entries);
    disk.crash(Crash::Power(1));
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(Model::of(&state), script.model);
}

/// Segments are recycled, and the old records in them never come back.
#[test]
fn recycled_segments_hold_no_ghosts() {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    log.write(vec![persist]).unwrap();
    for round in 0..30 {
        for _ in 0..4 {
            let persist = script.empty();
            let persist = script.append(persist, &[1700, 20]);
            log.write(vec![persist]).unwrap();
        }
        log.seal_if_idle().unwrap();
        let last = script.model.last().0.index.0;
        store_snapshot(disk.clone(), &script.meta_at(last - 1)).unwrap();
        let persist = script.empty();
        let persist = script.compact(persist, last - 1);
        log.write(vec![persist]).unwrap();
        for _ in 0..3 {
            log.housekeep().unwrap();
        }
        assert!(log.status().segments <= 3, "round {round}: {:?}", log.status());
        let copy = disk.fork();
        copy.crash(Crash::Power(round));
        let (_, state) = expect_formed(open(copy, &dir()).unwrap());
        assert_eq!(Model::of(&state), script.model, "round {round}");
        assert!(state.report.torn_epoch.is_none());
    }
    let names: Vec<_> = disk.files().into_iter().map(|(path, _)| path).collect();
    assert!(names.iter().any(|path| path.to_string_lossy().contains("spare-")), "{names:?}");
}

/// A crash right after a roll, with nothing left that the log needs: the segment with the roll record stays until the
/// next one holds a batch. Else the slots, which count that record as synced, would say that the log lost its end.
#[test]
fn the_segment_with_the_roll_record_stays_until_another_batch_follows() {
    let base = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(base.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    let persist = script.append(persist, &[3000, 3000]);
    log.write(vec![persist]).unwrap();
    let last = script.model.last().0.index.0;
    store_snapshot(base.clone(), &script.meta_at(last)).unwrap();
    let persist = script.empty();
    let persist = script.compact(persist, last);
    log.write(vec![persist]).unwrap();
    drop(log);
    base.crash(Crash::Process);
    let mut rolled = 0;
    for operations in 0..40 {
        let disk = base.fork();
        disk.set_fuse(None);
        let (mut log, _) = expect_formed(open(disk.clone(), &dir()).unwrap());
        let before = log.status().segments;
        disk.set_fuse(Some(operations));
        let mut later = script.clone();
        let persist = later.empty();
        let persist = later.append(persist, &[9000]);
        let written = log.write(vec![persist]).is_ok();
        drop(log);
        disk.crash(Crash::Process);
        let (mut log, state) = expect_formed(open(disk.clone(), &dir()).unwrap());
        let model = if state.recovered.entries.is_empty() { &script } else { &later };
        assert!(!written || model.model == later.model);
        rolled += usize::from(log.status().segments > before);
        for _ in 0..3 {
            log.housekeep().unwrap();
            log.seal_if_idle().unwrap();
            let copy = disk.fork();
            copy.crash(Crash::Power(operations));
            let (_, state) = expect_formed(open(copy, &dir()).unwrap());
            assert_eq!(Model::of(&state).entries, model.model.entries, "{operations}");
        }
        log.close().unwrap();
        let (_, state) = expect_formed(open(disk, &dir()).unwrap());
        assert_eq!(Model::of(&state).entries, model.model.entries, "{operations}");
    }
    assert!(rolled > 0);
}

/// Neither the next segment nor the old ones cost a write anything: housekeeping between the batches does it.
#[test]
fn segments_are_made_and_recycled_off_the_write_path() {
    let disk = SimDisk::new();
    let names = |what: &str| {
        let named = |(path, _): &(std::path::PathBuf, _)| path.to_string_lossy().contains(what);
        disk.files().iter().filter(|file| named(file)).count()
    };
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    log.write(vec![persist]).unwrap();
    log.housekeep().unwrap();
    for round in 0..24 {
        let before = names("");
        let persist = script.empty();
        let persist = script.append(persist, &[3000]);
        log.write(vec![persist]).unwrap();
        assert_eq!(names(""), before, "a write made a file in round {round}");
        log.housekeep().unwrap();
        assert_eq!(names("spare-"), 1, "round {round}");
    }
    let used = log.status().segments;
    assert!(used > 4);
    let last = script.model.last().0.index.0;
    store_snapshot(disk.clone(), &script.meta_at(last - 1)).unwrap();
    let persist = script.empty();
    let persist = script.compact(persist, last - 1);
    assert_eq!(log.write(vec![persist]).unwrap().len(), 1);
    assert_eq!(log.status().segments, used, "the ticket waited for old segments");
    for left in (1..used).rev() {
        log.housekeep().unwrap();
        assert_eq!(log.status().segments, left);
        let copy = disk.fork();
        copy.crash(Crash::Power(left.try_into().unwrap()));
        let (_, state) = expect_formed(open(copy, &dir()).unwrap());
        assert_eq!(Model::of(&state), script.model);
    }
    assert_eq!(names("spare-"), used);
}

#[test]
fn reads_are_bounded_and_checked() {
    let disk = SimDisk::new();
    let mut script = Script::new(3);
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    log.form(&script.formed).unwrap();
    let persist = script.hard_state(1, None);
    let persist = script.append(persist, &[100; 10]);
    log.write(vec![persist]).unwrap();
    assert_eq!(log.read(&fetch(3, 5)).unwrap(), script.model.entries[2..5]);
    assert_eq!(log.read(&fetch(9, 50)).unwrap(), script.model.entries[8..]);
    let small = Fetch { bytes_max: 250, ..fetch(1, 10) };
    assert_eq!(log.read(&small).unwrap().len(), 2);
    let tiny = Fetch { bytes_max: 0, ..fetch(1, 10) };
    assert_eq!(log.read(&tiny).unwrap().len(), 1);
    assert_eq!(log.read(&fetch(11, 12)), None);
    assert_eq!(log.read(&fetch(0, 12)), None);
    // Also over many batches and segments, where neighbours are read together.
    for _ in 0..40 {
        let persist = script.empty();
        let persist = script.append(persist, &[700, 900]);
        log.write(vec![persist]).unwrap();
    }
    assert!(log.status().segments > 3);
    assert_eq!(log.read(&fetch(1, 90)).unwrap(), script.model.entries);
    assert_eq!(log.read(&fetch(8, 71)).unwrap(), script.model.entries[7..71]);
    let path = dir().join("0000000001.log");
    assert!(disk.flip(&path, 4096 + 300, 1));
    assert_eq!(log.read(&fetch(1, 10)), None);
    assert_eq!(log.read(&fetch(8, 10)).unwrap(), script.model.entries[7..10]);
    assert_eq!(log.status().damage.map(|damage| damage.0), Some(path));
}

#[test]
fn a_second_process_is_refused() {
    let disk = SimDisk::new();
    let opened = open(disk.clone(), &dir()).unwrap();
    assert!(matches!(open(disk.clone(), &dir()), Err(raft::error::DataError::Locked { .. })));
    drop(opened);
    open(disk, &dir()).unwrap();
}

/// The identity is minted once; the formation protocol's state is durable on return.
#[test]
fn before_formation() {
    let disk = SimDisk::new();
    let mut log = open(disk.clone(), &dir()).unwrap().log;
    for n in 0..5u8 {
        log.set_formation_state(&[n; 1000]).unwrap();
        disk.crash(if n % 2 == 0 { Crash::Process } else { Crash::Power(u64::from(n)) });
        let other = raft::log::Identity { member: raft_core::MemberId(1), ..identity() };
        let opened = Log::open(disk.clone(), &dir(), options(), other).unwrap();
        assert_eq!(opened.log.identity(), identity());
        assert_eq!(opened.log.formation_state(), vec![n; 1000]);
        log = opened.log;
    }
    log.form(&formed(3)).unwrap();
    log.note_peer_epoch(NodeId::new(1, 1), 5);
    log.note_peer_epoch(NodeId::new(1, 1), 4);
    log.close().unwrap();
    let (_, state) = expect_formed(open(disk, &dir()).unwrap());
    assert_eq!(state.peer_epochs.get(&NodeId::new(1, 1)), Some(&5));
    assert!(!state.unclean);
}
