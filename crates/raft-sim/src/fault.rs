//! The faults, drawn every few milliseconds of virtual time.

use std::collections::BTreeSet;

use crate::disk::Crash;
use crate::profile::pick;
use crate::world::{Happening, World};

/// How often faults are drawn.
const OCCASION: u64 = 20_000;

impl World {
    pub(crate) fn chaos(&mut self) {
        if self.healed {
            return;
        }
        self.later(OCCASION, Happening::Chaos);
        let machine = self.any_machine();
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
        if self.faults.chance(self.profile.sync_failure, 1000)
            && self.machines[machine].process.is_some()
        {
            // Never more than one at a time: a disk that fails forgets what it was given.
            if self.failing.is_empty() {
                // Of directories a sync does not fail: a file system whose journal fails stops altogether.
                let file = ["promises", ".log"][pick(&mut self.disks, 2)];
                self.machines[machine].disk.fail_sync(file, self.disks.below(5));
                self.failing.insert(machine, self.machines[machine].life);
            }
        }
        for id in self.wires.ids() {
            if self.network.chance(self.profile.reset, 1000) {
                self.cut(id);
            }
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

    fn partition(&mut self) {
        self.wires.blocked.clear();
        let one = self.any_machine();
        let count = self.machines.len();
        let kind = self.faults.below(6);
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
        let delay = self.faults.below(1_500_000);
        self.later(delay, Happening::Heal);
    }
}
