//! `rusty-raft status [addresses]`: every member on one screen.

use std::collections::HashMap;

use raft_kv::proto::etcdserverpb::StatusResponse;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{StatusArgs, complain, say};
use crate::client;
use crate::config::{CLUSTER_MEMBERS_MAX, PORT_RANGE_START};
use crate::exit::Exit;

/// A member and what it said.
struct Row {
    address: String,
    answer: Result<StatusResponse, String>,
}

pub(super) async fn run(args: &StatusArgs) -> Exit {
    let user = args.user.clone().or_else(|| std::env::var("RUSTY_RAFT_USER").ok());
    let user = user.as_deref();
    let addresses =
        if args.addresses.is_empty() { discover(user).await } else { args.addresses.clone() };
    if addresses.is_empty() {
        complain(&format!(
            "rusty-raft: no member answers at 127.0.0.1:{PORT_RANGE_START} and up\n\n  right  rusty-raft status \
             <address>[,<address>…]"
        ));
        return Exit::Failure;
    }
    let token = token(&addresses, user).await;
    let token = token.as_deref();
    let rows = ask(&addresses, token).await;
    let names = names(&rows, token).await;
    if args.json {
        say(&to_json(&rows, &names).to_string());
    } else {
        say(&table(&rows, &names));
    }
    let healthy = rows.iter().all(|row| row.answer.is_ok()) && leader(&rows).is_some();
    if healthy { Exit::Success } else { Exit::Failure }
}

/// The members of the first cluster that answers where `cluster` puts them.
pub(super) async fn discover(user: Option<&str>) -> Vec<String> {
    let ports = PORT_RANGE_START..=u16::MAX;
    let tried: Vec<String> =
        ports.take(CLUSTER_MEMBERS_MAX).map(|port| format!("127.0.0.1:{port}")).collect();
    let token = token(&tried, user).await;
    let rows = ask(&tried, token.as_deref()).await;
    let alive: Vec<String> =
        rows.into_iter().filter(|row| row.answer.is_ok()).map(|row| row.address).collect();
    let Some(first) = alive.first() else {
        return alive;
    };
    match client::members(first, token.as_deref()).await {
        Ok(members) if !members.is_empty() => {
            let mut addresses: Vec<String> = members
                .iter()
                .filter_map(|member| member.client_ur_ls.first())
                .map(|url| url.trim_start_matches("http://").to_owned())
                .collect();
            addresses.sort_unstable();
            addresses
        }
        _ => alive,
    }
}

/// A token from the first member that gives one.
async fn token(addresses: &[String], user: Option<&str>) -> Option<String> {
    let user = user?;
    for address in addresses {
        match client::log_in(address, user).await {
            Ok(token) => return Some(token),
            Err(reason) => tracing::debug!("{address} gives no token: {reason}"),
        }
    }
    None
}

/// Asks all at once; the answers are in the order of the addresses.
async fn ask(addresses: &[String], token: Option<&str>) -> Vec<Row> {
    let mut asks = JoinSet::new();
    for (position, address) in addresses.iter().cloned().enumerate() {
        let token = token.map(str::to_owned);
        asks.spawn(async move {
            let answer = client::status_for(&address, token.as_deref()).await;
            (position, Row { address, answer })
        });
    }
    let mut rows: Vec<(usize, Row)> = asks.join_all().await;
    rows.sort_by_key(|(position, _)| *position);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Members' names by id, from the first member that answers.
async fn names(rows: &[Row], token: Option<&str>) -> HashMap<u64, String> {
    for row in rows.iter().filter(|row| row.answer.is_ok()) {
        if let Ok(members) = client::members(&row.address, token).await {
            return members.into_iter().map(|member| (member.id, member.name)).collect();
        }
    }
    HashMap::new()
}

/// The leader of the highest term that anyone reports.
fn leader(rows: &[Row]) -> Option<u64> {
    let answers = rows.iter().filter_map(|row| row.answer.as_ref().ok());
    let newest = answers.filter(|status| status.leader != 0).max_by_key(|status| status.raft_term);
    newest.map(|status| status.leader)
}

/// The highest commit index that anyone reports: what lag is measured against.
fn commit_index(rows: &[Row]) -> u64 {
    let answers = rows.iter().filter_map(|row| row.answer.as_ref().ok());
    answers.map(|status| status.raft_index).max().unwrap_or_default()
}

fn id(status: &StatusResponse) -> u64 {
    status.header.as_ref().map_or(0, |header| header.member_id)
}

fn role(status: &StatusResponse, leader: Option<u64>) -> &'static str {
    match (status.is_learner, leader) {
        (true, _) => "learner",
        (false, Some(leader)) if leader == id(status) => "leader",
        (false, _) => "follower",
    }
}

