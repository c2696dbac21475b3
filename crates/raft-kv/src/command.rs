//! What stands in the log, and what applying it answers.
//!
//! ```text
//! version 1:  01 | CommandV1 (protobuf, crates/raft-kv/proto/raftkv.proto)
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use raft_core::DecodeError;

use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, TxnRequest, TxnResponse,
};
use crate::proto::raftkv::CommandV1;
use crate::proto::raftkv::command_v1::Kind;

/// The first byte of every command.
const VERSION: u8 = 1;

/// A change of the store. Check the request before proposing it (see [`check_put`](crate::check_put) and
/// its neighbours): the answer then comes without a round through the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    pub(crate) kind: Kind,
}

impl Command {
    /// Writes a key.
    #[must_use]
    pub const fn put(request: PutRequest) -> Self {
        Self { kind: Kind::Put(request) }
    }

    /// Deletes a key or a range.
    #[must_use]
    pub const fn delete_range(request: DeleteRangeRequest) -> Self {
        Self { kind: Kind::DeleteRange(request) }
    }

    /// Runs a transaction.
    #[must_use]
    pub const fn txn(request: TxnRequest) -> Self {
        Self { kind: Kind::Txn(request) }
    }

    /// Forgets history.
    #[must_use]
    pub const fn compact(request: CompactionRequest) -> Self {
        Self { kind: Kind::Compact(request) }
    }
}

impl raft_core::Command for Command {
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(1 + self.kind.encoded_len());
        out.put_u8(VERSION);
        self.kind.encode(out);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(version) => {
                return Err(DecodeError(format!(
                    "the key-value command has version {version}; this program knows {VERSION}"
                )));
            }
            None => return Err(DecodeError(String::from("the key-value command is empty"))),
        }
        match CommandV1::decode(bytes.slice(1..)) {
            Ok(CommandV1 { kind: Some(kind) }) => Ok(Self { kind }),
            Ok(CommandV1 { kind: None }) => Err(DecodeError(String::from(
                "the key-value command is of a kind that this program does not know",
            ))),
            Err(error) => Err(DecodeError(format!("the key-value command is damaged: {error}"))),
        }
    }
}

/// What applying a [`Command`] answers. Headers carry the revision only; who answered is for the server
/// to fill in.
#[derive(Clone, PartialEq, Debug)]
pub enum Response {
    /// To [`Command::put`].
    Put(PutResponse),
    /// To [`Command::delete_range`].
    DeleteRange(DeleteRangeResponse),
    /// To [`Command::txn`].
    Txn(TxnResponse),
    /// To [`Command::compact`].
    Compact(CompactionResponse),
}
