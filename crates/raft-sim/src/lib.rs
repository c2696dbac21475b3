//! The simulator: many real nodes, one thread, one seed.

pub mod disk;

pub use disk::{Crash, SimDisk};
