//! Clients that say a whole URL where the name of a host belongs.
//!
//! etcd's client 3.4 dials one member at a time for `endpoint status`, `defrag`, `snapshot save` and their like, and then sends
//! the endpoint as its operator wrote it, `http://10.0.0.1:2379`, as HTTP/2's `:authority`. Go's server takes what is no
//! authority; `hyper` and `h2` reset the stream. Nobody here reads that name, so it is replaced before they see it.
//!
//! HTTP/2 packs the heads of requests (HPACK, RFC 7541), and what either side remembers of them counts for all that
//! follow. A literal is replaced by one of the same kind and no longer: the other side's memory of it then ends no earlier
//! than the client's, and what the client refers to, counted from the newest, is the same on both sides.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What precedes the first frame (RFC 9113 §3.4).
pub(super) const PREFACE_BYTES: usize = 24;
/// A length of three bytes, a kind, flags, a stream (RFC 9113 §4.1).
pub(super) const FRAME_HEAD_BYTES: usize = 9;
/// The longest frame that a client may send; we allow no longer ones (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16 << 10;
const KIND_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x08;
const FLAG_PRIORITY: u8 = 0x20;
/// A stream and a weight.
const PRIORITY_BYTES: usize = 5;
/// `:authority` in the table that all share (RFC 7541, appendix A).
const AUTHORITY_INDEX: usize = 1;
/// Of a text: it is packed with Huffman's code.
const PACKED: u8 = 0x80;
/// Stands for whatever was said; no longer than any URL.
const REPLACEMENT: &[u8] = b"member";
/// Bytes read at once while we look.
const READ_BYTES: usize = 8 << 10;

/// An HTTP/2 client's bytes, from the preface on. Once the first request named a host, they pass untouched.
#[derive(Debug)]
pub(super) struct Mended<S> {
    inner: S,
    /// Whether the frames are still looked at.
    looking: bool,
    /// Whether a URL was found: then every request is looked at, since the client may forget what it has sent.
    found: bool,
    /// Read, and not yet known to be right: less than one frame.
    raw: BytesMut,
    /// Read and right.
    right: BytesMut,
    /// How much of what comes next needs no look.
    passing: usize,
}

