//! One blob in one file: content in blocks, each with its own checksum.

use std::io::ErrorKind;
use std::path::Path;

use bytes::{Buf, BufMut};
use raft_core::{BlobId, Digest};

use crate::io::{Disk, DiskFile, OpenMode};
use crate::log::record::{to_u32, to_u64, to_usize};

/// Content bytes of a block; the last one may have fewer.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// Before the content of a block: CRC-32C (4), length (4).
const BLOCK_HEADER_BYTES: usize = 8;
/// Before the first block: magic, version, block size, digest, length, CRC.
const HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"RRAFTBLB";

/// The file that holds a whole blob.
pub(super) fn name(id: BlobId) -> String {
    format!("blob-{}-{:x}", id.digest, id.len)
}

/// The file that holds the beginning of a blob.
pub(super) fn partial_name(id: BlobId) -> String {
    format!("{}.part", name(id))
}

/// Where a blob goes that turned out to be damaged.
pub(super) fn damaged_name(id: BlobId) -> String {
    format!("{}.damaged", name(id))
}

/// What a file beside the whole blobs is: the beginning of a blob, or damaged.
pub(super) fn is_scrap(name: &str) -> bool {
    name.starts_with("blob-") && (name.ends_with(".part") || name.ends_with(".damaged"))
}

/// The blob that a file name names.
pub(in crate::log) fn parse_name(name: &str) -> Option<BlobId> {
    let (digest, len) = name.strip_prefix("blob-")?.split_once('-')?;
    let digest = u128::from_str_radix(digest, 16).ok()?;
    Some(BlobId { digest: Digest(digest), len: u64::from_str_radix(len, 16).ok()? })
}

fn header(id: BlobId) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.put_slice(&MAGIC);
    out.put_u32_le(1);
    out.put_u32_le(to_u32(BLOCK_BYTES));
    out.put_u128_le(id.digest.0);
    out.put_u64_le(id.len);
    out.resize(60, 0);
    out.put_u32_le(crc32c::crc32c(&out));
    out
}

/// Where the block that begins at content byte `offset` stands in the file.
pub(super) fn block_offset(offset: u64) -> u64 {
    let blocks = offset / to_u64(BLOCK_BYTES);
    HEADER_BYTES + offset + blocks * to_u64(BLOCK_HEADER_BYTES)
}

/// Covers which blob and which block it is, so that none passes for another.
fn checksum(id: BlobId, offset: u64, content: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(&id.digest.0.to_le_bytes());
    let checksum = crc32c::crc32c_append(checksum, &offset.to_le_bytes());
    crc32c::crc32c_append(checksum, content)
}

/// Blocks for `content`, which begins at content byte `offset`, a multiple of the block size.
pub(super) fn encode_blocks(id: BlobId, offset: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 4096 + 64);
    let mut offset = offset;
    for block in content.chunks(BLOCK_BYTES) {
        out.put_u32_le(checksum(id, offset, block));
        out.put_u32_le(to_u32(block.len()));
        out.put_slice(block);
        offset += to_u64(block.len());
    }
    out
}

/// Creates a blob's file with its header.
pub(super) fn create<D: Disk>(disk: &D, path: &Path, id: BlobId) -> std::io::Result<D::File> {
    let file = disk.open(path, OpenMode::CreateNew)?;
    file.write_at(0, &header(id))?;
    Ok(file)
}

/// Opens the file of which the beginning `content` is there, and writes that once more, to be synced: what can be read
/// may be on no disk, after a sync that failed.
pub(super) fn reopen<D: Disk>(
    disk: &D,
    path: &Path,
    id: BlobId,
    content: &[u8],
) -> std::io::Result<D::File> {
    let file = disk.open(path, OpenMode::ReadWrite)?;
    file.write_at(0, &header(id))?;
    write(&file, id, 0, content)?;
    Ok(file)
}

/// Writes content at `offset`, a multiple of the block size.
pub(super) fn write<F: DiskFile>(
    file: &F,
    id: BlobId,
    offset: u64,
    content: &[u8],
) -> std::io::Result<()> {
    file.write_at(block_offset(offset), &encode_blocks(id, offset, content))
}

/// How far a reader goes that reads a blob's file from `offset` on in parts: whole blocks, a hundred KiB or two.
pub(in crate::log) fn blob_step_end(offset: u64) -> u64 {
    let two_blocks = 2 * to_u64(BLOCK_HEADER_BYTES + BLOCK_BYTES);
    offset.max(HEADER_BYTES) + two_blocks
}

/// Where in the file of a blob, of `len` bytes, the first block begins that is not intact. `bytes` is the part from
/// `offset` on, up to [`blob_step_end`].
pub(in crate::log) fn first_bad_block(
    id: BlobId,
    (offset, len): (u64, u64),
    bytes: &[u8],
) -> Option<u64> {
    let mut input = bytes;
    let mut at = offset;
    if offset == 0 {
        if block_offset(id.len) + tail_header_bytes(id) != len
            || bytes.get(..to_usize(HEADER_BYTES)) != Some(&header(id)[..])
        {
            return Some(0);
        }
        input.advance(to_usize(HEADER_BYTES));
        at = HEADER_BYTES;
    }
    let block_bytes = to_u64(BLOCK_HEADER_BYTES + BLOCK_BYTES);
    while !input.is_empty() {
        let content = (at - HEADER_BYTES) / block_bytes * to_u64(BLOCK_BYTES);
        let wanted = to_usize(id.len.saturating_sub(content).min(to_u64(BLOCK_BYTES)));
        if input.len() < BLOCK_HEADER_BYTES + wanted {
            return Some(at);
        }
        let (found, told) = (input.get_u32_le(), to_usize(u64::from(input.get_u32_le())));
        if told != wanted || found != checksum(id, content, &input[..wanted]) {
            return Some(at);
        }
        input.advance(wanted);
        at += to_u64(BLOCK_HEADER_BYTES + wanted);
    }
    None
}

/// [`block_offset`] counts the headers of whole blocks only: the last one, when it has fewer bytes, has one as well.
fn tail_header_bytes(id: BlobId) -> u64 {
    let partial = !id.len.is_multiple_of(to_u64(BLOCK_BYTES));
    if partial { to_u64(BLOCK_HEADER_BYTES) } else { 0 }
}

/// Reads the intact blocks from the beginning: all of the content, or as much as there is.
pub(super) fn read_prefix<D: Disk>(disk: &D, path: &Path, id: BlobId) -> std::io::Result<Vec<u8>> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; to_usize(file.len()?)];
    file.read_at(0, &mut bytes)?;
    let mut content = Vec::with_capacity(to_usize(id.len).min(bytes.len()));
    if bytes.get(..to_usize(HEADER_BYTES)) != Some(&header(id)[..]) {
        return Ok(content);
    }
    let mut input = &bytes[to_usize(HEADER_BYTES)..];
    while to_u64(content.len()) < id.len && input.len() >= BLOCK_HEADER_BYTES {
        let found = input.get_u32_le();
        let len = to_usize(u64::from(input.get_u32_le()));
        let offset = to_u64(content.len());
        let whole = to_u64(len) == (id.len - offset).min(to_u64(BLOCK_BYTES));
        let Some(block) = input.get(..len) else { break };
        if !whole || found != checksum(id, offset, block) {
            break;
        }
        content.extend_from_slice(block);
        input.advance(len);
    }
    Ok(content)
}
