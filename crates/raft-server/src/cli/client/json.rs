//! Messages as etcdctl's `--write-out=json` writes them: Go's rules for Go's structures. Fields in their order and under
//! their protocol names, zero values left out, 64-bit numbers and enumerations as numbers, bytes as base64.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage as _, Value};

use crate::proto;

/// What etcd 3.4 does not have: left out, so that scripts find what they know.
const NEWER: [(&str, &str); 4] = [
    ("StatusResponse", "storageVersion"),
    ("StatusResponse", "dbSizeQuota"),
    ("StatusResponse", "downgradeInfo"),
    ("HashKVResponse", "hash_revision"),
];

/// A value whose fields keep their order.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// Digits.
    Number(String),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    pub(super) fn number(number: impl fmt::Display) -> Self {
        Self::Number(number.to_string())
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn object<const N: usize>(fields: [(&str, Self); N]) -> Self {
        Self::Object(fields.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }

    /// The fields of `self` first, then these.
    pub(super) fn and<const N: usize>(self, more: [(&str, Self); N]) -> Self {
        let mut fields = match self {
            Self::Object(fields) => fields,
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => {
                Vec::new()
            }
        };
        fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Self::Object(fields)
    }
}

/// Bytes as base64.
pub(super) fn bytes(bytes: &[u8]) -> Json {
    Json::Text(STANDARD.encode(bytes))
}

/// The message of this name; `{}` for one that nobody knows.
pub(super) fn message(name: &str, message: &impl Message) -> Json {
    let descriptor = proto::descriptors().and_then(|pool| pool.get_message_by_name(name));
    let dynamic = descriptor.and_then(|descriptor| {
        DynamicMessage::decode(descriptor, &message.encode_to_vec()[..]).ok()
    });
    dynamic.map_or_else(|| Json::Object(Vec::new()), |message| of_dynamic(&message))
}

fn of_dynamic(message: &DynamicMessage) -> Json {
    let descriptor = message.descriptor();
    let mut fields: Vec<FieldDescriptor> = descriptor.fields().collect();
    fields.sort_by_key(FieldDescriptor::number);
    let mut out = Vec::new();
    for field in fields {
        let is_newer = NEWER.contains(&(descriptor.name(), field.name()));
        if is_newer || !message.has_field(&field) {
            continue;
        }
        let value = of_value(&message.get_field(&field));
        match field.containing_oneof() {
            // Go has a structure for each alternative.
            Some(oneof) => {
                let inner = Json::Object(vec![(in_camel_case(field.name()), value)]);
                out.push((in_camel_case(oneof.name()), inner));
            }
            None => out.push((field.name().to_owned(), value)),
        }
    }
    Json::Object(out)
}

fn of_value(value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::I32(value) | Value::EnumNumber(value) => Json::number(value),
        Value::I64(value) => Json::number(value),
        Value::U32(value) => Json::number(value),
        Value::U64(value) => Json::number(value),
        Value::F32(value) => Json::number(value),
        Value::F64(value) => Json::number(value),
        Value::String(value) => Json::text(value),
        Value::Bytes(value) => bytes(value),
        Value::Message(value) => of_dynamic(value),
        Value::List(values) => Json::List(values.iter().map(of_value).collect()),
        Value::Map(values) => {
            let mut fields: Vec<(String, Json)> =
                values.iter().map(|(key, value)| (of_key(key), of_value(value))).collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            Json::Object(fields)
        }
    }
}

fn of_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// `response_put` as `ResponsePut`.
fn in_camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut chars = word.chars();
        chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str())
    };
    name.split('_').filter_map(capital).collect()
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(digits) => f.write_str(digits),
            Self::Text(text) => write_text(f, text),
            Self::List(values) => {
                for (place, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if place == 0 { "[" } else { "," })?;
                }
                f.write_str(if values.is_empty() { "[]" } else { "]" })
            }
            Self::Object(fields) => {
                for (place, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if place == 0 { "{" } else { "," })?;
                    write_text(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_str(if fields.is_empty() { "{}" } else { "}" })
            }
        }
    }
}

/// A string with what Go escapes: HTML, too.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => write!(f, "\\u{:04x}", u32::from(c))?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use raft_kv::proto::etcdserverpb::response_op::Response;
    use raft_kv::proto::etcdserverpb::{
        PutResponse, ResponseHeader, ResponseOp, StatusResponse, TxnResponse,
    };
    use raft_kv::proto::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn messages_are_written_as_go_writes_them() {
        let header = ResponseHeader { cluster_id: u64::MAX, revision: 7, ..Default::default() };
        let prev_kv = KeyValue { key: "a".into(), version: 2, ..Default::default() };
        let put = PutResponse { header: Some(ResponseHeader::default()), prev_kv: Some(prev_kv) };
        let op = ResponseOp { response: Some(Response::ResponsePut(put)) };
        let txn = TxnResponse { header: Some(header), succeeded: true, responses: vec![op] };
        assert_eq!(
            message("etcdserverpb.TxnResponse", &txn).to_string(),
            r#"{"header":{"cluster_id":18446744073709551615,"revision":7},"succeeded":true,"responses":[{"Response":{"ResponsePut":{"header":{},"prev_kv":{"key":"YQ==","version":2}}}}]}"#
        );
        let status = StatusResponse {
            version: "3.7.0".to_owned(),
            storage_version: "3.7".to_owned(),
            db_size: 5,
            ..Default::default()
        };
        assert_eq!(
            message("etcdserverpb.StatusResponse", &status).to_string(),
            r#"{"version":"3.7.0","dbSize":5}"#
        );
    }

    #[test]
    fn strings_are_escaped_as_in_go() {
        let json = Json::object([("a", Json::text("<\"\\\n\u{1}&é")), ("b", Json::List(vec![]))]);
        assert_eq!(json.to_string(), r#"{"a":"\u003c\"\\\n\u0001\u0026é","b":[]}"#);
        assert_eq!(Json::Null.and([("x", Json::Null)]).to_string(), r#"{"x":null}"#);
    }
}
