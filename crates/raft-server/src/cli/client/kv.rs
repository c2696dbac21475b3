//! `get`, `put`, `del` and `compaction`.

use std::ffi::OsString;
use std::io::{self, Read as _};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use raft_kv::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use raft_kv::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse,
};

use super::Failure;
use super::dial::Cluster;
use super::print::{Out, Printer, bytes, say};
use super::to::Format;

/// The end of a range that has none.
pub(super) const OPEN_END: &[u8] = b"\0";

/// Whether a read goes by what a majority knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Consistency {
    #[value(name = "l")]
    Linearizable,
    #[value(name = "s")]
    Serializable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum SortBy {
    Create,
    Key,
    Modify,
    Value,
    Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Order {
    Ascend,
    Descend,
}

/// What `get` asks for.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Get {
    /// The key, or the first one of a range.
    key: OsString,
    /// The first key that is not in the range any more.
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    range_end: Option<OsString>,
    /// All keys that begin with it.
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from it on.
    #[arg(long)]
    from_key: bool,
    /// As it was at this revision.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rev: i64,
    /// So many keys at most.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    limit: i64,
    /// Keys without their values.
    #[arg(long)]
    keys_only: bool,
    /// Only how many there are.
    #[arg(long)]
    count_only: bool,
    /// simple: values without their keys.
    #[arg(long, conflicts_with = "count_only")]
    print_value_only: bool,
    /// What to sort by.
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "CREATE|KEY|MODIFY|VALUE|VERSION",
        hide_possible_values = true
    )]
    sort_by: Option<SortBy>,
    /// Which way.
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "ASCEND|DESCEND",
        hide_possible_values = true
    )]
    order: Option<Order>,
    /// l: linearizable; s: serializable, what the member that is asked knows.
    #[arg(long, value_enum, default_value = "l", value_name = "l|s", hide_possible_values = true)]
    consistency: Consistency,
}

/// What `put` writes.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Put {
    key: OsString,
    /// The value; without it, what stands on standard input.
    #[arg(conflicts_with = "ignore_value")]
    value: Option<OsString>,
    /// The lease, in hexadecimal digits, with which the key ends.
    #[arg(long, value_name = "ID", value_parser = super::words::lease_id, default_value = "0", hide_default_value = true)]
    lease: i64,
    /// Show what was there before.
    #[arg(long)]
    prev_kv: bool,
    /// Keep the value that the key has.
    #[arg(long)]
    ignore_value: bool,
    /// Keep the lease that the key has.
    #[arg(long)]
    ignore_lease: bool,
}

/// What `del` removes.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Del {
    /// The key, or the first one of a range.
    key: OsString,
    /// The first key that is not in the range any more.
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    range_end: Option<OsString>,
    /// All keys that begin with it.
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from it on.
    #[arg(long)]
    from_key: bool,
    /// Show what was removed.
    #[arg(long)]
    prev_kv: bool,
}

/// What `compaction` forgets.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Compaction {
    /// Changes before this revision cannot be read any more.
    revision: i64,
    /// Wait until they are gone from the member's memory.
    #[arg(long)]
    physical: bool,
}

/// The first key after all that begin with `key`.
pub(super) fn prefix_end(key: &[u8]) -> Bytes {
    let kept = key.iter().rposition(|byte| *byte < 0xFF);
    kept.map_or(Bytes::from_static(OPEN_END), |last| {
        let mut end = key[..=last].to_vec();
        end[last] += 1;
        Bytes::from(end)
    })
}

/// Key and end of a range as the flags say; an empty key is before all others where there is an end.
pub(super) fn range(
    key: &OsString,
    range_end: Option<&OsString>,
    prefix: bool,
    from_key: bool,
) -> (Bytes, Bytes) {
    let key = bytes(key);
    if !prefix && !from_key {
        return (key, range_end.map(|end| bytes(end)).unwrap_or_default());
    }
    if key.is_empty() {
        return (Bytes::from_static(b"\0"), Bytes::from_static(OPEN_END));
    }
    let end = if prefix { prefix_end(&key) } else { Bytes::from_static(OPEN_END) };
    (key, end)
}

impl Get {
    pub(super) fn request(&self) -> RangeRequest {
        let (key, range_end) =
            range(&self.key, self.range_end.as_ref(), self.prefix, self.from_key);
        let target = match self.sort_by {
            None | Some(SortBy::Key) => SortTarget::Key,
            Some(SortBy::Create) => SortTarget::Create,
            Some(SortBy::Modify) => SortTarget::Mod,
            Some(SortBy::Value) => SortTarget::Value,
            Some(SortBy::Version) => SortTarget::Version,
        };
        let order = match self.order {
            None => SortOrder::None,
            Some(Order::Ascend) => SortOrder::Ascend,
            Some(Order::Descend) => SortOrder::Descend,
        };
        RangeRequest {
            key,
            range_end,
            limit: self.limit,
            revision: self.rev.max(0),
            sort_order: order.into(),
            sort_target: target.into(),
            serializable: self.consistency == Consistency::Serializable,
            keys_only: self.keys_only,
            count_only: self.count_only,
            ..RangeRequest::default()
        }
    }

    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let mut printer = Printer::for_messages(&cluster.wishes)?;
        if self.print_value_only && printer.format != Format::Simple {
            return Err(Failure::bad(
                "--print-value-only goes with --write-out=simple only\n\n  right  leave one of them away",
            ));
        }
        printer.value_only = self.print_value_only;
        let answer = cluster
            .read(self.request(), async |link, request| link.kv().range(link.by(request)).await)
            .await?;
        if self.count_only && printer.format == Format::Simple {
            say(answer.count.to_string());
        } else {
            show_range(&printer, &answer);
        }
        Ok(())
    }
}

