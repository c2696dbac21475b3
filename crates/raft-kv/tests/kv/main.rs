//! The store from outside.

mod common;
mod model;
mod property;
mod snapshot;
