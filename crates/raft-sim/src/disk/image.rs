//! The content of a file, in sectors that are shared until somebody writes to one: a copy of a whole disk, which every
//! look at what a power loss would leave needs, copies no bytes.

use std::ops::Range;
use std::sync::Arc;

use super::SECTOR;

/// `None`: zeros, never written.
type Sector = Option<Arc<[u8; SECTOR]>>;

/// Bytes from 0 to `len`. A clone shares them.
#[derive(Clone, Default)]
pub(super) struct Image {
    sectors: Vec<Sector>,
    len: usize,
}

/// Part of an image as it was at some moment.
#[derive(Clone)]
pub(super) struct Piece {
    /// Whole sectors, of which the first one holds `offset`.
    sectors: Vec<Sector>,
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl Image {
    pub(super) fn zeros(len: usize) -> Self {
        let mut image = Self::default();
        image.resize(len);
        image
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Cuts, or adds zeros.
    pub(super) fn resize(&mut self, len: usize) {
        self.sectors.resize(len.div_ceil(SECTOR), None);
        if len < self.len
            && !len.is_multiple_of(SECTOR)
            && let Some(Some(last)) = self.sectors.last_mut()
        {
            Arc::make_mut(last)[len % SECTOR..].fill(0);
        }
        self.len = len;
    }

    /// Writes, also beyond the end.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        if offset + bytes.len() > self.len {
            self.resize(offset + bytes.len());
        }
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let within = at % SECTOR;
            let (now, later) = rest.split_at(rest.len().min(SECTOR - within));
            let sector = &mut self.sectors[at / SECTOR];
            match <[u8; SECTOR]>::try_from(now) {
                Ok(whole) => *sector = Some(Arc::new(whole)),
                Err(_) => {
                    let sector = sector.get_or_insert_with(|| Arc::new([0; SECTOR]));
                    Arc::make_mut(sector)[within..within + now.len()].copy_from_slice(now);
                }
            }
            at += now.len();
            rest = later;
        }
    }

    /// Fills the buffer with what stands from `offset` on; false when the image ends before.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> bool {
        let inside = offset.checked_add(buffer.len()).is_some_and(|end| end <= self.len);
        if inside {
            copy(&self.sectors[offset / SECTOR..], offset % SECTOR, buffer);
        }
        inside
    }

    /// The bytes of a range; zeros beyond the end.
    pub(super) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let inside = range.end.min(self.len).saturating_sub(range.start);
        self.read(range.start, &mut bytes[..inside]);
        bytes
    }

    /// Whether exactly this stands at `offset`.
    pub(super) fn holds(&self, offset: usize, bytes: &[u8]) -> bool {
        offset + bytes.len() <= self.len && self.bytes(offset..offset + bytes.len()) == bytes
    }

    /// Flips the bits of `mask` in one byte, if there is such a byte.
    pub(super) fn flip(&mut self, offset: usize, mask: u8) {
        let mut byte = [0];
        if self.read(offset, &mut byte) {
            self.put(offset, &[byte[0] ^ mask]);
        }
    }

    /// Where the last byte ends that is not zero.
    pub(super) fn written(&self) -> usize {
        let last = self.sectors.iter().enumerate().rev().find_map(|(nth, sector)| {
            let last = sector.as_ref()?.iter().rposition(|byte| *byte != 0)?;
            Some(nth * SECTOR + last + 1)
        });
        last.unwrap_or(0)
    }

    /// Part of it as it is now.
    pub(super) fn piece(&self, offset: usize, len: usize) -> Piece {
        let sectors = offset / SECTOR..(offset + len).div_ceil(SECTOR);
        let sectors = self.sectors.get(sectors).unwrap_or_default().to_vec();
        Piece { sectors, offset, len }
    }

    /// Takes over the sectors of `piece`, whole, also beyond the end.
    pub(super) fn share(&mut self, piece: Piece) {
        self.resize(self.len.max(piece.offset + piece.len));
        let first = piece.offset / SECTOR;
        for (nth, sector) in piece.sectors.into_iter().enumerate() {
            self.sectors[first + nth] = sector;
        }
    }
}

impl Piece {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        copy(&self.sectors, self.offset % SECTOR, &mut bytes);
        bytes
    }
}

/// Fills the buffer with what stands `within` bytes behind the beginning of these sectors.
fn copy(sectors: &[Sector], mut within: usize, mut buffer: &mut [u8]) {
    for sector in sectors {
        let (now, later) = buffer.split_at_mut(buffer.len().min(SECTOR - within));
        match sector {
            Some(sector) => now.copy_from_slice(&sector[within..within + now.len()]),
            None => now.fill(0),
        }
        (buffer, within) = (later, 0);
        if buffer.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_core::Rng;

    use super::*;
    use crate::disk::below;

    /// Every operation does what it does to plain bytes, and copies never change.
    #[test]
    fn an_image_is_what_plain_bytes_are() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut image, mut plain) = (Image::default(), Vec::new());
            let mut copies = Vec::new();
            for step in 0..60u8 {
                let (at, len) = (below(&mut rng, 3000), 1 + below(&mut rng, 1500));
                match rng.below(6) {
                    0 => {
                        image.resize(at);
                        plain.resize(at, 0);
                    }
                    1 => copies.push((image.clone(), plain.clone())),
                    2 => {
                        image.flip(at, step);
                        if let Some(byte) = plain.get_mut(at) {
                            *byte ^= step;
                        }
                    }
                    3 => {
                        // From one that shares nothing: as when a file becomes durable.
                        let mut other = image.clone();
                        other.put(at, &vec![step; len]);
                        let piece = other.piece(at, len);
                        assert_eq!(piece.bytes(), vec![step; len]);
                        image.share(piece);
                        plain.resize(plain.len().max(at + len), 0);
                        plain[at..at + len].fill(step);
                    }
                    _ => {
                        // Whole sectors now and then.
                        let at = if rng.chance(1, 2) { at / SECTOR * SECTOR } else { at };
                        image.put(at, &vec![step; len]);
                        plain.resize(plain.len().max(at + len), 0);
                        plain[at..at + len].fill(step);
                    }
                }
                let end = plain.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                assert_eq!((image.len(), image.written()), (plain.len(), end));
                assert_eq!(image.bytes(0..plain.len()), plain);
                assert!(image.holds(0, &plain) && !image.read(plain.len(), &mut [0]));
            }
            for (image, plain) in copies {
                assert_eq!(image.bytes(0..plain.len()), plain);
            }
        }
    }
}
