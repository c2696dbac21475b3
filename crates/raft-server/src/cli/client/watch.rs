//! `watch`: prints changes as they happen, or runs a command for each. When a member goes away, the next one is asked to
//! go on where this one stopped: nothing is missed and nothing comes twice.

use std::ffi::OsString;
use std::process::Stdio;

use bytes::Bytes;
use clap::Args;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use raft_kv::proto::mvccpb::event::EventType;
use raft_kv::proto::mvccpb::{Event, KeyValue};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataValue;

use super::dial::{Cluster, Link, RETRY, is_passing};
use super::json::{self, Json};
use super::kv::range;
use super::print::{Out, Printer, header_json};
use super::{Failure, go, words};
use crate::cli::complain;

/// What to watch.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Watch {
    /// The key, or the first one of a range; or the variable ETCDCTL_WATCH_KEY.
    key: Option<OsString>,
    /// The first key that is not in the range any more; or the variable ETCDCTL_WATCH_RANGE_END.
    #[arg(conflicts_with = "prefix")]
    range_end: Option<OsString>,
    /// All keys that begin with it.
    #[arg(long)]
    prefix: bool,
    /// From this revision on, instead of from now on.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rev: i64,
    /// With what was there before each change.
    #[arg(long)]
    prev_kv: bool,
    /// What to run for each change, after `--`; it finds the change in ETCD_WATCH_* variables.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How a stream ended.
enum End {
    /// The member went away, or said that it cannot serve.
    Broken,
    Final(Failure),
}

impl Watch {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let mut request = self.request()?;
        // The first time somebody has to be there.
        let mut link = cluster.any_link().await?;
        loop {
            match self.follow(&printer, &link, &mut request).await {
                End::Broken => {}
                End::Final(failure) => return Err(failure),
            }
            loop {
                sleep(RETRY).await;
                if let Ok(next) = cluster.any_link().await {
                    link = next;
                    break;
                }
            }
        }
    }

    fn request(&self) -> Result<WatchCreateRequest, Failure> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        self.request_with(variable("ETCDCTL_WATCH_KEY"), variable("ETCDCTL_WATCH_RANGE_END"))
    }

    fn request_with(
        &self,
        key: Option<OsString>,
        range_end: Option<OsString>,
    ) -> Result<WatchCreateRequest, Failure> {
        let (key, range_end) = match (&self.key, key, range_end) {
            (Some(_), Some(_), _) => {
                return Err(Failure::bad(
                    "the key is on the command line and in ETCDCTL_WATCH_KEY\n\n  right  only one of them",
                ));
            }
            (None, None, Some(_)) => {
                return Err(Failure::bad(
                    "ETCDCTL_WATCH_RANGE_END is of no use without ETCDCTL_WATCH_KEY",
                ));
            }
            (Some(key), None, _) => (key.clone(), self.range_end.clone()),
            (None, Some(key), end) => (key, end),
            (None, None, None) => {
                return Err(Failure::bad(
                    "watch needs a key\n\n  right  rusty-raft watch KEY\n         rusty-raft watch PREFIX --prefix -- COMMAND",
                ));
            }
        };
        if self.prefix && range_end.is_some() {
            return Err(Failure::bad(
                "a range and --prefix exclude each other\n\n  right  one of them",
            ));
        }
        let (mut key, range_end) = range(&key, range_end.as_ref(), self.prefix, false);
        if key.is_empty() {
            key = Bytes::from_static(b"\0");
        }
        Ok(WatchCreateRequest {
            key,
            range_end,
            start_revision: self.rev,
            prev_kv: self.prev_kv,
            ..WatchCreateRequest::default()
        })
    }

    /// Prints what one member says until it ends; `request` begins where that stopped.
    async fn follow(
        &self,
        printer: &Printer,
        link: &Link,
        request: &mut WatchCreateRequest,
    ) -> End {
        let (_open, answers) = match begin(link, request.clone()).await {
            Ok(begun) => begun,
            Err(status) => return End::of(status),
        };
        let mut answers = answers;
        loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Broken,
                Err(status) => return End::of(status),
            };
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            if answer.created && !answer.canceled {
                if request.start_revision <= 0 {
                    request.start_revision = revision + 1;
                }
                continue;
            }
            if answer.canceled {
                let reason = reason(&answer);
                complain(&format!("watch was canceled ({reason})"));
                show(printer, &answer);
                return End::Final(Failure::failed("watch is canceled by the server"));
            }
            show(printer, &answer);
            for event in &answer.events {
                if let Err(failure) = self.execute(event, revision).await {
                    return End::Final(failure);
                }
            }
            let newest = answer.events.iter().filter_map(|event| event.kv.as_ref());
            if let Some(newest) = newest.map(|kv| kv.mod_revision).max() {
                request.start_revision = newest + 1;
            }
        }
    }

    async fn execute(&self, event: &Event, revision: i64) -> Result<(), Failure> {
        let Some((program, arguments)) = self.command.split_first() else { return Ok(()) };
        let kv = event.kv.clone().unwrap_or_default();
        let ran = Command::new(program)
            .args(arguments)
            .env("ETCD_WATCH_REVISION", revision.to_string())
            .env("ETCD_WATCH_EVENT_TYPE", go::quoted(kind(event).as_bytes()))
            .env("ETCD_WATCH_KEY", go::quoted(&kv.key))
            .env("ETCD_WATCH_VALUE", go::quoted(&kv.value))
            .stdin(Stdio::null())
            .status()
            .await;
        let command = words::shown(&self.command);
        match ran {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::failed(format!("command {command:?} error ({status})"))),
            Err(error) => Err(Failure::failed(format!("command {command:?} error ({error})"))),
        }
    }
}

