//! The simulator: many real nodes, one thread, one seed.
//!
//! [`run()`] builds a cluster of production nodes (driver, log, recovery, snapshots, store) on simulated [`disk`]s
//! that lie as disks do, connects them by a network that fails as networks do, lets clients work and faults happen,
//! and checks after every event what docs/testing.md lists. The same seed gives the same run, byte for byte.

mod audit;
mod check;
mod client;
mod clock;
pub mod disk;
mod fault;
pub mod linearizability;
mod liveness;
mod marks;
mod model;
mod network;
mod operator;
mod process;
mod profile;
mod rot;
mod run;
mod world;

pub use disk::{Crash, SimDisk};
pub use marks::Marks;
pub use profile::{Options, Profile};
pub use run::{Failure, Report, run};
