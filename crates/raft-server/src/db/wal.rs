//! etcd's log, as far as it says whether its database has everything.
//!
//! ```text
//! frame    length u64 little-endian (the highest byte: 0x80 and how many bytes of padding follow), record, padding
//! record   walpb.Record: 1 type (2: an entry), 2 checksum, 3 data
//! entry    raftpb.Entry: 1 kind (0: a request), 2 term, 3 index, 4 etcdserverpb.InternalRaftRequest
//! ```

use std::fs;
use std::io;
use std::path::Path;

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The field of a request of the API's version 2; and what follows its number in one that is nothing else, the method. Both
/// concern the members, and another store.
const VERSION_2: u32 = 2;
/// The type of a record that holds an entry.
const ENTRY: u64 = 2;
/// The kind of an entry that holds a request.
const REQUEST: u64 = 0;
/// Fields of a request that change what is stored: puts, deletes, transactions, compactions, leases, alarms; and those of
/// users and roles. What is beyond them concerns the members.
const CHANGES: [std::ops::RangeInclusive<u32>; 2] = [4..=11, 1000..=1299];

/// The index of the last entry after `index` that changes what is stored; `None` when there is none.
pub(super) fn changes_after(folder: &Path, index: u64) -> io::Result<Option<u64>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            files.push(path);
        }
    }
    files.sort();
    let mut found: Vec<u64> = Vec::new();
    for file in files {
        for (at, request) in entries(Bytes::from(fs::read(file)?)) {
            if at <= index {
                continue;
            }
            // An entry replaces all from its index on.
            found.truncate(found.partition_point(|known| *known < at));
            if changes(request) {
                found.push(at);
            }
        }
    }
    Ok(found.pop())
}

/// The requests in a file, with their indexes. What comes behind the end of what was written is no frame.
fn entries(mut file: Bytes) -> Vec<(u64, Bytes)> {
    let mut found = Vec::new();
    while file.len() >= 8 {
        let head = file.get_u64_le();
        let length = usize::try_from(head & ((1 << 56) - 1)).unwrap_or(usize::MAX);
        let padding =
            if head >> 63 == 1 { usize::from((head >> 56).to_le_bytes()[0] & 7) } else { 0 };
        let Some(framed) = length.checked_add(padding).filter(|it| length > 0 && *it <= file.len())
        else {
            break;
        };
        let record = file.split_to(length);
        file.advance(framed - length);
        if number(&record, 1) != Some(ENTRY) {
            continue;
        }
        let Some(entry) = bytes(&record, 3) else { continue };
        if number(&entry, 1).unwrap_or(REQUEST) == REQUEST {
            let index = number(&entry, 3).unwrap_or(0);
            found.push((index, bytes(&entry, 4).unwrap_or_default()));
        }
    }
    found
}

/// Whether a request changes what is stored.
fn changes(request: Bytes) -> bool {
    let (mut changes, mut is_version_2) = (false, false);
    let walked = each_field(&request, |tag, _, _| {
        is_version_2 |= tag == VERSION_2;
        changes |= CHANGES.iter().any(|range| range.contains(&tag));
    });
    // What is not understood may change anything.
    walked.is_none() || (changes && !is_version_2)
}

fn number(message: &Bytes, wanted: u32) -> Option<u64> {
    let mut found = None;
    each_field(message, |tag, number, _| {
        if tag == wanted {
            found = number;
        }
    })?;
    found
}

fn bytes(message: &Bytes, wanted: u32) -> Option<Bytes> {
    let mut found = None;
    each_field(message, |tag, _, bytes| {
        if tag == wanted {
            found = bytes;
        }
    })?;
    found
}

/// Goes over the fields of a message; `None` when it is none.
fn each_field(
    message: &Bytes,
    mut visit: impl FnMut(u32, Option<u64>, Option<Bytes>),
) -> Option<()> {
    let mut rest = message.clone();
    while rest.has_remaining() {
        let (tag, kind) = decode_key(&mut rest).ok()?;
        match kind {
            WireType::Varint => visit(tag, Some(decode_varint(&mut rest).ok()?), None),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                if length > rest.len() {
                    return None;
                }
                visit(tag, None, Some(rest.split_to(length)));
            }
            WireType::SixtyFourBit
            | WireType::ThirtyTwoBit
            | WireType::StartGroup
            | WireType::EndGroup => {
                skip_field(kind, tag, &mut rest, DecodeContext::default()).ok()?
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with an entry whose request has one field.
    fn frame(index: u8, field: &[u8]) -> Vec<u8> {
        let request = [field, &[2, 0x08, 1]].concat();
        let entry =
            [&[0x10, 1, 0x18, index, 0x22, u8::try_from(request.len()).unwrap()], &request[..]]
                .concat();
        let record =
            [&[0x08, 2, 0x10, 9, 0x1a, u8::try_from(entry.len()).unwrap()], &entry[..]].concat();
        let padding = (8 - record.len() % 8) % 8;
        let mut head = u64::try_from(record.len()).unwrap();
        if padding > 0 {
            head |= (0x80 | u64::try_from(padding).unwrap()) << 56;
        }
        [&head.to_le_bytes()[..], &record, &vec![0; padding]].concat()
    }

    const PUT: &[u8] = &[0x22];
    const RANGE: &[u8] = &[0x1a];
    const ROLE_ADD: &[u8] = &[0x82, 0x4b];

    #[test]
    fn only_changes_that_the_database_lacks_count() {
        let folder = tempfile::tempdir().unwrap();
        let log =
            [frame(7, PUT), frame(8, RANGE), frame(9, ROLE_ADD), frame(10, RANGE), vec![0; 99]];
        fs::write(folder.path().join("0-0.wal"), log.concat()).unwrap();
        fs::write(folder.path().join("0.tmp"), frame(90, PUT)).unwrap();
        let after = |index| changes_after(folder.path(), index).unwrap();
        assert_eq!([after(6), after(8), after(9)], [Some(9), Some(9), None]);
        // A second file writes over what the first one had.
        fs::write(folder.path().join("1-8.wal"), frame(8, RANGE)).unwrap();
        assert_eq!(after(7), None);
        assert_eq!(after(6), Some(7));
    }

    #[test]
    fn requests_of_version_2_are_none_of_its_changes() {
        // 1 id, 2 method, 3 path, 4 value: the numbers of other fields in other requests.
        let put = [&[0x08, 1, 0x12, 3][..], b"PUT", &[0x1a, 2], b"/0", &[0x22, 1], b"x"].concat();
        assert!(!changes(Bytes::from(put)));
        assert!(changes(Bytes::from_static(&[0x08, 1, 0x22, 0])));
        assert!(changes(Bytes::from_static(&[0x22, 9])));
    }

    #[test]
    fn whatever_stands_in_a_log_reading_it_ends() {
        let whole = [frame(7, PUT), frame(8, ROLE_ADD)].concat();
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = whole.clone();
                file[at] = value;
                assert!(entries(Bytes::from(file)).len() <= 2);
            }
            assert!(entries(Bytes::copy_from_slice(&whole[..at])).len() <= 1);
        }
    }
}
