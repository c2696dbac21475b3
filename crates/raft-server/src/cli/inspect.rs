//! `rusty-raft inspect <folder>`: what a stopped member's state holds, on one screen.

use raft::MemberInfo;
use raft::core::{Membership, NodeId};
use raft::log::examine::{Examination, SegmentSummary, Slot};
use serde_json::{Value, json};

use super::progress::{examine_with_bar, refuse};
use super::{InspectArgs, say, verify};
use crate::exit::Exit;

pub(super) fn run(args: &InspectArgs) -> Exit {
    match examine_with_bar(&args.folder) {
        Ok(found) => {
            say(&if args.json { to_json(&found).to_string() } else { to_text(&found) });
            Exit::Success
        }
        Err(error) => refuse(&error),
    }
}

/// The newest configuration that the folder knows.
pub(super) fn newest_membership(found: &Examination) -> Option<&Membership> {
    let log = found.log.as_ref().map(|log| &log.membership);
    let snapshot = found.snapshots.last().map(|snapshot| &snapshot.membership);
    let first = found.formed.as_ref().map(|formed| &formed.members);
    let known = |membership: &&Membership| membership.members().next().is_some();
    log.filter(known).or(snapshot).or(first)
}

/// What a member does in a configuration.
pub(super) fn role(membership: &Membership, node: NodeId) -> &'static str {
    if membership.is_voter(node) { "voter" } else { "learner" }
}

fn id(node: NodeId) -> (String, String) {
    (format!("{}", node.member), format!("{}", node.incarnation))
}

fn slot_json(slot: &Slot) -> Value {
    let vote = slot.hard_state.voted_for.map(|vote| vote.member.to_string());
    json!({
        "version": slot.version,
        "term": slot.hard_state.current_term.0,
        "vote": vote,
        "durable_epoch": slot.durable_epoch,
        "sync_epoch": slot.sync_epoch,
        "last_index": slot.last.index.0,
        "last_term": slot.last.term.0,
        "clean": slot.clean,
    })
}

fn membership_json(membership: &Membership) -> Value {
    let members = membership.members().map(|(node, member)| {
        let info = MemberInfo::decode(&member.info).unwrap_or_default();
        let (member, incarnation) = id(node);
        json!({
            "id": member,
            "incarnation": incarnation,
            "name": info.name,
            "role": role(membership, node),
            "peer_address": info.peer_address,
            "client_addresses": info.client_addresses,
        })
    });
    let members: Vec<Value> = members.collect();
    json!({"joint": membership.is_joint(), "members": members})
}

fn segment_json(segment: &SegmentSummary) -> Value {
    let ends = segment.positions.map(|(before, last)| {
        json!({
            "after": {"index": before.index.0, "term": before.term.0},
            "end": {"index": last.index.0, "term": last.term.0},
        })
    });
    json!({
        "number": segment.number,
        "bytes": segment.bytes,
        "positions": ends,
        "indexes": segment.indexes.map(|(first, last)| [first.0, last.0]),
        "terms": segment.terms.map(|(first, last)| [first.0, last.0]),
        "batches": segment.batches,
        "sync_epoch_before": segment.sync_epochs.0,
        "sync_epoch": segment.sync_epochs.1,
        "durable_epoch": segment.durable_epoch,
        "free_bytes": segment.free_bytes,
        "unused": segment.unused,
    })
}

fn to_json(found: &Examination) -> Value {
    let files = |files: &[(String, u64)]| -> Vec<Value> {
        files.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect()
    };
    let snapshots = found.snapshots.iter().map(|snapshot| {
        json!({
            "index": snapshot.at.index.0,
            "term": snapshot.at.term.0,
            "blobs": snapshot.blobs,
            "bytes": snapshot.bytes,
            "whole": snapshot.whole,
            "membership": membership_json(&snapshot.membership),
        })
    });
    let log = found.log.as_ref().map(|log| {
        json!({
            "begins_after": {"index": log.compacted.index.0, "term": log.compacted.term.0},
            "ends_at": {"index": log.last.index.0, "term": log.last.term.0},
            "sync_epoch": log.sync_epoch,
            "torn_epoch": log.torn_epoch,
        })
    });
    json!({
        "folder": found.dir,
        "member": found.identity.map(|identity| identity.member.to_string()),
        "incarnation": found.identity.map(|identity| identity.incarnation.to_string()),
        "cluster": found.formed.as_ref().map(|formed| formed.cluster.to_string()),
        "group": found.formed.as_ref().map(|formed| formed.group.0),
        "membership": newest_membership(found).map(membership_json),
        "promises": found.promises.as_ref().map(slot_json),
        "slots": found.slots.iter().map(|slot| slot.as_ref().map(slot_json)).collect::<Vec<_>>(),
        "log": log,
        "segments": found.segments.iter().map(segment_json).collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "spares": files(&found.spares),
        "others": files(&found.others),
        "bytes_read": found.bytes_read,
        "damages": verify::damages(found),
        "damages_unlisted": found.damages_unlisted,
    })
}

