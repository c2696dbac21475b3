//! One TCP connection: its options, whole frames off it, whole buffers onto it. Knows no protocol.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::sockopt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::codec::{self, FRAME_BYTES_MAX, FrameError};
use super::secure::{ReadHalf, WriteHalf};

/// Silence after which the kernel asks whether the other end is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Time between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Unanswered questions after which the connection is broken.
const KEEPALIVE_PROBES: u32 = 5;
/// Unacknowledged data after which the connection is broken.
const USER_TIMEOUT_MILLIS: u32 = 10_000;
/// Bytes asked for at a time. A longer frame's buffer grows with what has really arrived.
const READ_BYTES: usize = 64 << 10;
/// Frames shorter than this are copied out of the buffer they arrived in.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Sets the options that every connection has.
pub(super) fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MILLIS)?;
    Ok(())
}

/// Whether a connection has met itself: TCP allows it when a dialler's ephemeral port happens to be the one it
/// dials (decision 24).
pub(super) fn is_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(local), Ok(peer)) if local == peer)
}

/// Fresh random bytes from the system.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes)
}

/// Why no frame came.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection broke; also its end within a frame.
    Broken(io::Error),
    /// The other end closed the connection between two frames.
    Closed,
    /// What came is no frame.
    Frame(FrameError),
}

/// Frames off a connection.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: ReadHalf,
    buffer: BytesMut,
}

impl FrameReader {
    /// Begins with what the handshake has read already.
    pub(super) const fn new(stream: ReadHalf, buffer: BytesMut) -> Self {
        Self { stream, buffer }
    }

    /// The next whole frame. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Result<Bytes, ReadError> {
        loop {
            let bytes = match codec::frame_len(&self.buffer, FRAME_BYTES_MAX) {
                Ok(Some(bytes)) if bytes <= self.buffer.len() => {
                    return Ok(take_frame(&mut self.buffer, bytes));
                }
                Ok(Some(bytes)) => bytes - self.buffer.len(),
                Ok(None) => READ_BYTES,
                Err(error) => return Err(ReadError::Frame(error)),
            };
            // A length alone reserves little: only a peer that sends much gets much.
            self.buffer.reserve(bytes.clamp(READ_BYTES, READ_BYTES.max(self.buffer.len())));
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Err(ReadError::Closed),
                Ok(0) => return Err(ReadError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(ReadError::Broken(error)),
            }
        }
    }
}

/// Takes the first `bytes` off the buffer. A frame keeps alive what it lies in, for as long as one of its entries
/// is cached: a small one is copied, so that it does not keep a whole read buffer.
fn take_frame(buffer: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes >= COPIED_BYTES_MAX {
        return buffer.split_to(bytes).freeze();
    }
    let frame = Bytes::copy_from_slice(&buffer[..bytes]);
    buffer.advance(bytes);
    frame
}

/// Buffers onto a connection. The caller fills [`buffer`](Self::buffer) when it is empty.
#[derive(Debug)]
pub(super) struct Writer {
    stream: Rc<WriteHalf>,
    pub(super) buffer: BytesMut,
    written: usize,
}

impl Writer {
    pub(super) fn new(stream: Rc<WriteHalf>) -> Self {
        Self { stream, buffer: BytesMut::new(), written: 0 }
    }

    /// Writes what is left of the buffer and empties it. Cancelling keeps what is left.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            match self.stream.write(&self.buffer[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.written += written,
            }
        }
        self.stream.flush().await?;
        self.buffer.clear();
        self.written = 0;
        Ok(())
    }

    /// Ends the connection in this direction.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of a small frame is the frame: the buffer it came in is used again for the next one.
    #[test]
    fn a_small_frame_does_not_keep_the_read_buffer() {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let place = buffer.as_ptr();
        let mut kept = Vec::new();
        for _ in 0..1000 {
            buffer.reserve(READ_BYTES);
            assert_eq!(buffer.as_ptr(), place);
            buffer.extend_from_slice(&[7; 200]);
            kept.push(take_frame(&mut buffer, 200));
        }
        assert!(kept.iter().all(|frame| frame[..] == [7; 200]));
    }

    #[test]
    fn a_large_frame_is_not_copied() {
        let mut buffer = BytesMut::from(&[7; COPIED_BYTES_MAX + 1][..]);
        let place = buffer.as_ptr();
        let frame = take_frame(&mut buffer, COPIED_BYTES_MAX);
        assert_eq!(frame.as_ptr(), place);
        assert_eq!(buffer.len(), 1);
    }
}
