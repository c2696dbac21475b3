//! The durable log against a disk that separates written from synced.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod crash;
mod damage;
mod examine;
mod golden;
#[cfg(mutants)]
mod mutants;
mod scrub;
mod snapshot;
mod support;
mod survivor;
