use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use raft_core::{ClusterId, Digest, EntryId, EntryKind, GroupId, LogIdentity, Message};

use super::samples::{LOG, SENDER, any_message, append_entries, handshake_frames, messages};
use crate::message::PeerMessage;
use crate::transport::codec::{
    Content, FRAME_BYTES_MAX, Frame, FrameError, HEADER_BYTES, Problem, Sender, decode, encode,
    encode_handshake, frame_len,
};

fn encoded(message: &PeerMessage) -> BytesMut {
    let mut out = BytesMut::new();
    encode(&mut out, SENDER, message).expect("the message fits");
    out
}

/// Gives a changed frame the checksum and length that it would have if it had been sent so.
fn reseal(mut frame: Vec<u8>) -> Bytes {
    let length = u32::try_from(frame.len()).expect("a short frame");
    frame[0..4].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[0..4]), &frame[8..]);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    Bytes::from(frame)
}

fn problem(frame: Vec<u8>) -> Problem {
    decode(&reseal(frame), Some(LOG)).expect_err("a bad frame").problem
}

/// Frames of version 1 are decoded for ever, and are what this version still sends. A file that is missing is
/// written when `WRITE_GOLDEN` is set; one that is there is never changed.
#[test]
fn golden_frames_of_version_1() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/frames/v1");
    let handshake = handshake_frames().into_iter().map(|(name, content)| {
        let mut out = BytesMut::new();
        encode_handshake(&mut out, SENDER, &content).expect("the frame fits");
        (name, out, Content::Handshake(content))
    });
    let message = messages()
        .into_iter()
        .map(|(name, message)| (name, encoded(&message), Content::Message(message)));
    let all: Vec<_> = handshake.chain(message).collect();
    for (name, frame, content) in &all {
        let path = folder.join(format!("{name}.frame"));
        if !path.exists() && std::env::var_os("WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(&folder).expect("the folder can be made");
            std::fs::write(&path, frame).expect("the file can be written");
        }
        let golden = Bytes::from(std::fs::read(&path).expect("a golden file for every message"));
        let decoded = decode(&golden, Some(LOG)).expect("a golden frame");
        assert_eq!(decoded, Frame { sender: SENDER, content: content.clone() }, "{name}");
        assert_eq!(golden, *frame, "{name}");
    }
    let files = std::fs::read_dir(&folder).expect("the golden files").count();
    assert_eq!(files, all.len(), "a golden file without a sample");
}

#[test]
fn payloads_are_slices_of_the_frame() {
    let payload = Bytes::from(vec![7; 1000]);
    let entries = [(1, EntryKind::Command, payload)];
    let message = PeerMessage::Raft(append_entries(1, EntryId::ZERO, Digest(0), &entries, 0));
    let frame = encoded(&message).freeze();
    let decoded = decode(&frame, Some(LOG)).expect("a good frame");
    let Content::Message(PeerMessage::Raft(Message::AppendEntries(append))) = decoded.content
    else {
        panic!("another message came out");
    };
    assert!(frame.as_ptr_range().contains(&append.entries[0].payload.as_ptr()));
}

#[test]
fn entries_of_another_chain_are_refused() {
    let entries = [(1, EntryKind::Command, Bytes::from_static(b"x"))];
    let message = PeerMessage::Raft(append_entries(1, EntryId::ZERO, Digest(5), &entries, 0));
    let frame = encoded(&message).freeze();
    let other = LogIdentity { cluster: ClusterId(8), ..LOG };
    let error = decode(&frame, Some(other)).expect_err("the chain of another cluster");
    assert!(matches!(error.problem, Problem::BadDigest { .. }), "{error}");
    let error = decode(&frame, None).expect_err("no log yet");
    assert_eq!(error.problem, Problem::NoLog);
    // The payload changed on the way and the checksum was made to fit.
    let mut changed = frame.to_vec();
    *changed.last_mut().expect("not empty") ^= 1;
    assert!(matches!(problem(changed), Problem::BadDigest { .. }));
}

#[test]
fn every_part_of_the_header_is_checked() {
    let good = encoded(&PeerMessage::Formation(Bytes::from_static(b"body"))).to_vec();
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    assert_eq!(problem(with(10, 2)), Problem::UnknownVersion(2));
    assert_eq!(problem(with(11, 2)), Problem::UnknownFlags(2));
    assert_eq!(problem(with(12, 200)), Problem::UnknownKind(200));
    assert_eq!(problem(with(14, 1)), Problem::BadValue { what: "the reserved field", value: 1 });
    assert!(matches!(problem(with(8, 35)), Problem::BadLength { .. }));
    assert!(matches!(problem(with(8, 200)), Problem::BadLength { .. }));
    let error = decode(&Bytes::from(with(40 - 1, 0)), Some(LOG)).expect_err("a rotten byte");
    assert_eq!(error.at, 4);
    assert!(matches!(error.problem, Problem::BadChecksum { .. }));
}