fn to_text(found: &Examination) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| text.push_str(&format!("{name:<14}{value}\n"));
    let lost = || "lost".to_owned();
    fact("folder", found.dir.display().to_string());
    let member = found
        .identity
        .map(|identity| format!("{}, incarnation {}", identity.member, identity.incarnation));
    fact("member", member.unwrap_or_else(lost));
    let cluster = found.formed.as_ref();
    let cluster = cluster.map(|formed| format!("{}, group {}", formed.cluster, formed.group.0));
    fact("cluster", cluster.unwrap_or_else(|| "none".to_owned()));
    let agreeing = found.slots.iter().flatten();
    let agreeing = agreeing.filter(|slot| Some(*slot) == found.promises.as_ref()).count();
    match &found.promises {
        Some(slot) => {
            let vote = slot.hard_state.voted_for;
            let vote = vote.map_or_else(|| "nobody".to_owned(), |vote| vote.member.to_string());
            let term = slot.hard_state.current_term;
            fact(
                "promises",
                format!(
                    "term {term}, voted for {vote}; version {}, {agreeing} of {} slots",
                    slot.version,
                    found.slots.len()
                ),
            );
            fact("durable epoch", slot.durable_epoch.to_string());
            fact("stopped", if slot.clean { "cleanly" } else { "by a crash, or runs" }.to_owned());
        }
        None => fact("promises", "no two slots agree".to_owned()),
    }
    if let Some(log) = &found.log {
        fact(
            "log",
            format!(
                "begins after {}, ends at {} (index:term), sync epoch {}",
                log.compacted, log.last, log.sync_epoch
            ),
        );
        if let Some(epoch) = log.torn_epoch {
            fact("torn", format!("batch {epoch}, never acknowledged; the next start drops it"));
        }
    }
    if let Some(membership) = newest_membership(found) {
        let rows = membership.members().map(|(node, member)| {
            let info = MemberInfo::decode(&member.info).unwrap_or_default();
            let own = found.identity.is_some_and(|identity| identity.node() == node);
            [
                if own { "*" } else { "" }.to_owned(),
                info.name,
                node.member.to_string(),
                role(membership, node).to_owned(),
                info.peer_address,
            ]
        });
        let joint = if membership.is_joint() { " (being changed)" } else { "" };
        text.push_str(&format!("\nmembers{joint}\n"));
        text.push_str(&table(["", "name", "id", "role", "address"], rows));
    }
    text.push_str("\nsegments\n");
    let rows = found.segments.iter().map(|segment| {
        let range = |range: Option<(u64, u64)>| {
            range.map_or_else(|| "-".to_owned(), |(first, last)| format!("{first}-{last}"))
        };
        let ends = segment.positions.map_or_else(
            || if segment.unused { "unused" } else { "?" }.to_owned(),
            |(before, last)| format!("{before} - {last}"),
        );
        [
            segment.number.to_string(),
            segment.bytes.to_string(),
            ends,
            range(segment.indexes.map(|(first, last)| (first.0, last.0))),
            range(segment.terms.map(|(first, last)| (first.0, last.0))),
            segment.batches.to_string(),
            format!("{}-{}", segment.sync_epochs.0, segment.sync_epochs.1),
            segment.free_bytes.to_string(),
        ]
    });
    let header = [
        "number",
        "bytes",
        "log from - to",
        "entries needed",
        "terms",
        "batches",
        "sync epochs",
        "free",
    ];
    text.push_str(&table(header, rows));
    text.push_str("\nsnapshots\n");
    let rows = found.snapshots.iter().map(|snapshot| {
        [
            snapshot.at.to_string(),
            snapshot.blobs.to_string(),
            snapshot.bytes.to_string(),
            if snapshot.whole { "intact" } else { "damaged" }.to_owned(),
        ]
    });
    text.push_str(&table(["at", "blobs", "bytes", ""], rows));
    for (title, files) in [("spare segments", &found.spares), ("other files", &found.others)] {
        if !files.is_empty() {
            text.push_str(&format!("\n{title}\n"));
            let rows = files.iter().map(|(name, bytes)| [name.clone(), bytes.to_string()]);
            text.push_str(&table(["name", "bytes"], rows));
        }
    }
    text.push('\n');
    text.push_str(&verify::text(found));
    text
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![header.map(str::to_owned)];
    lines.extend(rows);
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str("  ");
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
