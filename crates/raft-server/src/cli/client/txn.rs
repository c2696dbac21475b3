//! `txn`: compares, what to do if they hold, and what to do if not, line by line from standard input.

use std::io::{self, BufRead};

use clap::{Args, CommandFactory as _, Parser};
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::response_op::Response;
use raft_kv::proto::etcdserverpb::{Compare, RequestOp, TxnRequest, TxnResponse};

use super::dial::Cluster;
use super::print::{Out, Printer, say};
use super::{Failure, go, kv, words};

/// Reads a transaction from standard input.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Txn {
    /// Say what comes next.
    #[arg(short, long)]
    interactive: bool,
}

/// A line of requests: the same definitions as on the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Line {
    Get(kv::Get),
    Put(kv::Put),
    Del(kv::Del),
}

impl Txn {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let request = self.read(&mut io::stdin().lock())?;
        let answer = cluster
            .write(request, async |link, request| link.kv().txn(link.by(request)).await)
            .await?;
        printer.show(
            "TxnResponse",
            &answer,
            |out| simple(&printer, out, &answer),
            |out| fields(out, &answer),
        );
        Ok(())
    }

    fn read(&self, input: &mut impl BufRead) -> Result<TxnRequest, Failure> {
        let mut section = |title: &str| {
            if self.interactive {
                say(title);
            }
            lines(input)
        };
        let compare =
            section("compares:")?.iter().map(|line| compare(line)).collect::<Result<_, _>>()?;
        let mut requests = |title| {
            section(title)?.iter().map(|line| request(line)).collect::<Result<Vec<_>, Failure>>()
        };
        let success = requests("success requests (get, put, del):")?;
        let failure = requests("failure requests (get, put, del):")?;
        Ok(TxnRequest { compare, success, failure })
    }
}

/// The lines up to an empty one. An end that comes sooner may mean that whoever writes has died: nothing is done then.
fn lines(input: &mut impl BufRead) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = input.read_line(&mut line);
        read.map_err(|error| Failure::failed(format!("standard input cannot be read: {error}")))?;
        if !line.ends_with('\n') {
            return Err(Failure::bad(
                "the transaction ends too soon\n\n  right  compares, requests for success, requests for failure: each list is ended by an empty line",
            ));
        }
        match line.trim() {
            "" => return Ok(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

/// `mod("key") > "0"`.
fn compare(line: &str) -> Result<Compare, Failure> {
    let wrong = |what: &str| {
        Failure::bad(format!(
            "malformed comparison: {line}\n\n  wrong  {what}\n  right  value(\"key\") = \"text\", or mod, create, version or lease with =, !=, < or >"
        ))
    };
    let parts = || {
        let (target, rest) = line.split_once('(')?;
        let (key, rest) = go::unquoted(rest.trim_start())?;
        let (operator, rest) =
            rest.strip_prefix(')')?.trim_start().split_once(char::is_whitespace)?;
        let (value, _) = go::unquoted(rest.trim_start())?;
        Some((target, key, operator, value))
    };
    let (target, key, operator, value) =
        parts().ok_or_else(|| wrong("it is not target(\"key\") operator \"value\""))?;
    let result = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(wrong("the operator")),
    };
    let text = str::from_utf8(&value);
    let number =
        || text.ok().and_then(|it| it.parse::<i64>().ok()).ok_or_else(|| wrong("the number"));
    let (target, target_union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.into())),
        "lease" => {
            let id = text.ok().and_then(|text| words::lease_id(text).ok());
            (CompareTarget::Lease, TargetUnion::Lease(id.ok_or_else(|| wrong("the lease"))?))
        }
        _ => return Err(wrong("the target")),
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(target_union),
        ..Compare::default()
    })
}

