//! Who waits for an answer. The receiving end is in the hands of a client's future, which may be gone.

use raft_core::StateMachine;
use tokio::sync::oneshot;

use crate::error::{ProposeError, ReadError};

/// The one who waits for a proposal's response.
pub type ProposeWaiter<S> = oneshot::Sender<Result<<S as StateMachine>::Response, ProposeError>>;
/// The one who waits for the answer to a query.
pub type QueryWaiter<S> = oneshot::Sender<Result<<S as StateMachine>::Answer, ReadError>>;
