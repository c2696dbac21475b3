//! The simulator: many real nodes, one thread, one seed.
//!
//! [`run()`] builds a cluster of production nodes (driver, log, recovery, snapshots, store) on simulated [`disk`]s
//! that lie as disks do, connects them by a network that fails as networks do, lets clients work and faults happen,
//! and checks after every event what docs/testing.md lists. The same seed gives the same run, byte for byte.
//!
//! # Your own state machine
//!
//! [`survive`] runs any [`StateMachine`](raft_core::StateMachine) through the same faults and checks. A [`Reference`]
//! draws what clients ask and compares every answer with one more instance that knows no faults:
//!
//! ```
//! use raft_sim::{Ask, Reference, survive};
//! # include!("../tests/counter/mod.rs");
//!
//! # fn main() {
//! let report = survive(0..2, |_| {
//!     Reference::new(Counter::default, |rng| match rng.below(4) {
//!         0 => Ask::Query(()),
//!         add => Ask::Command(Add(add)),
//!     })
//! });
//! assert!(report.acked > 0 && report.reads > 0);
//! # }
//! ```
//!
//! A seed that fails panics with what was violated; [`run_with`] runs that one again, alone. Who wants to check answers
//! in another way, or has clients that remember what they were told, writes a [`Workload`].

mod agenda;
mod attend;
mod audit;
mod bank;
mod campaign;
mod check;
#[cfg(feature = "cli")]
pub mod cli;
mod client;
mod clock;
pub mod disk;
mod fault;
mod faults;
mod kv;
pub mod linearizability;
mod liveness;
mod marks;
mod network;
mod operator;
mod picture;
mod process;
mod profile;
mod reference;
mod rot;
mod run;
mod sessions;
mod shrink;
mod story;
mod tape;
mod tenants;
mod workload;
mod world;

pub use campaign::{Campaign, Totals, campaign, quiet_panics};
pub use disk::{Crash, SimDisk};
pub use faults::{FaultClass, UnknownFaultClass};
pub use marks::Marks;
pub use picture::picture;
pub use profile::{Load, Options, Profile};
pub use reference::Reference;
pub use run::{Failure, Report, faults_of, run, run_with, survive, virtual_time};
pub use sessions::ExactlyOnce;
pub use shrink::{Shrunk, shrink};
pub use story::Fault;
pub use workload::{Ask, Attendant, Attention, Call, Workload};
