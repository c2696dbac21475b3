//! The store from outside.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod alarms;
mod auth;
mod common;
mod concurrency;
mod format;
mod model;
mod property;
mod rules;
mod snapshot;
mod watch;