/// A newer version may add fields to the header: this one skips them.
#[test]
fn a_longer_header_is_skipped() {
    let mut frame = encoded(&PeerMessage::Formation(Bytes::from_static(b"body"))).to_vec();
    frame[8] = 40;
    frame.splice(HEADER_BYTES..HEADER_BYTES, [1, 2, 3, 4]);
    let decoded = decode(&reseal(frame), Some(LOG)).expect("a good frame");
    let body = PeerMessage::Formation(Bytes::from_static(b"body"));
    assert_eq!(decoded.content, Content::Message(body));
}

#[test]
fn a_count_allocates_nothing_that_is_not_there() {
    let message = PeerMessage::Forward(crate::message::Forward {
        term: raft_core::Term(1),
        attempt: 1,
        epoch: 1,
        payloads: vec![Bytes::from_static(b"x")],
    });
    let mut frame = encoded(&message).to_vec();
    frame[HEADER_BYTES + 24..HEADER_BYTES + 28].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(problem(frame), Problem::TooMany { what: "payloads", count: u32::MAX });
}

#[test]
fn too_large_messages_leave_the_buffer_alone() {
    let mut out = BytesMut::from(&b"before"[..]);
    let message = PeerMessage::Formation(Bytes::from(vec![0; FRAME_BYTES_MAX]));
    let error = encode(&mut out, SENDER, &message).expect_err("too large");
    assert_eq!(error.bytes, FRAME_BYTES_MAX + HEADER_BYTES);
    assert_eq!(&out[..], b"before");
}

#[test]
fn lengths_out_of_range_are_refused_at_once() {
    assert_eq!(frame_len(&[1, 0, 0], 100), Ok(None));
    assert_eq!(frame_len(&[100, 0, 0, 0, 9], 100), Ok(Some(100)));
    for length in [0u32, 35, 101, u32::MAX] {
        let error = frame_len(&length.to_le_bytes(), 100).expect_err("out of range");
        let bytes = usize::try_from(length).expect("a 64-bit machine");
        assert_eq!(
            error,
            FrameError { at: 0, problem: Problem::BadLength { bytes, bytes_max: 100 } }
        );
    }
}

/// What decodes is encoded to something that decodes to the same.
fn survives_another_round(decoded: Frame) {
    let mut again = BytesMut::new();
    match &decoded.content {
        Content::Message(message) => encode(&mut again, decoded.sender, message),
        Content::Handshake(content) => encode_handshake(&mut again, decoded.sender, content),
    }
    .expect("it fitted before");
    assert_eq!(decode(&again.freeze(), Some(LOG)), Ok(decoded));
}

/// Of the frames before anybody knows anybody: no flipped bit is believed, and whatever a stranger puts into one of their
/// bytes, with a checksum that fits, or leaves away at their ends, gives a frame or an error.
#[test]
fn strangers_say_nothing_that_is_not_a_frame() {
    for (_, content) in handshake_frames() {
        let mut frame = BytesMut::new();
        encode_handshake(&mut frame, SENDER, &content).expect("the frame fits");
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                assert!(decode(&flipped.freeze(), Some(LOG)).is_err(), "bit {bit} of byte {at}");
            }
            for byte in [0, 1, 127, 255] {
                let mut changed = frame.to_vec();
                changed[at] = byte;
                if let Ok(decoded) = decode(&reseal(changed), Some(LOG)) {
                    survives_another_round(decoded);
                }
            }
            if at >= HEADER_BYTES
                && let Ok(decoded) = decode(&reseal(frame[..at].to_vec()), Some(LOG))
            {
                survives_another_round(decoded);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(
        message in any_message(),
        group: u32,
        cluster in proptest::option::of(any::<u64>()),
        epoch: u64,
    ) {
        let sender = Sender { group: GroupId(group), cluster: cluster.map(ClusterId), epoch };
        let mut out = BytesMut::new();
        encode(&mut out, sender, &message).expect("the message fits");
        prop_assert_eq!(frame_len(&out, FRAME_BYTES_MAX), Ok(Some(out.len())));
        let decoded = decode(&out.freeze(), Some(LOG));
        prop_assert_eq!(decoded, Ok(Frame { sender, content: Content::Message(message) }));
    }

    /// Bytes changed on the way are noticed.
    #[test]
    fn no_changed_byte_is_believed(
        message in any_message(),
        at: proptest::sample::Index,
        change in 1u8..,
    ) {
        let mut frame = encoded(&message);
        let at = at.index(frame.len());
        frame[at] ^= change;
        prop_assert!(decode(&frame.freeze(), Some(LOG)).is_err());
    }

    /// Whatever a peer makes up, with a checksum that fits, gives a message or an error and never a panic; and
    /// what decodes survives another round.
    #[test]
    fn decoding_is_total(
        message in any_message(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut frame = encoded(&message).to_vec();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(HEADER_BYTES.max(cut.index(frame.len())));
        }
        let frame = reseal(frame);
        if let Ok(decoded) = decode(&frame, Some(LOG)) {
            survives_another_round(decoded);
        }
    }

    #[test]
    fn noise_is_no_frame(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&Bytes::from(noise), Some(LOG)).is_err());
    }
}
