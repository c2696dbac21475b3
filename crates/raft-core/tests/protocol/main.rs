//! The protocol alone, many members of it, under every fault a network and a disk that keeps its promises
//! can have. No file, socket, thread or clock takes part: the same seed gives the same run.
//!
//! [`random`] draws the faults, [`scripts`] tells stories with named ones; both use the same [`cluster`],
//! whose [`oracle`] checks the properties of the paper after every step.

mod cluster;
mod disk;
mod exhaustive;
mod oracle;
mod random;
mod scripts;
