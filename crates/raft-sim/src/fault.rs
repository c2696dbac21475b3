//! The faults, drawn every few milliseconds of virtual time.

use std::collections::BTreeSet;
use std::path::PathBuf;

use raft::io::Stream;

use crate::disk::Crash;
use crate::profile::pick;
use crate::story::{Kind, OCCASION, Span};
use crate::workload::Workload;
use crate::world::{Happening, World, stops};

/// A failed sync has ended its process by then, or never will.
const FAILURE_ENDS: u64 = 3_000_000;
/// Parts of the names of files of which a sync may fail.
const FILES: [&str; 8] =
    ["promises", "promises", ".log", ".log", "spare-", "formation", "snapshot/", ".new"];
/// Ends of the names of files that rot, and where others are that do.
const ROTTING: [&str; 4] = [".log", "promises", "identity", "cluster"];
const SNAPSHOTS: &str = "/snapshot/";
/// Ends of the names of files of which writes are lost or go elsewhere.
const MISPLACED: [&str; 2] = [".log", "promises"];

impl<W: Workload> World<W> {
    pub(crate) fn chaos(&mut self) {
        if self.healed {
            return;
        }
        self.later(OCCASION, Happening::Chaos);
        if self.strikes(Kind::Blackout, self.profile.blackout) {
            self.tell(Kind::Blackout, "all machines lose power".to_owned());
            for machine in 0..self.machines.len() {
                let crash = Crash::Power(self.faults.next_u64());
                let down = self.faults.below(500_000);
                self.stop(machine, crash, down);
            }
        }
        if self.strikes(Kind::Crash, self.profile.crash) {
            self.stop_somehow(Kind::Crash, Crash::Process);
        }
        if self.strikes(Kind::Power, self.profile.power) {
            let crash = Crash::Power(self.faults.next_u64());
            self.stop_somehow(Kind::Power, crash);
        }
        if self.strikes(Kind::Partition, self.profile.partition) {
            self.partition(Kind::Partition);
        }
        if self.strikes(Kind::Pause, self.profile.pause) {
            let machine = self.victim();
            if !self.machines[machine].paused {
                self.pause(machine);
                let delay = self.faults.below(800_000);
                self.later(delay, Happening::Resume(machine));
                self.tell(Kind::Pause, format!("n{} is paused for {}", machine + 1, Span(delay)));
            }
        }
        self.disk_faults();
        // The same number as the rot of one disk: where that is left out, this is.
        if self.strikes(Kind::Rot, self.profile.rot_entries) {
            self.rot_entries();
        }
        self.clock_faults();
        self.operate();
        self.break_connections();
    }

    fn disk_faults(&mut self) {
        // Those that came to nothing are forgotten.
        let now = self.now;
        let Self { failing, machines, .. } = self;
        failing.retain(|machine, since| {
            if machines[*machine].disk.will_fail() {
                *since = now;
            }
            now - *since < FAILURE_ENDS
        });
        // Never more than one at a time: a disk that fails forgets what it was given.
        if self.strikes(Kind::SyncFailure, self.profile.sync_failure) && self.failing.is_empty() {
            let machine = self.victim();
            if self.machines[machine].process.is_some() {
                let file = FILES[pick(&mut self.faults, FILES.len())];
                let skip = self.faults.below(5);
                self.machines[machine].disk.fail_sync(file, skip);
                self.failing.insert(machine, now);
                let what =
                    format!("n{}: a sync of *{file}* fails after {skip} others", machine + 1);
                self.tell(Kind::SyncFailure, what);
                self.power_follows(machine);
            }
        }
        if self.strikes(Kind::JournalFailure, self.profile.journal_failure)
            && self.failing.is_empty()
        {
            let machine = self.victim();
            let skip = self.faults.below(5);
            self.machines[machine].disk.fail_journal(skip);
            self.failing.insert(machine, now);
            let what = format!("n{}: a sync of a directory fails after {skip} others", machine + 1);
            self.tell(Kind::JournalFailure, what);
        }
        if self.strikes(Kind::Full, self.profile.full) {
            let machine = self.victim();
            if !self.is_full(machine) {
                let room = self.faults.below(40_000);
                let disk = &self.machines[machine].disk;
                disk.set_capacity(Some(disk.used_bytes() + room));
                let delay = self.faults.below(2_000_000);
                self.later(delay, Happening::Space(machine));
                let span = Span(delay);
                let what =
                    format!("n{}: {room} bytes of its disk are left for {span}", machine + 1);
                self.tell(Kind::Full, what);
            }
        }
        if self.strikes(Kind::Wipe, self.profile.wipe) {
            let machine = self.victim();
            if self.may_doom(machine) {
                self.tell(Kind::Wipe, format!("n{} loses its disk", machine + 1));
                self.wipe(machine);
            }
        }
        if self.strikes(Kind::Rot, self.profile.rot) {
            let machine = self.victim();
            if self.may_damage(machine) {
                self.rot(machine);
            }
        }
        if self.strikes(Kind::Misplaced, self.profile.misplaced) {
            let machine = self.victim();
            if self.may_damage(machine) {
                self.misplace(machine);
            }
        }
    }

