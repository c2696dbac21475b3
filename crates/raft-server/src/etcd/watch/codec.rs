//! Answers that are encoded already: the same events go to many watchers, and are encoded once.

use bytes::{BufMut as _, Bytes};
use raft_kv::proto::etcdserverpb::{WatchRequest, WatchResponse};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

/// Reads requests; writes bytes as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchCodec;

/// Writes bytes as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoded;

impl Codec for WatchCodec {
    type Encode = Bytes;
    type Decode = WatchRequest;
    type Encoder = Encoded;
    type Decoder = <ProstCodec<WatchResponse, WatchRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        Encoded
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchResponse, WatchRequest>::default().decoder()
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}
