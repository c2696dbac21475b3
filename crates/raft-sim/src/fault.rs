//! The faults, drawn every few milliseconds of virtual time.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::disk::Crash;
use crate::profile::pick;
use crate::workload::Workload;
use crate::world::{Happening, World};

/// How often faults are drawn.
const OCCASION: u64 = 20_000;
/// A failed sync has ended its process by then, or never will.
const FAILURE_ENDS: u64 = 3_000_000;
/// Parts of the names of files of which a sync may fail.
const FILES: [&str; 8] =
    ["promises", "promises", ".log", ".log", "spare-", "formation", "snapshot/", ".new"];
/// Ends of the names of files that rot.
const ROTTING: [&str; 4] = [".log", "promises", "identity", "cluster"];

impl<W: Workload> World<W> {
    pub(crate) fn chaos(&mut self) {
        if self.healed {
            return;
        }
        self.later(OCCASION, Happening::Chaos);
        let machine = self.victim();
        if self.faults.chance(self.profile.blackout, 1000) {
            for machine in 0..self.machines.len() {
                let crash = Crash::Power(self.disks.next_u64());
                let down = self.faults.below(500_000);
                self.stop(machine, crash, down);
            }
        }
        if self.faults.chance(self.profile.crash, 1000) {
            self.stop_somehow(machine, Crash::Process);
        }
        if self.faults.chance(self.profile.power, 1000) {
            let crash = Crash::Power(self.disks.next_u64());
            self.stop_somehow(machine, crash);
        }
        if self.faults.chance(self.profile.partition, 1000) {
            self.partition();
        }
        if self.faults.chance(self.profile.pause, 1000) && !self.machines[machine].paused {
            self.machines[machine].paused = true;
            let delay = self.faults.below(800_000);
            self.later(delay, Happening::Resume(machine));
        }
        self.disk_faults(machine);
        self.rot_entries();
        self.clock_faults(machine);
        self.operate();
        for id in self.wires.ids() {
            if self.network.chance(self.profile.reset, 1000) {
                self.cut(id);
            }
        }
    }

    fn disk_faults(&mut self, machine: usize) {
        // Those that came to nothing are forgotten.
        let now = self.now;
        let Self { failing, machines, .. } = self;
        failing.retain(|machine, since| {
            if machines[*machine].disk.will_fail() {
                *since = now;
            }
            now - *since < FAILURE_ENDS
        });
        let runs = self.machines[machine].process.is_some();
        // Never more than one at a time: a disk that fails forgets what it was given.
        if self.faults.chance(self.profile.sync_failure, 1000) && runs && self.failing.is_empty() {
            let file = FILES[pick(&mut self.disks, FILES.len())];
            self.machines[machine].disk.fail_sync(file, self.disks.below(5));
            self.failing.insert(machine, now);
            self.power_follows(machine);
        }
        if self.faults.chance(self.profile.journal_failure, 1000) && self.failing.is_empty() {
            self.machines[machine].disk.fail_journal(self.disks.below(5));
            self.failing.insert(machine, now);
        }
        if self.faults.chance(self.profile.full, 1000) && !self.is_full(machine) {
            let disk = &self.machines[machine].disk;
            disk.set_capacity(Some(disk.used_bytes() + self.disks.below(40_000)));
            let delay = self.faults.below(2_000_000);
            self.later(delay, Happening::Space(machine));
        }
        if self.faults.chance(self.profile.wipe, 1000) && self.may_doom(machine) {
            self.wipe(machine);
        }
        if self.faults.chance(self.profile.rot, 1000) && self.may_damage(machine) {
            self.rot(machine);
        }
    }

    /// Bits rot in files of which recovery reads every byte: found at the next start at the latest.
    fn rot(&mut self, machine: usize) {
        let files: Vec<(PathBuf, u64)> = self.machines[machine]
            .disk
            .lengths()
            .into_iter()
            .filter(|(path, len)| {
                let name = path.to_string_lossy();
                *len > 0 && ROTTING.iter().any(|rotting| name.ends_with(rotting))
            })
            .collect();
        if files.is_empty() {
            return;
        }
        self.doom(machine);
        self.marks.hit("bits rot");
        let (path, len) = &files[pick(&mut self.disks, files.len())];
        // Most of a segment is free space: the beginning and the end are of interest, and where something stands.
        let near = (*len).min(16 << 10);
        let offset = match self.disks.below(3) {
            0 => self.disks.below(near),
            1 => *len - 1 - self.disks.below(near),
            _ => {
                let written = self.machines[machine].disk.written(path);
                self.disks.below(written.max(1))
            }
        };
        let mask = 1 << pick(&mut self.disks, 8);
        self.machines[machine].disk.flip(path, offset, mask);
        self.power_follows(machine);
    }

    /// What a disk has lost shows when its machine starts again.
    fn power_follows(&mut self, machine: usize) {
        if self.profile.power_follows {
            let delay = self.faults.below(500_000);
            self.later(delay, Happening::PowerLoss(machine));
        }
    }

    fn clock_faults(&mut self, machine: usize) {
        if !self.faults.chance(self.profile.clock, 1000) {
            return;
        }
        let now = self.now;
        let jump = i64::try_from(self.faults.below(1_000_000)).unwrap_or(0);
        let kind = self.faults.below(3);
        let clock = &mut self.machines[machine].clock;
        let rate = clock.rate();
        match kind {
            0 if rate > 0 => {
                self.marks.hit("clock stops");
                self.machines[machine].clock.set_rate(now, 0);
                let stands = self.faults.below(1_000_000);
                self.later(stands, Happening::ClockRuns(machine, rate));
            }
            1 => {
                clock.jump(now, jump);
                self.marks.hit("clock jumps ahead");
            }
            _ => {
                clock.jump(now, -jump);
                self.marks.hit("clock jumps back");
            }
        }
    }

    /// Somebody restarts a process that was cut off.
    pub(crate) fn restart(&mut self, machine: usize) {
        if !self.healed {
            let (crash, down) = (self.draw_crash(), self.faults.below(50_000));
            self.stop(machine, crash, down);
        }
    }

    pub(crate) fn lose_power(&mut self, machine: usize) {
        if !self.healed {
            let (crash, down) = (Crash::Power(self.disks.next_u64()), self.faults.below(300_000));
            self.stop(machine, crash, down);
        }
    }

    fn stop(&mut self, machine: usize, crash: Crash, down: u64) {
        if self.machines[machine].process.is_some() {
            self.crash(machine, crash, down);
        }
    }

    /// At once, or in the middle of one of the next operations of its disk.
    fn stop_somehow(&mut self, machine: usize, crash: Crash) {
        if self.faults.chance(1, 2) {
            let down = self.faults.below(800_000);
            self.stop(machine, crash, down);
        } else if !self.fuses.contains_key(&machine) {
            let operations = self.disks.below(40);
            self.machines[machine].disk.set_fuse(Some(operations));
            self.fuses.insert(machine, crash);
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
        self.wires.blocked.clear();
        if self.profile.hunt && !self.healed && self.faults.chance(1, 2) {
            self.partition();
        }
    }

    fn partition(&mut self) {
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
        let delay = self.faults.below(1_500_000);
        self.later(delay, Happening::Heal);
        if self.profile.cut_off_restarts {
            // It has heard by then what it missed, or is about to.
            let delay = delay + self.faults.below(300_000);
            self.later(delay, Happening::Restart(one));
        }
    }
}