impl<S> Mended<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            looking: true,
            found: false,
            raw: BytesMut::new(),
            right: BytesMut::new(),
            passing: PREFACE_BYTES,
        }
    }

    /// Moves on what is complete.
    fn look(&mut self) {
        loop {
            let passing = self.passing.min(self.raw.len());
            self.right.unsplit(self.raw.split_to(passing));
            self.passing -= passing;
            let Some((length, kind)) = frame_head(&self.raw).filter(|_| self.passing == 0) else {
                return;
            };
            let total = FRAME_HEAD_BYTES + length;
            if kind != KIND_HEADERS || length > FRAME_BYTES_MAX {
                self.passing = total;
                continue;
            }
            if self.raw.len() < total {
                return;
            }
            let frame = self.raw.split_to(total);
            match mended(&frame) {
                Some(mended) => {
                    self.found = true;
                    self.right.put_slice(&mended);
                }
                None => self.right.unsplit(frame),
            }
            if !self.found {
                self.stop_looking();
                return;
            }
        }
    }

    fn stop_looking(&mut self) {
        self.looking = false;
        self.right.unsplit(self.raw.split());
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.right.is_empty() {
            if !self.looking {
                return Pin::new(&mut self.inner).poll_read(context, buffer);
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The client has said its last, maybe in the middle of a frame.
                self.stop_looking();
                continue;
            }
            self.raw.put_slice(read.filled());
            self.look();
        }
        let count = self.right.len().min(buffer.remaining());
        buffer.put_slice(&self.right.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
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

/// The length of what follows the head of a frame, and its kind.
pub(super) fn frame_head(bytes: &[u8]) -> Option<(usize, u8)> {
    let [high, middle, low, kind, ..] = *bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
    let length = u32::from_be_bytes([0, high, middle, low]);
    Some((usize::try_from(length).ok()?, kind))
}

/// The same HEADERS frame with another authority, if that is a URL. What cannot be read is left to `h2` to refuse.
fn mended(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = *frame.get(4)?;
    let mut from = FRAME_HEAD_BYTES;
    let mut to = frame.len();
    if flags & FLAG_PADDED != 0 {
        to = to.checked_sub(usize::from(*frame.get(from)?))?;
        from += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        from += PRIORITY_BYTES;
    }
    let (value_from, value_to) = authority(frame.get(from..to)?)?;
    let (value_from, value_to) = (from + value_from, from + value_to);
    if !is_url(&frame[value_from..value_to]) {
        return None;
    }
    let mut mended = Vec::with_capacity(frame.len());
    mended.extend_from_slice(&frame[..value_from]);
    mended.push(u8::try_from(REPLACEMENT.len()).ok()?);
    mended.extend_from_slice(REPLACEMENT);
    mended.extend_from_slice(&frame[value_to..]);
    let length = u32::try_from(mended.len() - FRAME_HEAD_BYTES).ok()?;
    mended[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    Some(mended)
}

/// Where in the head of a request the text lies, its length included, that is said literally for `:authority`.
fn authority(block: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // RFC 7541 §6: the highest bits say what it is, the others begin a number.
        let (prefix_bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (name, after) = number(block, at, prefix_bits)?;
        at = after;
        if is_literal {
            if name == 0 {
                at = text_end(block, at)?;
            }
            let end = text_end(block, at)?;
            if name == AUTHORITY_INDEX {
                return Some((at, end));
            }
            at = end;
        }
    }
    None
}

/// A number of which the first byte holds `prefix_bits`, and where it ends (RFC 7541 §5.1).
fn number(block: &[u8], at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut at = at + 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where the text ends whose length begins at `at` (RFC 7541 §5.2).
fn text_end(block: &[u8], at: usize) -> Option<usize> {
    let (length, from) = number(block, at, 7)?;
    from.checked_add(length).filter(|end| *end <= block.len())
}

/// Whether a text, its length included, begins as a URL does.
fn is_url(text: &[u8]) -> bool {
    let Some((_, from)) = number(text, 0, 7) else { return false };
    let bytes = &text[from..];
    if text[0] & PACKED == 0 {
        return bytes.starts_with(b"http://") || bytes.starts_with(b"https://");
    }
    // The same, packed: 41 bits and 46, of which the last byte's others belong to what follows.
    let begins = |whole: &[u8; 5], mask: u8, rest: u8| {
        bytes.starts_with(whole) && bytes.get(5).is_some_and(|byte| byte & mask == rest)
    };
    begins(&[0x9d, 0x29, 0xae, 0xe3, 0x0c], 0x80, 0x00)
        || begins(&[0x9d, 0x29, 0xad, 0x17, 0x18], 0xfc, 0x60)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// `http://127.0.0.1:2379` and `https://www.example.com` (the latter from RFC 7541, C.5.1), packed.
    const HTTP: &[u8] = &[
        0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x04, 0x4e, 0x2e, 0x05, 0xc0, 0xb8, 0x17, 0x71, 0x17, 0x65,
        0xdf, 0xf,
    ];
    const HTTPS: &[u8] = &[
        0x9d, 0x29, 0xad, 0x17, 0x18, 0x63, 0xc7, 0x8f, 0x0b, 0x97, 0xc8, 0xe9, 0xae, 0x82, 0xae,
        0x43, 0xd3,
    ];
    /// `:method: POST`, `:scheme: http`, and a `:path` that is remembered.
    const BEFORE: &[u8] = &[0x83, 0x86, 0x45, 0x02, b'/', b'x'];
    /// `:path` again, from memory, and a header with a name of its own.
    const AFTER: &[u8] = &[0xbe, 0x40, 0x01, b'a', 0x81, 0xff];

    fn text(packed: bool, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        assert!(length < 127);
        [&[length | if packed { PACKED } else { 0 }], bytes].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn headers(value: &[u8]) -> Vec<u8> {
        frame(KIND_HEADERS, 4, &[BEFORE, &[0x41], value, AFTER].concat())
    }

    /// What comes out of `bytes` that come in pieces of `piece`, and whether they are still looked at.
    async fn through(bytes: &[u8], piece: usize) -> (Vec<u8>, bool) {
        let preface = vec![b'P'; PREFACE_BYTES];
        let all = [&preface, bytes].concat();
        let mut mended = Mended::new(Pieces(&all, piece));
        let mut out = Vec::new();
        mended.read_to_end(&mut out).await.unwrap();
        assert_eq!(out[..PREFACE_BYTES], preface);
        (out.split_off(PREFACE_BYTES), mended.found)
    }

    /// Bytes that arrive a few at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (piece, rest) = self.0.split_at(self.1.min(self.0.len()).min(buffer.remaining()));
            buffer.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_url_becomes_a_name_wherever_the_bytes_are_cut() {
        let settings = frame(4, 0, &[0; 12]);
        let data = frame(0, 1, &[7; 40]);
        for (packed, url) in
            [(true, HTTP), (true, HTTPS), (false, b"http://a".as_slice()), (false, b"https://a:1")]
        {
            let said =
                [&settings[..], &headers(&text(packed, url)), &data, &headers(&text(packed, url))];
            let wanted = headers(&text(false, REPLACEMENT));
            let wanted = [&settings[..], &wanted, &data, &wanted].concat();
            for piece in [1, 2, 7, 9, 64, 4096] {
                assert_eq!(through(&said.concat(), piece).await, (wanted.clone(), true), "{url:?}");
            }
        }
    }

    #[tokio::test]
    async fn everything_else_passes_as_it_is() {
        let name = headers(&text(false, b"127.0.0.1:2379"));
        let url = headers(&text(true, HTTP));
        let whole = [name.clone(), frame(0, 0, &[1; 5000])].concat();
        assert_eq!(through(&whole, 100).await, (whole.clone(), false));
        // Who began with a name keeps to it: nobody looks any more.
        let later = [name, url.clone()].concat();
        assert_eq!(through(&later, 100).await, (later.clone(), false));
        // The first request comes after what has no authority; half of a frame is the reader's to refuse.
        for bytes in [
            &url[..20],
            &[0xff; 300],
            &frame(KIND_HEADERS, 4, &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ] {
            assert_eq!(through(bytes, 3).await, (bytes.to_vec(), false));
        }
    }

    #[tokio::test]
    async fn padding_and_priority_are_stepped_over() {
        let block = |value: &[u8]| [BEFORE, &[0x11], value].concat();
        let said = |value: &[u8]| {
            let payload = [&[3][..], &[0; PRIORITY_BYTES], &block(value), &[0; 3]].concat();
            frame(KIND_HEADERS, 4 | FLAG_PADDED | FLAG_PRIORITY, &payload)
        };
        let (out, found) = through(&said(&text(true, HTTP)), 10).await;
        assert_eq!((out, found), (said(&text(false, REPLACEMENT)), true));
    }
}