fn to_json(rows: &[Row], names: &HashMap<u64, String>) -> Value {
    let (leader, commit) = (leader(rows), commit_index(rows));
    let members: Vec<Value> = rows
        .iter()
        .map(|row| match &row.answer {
            Err(error) => json!({"endpoint": row.address, "error": error}),
            Ok(status) => json!({
                "endpoint": row.address,
                "id": format!("{:x}", id(status)),
                "name": names.get(&id(status)),
                "role": role(status, leader),
                "term": status.raft_term,
                "commit_index": status.raft_index,
                "applied_index": status.raft_applied_index,
                "lag": commit.saturating_sub(status.raft_applied_index),
                "revision": status.header.as_ref().map(|header| header.revision),
                "db_size": status.db_size,
                "version": status.version,
                "errors": status.errors,
            }),
        })
        .collect();
    json!({"leader": leader.map(|leader| format!("{leader:x}")), "members": members})
}

fn table(rows: &[Row], names: &HashMap<u64, String>) -> String {
    let (leader, commit) = (leader(rows), commit_index(rows));
    let header = [
        "", "member", "endpoint", "id", "role", "term", "commit", "applied", "lag", "size", "etcd",
    ];
    let mut lines: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for row in rows {
        match &row.answer {
            Err(error) => {
                lines.push(vec![
                    "!".to_owned(),
                    "?".to_owned(),
                    row.address.clone(),
                    "unreachable".to_owned(),
                ]);
                notes.push_str(&format!("\n{}: {error}", row.address));
            }
            Ok(status) => {
                let role = role(status, leader);
                lines.push(vec![
                    if role == "leader" { "*" } else { "" }.to_owned(),
                    names.get(&id(status)).cloned().unwrap_or_default(),
                    row.address.clone(),
                    format!("{:x}", id(status)),
                    role.to_owned(),
                    status.raft_term.to_string(),
                    status.raft_index.to_string(),
                    status.raft_applied_index.to_string(),
                    commit.saturating_sub(status.raft_applied_index).to_string(),
                    bytes(status.db_size),
                    status.version.clone(),
                ]);
                for error in &status.errors {
                    notes.push_str(&format!("\n{}: {error}", row.address));
                }
            }
        }
    }
    if leader.is_none() {
        notes.push_str("\nno leader");
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push_str(notes.trim_start());
    text.trim_end().to_owned()
}

fn bytes(count: i64) -> String {
    let mut value = count.max(0);
    for unit in ["B", "KiB", "MiB"] {
        if value < 10_240 {
            return format!("{value} {unit}");
        }
        value /= 1024;
    }
    format!("{value} GiB")
}

#[cfg(test)]
mod tests {
    use raft_kv::proto::etcdserverpb::ResponseHeader;

    use super::*;

    fn row(address: &str, member: u64, leader: u64, applied: u64) -> Row {
        let answer = Ok(StatusResponse {
            header: Some(ResponseHeader { member_id: member, ..ResponseHeader::default() }),
            leader,
            raft_index: 100,
            raft_applied_index: applied,
            raft_term: 3,
            version: "3.7.0".to_owned(),
            ..StatusResponse::default()
        });
        Row { address: address.to_owned(), answer }
    }

    #[test]
    fn the_table_marks_leader_lag_and_what_is_unreachable() {
        let down = Row { address: "c:3".to_owned(), answer: Err("Connection refused".to_owned()) };
        let rows = [row("a:1", 1, 2, 90), row("b:2", 2, 2, 100), down];
        let names = HashMap::from([(1, "n0".to_owned()), (2, "n1".to_owned())]);
        let text = table(&rows, &names);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("follower") && lines[1].contains(" 10 "), "{text}");
        assert!(lines[2].starts_with("*  n1") && lines[2].contains("leader"), "{text}");
        assert!(lines[3].starts_with("!") && lines[3].contains("unreachable"), "{text}");
        assert!(text.ends_with("c:3: Connection refused"), "{text}");
        let json = to_json(&rows, &names);
        assert_eq!(json["leader"], "2");
        assert_eq!(json["members"][0]["lag"], 10);
        assert_eq!(json["members"][2]["error"], "Connection refused");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(10_240), "10 KiB");
        assert_eq!(bytes(5 << 30), "5120 MiB");
        assert_eq!(bytes(i64::MIN), "0 B");
    }
}
