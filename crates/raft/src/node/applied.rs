//! How far the state machine is, told by the apply thread to the raft thread without waking it for every batch.
//!
//! Most of the time nobody waits for it: the apply thread answers clients itself, and the raft thread needs the
//! position only to bound memory and to serve reads. Two atomics replace a message then. Each side writes its own one
//! and then reads the other's, with a fence between: of a position and a wish that cross, at least one is seen.

#[cfg(not(all(test, raft_loom)))]
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

#[cfg(all(test, raft_loom))]
use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

use raft_core::Index;

/// One end of it; both ends are alike.
#[derive(Clone, Debug, Default)]
pub(super) struct AppliedSignal {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Written by the apply thread.
    applied: AtomicU64,
    /// Written by the raft thread: it wants to be woken.
    waited_for: AtomicBool,
}

impl AppliedSignal {
    /// The apply thread has applied everything up to `index`. True when the raft thread is to be woken.
    pub(super) fn advance(&self, index: Index) -> bool {
        self.shared.applied.store(index.0, Ordering::Release);
        fence(Ordering::SeqCst);
        self.shared.waited_for.load(Ordering::Relaxed)
    }

    /// Whether the raft thread wants to be woken from now on. True when more than `known` was applied meanwhile, so
    /// that it must not wait.
    pub(super) fn wait_for_more_than(&self, known: Index, waits: bool) -> bool {
        self.shared.waited_for.store(waits, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        waits && self.applied() > known
    }

    /// Everything up to here is applied.
    pub(super) fn applied(&self) -> Index {
        Index(self.shared.applied.load(Ordering::Acquire))
    }
}

/// Under every interleaving, and every order that the memory model allows (docs/testing.md says how to run it).
#[cfg(all(test, raft_loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn no_position_is_missed_by_whoever_waits() {
        loom::model(|| {
            let raft = AppliedSignal::default();
            let apply = raft.clone();
            let thread = loom::thread::spawn(move || apply.advance(Index(1)));
            let seen = raft.wait_for_more_than(Index(0), true);
            let woken = thread.join().unwrap();
            assert!(seen || woken);
            assert_eq!(raft.applied(), Index(1));
        });
    }

    /// The raft thread's turns, with and without a wish, beside two batches: it sleeps only if it will be woken.
    #[test]
    fn a_wish_that_comes_and_goes_misses_nothing() {
        loom::model(|| {
            let raft = AppliedSignal::default();
            let apply = raft.clone();
            let thread =
                loom::thread::spawn(move || [apply.advance(Index(1)), apply.advance(Index(2))]);
            let first = raft.wait_for_more_than(Index(0), false);
            assert!(!first, "who does not wish may sleep");
            let known = raft.applied();
            let seen = raft.wait_for_more_than(known, true);
            let woken = thread.join().unwrap();
            assert!(seen || known == Index(2) || woken[1]);
        });
    }
}

#[cfg(all(test, not(raft_loom)))]
mod tests {
    use super::*;

    /// However a wish and a position cross, the raft thread hears of the position.
    #[test]
    fn no_position_is_missed_by_whoever_waits() {
        for last in 1..2000 {
            let raft = AppliedSignal::default();
            let apply = raft.clone();
            let thread = std::thread::spawn(move || apply.advance(Index(last)));
            let seen = raft.wait_for_more_than(Index(0), true);
            let woken = thread.join().unwrap();
            assert!(seen || woken, "round {last}");
            assert_eq!(raft.applied(), Index(last));
        }
    }

    #[test]
    fn nobody_is_woken_who_does_not_wait() {
        let signal = AppliedSignal::default();
        assert!(!signal.wait_for_more_than(Index(0), false));
        assert!(!signal.advance(Index(1)));
        assert!(signal.wait_for_more_than(Index(0), true));
        assert!(!signal.wait_for_more_than(Index(1), true));
        assert!(signal.advance(Index(2)));
    }
}