    /// A write that the disk acknowledged is not where it belongs.
    fn misplace(&mut self, machine: usize) {
        let elsewhere = self.faults.chance(1, 2);
        let disk = self.machines[machine].disk.clone();
        let Some(what) = disk.lose_write(&mut self.faults, &MISPLACED, elsewhere) else { return };
        self.doom(machine);
        self.marks.hit(if elsewhere { "a write goes elsewhere" } else { "a write is lost" });
        self.tell(Kind::Misplaced, format!("n{}: {what}", machine + 1));
        self.power_follows(machine);
    }

    /// Bits rot in files of which recovery reads every byte: found at the next start at the latest.
    fn rot(&mut self, machine: usize) {
        let files: Vec<(PathBuf, u64)> = self.machines[machine]
            .disk
            .lengths()
            .into_iter()
            .filter(|(path, len)| {
                let name = path.to_string_lossy();
                let read = ROTTING.iter().any(|rotting| name.ends_with(rotting));
                *len > 0 && (read || name.contains(SNAPSHOTS))
            })
            .collect();
        if files.is_empty() {
            return;
        }
        self.doom(machine);
        let (path, len) = &files[pick(&mut self.faults, files.len())];
        let snapshot = path.to_string_lossy().contains(SNAPSHOTS);
        self.marks.hit(if snapshot { "a snapshot rots" } else { "bits rot" });
        // Most of a segment is free space: the beginning and the end are of interest, and where something stands.
        let near = (*len).min(16 << 10);
        let offset = match self.faults.below(3) {
            0 => self.faults.below(near),
            1 => *len - 1 - self.faults.below(near),
            _ => {
                let written = self.machines[machine].disk.written(path);
                self.faults.below(written.max(1))
            }
        };
        let mask = 1 << pick(&mut self.faults, 8);
        self.machines[machine].disk.flip(path, offset, mask);
        let path = path.display();
        self.tell(Kind::Rot, format!("n{}: a bit of {path} rots at {offset}", machine + 1));
        self.power_follows(machine);
    }

    /// What a disk has lost shows when its machine starts again.
    fn power_follows(&mut self, machine: usize) {
        if self.profile.power_follows {
            let delay = self.faults.below(500_000);
            self.later(delay, Happening::PowerLoss(machine));
        }
    }

    fn clock_faults(&mut self) {
        if !self.strikes(Kind::Clock, self.profile.clock) {
            return;
        }
        let (machine, now) = (self.victim(), self.now);
        let jump = i64::try_from(self.faults.below(1_000_000)).unwrap_or(0);
        let kind = self.faults.below(3);
        let clock = &mut self.machines[machine].clock;
        let rate = clock.rate();
        let what = match kind {
            0 if rate > 0 => {
                self.marks.hit("clock stops");
                self.machines[machine].clock.set_rate(now, 0);
                let stands = self.faults.below(1_000_000);
                self.later(stands, Happening::ClockRuns(machine, rate));
                format!("stands still for {}", Span(stands))
            }
            1 => {
                clock.jump(now, jump);
                self.marks.hit("clock jumps ahead");
                format!("jumps ahead by {}", Span(jump.unsigned_abs()))
            }
            _ => {
                clock.jump(now, -jump);
                self.marks.hit("clock jumps back");
                format!("jumps back by {}", Span(jump.unsigned_abs()))
            }
        };
        self.tell(Kind::Clock, format!("n{}: its clock {what}", machine + 1));
    }