impl End {
    fn of(status: Status) -> Self {
        if is_passing(&status) { Self::Broken } else { Self::Final(status.into()) }
    }
}

type Begun = (mpsc::Sender<WatchRequest>, tonic::Streaming<WatchResponse>);

/// Begins a stream; it goes on while the sender lives.
async fn begin(link: &Link, create: WatchCreateRequest) -> Result<Begun, Status> {
    let (sender, requests) = mpsc::channel(1);
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // There is room for one.
    sender.try_send(create).ok();
    let mut request = link.by(ReceiverStream::new(requests));
    // A member that knows of no leader is left.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let answers = link.watch().watch(request).await?;
    Ok((sender, answers.into_inner()))
}

fn reason(answer: &WatchResponse) -> String {
    if answer.compact_revision != 0 {
        String::from("etcdserver: mvcc: required revision has been compacted")
    } else if answer.cancel_reason.is_empty() {
        String::from("etcdserver: mvcc: required revision is a future revision")
    } else {
        answer.cancel_reason.clone()
    }
}

fn kind(event: &Event) -> &'static str {
    EventType::try_from(event.r#type).unwrap_or(EventType::Put).as_str_name()
}

fn show(printer: &Printer, answer: &WatchResponse) {
    printer.show_as(
        answer,
        || {
            let events =
                answer.events.iter().map(|event| json::message("mvccpb.Event", event)).collect();
            Json::object([
                ("Header", header_json(answer.header.as_ref())),
                ("Events", Json::List(events)),
                ("CompactRevision", Json::number(answer.compact_revision)),
                ("Canceled", Json::Bool(answer.canceled)),
                ("Created", Json::Bool(answer.created)),
            ])
        },
        |out| each(answer, |event, kv| simple(printer, out, event, kv)),
        |out| {
            out.header(answer.header.as_ref());
            each(answer, |event, kv| fields(out, event, kv));
        },
    );
}

fn each(answer: &WatchResponse, mut print: impl FnMut(&Event, &KeyValue)) {
    let nothing = KeyValue::default();
    for event in &answer.events {
        print(event, event.kv.as_ref().unwrap_or(&nothing));
    }
}

fn simple(printer: &Printer, out: &mut Out, event: &Event, kv: &KeyValue) {
    out.line(kind(event));
    if let Some(before) = &event.prev_kv {
        printer.key_value(out, before);
    }
    printer.key_value(out, kv);
}

fn fields(out: &mut Out, event: &Event, kv: &KeyValue) {
    out.field("Type", kind(event));
    if let Some(before) = &event.prev_kv {
        out.key_value("Prev", before);
    }
    out.key_value("", kv);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(key: Option<&str>, prefix: bool) -> Watch {
        Watch {
            key: key.map(OsString::from),
            range_end: None,
            prefix,
            rev: 0,
            prev_kv: false,
            command: Vec::new(),
        }
    }

    #[test]
    fn what_is_watched_is_said_once() {
        let key = || Some(OsString::from("k"));
        let range =
            |request: WatchCreateRequest| (request.key.to_vec(), request.range_end.to_vec());
        let plain = watch(Some("a"), true).request_with(None, None).map(range);
        assert_eq!(plain.map_err(|it| it.words), Ok((b"a".to_vec(), b"b".to_vec())));
        let named = watch(None, false).request_with(key(), Some("m".into())).map(range);
        assert_eq!(named.map_err(|it| it.words), Ok((b"k".to_vec(), b"m".to_vec())));
        for (wrong, key, end) in [
            (watch(Some("a"), false), key(), None),
            (watch(None, false), None, Some("m".into())),
            (watch(None, false), None, None),
            (watch(None, true), key(), Some("m".into())),
        ] {
            assert!(wrong.request_with(key, end).is_err(), "{wrong:?}");
        }
    }
}
