//! How much of what is no request, and still makes work, is borne: connections, and frames of HTTP/2.
//!
//! Pings and settings are each answered, a reset takes back what was begun for a request. A client that behaves sends few:
//! a ping for a round trip at most, a reset for a request that it cancels. Whoever sends more than that for long floods,
//! and its connection ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authority::{FRAME_HEAD_BYTES, PREFACE_BYTES, frame_head};

/// Resets that may come at once: more than a connection has requests that its client can cancel together.
const RESETS_MAX: u32 = 5000;
/// Other frames that may come at once.
const FRAMES_MAX: u32 = 500;
/// The time after which one frame more may come: 10,000 a second.
const FRAME_INTERVAL: Duration = Duration::from_micros(100);
/// Of the kinds below, those of which one frame in so many counts: whoever reads much grants windows often.
const WINDOW_UPDATES: u32 = 20;

const KIND_DATA: u8 = 0;
const KIND_PRIORITY: u8 = 2;
const KIND_RESET: u8 = 3;
const KIND_SETTINGS: u8 = 4;
const KIND_PING: u8 = 6;
const KIND_WINDOW_UPDATE: u8 = 8;

/// An HTTP/2 client's bytes, from the preface on, of which the frames are counted.
#[derive(Debug)]
pub(super) struct Metered<S> {
    inner: S,
    budget: Budget,
}

impl<S> Metered<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, budget: Budget::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let known = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if self.budget.spend(&buffer.filled()[known..], Instant::now) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::Error::other("too many frames that are no requests")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Finds the frames in a stream of bytes, and counts.
#[derive(Debug)]
struct Budget {
    /// The head of a frame, as far as it has come.
    head: [u8; FRAME_HEAD_BYTES],
    head_len: usize,
    /// Bytes that belong to the last frame, or to the preface.
    passing: usize,
    resets: Tokens,
    frames: Tokens,
    window_updates: u32,
}

impl Budget {
    const fn new() -> Self {
        Self {
            head: [0; FRAME_HEAD_BYTES],
            head_len: 0,
            passing: PREFACE_BYTES,
            resets: Tokens::new(RESETS_MAX, FRAME_INTERVAL),
            frames: Tokens::new(FRAMES_MAX, FRAME_INTERVAL),
            window_updates: 0,
        }
    }

    /// Looks at the bytes that come next; false when they are too much.
    fn spend(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> bool {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let passing = self.passing.min(bytes.len());
                self.passing -= passing;
                bytes = &bytes[passing..];
                continue;
            }
            let part = (FRAME_HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + part].copy_from_slice(&bytes[..part]);
            self.head_len += part;
            bytes = &bytes[part..];
            if self.head_len < FRAME_HEAD_BYTES {
                break;
            }
            self.head_len = 0;
            let Some((length, kind)) = frame_head(&self.head) else { break };
            self.passing = length;
            if !self.bears(length, kind, &now) {
                return false;
            }
        }
        true
    }

    /// Whether one more such frame is not too much.
    fn bears(&mut self, length: usize, kind: u8, now: impl Fn() -> Instant) -> bool {
        match kind {
            KIND_RESET => self.resets.take(now),
            KIND_PRIORITY | KIND_SETTINGS | KIND_PING => self.frames.take(now),
            KIND_DATA if length == 0 => self.frames.take(now),
            KIND_WINDOW_UPDATE => {
                self.window_updates = (self.window_updates + 1) % WINDOW_UPDATES;
                self.window_updates > 0 || self.frames.take(now)
            }
            _ => true,
        }
    }
}

/// So many at once, and so many more as time passes.
#[derive(Debug)]
pub(super) struct Tokens {
    left: u32,
    max: u32,
    /// The time for one more.
    interval: Duration,
    /// Up to when time has been turned into tokens; `None`: none has been taken.
    since: Option<Instant>,
}

impl Tokens {
    pub(super) const fn new(max: u32, interval: Duration) -> Self {
        Self { left: max, max, interval, since: None }
    }

    /// Takes one; false when there is none.
    pub(super) fn take(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.since.is_none() || self.left == 0 {
            // Looking at the clock costs more than counting.
            let now = now();
            let passed = self.since.map_or(Duration::ZERO, |since| now - since);
            let more = passed.as_nanos() / self.interval.as_nanos();
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(self.max);
            self.since = Some(now);
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn begun() -> Budget {
        let mut budget = Budget::new();
        assert!(budget.spend(&[b'P'; PREFACE_BYTES], Instant::now));
        budget
    }

    /// How many frames pass until it is too much, of at most `max`, when so much time passes between two.
    fn passing(frame: &[u8], interval: Duration, max: u32) -> u32 {
        let mut budget = begun();
        let start = Instant::now();
        (0..max).find(|n| !budget.spend(frame, || start + interval * *n)).unwrap_or(max)
    }

    #[test]
    fn floods_end_and_what_clients_do_does_not() {
        let at_once = Duration::ZERO;
        for (flood, max) in [
            (frame(KIND_PING, &[7; 8]), FRAMES_MAX),
            (frame(KIND_SETTINGS, &[]), FRAMES_MAX),
            (frame(KIND_RESET, &[0; 4]), RESETS_MAX),
            (frame(KIND_PRIORITY, &[0; 5]), FRAMES_MAX),
            (frame(KIND_DATA, &[]), FRAMES_MAX),
        ] {
            assert_eq!(passing(&flood, at_once, 1 << 20), max);
            assert_eq!(passing(&flood, FRAME_INTERVAL, 1 << 17), 1 << 17, "10,000 a second pass");
            let faster = passing(&flood, FRAME_INTERVAL / 2, 1 << 20);
            assert!((max..=2 * max).contains(&faster), "{faster}");
        }
        let windows = passing(&frame(KIND_WINDOW_UPDATE, &[0; 4]), at_once, 1 << 20);
        assert_eq!(windows, FRAMES_MAX * WINDOW_UPDATES + WINDOW_UPDATES - 1);
        // Requests and what belongs to them are no flood, however many there are.
        for request in [frame(1, &[0x83; 40]), frame(KIND_DATA, &[1]), frame(9, &[0; 10])] {
            assert_eq!(passing(&request, at_once, 1 << 16), 1 << 16);
        }
    }

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        // What looks like the head of a ping within a request is none.
        let decoy = frame(KIND_DATA, &frame(KIND_PING, &[0; 8]).repeat(20));
        for _ in 0..FRAMES_MAX {
            bytes.extend(&decoy);
            bytes.extend(frame(KIND_PING, &[0; 8]));
        }
        for piece in [1, 2, 8, 9, 10, 4096, bytes.len()] {
            let mut budget = Budget::new();
            let now = Instant::now();
            assert!(bytes.chunks(piece).all(|piece| budget.spend(piece, || now)), "{piece}");
            assert!(!budget.spend(&frame(KIND_PING, &[0; 8]), || now));
        }
    }
}
