//! An open loop's clock: says when requests are due.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::board::Board;

/// Due times, each sent when it comes. A thread of its own: a runtime's timers are good for milliseconds only.
///
/// Of `threads` that share the rate, each takes every `threads`th request.
pub(super) fn pace(
    board: Arc<Board>,
    rate: f64,
    (number, threads): (usize, usize),
) -> std::io::Result<UnboundedReceiver<u64>> {
    let (due_sender, due) = unbounded_channel();
    std::thread::Builder::new().name(format!("pace {number}")).spawn(move || {
        for turn in 0u32.. {
            let time = due_time(turn, (number, threads), rate);
            if !board.claim(time) {
                return;
            }
            let Some(instant) = board.instant(time) else { return };
            std::thread::sleep(instant.saturating_duration_since(Instant::now()));
            if due_sender.send(time).is_err() {
                return;
            }
        }
    })?;
    Ok(due)
}

/// When a thread's request of this turn is due, in nanoseconds.
fn due_time(turn: u32, (number, threads): (usize, usize), rate: f64) -> u64 {
    let small = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let request = f64::from(turn) * small(threads) + small(number);
    let time = std::time::Duration::try_from_secs_f64(request / rate).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_rate_evenly() {
        let mut times: Vec<u64> = Vec::new();
        for number in 0..3 {
            times.extend((0..10).map(|turn| due_time(turn, (number, 3), 1000.0)));
        }
        times.sort_unstable();
        let expected: Vec<u64> = (0..30).map(|request| request * 1_000_000).collect();
        assert_eq!(times, expected);
    }
}
