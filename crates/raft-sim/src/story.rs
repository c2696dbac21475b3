//! The story of a run: every fault that befell it, numbered, so that a failing run can be tried again without some of
//! them ([`Options::only`](crate::Options::only)).
//!
//! A fault's number says when it may strike and what kind it is, and everything that is drawn for it comes from a
//! generator made of the seed and that number: leaving one out changes nothing of what is drawn for the others. What
//! disturbs single messages or pieces of a disk's work is one fault for each half of a second.

use std::fmt;

use raft_core::Rng;

use crate::workload::Workload;
use crate::world::{Happening, World};

/// How often faults are drawn, in microseconds.
pub(crate) const OCCASION: u64 = 20_000;
/// How long what disturbs single messages goes on until it is drawn anew.
const NOISE: u64 = 500_000;
/// Numbers of one occasion.
const PER_OCCASION: u64 = 64;
/// Numbers of one kind that concerns one machine.
const MACHINES: u64 = 16;

/// A fault that befell a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What [`Options::only`](crate::Options::only) and `--only` name it by.
    pub number: u64,
    /// When, in microseconds of virtual time.
    pub at: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, at, what } = self;
        write!(f, "{number:>6}  {:>3}.{:06} s  {what}", at / 1_000_000, at % 1_000_000)
    }
}

/// A time in microseconds, for people.
pub(crate) struct Span(pub(crate) u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} ms", self.0 / 1000, self.0 % 1000)
    }
}

/// What may strike at an occasion. The numbers are those of failing runs that were written down: add, do not reorder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Blackout,
    Crash,
    Power,
    Partition,
    PartitionAgain,
    Pause,
    SyncFailure,
    JournalFailure,
    Full,
    Wipe,
    Rot,
    Clock,
    Reset,
    Transfer,
    Change,
    Loss,
    Duplication,
    Reordering,
    Replay,
    Stall,
    Misplaced,
    /// A machine stops in the middle of its recovery.
    Recovery(usize),
    /// Whoever was cut off, or whose disk fails or rots, is restarted.
    FollowUp(usize),
    /// Nothing that could be left out: consequences of other faults, and what is drawn where they end.
    Consequence(usize),
}

impl Kind {
    const fn number(self) -> u64 {
        match self {
            Self::Blackout => 0,
            Self::Crash => 1,
            Self::Power => 2,
            Self::Partition => 3,
            Self::PartitionAgain => 4,
            Self::Pause => 5,
            Self::SyncFailure => 6,
            Self::JournalFailure => 7,
            Self::Full => 8,
            Self::Wipe => 9,
            Self::Rot => 10,
            Self::Clock => 11,
            Self::Reset => 12,
            Self::Transfer => 13,
            Self::Change => 14,
            Self::Loss => 15,
            Self::Duplication => 16,
            Self::Reordering => 17,
            Self::Replay => 18,
            Self::Stall => 19,
            // As the fifth machine's recovery, which never minds.
            Self::Misplaced => 20,
            // A machine's number is below `MACHINES`: Profile::draw never makes more.
            Self::Recovery(machine) => MACHINES + machine as u64 % MACHINES,
            Self::FollowUp(machine) => 2 * MACHINES + machine as u64 % MACHINES,
            Self::Consequence(machine) => 3 * MACHINES + machine as u64 % MACHINES,
        }
    }
}

/// Whether single messages and pieces of work are disturbed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Noise {
    pub(crate) loss: bool,
    pub(crate) duplication: bool,
    pub(crate) reordering: bool,
    pub(crate) replay: bool,
    pub(crate) stall: bool,
}

impl<W: Workload> World<W> {
    fn number(&self, kind: Kind) -> u64 {
        self.now / OCCASION * PER_OCCASION + kind.number()
    }

    /// From now on faults are drawn from the generator of this one.
    pub(crate) fn draw_for(&mut self, kind: Kind) {
        let number = self.number(kind);
        self.faults = Rng::new(self.fault_seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    }

    /// Whether this fault strikes now, by chance (in thousandths) and unless it is left out. What is drawn next is
    /// drawn for it.
    pub(crate) fn strikes(&mut self, kind: Kind, chance: u64) -> bool {
        if chance == 0 {
            return false;
        }
        self.draw_for(kind);
        self.faults.chance(chance, 1000) && self.is_allowed(kind)
    }

    pub(crate) fn is_allowed(&self, kind: Kind) -> bool {
        let number = self.number(kind);
        self.options.only.as_ref().is_none_or(|only| only.contains(&number))
    }

    /// A fault has struck.
    pub(crate) fn tell(&mut self, kind: Kind, what: String) {
        let number = self.number(kind);
        if let Some(tape) = &mut self.tape {
            tape.fault(self.now, number, &what);
        }
        self.story.push(Fault { number, at: self.now, what });
    }

    /// What disturbs single messages and pieces of work is drawn anew.
    pub(crate) fn draw_noise(&mut self) {
        if self.healed {
            self.noise = Noise::default();
            return;
        }
        let profile = &self.profile;
        let kinds = [
            (Kind::Loss, profile.loss, "messages are lost"),
            (Kind::Duplication, profile.duplication, "messages come twice"),
            (Kind::Reordering, profile.reordering, "messages overtake others"),
            (Kind::Replay, profile.replay, "old messages come once more"),
            (Kind::Stall, profile.disk_stall, "disks stand still for up to 2 s"),
        ];
        let on = kinds.map(|(kind, rate, what)| {
            let on = rate > 0 && self.is_allowed(kind);
            if on {
                self.tell(kind, format!("for 0.5 s {what}, {rate} in 1,000"));
            }
            on
        });
        let [loss, duplication, reordering, replay, stall] = on;
        self.noise = Noise { loss, duplication, reordering, replay, stall };
        self.later(NOISE, Happening::Noise);
    }
}
