//! One stream of lines from many members, each behind its member's name.
//!
//! A terminal that is paused must not stop a member: lines that find the queue full are dropped and counted.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Lines that may wait for a slow terminal.
const QUEUE_LINES_MAX: usize = 4096;
/// Bytes of one line; a longer one is broken.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Where lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Output {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    color: bool,
}

/// The thread that prints; ends when the last [`Output`] is dropped.
#[derive(Debug)]
pub(super) struct Printer(JoinHandle<()>);

impl Printer {
    /// Waits until everything queued is printed. Every [`Output`] must be gone.
    pub(super) fn finish(self) {
        if self.0.join().is_err() {
            tracing::error!("the printing thread panicked");
        }
    }
}

/// Starts the thread that prints to standard error.
pub(super) fn start(color: bool) -> io::Result<(Output, Printer)> {
    let (lines, queue) = sync_channel(QUEUE_LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&dropped);
    let thread = std::thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || print(&queue, &counter))?;
    Ok((Output { lines, dropped, color }, Printer(thread)))
}

fn print(queue: &Receiver<Vec<u8>>, dropped: &AtomicU64) {
    for line in queue {
        let lost = dropped.swap(0, Ordering::Relaxed);
        let mut out = io::stderr().lock();
        if lost > 0 {
            // Nowhere to say that standard error is closed.
            writeln!(out, "… {lost} lines dropped: this terminal is too slow").ok();
        }
        out.write_all(&line).ok();
    }
}

impl Output {
    /// Queues one line of member `index`.
    fn line(&self, index: usize, content: &[u8]) {
        /// Colours that are readable on light and dark.
        const COLORS: [u8; 6] = [36, 33, 35, 32, 34, 31];
        let mut line = Vec::with_capacity(content.len() + 20);
        if self.color {
            let color = COLORS[index % COLORS.len()];
            line.extend_from_slice(format!("\x1b[{color}mn{index} |\x1b[0m ").as_bytes());
        } else {
            line.extend_from_slice(format!("n{index} | ").as_bytes());
        }
        line.extend_from_slice(content);
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues a line of the supervisor about member `index`.
    pub(super) fn about(&self, index: usize, text: &str) {
        self.line(index, format!("── {text}").as_bytes());
    }

    /// Copies what member `index` prints until it closes the pipe.
    pub(super) async fn copy(self, index: usize, pipe: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
                Ok(0) => return,
                Ok(_) => self.line(index, line.strip_suffix(b"\n").unwrap_or(&line)),
                Err(error) => {
                    self.about(index, &format!("its output cannot be read: {error}"));
                    return;
                }
            }
        }
    }
}
