//! The classes of faults, for whoever wants only some of them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::profile::Profile;

/// A class of faults that a seed may draw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultClass {
    /// Messages are lost.
    Loss,
    /// Messages come twice.
    Duplication,
    /// Messages overtake others.
    Reordering,
    /// Messages of long ago come once more.
    Replay,
    /// Connections break.
    Reset,
    /// Links carry nothing for a while.
    Partition,
    /// Processes die.
    Crash,
    /// Machines lose power, and with it what was not synced.
    Power,
    /// All machines lose power at once.
    Blackout,
    /// Processes are paused.
    Pause,
    /// Clocks stop and jump.
    Clock,
    /// A disk's work takes seconds.
    Stall,
    /// Syncs of files fail.
    Sync,
    /// Syncs of directories fail, and with them the whole file system.
    Journal,
    /// Disks are full for a while.
    Full,
    /// Disks are lost.
    Wipe,
    /// Bits rot.
    Rot,
    /// Writes that were acknowledged are lost or go elsewhere.
    Misplaced,
    /// A power loss spoils whole pages.
    Tear,
    /// Members are added, promoted, demoted and removed, leases are switched.
    Membership,
    /// Leadership is handed over.
    Transfer,
}

impl FaultClass {
    /// All of them, in the order in which they are listed for people.
    pub const ALL: [Self; 21] = [
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
        Self::Replay,
        Self::Reset,
        Self::Partition,
        Self::Crash,
        Self::Power,
        Self::Blackout,
        Self::Pause,
        Self::Clock,
        Self::Stall,
        Self::Sync,
        Self::Journal,
        Self::Full,
        Self::Wipe,
        Self::Rot,
        Self::Misplaced,
        Self::Tear,
        Self::Membership,
        Self::Transfer,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Duplication => "duplication",
            Self::Reordering => "reordering",
            Self::Replay => "replay",
            Self::Reset => "reset",
            Self::Partition => "partition",
            Self::Crash => "crash",
            Self::Power => "power",
            Self::Blackout => "blackout",
            Self::Pause => "pause",
            Self::Clock => "clock",
            Self::Stall => "stall",
            Self::Sync => "sync",
            Self::Journal => "journal",
            Self::Full => "full",
            Self::Wipe => "wipe",
            Self::Rot => "rot",
            Self::Misplaced => "misplaced",
            Self::Tear => "tear",
            Self::Membership => "membership",
            Self::Transfer => "transfer",
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a class of faults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFaultClass(pub String);

impl fmt::Display for UnknownFaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = FaultClass::ALL.map(FaultClass::name).join(", ");
        write!(f, "there are no faults called \"{}\"; there are {names}", self.0)
    }
}

impl std::error::Error for UnknownFaultClass {}

impl FromStr for FaultClass {
    type Err = UnknownFaultClass;

    fn from_str(text: &str) -> Result<Self, UnknownFaultClass> {
        let found = Self::ALL.into_iter().find(|class| class.name() == text);
        found.ok_or_else(|| UnknownFaultClass(text.to_owned()))
    }
}

impl Profile {
    /// Exactly these classes: what the seed drew of the others goes, and these come at a moderate rate at least. Two exceptions: disks are not lost nor damaged where fewer than three members, or members that
    /// are removed, would make that fatal; and where clocks stop or jump there are no leases.
    pub(crate) fn restrict(&mut self, to: &BTreeSet<FaultClass>) {
        use FaultClass as Class;
        let moderate = [
            (Class::Loss, &mut self.loss, 10),
            (Class::Duplication, &mut self.duplication, 10),
            (Class::Reordering, &mut self.reordering, 20),
            (Class::Replay, &mut self.replay, 10),
            (Class::Reset, &mut self.reset, 2),
            (Class::Partition, &mut self.partition, 20),
            (Class::Crash, &mut self.crash, 10),
            (Class::Power, &mut self.power, 10),
            (Class::Blackout, &mut self.blackout, 2),
            (Class::Pause, &mut self.pause, 5),
            (Class::Clock, &mut self.clock, 5),
            (Class::Stall, &mut self.disk_stall, 2),
            (Class::Sync, &mut self.sync_failure, 3),
            (Class::Journal, &mut self.journal_failure, 2),
            (Class::Full, &mut self.full, 4),
            (Class::Wipe, &mut self.wipe, 5),
            (Class::Rot, &mut self.rot, 5),
            (Class::Rot, &mut self.rot_entries, 5),
            (Class::Misplaced, &mut self.misplaced, 5),
            (Class::Membership, &mut self.change, 20),
            (Class::Transfer, &mut self.transfer, 10),
        ];
        for (class, rate, usual) in moderate {
            *rate = if to.contains(&class) { (*rate).max(usual) } else { 0 };
        }
        self.page_tears = to.contains(&Class::Tear);
        self.hunt &= to.contains(&Class::Partition);
        self.cut_off_restarts &= to.contains(&Class::Crash);
        self.power_follows &= to.contains(&Class::Power);
        self.lease &= self.change > 0 && self.clock == 0;
        self.shrink &= self.change > 0;
        if self.change == 0 {
            self.spares = 0;
        }
        if self.shrink || self.members < 3 {
            (self.wipe, self.rot, self.page_tears) = (0, 0, false);
            (self.rot_entries, self.misplaced) = (0, 0);
        }
        // Whoever is not there in the end has died.
        self.only_a_quorum &= to.contains(&Class::Crash) || to.contains(&Class::Power);
        self.disturbed &= to.contains(&Class::Partition);
        let sound = self.wipe + self.rot + self.misplaced == 0 && !self.page_tears;
        self.only_a_quorum &= self.change == 0 && sound;
        self.disturbed &= sound;
    }
}
