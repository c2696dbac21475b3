//! Which configuration is in force where in the log: it takes effect on append and is rolled back on
//! truncation (§6).

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use crate::membership::Membership;
use crate::mutant;
use crate::types::Index;

/// The configurations from the newest snapshot to the end of the log, oldest first, never empty.
#[derive(Clone, Debug)]
pub(crate) struct Configurations {
    history: VecDeque<(Index, Arc<Membership>)>,
}

impl Configurations {
    /// Begins with the configuration in force at `index`.
    pub(crate) fn new(index: Index, membership: Membership) -> Self {
        let mut history = VecDeque::new();
        history.push_back((index, Arc::new(membership)));
        Self { history }
    }

    /// The configuration that counts now: the last one in the log, committed or not.
    pub(crate) fn current(&self) -> &Arc<Membership> {
        &self.latest().1
    }

    /// Where the current configuration stands.
    pub(crate) fn current_index(&self) -> Index {
        self.latest().0
    }

    fn latest(&self) -> &(Index, Arc<Membership>) {
        assert!(!self.history.is_empty(), "there is always a configuration");
        &self.history[self.history.len() - 1]
    }

    /// The configuration in force at `index`; the oldest known one for indexes before it.
    pub(crate) fn at(&self, index: Index) -> &Arc<Membership> {
        let position = self.history.partition_point(|(at, _)| *at <= index);
        &self.history[position.saturating_sub(1)].1
    }

    /// Those that may still turn out to be the committed one: the one in force at `commit_index` and all later.
    pub(crate) fn not_superseded(
        &self,
        commit_index: Index,
    ) -> impl Iterator<Item = &Arc<Membership>> {
        let position = self.history.partition_point(|(at, _)| *at <= commit_index);
        self.history.iter().skip(position.saturating_sub(1)).map(|(_, membership)| membership)
    }

    /// How many stand after `index`.
    pub(crate) fn count_after(&self, index: Index) -> usize {
        self.history.len() - self.history.partition_point(|(at, _)| *at <= index)
    }

    /// The entry at `index` holds `membership`.
    pub(crate) fn append(&mut self, index: Index, membership: Membership) {
        assert!(index > self.current_index(), "configurations are appended in order");
        self.history.push_back((index, Arc::new(membership)));
    }

    /// The entries at and after `index` are gone; true when that rolled a configuration back.
    pub(crate) fn truncate_from(&mut self, index: Index) -> bool {
        let before = self.history.len();
        if mutant::is_active(20) {
            return false;
        }
        while self.history.len() > 1 && self.current_index() >= index {
            self.history.pop_back();
        }
        before != self.history.len()
    }

    /// Nobody will ask about indexes before `index` again.
    pub(crate) fn compact_to(&mut self, index: Index) {
        while self.history.get(1).is_some_and(|(at, _)| *at <= index) {
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;
    use bytes::Bytes;

    fn of(count: u64) -> Membership {
        Membership::from_voters((1..=count).map(|n| (NodeId::new(n, 0), Bytes::new())))
    }

    /// scylla#30936 (B30): two uncommitted configurations truncated at once are both rolled back.
    #[test]
    fn truncation_rolls_back_every_configuration_after_it() {
        let mut configurations = Configurations::new(Index(0), of(1));
        configurations.append(Index(5), of(2));
        configurations.append(Index(7), of(3));
        assert!(configurations.truncate_from(Index(5)));
        assert_eq!(**configurations.current(), of(1));
        assert!(!configurations.truncate_from(Index(1)));
    }

    /// openraft#1808 (mutation 24): a snapshot at an index carries the configuration of that index.
    #[test]
    fn the_configuration_of_an_index_is_not_a_newer_one() {
        let mut configurations = Configurations::new(Index(0), of(1));
        configurations.append(Index(5), of(2));
        configurations.append(Index(7), of(3));
        assert_eq!(**configurations.at(Index(4)), of(1));
        assert_eq!(**configurations.at(Index(5)), of(2));
        assert_eq!(**configurations.at(Index(6)), of(2));
        assert_eq!(**configurations.at(Index(9)), of(3));
        configurations.compact_to(Index(6));
        assert_eq!(**configurations.at(Index(6)), of(2));
    }
}
