//! The durable log against a disk that separates written from synced.

mod crash;
mod damage;
mod golden;
mod snapshot;
mod support;
