//! What will happen when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::world::Happening;

/// Happenings in the order of their moments, and those of one moment in the order in which they were planned.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    planned: BinaryHeap<Planned>,
    sequence: u64,
}

#[derive(Debug)]
struct Planned {
    at: u64,
    sequence: u64,
    happening: Happening,
}

impl Agenda {
    pub(crate) fn plan(&mut self, at: u64, happening: Happening) {
        self.sequence += 1;
        self.planned.push(Planned { at, sequence: self.sequence, happening });
    }

    /// The next one and its moment, unless that lies behind `end`.
    pub(crate) fn next_until(&mut self, end: u64) -> Option<(u64, Happening)> {
        if self.planned.peek()?.at > end {
            return None;
        }
        self.planned.pop().map(|next| (next.at, next.happening))
    }
}

impl Planned {
    const fn key(&self) -> (u64, u64) {
        (self.at, self.sequence)
    }
}

/// The earliest is the greatest: a heap hands out the greatest first.
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Planned {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn happenings_come_by_their_moments_and_then_as_planned() {
        let mut agenda = Agenda::default();
        for (at, client) in [(5, 0), (3, 1), (5, 2), (9, 3), (3, 4)] {
            agenda.plan(at, Happening::Client(client));
        }
        let mut came = Vec::new();
        while let Some((at, Happening::Client(client))) = agenda.next_until(8) {
            came.push((at, client));
        }
        assert_eq!(came, [(3, 1), (3, 4), (5, 0), (5, 2)]);
        assert!(agenda.next_until(9).is_some() && agenda.next_until(u64::MAX).is_none());
    }
}
