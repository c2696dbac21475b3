//! The simulator: many real nodes, one thread, one seed.
//!
//! [`run()`] builds a cluster of production nodes (driver, log, recovery, snapshots, store) on simulated [`disk`]s
//! that lie as disks do, connects them by a network that fails as networks do, lets clients work and faults happen,
//! and checks after every event what docs/testing.md lists. The same seed gives the same run, byte for byte.

mod audit;
mod campaign;
mod check;
#[cfg(feature = "cli")]
pub mod cli;
mod client;
mod clock;
pub mod disk;
mod fault;
mod faults;
pub mod linearizability;
mod liveness;
mod marks;
mod model;
mod network;
mod operator;
mod picture;
mod process;
mod profile;
mod run;
mod shrink;
mod story;
mod tape;
mod world;

pub use campaign::{Campaign, Totals, campaign, quiet_panics};
pub use disk::{Crash, SimDisk};
pub use faults::{FaultClass, UnknownFaultClass};
pub use marks::Marks;
pub use picture::picture;
pub use profile::{Options, Profile};
pub use run::{Failure, Report, faults_of, run, virtual_time};
pub use shrink::{Shrunk, shrink};
pub use story::Fault;
