//! Messages as JSON, as grpc-gateway writes and reads them: names as in the .proto files out, those or camel case in;
//! 64-bit numbers as strings out, as either in; bytes as base64; zero values left out; unknown names passed over.

use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::de::DeserializeOwned;
use tonic::Status;

use crate::proto;

fn descriptor(name: &str) -> Result<MessageDescriptor, Status> {
    let pool = proto::descriptors();
    let packages = ["etcdserverpb", "v3lockpb", "v3electionpb"];
    packages
        .iter()
        .find_map(|package| pool?.get_message_by_name(&format!("{package}.{name}")))
        .ok_or_else(|| Status::internal(format!("no message is called {name}")))
}

/// Reads one message; an empty body is an empty message.
pub(super) fn decode<M: Message + Default>(name: &str, body: &[u8]) -> Result<M, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(M::default());
    }
    let mut input = serde_json::Deserializer::from_slice(body);
    let message = read(name, &mut input)?;
    input.end().map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(message)
}

/// Reads one message from what was parsed already.
pub(super) fn decode_value<M: Message + Default>(
    name: &str,
    value: serde_json::Value,
) -> Result<M, Status> {
    read(name, value)
}

fn read<'a, M, D>(name: &str, input: D) -> Result<M, Status>
where
    M: Message + Default,
    D: serde::Deserializer<'a>,
    D::Error: std::fmt::Display,
{
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor(name)?, input, &options)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    M::decode(&message.encode_to_vec()[..])
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Writes one message.
pub(super) fn encode<M: Message>(name: &str, message: &M) -> Result<String, Status> {
    encode_encoded(name, &message.encode_to_vec())
}

/// Writes one message that is encoded already.
pub(super) fn encode_encoded(name: &str, message: &[u8]) -> Result<String, Status> {
    let message = DynamicMessage::decode(descriptor(name)?, message)
        .map_err(|error| Status::internal(error.to_string()))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true)
        .skip_default_fields(true);
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .map_err(|error| Status::internal(error.to_string()))?;
    String::from_utf8(text).map_err(|error| Status::internal(error.to_string()))
}

/// The first complete values at the beginning of `input`, and how many bytes they take.
pub(super) fn complete_values<T: DeserializeOwned>(
    input: &[u8],
) -> Result<(Vec<T>, usize), Status> {
    let mut values = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(input).into_iter();
    let mut taken = 0;
    loop {
        match stream.next() {
            Some(Ok(value)) => {
                values.push(value);
                taken = stream.byte_offset();
            }
            None => return Ok((values, input.len())),
            Some(Err(error)) if error.is_eof() => return Ok((values, taken)),
            Some(Err(error)) => return Err(Status::invalid_argument(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_kv::proto::etcdserverpb::range_request::SortOrder;
    use raft_kv::proto::etcdserverpb::{
        LeaseGrantResponse, RangeRequest, ResponseHeader, TxnRequest, WatchResponse,
    };
    use raft_kv::proto::mvccpb::{Event, KeyValue, event::EventType};

    use super::*;

    #[test]
    fn requests_are_read_in_every_form_that_clients_write() {
        let expected = RangeRequest {
            key: "foo".into(),
            range_end: "fop".into(),
            limit: 5,
            sort_order: SortOrder::Descend.into(),
            ..RangeRequest::default()
        };
        for text in [
            r#"{"key":"Zm9v","range_end":"Zm9w","limit":"5","sort_order":"DESCEND"}"#,
            r#"{"key":"Zm9v","rangeEnd":"Zm9w","limit":5,"sortOrder":2,"whatever":{"a":[1]}}"#,
        ] {
            assert_eq!(decode::<RangeRequest>("RangeRequest", text.as_bytes()).unwrap(), expected);
        }
        assert_eq!(
            decode::<RangeRequest>("RangeRequest", b" \n").unwrap(),
            RangeRequest::default()
        );
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let deep =
            format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(10_000), "}]}".repeat(10_000));
        for text in ["{", "[]", r#"{"key":"%"}"#, r#"{"limit":"x"}"#, "{}{}", &deep] {
            let refused = decode::<TxnRequest>("TxnRequest", text.as_bytes()).is_err()
                || decode::<RangeRequest>("RangeRequest", text.as_bytes()).is_err();
            assert!(refused, "{text:.60}");
        }
    }

    #[test]
    fn answers_leave_zeros_out_and_write_large_numbers_as_text() {
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        let granted = LeaseGrantResponse { header, id: i64::MAX, ttl: 0, error: String::new() };
        assert_eq!(
            encode("LeaseGrantResponse", &granted).unwrap(),
            r#"{"header":{"revision":"7"},"ID":"9223372036854775807"}"#
        );
        let event = Event {
            r#type: EventType::Delete.into(),
            kv: Some(KeyValue { key: "k".into(), mod_revision: 2, ..KeyValue::default() }),
            prev_kv: None,
        };
        let response = WatchResponse { events: vec![event], ..WatchResponse::default() };
        assert_eq!(
            encode("WatchResponse", &response).unwrap(),
            r#"{"events":[{"type":"DELETE","kv":{"key":"aw==","mod_revision":"2"}}]}"#
        );
    }

    #[test]
    fn values_are_taken_as_they_become_complete() {
        let take = |text: &str| complete_values::<serde_json::Value>(text.as_bytes());
        assert_eq!(take(r#"{"a":1} {"b":"#).unwrap().1, 7);
        assert_eq!(take(r#"{"a":1}{"b":2} "#).unwrap().0.len(), 2);
        assert_eq!(take("").unwrap(), (vec![], 0));
        assert!(take("{]").is_err());
    }
}