/// `put key value`, `get key`, `del key`, with the flags that they have elsewhere.
fn request(line: &str) -> Result<RequestOp, Failure> {
    let wrong = |what: &str| {
        Failure::bad(format!(
            "invalid request: {line}\n\n  wrong  {what}\n  right  put KEY VALUE, get KEY or del KEY, with their flags"
        ))
    };
    let words = words::argify(line).map_err(|what| wrong(&what))?;
    let words = words::plain(&Line::command(), words);
    let parsed = Line::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: "))
    })?;
    let request = match parsed {
        Line::Get(get) => Request::RequestRange(get.request()),
        Line::Put(put) => {
            Request::RequestPut(put.request().map_err(|_| wrong("a put needs a value"))?)
        }
        Line::Del(del) => Request::RequestDeleteRange(del.request()),
    };
    Ok(RequestOp { request: Some(request) })
}

fn simple(printer: &Printer, out: &mut Out, answer: &TxnResponse) {
    out.line(if answer.succeeded { "SUCCESS" } else { "FAILURE" });
    for response in &answer.responses {
        out.line("");
        match &response.response {
            Some(Response::ResponseRange(answer)) => kv::simple_range(printer, out, answer),
            Some(Response::ResponsePut(answer)) => kv::simple_put(printer, out, answer),
            Some(Response::ResponseDeleteRange(answer)) => kv::simple_del(printer, out, answer),
            Some(Response::ResponseTxn(answer)) => simple(printer, out, answer),
            None => {}
        }
    }
}

fn fields(out: &mut Out, answer: &TxnResponse) {
    out.header(answer.header.as_ref());
    out.field("Succeeded", answer.succeeded);
    for response in &answer.responses {
        match &response.response {
            Some(Response::ResponseRange(answer)) => kv::fields_range(out, answer),
            Some(Response::ResponsePut(answer)) => kv::fields_put(out, answer),
            Some(Response::ResponseDeleteRange(answer)) => kv::fields_del(out, answer),
            Some(Response::ResponseTxn(answer)) => fields(out, answer),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TxnRequest, String> {
        let txn = Txn { interactive: false };
        txn.read(&mut text.as_bytes()).map_err(|failure| failure.words)
    }

    #[test]
    fn a_transaction_is_three_lists() {
        let text = "mod(\"k y\") > \"5\"\nval(\"a\") != \"x\\ny\"\nlease(\"a\") = \"1f\"\n\nput a 'b c' --lease=ff\nget a --prefix=true\n\n  del \"a\" --from-key\n\n";
        let txn = read(text).unwrap();
        assert_eq!(txn.compare.len(), 3);
        assert_eq!(txn.compare[0].key, "k y".as_bytes());
        assert_eq!(txn.compare[0].target_union, Some(TargetUnion::ModRevision(5)));
        assert_eq!(txn.compare[1].result, i32::from(CompareResult::NotEqual));
        assert_eq!(txn.compare[1].target_union, Some(TargetUnion::Value("x\ny".into())));
        assert_eq!(txn.compare[2].target_union, Some(TargetUnion::Lease(31)));
        let Some(Request::RequestPut(put)) = &txn.success[0].request else { panic!("{txn:?}") };
        assert_eq!((&put.value[..], put.lease), (&b"b c"[..], 255));
        let Some(Request::RequestRange(get)) = &txn.success[1].request else { panic!("{txn:?}") };
        assert_eq!(get.range_end, "b".as_bytes());
        assert_eq!(txn.failure.len(), 1);
        assert_eq!(read("\n\n\n"), Ok(TxnRequest::default()));
    }

    #[test]
    fn what_is_wrong_is_said_and_what_would_be_right() {
        for (text, wrong) in [
            ("mod(a) > \"0\"\n\n\n\n", "malformed comparison"),
            ("mod(\"a\") ~ \"0\"\n\n\n\n", "the operator"),
            ("mod(\"a\") > \"b\"\n\n\n\n", "the number"),
            ("size(\"a\") > \"1\"\n\n\n\n", "the target"),
            ("\nput a\n\n\n", "a put needs a value"),
            ("\nput\n\n\n", "required"),
            ("\nfly a\n\n\n", "fly"),
            ("\nput \"a b\n\n\n", "quotes"),
            ("\nput a b\n", "too soon"),
            ("\n\nput a b", "too soon"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(wrong) && said.contains("  right  "), "{text:?}: {said}");
        }
    }
}