    /// Connections break, each by a chance of its own.
    fn break_connections(&mut self) {
        let chance = self.profile.reset;
        if chance == 0 || !self.is_allowed(Kind::Reset) {
            return;
        }
        self.draw_for(Kind::Reset);
        let count = self.machines.len();
        let mut broken = Vec::new();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            for stream in [Stream::Control, Stream::Bulk] {
                if self.faults.chance(chance, 1000)
                    && let Some(id) = self.wires.find(from, to, stream)
                {
                    self.cut(id);
                    broken.push(format!("n{} to n{}", from + 1, to + 1));
                }
            }
        }
        if !broken.is_empty() {
            self.tell(Kind::Reset, format!("connections break: {}", broken.join(", ")));
        }
    }

    /// Somebody restarts a process that was cut off.
    pub(crate) fn restart(&mut self, machine: usize) {
        self.follow_up(machine, 50_000, Self::draw_crash);
    }

    pub(crate) fn lose_power(&mut self, machine: usize) {
        self.follow_up(machine, 300_000, |world| Crash::Power(world.faults.next_u64()));
    }

    fn follow_up(&mut self, machine: usize, down: u64, crash: impl Fn(&mut Self) -> Crash) {
        let kind = Kind::FollowUp(machine);
        if self.healed || self.machines[machine].process.is_none() || !self.is_allowed(kind) {
            return;
        }
        self.draw_for(kind);
        let (crash, down) = (crash(self), self.faults.below(down));
        let what = format!("n{} {} for {}, too", machine + 1, stops(crash), Span(down));
        self.tell(kind, what);
        self.stop(machine, crash, down);
    }

    fn stop(&mut self, machine: usize, crash: Crash, down: u64) {
        if self.machines[machine].process.is_some() {
            self.crash(machine, crash, down);
        }
    }

    /// At once, or in the middle of one of the next operations of its disk.
    fn stop_somehow(&mut self, kind: Kind, crash: Crash) {
        let machine = self.victim();
        let name = format!("n{} {}", machine + 1, stops(crash));
        if self.faults.chance(1, 2) {
            let down = self.faults.below(800_000);
            if self.machines[machine].process.is_some() {
                self.tell(kind, format!("{name} for {}", Span(down)));
                self.stop(machine, crash, down);
            }
        } else if !self.fuses.contains_key(&machine) {
            let operations = self.faults.below(40);
            self.machines[machine].disk.set_fuse(Some(operations));
            self.fuses.insert(machine, crash);
            self.tell(kind, format!("{name} after {operations} operations of its disk"));
        }
    }

    /// Whom a fault befalls.
    fn victim(&mut self) -> usize {
        let any = self.any_machine();
        let hunted = self.profile.hunt || self.faults.chance(1, 4);
        self.leader().filter(|_| hunted).unwrap_or(any)
    }

    /// The links carry everything again; where leaders are hunted, all but those of the present one.
    pub(crate) fn partition_ends(&mut self) {
        if self.healed {
            // What is cut now stays so.
            return;
        }
        self.unblock();
        if self.profile.hunt && self.strikes(Kind::PartitionAgain, 500) {
            self.partition(Kind::PartitionAgain);
        }
    }

    /// Every link carries something again.
    pub(crate) fn unblock(&mut self) {
        self.wires.blocked.clear();
        if let Some(tape) = &mut self.tape {
            tape.links(self.now, &self.wires.blocked);
        }
    }

    fn partition(&mut self, shape: Kind) {
        self.wires.blocked.clear();
        let one = self.victim();
        let count = self.machines.len();
        let kind = self.faults.below(if self.profile.hunt { 4 } else { 6 });
        let side: BTreeSet<usize> = (0..count).filter(|_| self.faults.chance(1, 2)).collect();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let cut = match kind {
                    // One member alone; deaf; mute.
                    0 => (from == one) != (to == one),
                    1 => to == one,
                    2 => from == one,
                    // Two sides.
                    3 => side.contains(&from) != side.contains(&to),
                    // Only through one member.
                    4 => from != one && to != one,
                    // Any link, in any direction.
                    _ => self.faults.chance(1, 3),
                };
                if cut {
                    self.wires.blocked.insert((from, to));
                }
            }
        }
        self.marks.hit("partition");
        if let Some(tape) = &mut self.tape {
            tape.links(self.now, &self.wires.blocked);
        }
        let delay = self.faults.below(1_500_000);
        let name = format!("n{}", one + 1);
        let side: Vec<String> = side.iter().map(|machine| format!("n{}", machine + 1)).collect();
        let what = match kind {
            0 => format!("{name} is cut off"),
            1 => format!("{name} is deaf"),
            2 => format!("{name} is mute"),
            3 => format!("on one side of a partition: {}", side.join(", ")),
            4 => format!("all links but those of {name} are cut"),
            _ => "a third of the links carry nothing".to_owned(),
        };
        self.tell(shape, format!("{what} for {}", Span(delay)));
        self.later(delay, Happening::Heal);
        if self.profile.cut_off_restarts {
            // It has heard by then what it missed, or is about to.
            let delay = delay + self.faults.below(300_000);
            self.later(delay, Happening::Restart(one));
        }
    }
}
