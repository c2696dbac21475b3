//! What an answer looks like, in the formats that etcdctl has.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use prost::Message;
use raft_kv::proto::etcdserverpb::ResponseHeader;
use raft_kv::proto::mvccpb::KeyValue;

use super::Failure;
use super::go;
use super::json::{self, Json};
use super::to::{Format, Wishes};

/// Lines that wait to be printed together.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn line(&mut self, line: impl AsRef<[u8]>) {
        self.0.extend_from_slice(line.as_ref());
        self.0.push(b'\n');
    }

    /// As `fields` writes numbers and switches.
    pub(super) fn field(&mut self, name: &str, value: impl Display) {
        self.line(format!("\"{name}\" : {value}"));
    }

    /// As `fields` writes text.
    pub(super) fn text(&mut self, name: &str, value: &[u8]) {
        self.line(format!("\"{name}\" : {}", go::quoted(value)));
    }

    pub(super) fn header(&mut self, header: Option<&ResponseHeader>) {
        let header = header.copied().unwrap_or_default();
        self.field("ClusterID", header.cluster_id);
        self.field("MemberID", header.member_id);
        self.field("Revision", header.revision);
        self.field("RaftTerm", header.raft_term);
    }

    /// A key as `fields` writes it.
    pub(super) fn key_value(&mut self, prefix: &str, kv: &KeyValue) {
        self.text(&format!("{prefix}Key"), &kv.key);
        self.field(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.field(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.field(&format!("{prefix}Version"), kv.version);
        self.text(&format!("{prefix}Value"), &kv.value);
        self.field(&format!("{prefix}Lease"), kv.lease);
    }

    /// Prints everything now; what cannot be printed is lost.
    pub(super) fn print(self) {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&self.0).and_then(|()| stdout.flush()).ok();
    }
}

/// Prints one line.
pub(super) fn say(line: impl AsRef<[u8]>) {
    let mut out = Out::default();
    out.line(line);
    out.print();
}

/// How a command prints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    pub(super) format: Format,
    pub(super) hex: bool,
    pub(super) value_only: bool,
}

impl Printer {
    /// For a command that answers with a message.
    pub(super) fn for_messages(wishes: &Wishes) -> Result<Self, Failure> {
        let formats = [Format::Simple, Format::Json, Format::Fields, Format::Protobuf];
        Self::new(wishes, &formats, "simple, json, fields and protobuf")
    }

    /// For a command that answers with rows that it made itself.
    pub(super) fn for_rows(wishes: &Wishes) -> Result<Self, Failure> {
        let formats = [Format::Simple, Format::Json, Format::Fields, Format::Table];
        Self::new(wishes, &formats, "simple, json, fields and table")
    }

    /// For a command that answers with a message that can be drawn as a table, too.
    pub(super) fn for_all(wishes: &Wishes) -> Self {
        Self { format: wishes.format, hex: wishes.hex, value_only: false }
    }

    fn new(wishes: &Wishes, formats: &[Format], names: &str) -> Result<Self, Failure> {
        if formats.contains(&wishes.format) {
            return Ok(Self::for_all(wishes));
        }
        Err(Failure::bad(format!(
            "this command has no such output format\n\n  right  --write-out is one of {names}"
        )))
    }

    /// Prints the message of this name.
    pub(super) fn show(
        &self,
        name: &str,
        message: &impl Message,
        simple: impl FnOnce(&mut Out),
        fields: impl FnOnce(&mut Out),
    ) {
        let json = || json::message(&format!("etcdserverpb.{name}"), message);
        self.show_as(message, json, simple, fields);
    }

    /// Prints the message of this name by functions that others use, too.
    pub(super) fn show_by<M: Message>(
        &self,
        name: &str,
        message: &M,
        simple: fn(&Self, &mut Out, &M),
        fields: fn(&mut Out, &M),
    ) {
        self.show(name, message, |out| simple(self, out, message), |out| fields(out, message));
    }

    /// Prints a message whose JSON is not quite itself.
    pub(super) fn show_as(
        &self,
        message: &impl Message,
        json: impl FnOnce() -> Json,
        simple: impl FnOnce(&mut Out),
        fields: impl FnOnce(&mut Out),
    ) {
        let mut out = Out::default();
        match self.format {
            Format::Json => out.line(json().to_string()),
            Format::Fields => fields(&mut out),
            Format::Protobuf => out.0 = message.encode_to_vec(),
            Format::Simple | Format::Table => simple(&mut out),
        }
        out.print();
    }

    /// A key and its value, as `simple` writes them.
    pub(super) fn key_value(&self, out: &mut Out, kv: &KeyValue) {
        let mut line = |bytes: &[u8]| {
            if self.hex { out.line(go::hex(bytes)) } else { out.line(bytes) }
        };
        if !self.value_only {
            line(&kv.key);
        }
        line(&kv.value);
    }
}

/// The header as JSON, as the first fields of Go's structures that are no messages.
pub(super) fn header_json(header: Option<&ResponseHeader>) -> Json {
    json::message("etcdserverpb.ResponseHeader", &header.copied().unwrap_or_default())
}

/// A word of the command line as it was typed.
pub(super) fn bytes(word: &OsStr) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}
