//! Rot in the logs of several members at once, within what can be repaired: every entry stays intact on a member of
//! each quorum.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use raft::log::{DataState, Log, Opened};
use raft_core::{Digest, EntryId, NodeId};

use crate::disk::{Crash, SimDisk};
use crate::process::DIR;
use crate::profile::pick;
use crate::story::Kind;
use crate::workload::Workload;
use crate::world::World;

/// Bytes that rot at once, each in a sector of its own.
const FLIPS: u64 = 6;

impl<W: Workload> World<W> {
    /// All machines lose power at once, and before they start again bits have rotted in the logs of some of them: whoever misses
    /// entries gets them from the others, before anybody can lead.
    pub(crate) fn rot_entries(&mut self) {
        if self.operator.is_busy() {
            return;
        }
        let Some(raft) = self.leader().and_then(|leader| self.raft(leader)) else { return };
        let membership = raft.membership();
        if membership.is_joint() || !self.failing.is_empty() || self.profile.page_tears {
            return;
        }
        let voters: Vec<NodeId> = membership.voters().iter().copied().collect();
        let machines: Vec<usize> =
            voters.iter().filter_map(|voter| self.nodes.get(voter).copied()).collect();
        if machines.len() != voters.len() {
            return;
        }
        for machine in 0..self.machines.len() {
            let (power, down) = (Crash::Power(self.faults.next_u64()), self.faults.below(200_000));
            if self.machines[machine].process.is_some() {
                self.crash(machine, power, down);
            } else {
                // Also what only the cache of a machine still holds whose process has died.
                self.machines[machine].disk.crash(power);
                self.machines[machine].at_rest = None;
            }
        }
        let sound: BTreeMap<usize, SimDisk> = machines
            .iter()
            .map(|machine| (*machine, self.machines[*machine].disk.fork()))
            .collect();
        let mut found: BTreeMap<usize, Option<Opened<SimDisk>>> =
            machines.iter().map(|machine| (*machine, self.look(*machine))).collect();
        let mut damaged = BTreeSet::new();
        for _ in 0..=self.faults.below(FLIPS) {
            let machine = machines[pick(&mut self.faults, machines.len())];
            let Some((path, offset)) = self.draw_place(machine) else { continue };
            let mask = 1 << pick(&mut self.faults, 8);
            if !self.is_noticed(machine, &sound[&machine], (&path, offset, mask)) {
                // Harmless, until the file is used again and power fails right when the log ends there: then nobody could
                // tell it from a batch, and the member has to be replaced. So no other one may lack anything.
                if damaged.is_empty() && self.may_damage(machine) {
                    self.machines[machine].disk.flip(&path, offset, mask);
                    self.doom(machine);
                    damaged.insert(machine);
                    self.marks.hit("a log rots where nobody looks");
                    break;
                }
                continue;
            }
            self.machines[machine].disk.flip(&path, offset, mask);
            let before = found.insert(machine, self.look(machine));
            if is_repairable(&found) {
                damaged.insert(machine);
            } else {
                self.machines[machine].disk.flip(&path, offset, mask);
                found.extend(before.map(|before| (machine, before)));
            }
        }
        self.tell(Kind::Rot, format!("power fails everywhere, and the logs of {damaged:?} rot"));
        match damaged.len() {
            0 => {}
            1 => self.marks.hit("the log of a member rots"),
            _ => self.marks.hit("the logs of several members rot"),
        }
    }

    /// A byte of a log that was written once.
    fn draw_place(&mut self, machine: usize) -> Option<(PathBuf, u64)> {
        let disk = &self.machines[machine].disk;
        let logs: Vec<(PathBuf, u64)> = disk
            .lengths()
            .into_iter()
            .filter(|(path, len)| path.to_string_lossy().ends_with(".log") && *len > 8192)
            .collect();
        if logs.is_empty() {
            return None;
        }
        let (path, len) = &logs[pick(&mut self.faults, logs.len())];
        let near = (*len - 4096).min(12 << 10);
        let offset = if self.faults.chance(2, 3) {
            4096 + self.faults.below(near)
        } else {
            *len - 1 - self.faults.below(near)
        };
        Some((path.clone(), offset))
    }

    /// Whether the next start of a machine whose disk is otherwise sound finds this bit flipped, and sees to it.
    fn is_noticed(
        &self,
        machine: usize,
        sound: &SimDisk,
        (path, offset, mask): (&Path, u64, u8),
    ) -> bool {
        let disk = sound.fork();
        disk.flip(path, offset, mask);
        let byte = |disk: &SimDisk| {
            let files = disk.files();
            let (_, bytes) = files.into_iter().find(|(found, _)| found == path)?;
            bytes.get(usize::try_from(offset).ok()?).copied()
        };
        match self.open(machine, disk.fork()) {
            // Written again, or cleared, or in a file that is gone.
            Some((Opened { state: DataState::Formed(_), .. }, repaired)) => {
                byte(&repaired) != byte(&disk)
            }
            Some(_) | None => true,
        }
    }

    /// What recovery would find on a machine's disk, on a copy of it.
    fn look(&self, machine: usize) -> Option<Opened<SimDisk>> {
        self.open(machine, self.machines[machine].disk.fork()).map(|(opened, _)| opened)
    }

    /// What recovery finds on a disk of a machine, and the disk as it leaves it.
    fn open(&self, machine: usize, disk: SimDisk) -> Option<(Opened<SimDisk>, SimDisk)> {
        let machine = &self.machines[machine];
        disk.set_capacity(None);
        disk.set_fuse(None);
        let options = machine.options(&self.profile);
        let opened = Log::open(disk.clone(), Path::new(DIR), options, machine.identity()).ok()?;
        Some((opened, disk))
    }
}

/// Whether every member still recovers, and whatever one of them misses is intact on one of each quorum.
fn is_repairable(found: &BTreeMap<usize, Option<Opened<SimDisk>>>) -> bool {
    let mut logs = Vec::new();
    let mut missing: BTreeSet<(u64, u64, u128)> = BTreeSet::new();
    for opened in found.values() {
        let Some(Opened { log, state }) = opened else { return false };
        if let DataState::Damaged(damaged) = state {
            missing.extend(
                damaged.missing.iter().map(|it| (it.id.index.0, it.id.term.0, it.digest.0)),
            );
        }
        logs.push(log);
    }
    missing.into_iter().all(|(index, term, digest)| {
        let (id, digest) = (EntryId::new(index, term), Digest(digest));
        let intact = logs
            .iter()
            .filter(|log| matches!(log.supply(id, digest), raft::log::Supply::Have(_)))
            .count();
        2 * (logs.len() - intact) < logs.len()
    })
}
