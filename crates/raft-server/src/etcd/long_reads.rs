//! Reads of many keys: on threads of their own, a few at a time.
//!
//! The server has few threads (one, on two processors), and everybody is answered by them: a read of a million keys must
//! not hold one up. Nor may many such reads take the node's own threads their processors away.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Lets as many long reads run at one time as there are processors. Others wait in the order in which they came.
#[derive(Debug)]
pub(super) struct LongReads {
    turns: Arc<Semaphore>,
}

impl LongReads {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { turns: Arc::new(Semaphore::new(processors)) }
    }

    /// Runs `read` on a thread that may take its time.
    ///
    /// # Errors
    /// `read` panicked, or the process is ending.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // It is never closed. A read goes on, and keeps its turn, when nobody waits for it any more.
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        spawn_blocking(move || {
            let answer = read();
            drop(turn);
            answer
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// The read ends only after another task of the same thread has run.
    #[tokio::test]
    async fn everybody_else_goes_on_meanwhile() {
        let (tell, told) = mpsc::channel();
        let reads = LongReads::new();
        let read = reads.run(move || told.recv_timeout(Duration::from_secs(30)));
        let other = async { tell.send("others went on").unwrap() };
        let (answer, ()) = tokio::join!(read, other);
        assert_eq!(answer.unwrap(), Ok("others went on"));
    }
}
