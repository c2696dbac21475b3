//! What the swarm runs in sessions: a counter, in which a command that is applied twice can be seen for ever.

use raft_core::Rng;

use super::ExactlyOnce;
use crate::profile::Profile;
use crate::workload::Ask;

/// As a user of the library writes it.
#[path = "../../tests/counter/mod.rs"]
mod machine;

pub(crate) use machine::{Add, Counter};

fn draw(rng: &mut Rng) -> Ask<Counter> {
    match rng.below(10) {
        0..=1 => Ask::Query(()),
        2 => Ask::Stale(()),
        3 => Ask::Barrier,
        // What is added tells the commands apart.
        _ => Ask::Command(Add(1 + rng.below(1 << 30))),
    }
}

/// The workload; fewer sessions than clients in every other run, so that some end early.
pub(crate) fn counter(profile: &Profile) -> ExactlyOnce<Counter> {
    let clients = u32::try_from(profile.clients).unwrap_or(u32::MAX);
    let few = profile.keys == 1 && clients > 2;
    ExactlyOnce::new(Counter::default, draw).sessions_max(if few { clients / 2 } else { 1000 })
}