impl Put {
    /// With the value from the command line.
    pub(super) fn request(&self) -> Result<PutRequest, Failure> {
        let value = match &self.value {
            Some(value) => bytes(value),
            None if self.ignore_value => Bytes::new(),
            None => return Err(Failure::bad("put without a value\n\n  right  put KEY VALUE")),
        };
        Ok(self.request_of(value))
    }

    fn request_of(&self, value: Bytes) -> PutRequest {
        PutRequest {
            key: bytes(&self.key),
            value,
            lease: self.lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        }
    }

    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let request = if self.value.is_some() || self.ignore_value {
            self.request()?
        } else {
            let mut value = Vec::new();
            let read = io::stdin().read_to_end(&mut value);
            read.map_err(|error| {
                Failure::failed(format!("standard input cannot be read: {error}"))
            })?;
            if value.is_empty() {
                return Err(Failure::bad(
                    "put needs a value, and standard input is empty\n\n  right  rusty-raft put KEY VALUE\n         rusty-raft put KEY < FILE",
                ));
            }
            self.request_of(value.into())
        };
        let answer = cluster
            .write(request, async |link, request| link.kv().put(link.by(request)).await)
            .await?;
        printer.show_by("PutResponse", &answer, simple_put, fields_put);
        Ok(())
    }
}

impl Del {
    pub(super) fn request(&self) -> DeleteRangeRequest {
        let (key, range_end) =
            range(&self.key, self.range_end.as_ref(), self.prefix, self.from_key);
        DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv }
    }

    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let answer = cluster
            .write(self.request(), async |link, request| {
                link.kv().delete_range(link.by(request)).await
            })
            .await?;
        printer.show_by("DeleteRangeResponse", &answer, simple_del, fields_del);
        Ok(())
    }
}

impl Compaction {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let request = CompactionRequest { revision: self.revision, physical: self.physical };
        cluster
            .write(request, async |link, request| link.kv().compact(link.by(request)).await)
            .await?;
        say(format!("compacted revision {}", self.revision));
        Ok(())
    }
}

pub(super) fn show_range(printer: &Printer, answer: &RangeResponse) {
    printer.show_by("RangeResponse", answer, simple_range, fields_range);
}

pub(super) fn simple_range(printer: &Printer, out: &mut Out, answer: &RangeResponse) {
    for kv in &answer.kvs {
        printer.key_value(out, kv);
    }
}

pub(super) fn fields_range(out: &mut Out, answer: &RangeResponse) {
    out.header(answer.header.as_ref());
    for kv in &answer.kvs {
        out.key_value("", kv);
    }
    out.field("More", answer.more);
    out.field("Count", answer.count);
}

pub(super) fn simple_put(printer: &Printer, out: &mut Out, answer: &PutResponse) {
    out.line("OK");
    if let Some(kv) = &answer.prev_kv {
        printer.key_value(out, kv);
    }
}

pub(super) fn fields_put(out: &mut Out, answer: &PutResponse) {
    out.header(answer.header.as_ref());
    if let Some(kv) = &answer.prev_kv {
        out.key_value("Prev", kv);
    }
}

pub(super) fn simple_del(printer: &Printer, out: &mut Out, answer: &DeleteRangeResponse) {
    out.line(answer.deleted.to_string());
    for kv in &answer.prev_kvs {
        printer.key_value(out, kv);
    }
}

pub(super) fn fields_del(out: &mut Out, answer: &DeleteRangeResponse) {
    out.header(answer.header.as_ref());
    out.field("Deleted", answer.deleted);
    for kv in &answer.prev_kvs {
        out.key_value("Prev", kv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_the_flags_say() {
        let of = |key: &str, end: Option<&str>, prefix, from_key| {
            let end = end.map(OsString::from);
            let (key, end) = range(&OsString::from(key), end.as_ref(), prefix, from_key);
            (key.to_vec(), end.to_vec())
        };
        assert_eq!(of("a", None, false, false), (b"a".to_vec(), vec![]));
        assert_eq!(of("a", Some("b"), false, false), (b"a".to_vec(), b"b".to_vec()));
        assert_eq!(of("az", None, true, false), (b"az".to_vec(), b"a{".to_vec()));
        assert_eq!(of("a", None, false, true), (b"a".to_vec(), vec![0]));
        assert_eq!(of("", None, true, false), (vec![0], vec![0]));
        assert_eq!(of("", None, false, true), (vec![0], vec![0]));
        assert_eq!(prefix_end(b"a\xff\xff"), b"b".as_slice());
        assert_eq!(prefix_end(b"\xff"), b"\0".as_slice());
    }
}
