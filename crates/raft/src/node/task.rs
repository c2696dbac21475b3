//! The tokio shell: threads, channels, timers.

use raft_core::{ConfigError, StateMachine};

use crate::error::NodeError;
use crate::node::{Node, Settings};

/// Starts the threads of a node.
pub(crate) async fn start<S: StateMachine>(
    machine: S,
    settings: Settings,
) -> Result<Node<S>, NodeError> {
    drop((machine, settings));
    Err(NodeError::Config(ConfigError { field: "node", problem: String::from("not built yet") }))
}
