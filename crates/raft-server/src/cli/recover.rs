//! `rusty-raft recover <folder>…`: a quorum is lost for ever, and what is left becomes a cluster of one.
//!
//! Nothing is written before somebody has seen what would be lost and has said yes. Refused is whatever may still be
//! healed without: folders of a quorum, or members that answer.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use raft::MemberInfo;
use raft::core::{EntryId, Membership, NodeId};
use raft::disk::StdDisk;
use raft::log::Survivor;
use raft::node::recover::recover;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::inspect::{role, table};
use super::progress::refuse;
use super::{RecoverArgs, complain, say};
use crate::client;
use crate::exit::Exit;

/// How long a member may take to be reached.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What can be found of one member.
struct Found {
    node: NodeId,
    name: String,
    role: &'static str,
    address: String,
    here: Here,
}

enum Here {
    /// Its folder was named.
    Folder { last: EntryId, snapshot: EntryId },
    /// Something listens at one of its addresses; what it says of itself.
    Answers(String),
    /// Neither.
    Gone(String),
}

pub(super) async fn run(args: &RecoverArgs) -> Exit {
    let mut survivors = Vec::new();
    for folder in &args.folders {
        match Survivor::open(StdDisk, folder) {
            Ok(survivor) => survivors.push(survivor),
            Err(error) => return refuse(&error),
        }
    }
    // The one with the most goes on; of equals, the one that was named first (§5.4.1).
    let position = |survivor: &Survivor<StdDisk>| (survivor.last().term, survivor.last().index);
    survivors.sort_by_key(|survivor| std::cmp::Reverse(position(survivor)));
    let Some(best) = survivors.first() else {
        return not_done("no folder was named");
    };
    let cluster = best.formed().cluster;
    if let Some(other) = survivors.iter().find(|survivor| survivor.formed().cluster != cluster) {
        return not_done(&format!(
            "{} belongs to cluster {}, {} to cluster {cluster}: name folders of one cluster",
            other.dir().display(),
            other.formed().cluster,
            best.dir().display()
        ));
    }
    let membership = best.membership();
    let own = best.identity().node();
    if !membership.contains(own) {
        return not_done(&format!(
            "{} belongs to a member that the cluster has removed",
            best.dir().display()
        ));
    }
    let found = look(&membership, &survivors).await;
    say(&format!(
        "Cluster {cluster} has {} voters{}; this is what is left of it:\n",
        membership.voters().len(),
        if membership.is_joint() { " (its configuration is being changed)" } else { "" },
    ));
    say(&survey(&found, own));
    if let Some(reason) = still_alive(&membership, &found) {
        return not_done(&reason);
    }
    say(&consequences(best));
    if !args.yes
        && let Err(reason) = ask()
    {
        return not_done(reason);
    }
    match recover(best) {
        Ok(done) => {
            say(&format!(
                "Done. {} is now member {} of the new cluster {}; the old folder is {}.\nStart the member as always; \
                 it is alone, and serves at once. Start the others with empty folders: at the addresses that they had \
                 they are taken in by themselves, at others after `etcdctl member add`.",
                best.dir().display(),
                done.member,
                done.cluster,
                done.kept.display()
            ));
            Exit::Success
        }
        Err(error) => {
            complain(&format!("rusty-raft: not recovered: {error}"));
            Exit::of_node(&error)
        }
    }
}

fn not_done(reason: &str) -> Exit {
    complain(&format!("rusty-raft: nothing was changed: {reason}"));
    Exit::Failure
}

/// Every member of the configuration: a folder, an answer, or nothing.
async fn look(membership: &Membership, survivors: &[Survivor<StdDisk>]) -> Vec<Found> {
    let mut asks = JoinSet::new();
    for (position, (node, member)) in membership.members().enumerate() {
        let info = MemberInfo::decode(&member.info).unwrap_or_default();
        let role = role(membership, node);
        let survivor = survivors.iter().find(|survivor| survivor.identity().node() == node);
        let folder = survivor
            .map(|survivor| Here::Folder { last: survivor.last(), snapshot: survivor.snapshot() });
        asks.spawn(async move {
            let here = match folder {
                Some(folder) => folder,
                None => call(&info).await,
            };
            let address = info.peer_address;
            (position, Found { node, name: info.name, role, address, here })
        });
    }
    let mut found = asks.join_all().await;
    found.sort_by_key(|(position, _)| *position);
    found.into_iter().map(|(_, found)| found).collect()
}

/// Whether anything answers at a member's addresses. What listens there without being understood counts, too: it may be
/// the member, behind TLS or busy.
async fn call(info: &MemberInfo) -> Here {
    let mut reason = "it has no address".to_owned();
    let clients = info.client_addresses.iter();
    for address in clients.chain([&info.peer_address]).filter(|address| !address.is_empty()) {
        match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                return Here::Answers(match client::status(address).await {
                    Ok(status) => format!(
                        "answers: term {}, commit index {}, applied {}",
                        status.raft_term, status.raft_index, status.raft_applied_index
                    ),
                    Err(error) => format!("something listens there: {error}"),
                });
            }
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = format!("no answer within {} s", TIMEOUT.as_secs()),
        }
    }
    Here::Gone(reason)
}

/// One line for each member.
fn survey(found: &[Found], chosen: NodeId) -> String {
    let rows = found.iter().map(|member| {
        let (last, snapshot, here) = match &member.here {
            Here::Folder { last, snapshot } => {
                (last.to_string(), snapshot.to_string(), "its folder".to_owned())
            }
            Here::Answers(what) => (String::new(), String::new(), what.clone()),
            Here::Gone(why) => (String::new(), String::new(), format!("gone ({why})")),
        };
        [
            if member.node == chosen { "*" } else { "" }.to_owned(),
            member.name.clone(),
            member.node.member.to_string(),
            member.role.to_owned(),
            member.address.clone(),
            last,
            snapshot,
            here,
        ]
    });
    let header = ["", "member", "id", "role", "address", "log ends at", "snapshot", "found"];
    table(header, rows)
}

/// Why a quorum may still exist.
fn still_alive(membership: &Membership, found: &[Found]) -> Option<String> {
    let has_folder = |node: &NodeId| {
        found.iter().any(|it| it.node == *node && matches!(it.here, Here::Folder { .. }))
    };
    let answering = found.iter().find(|it| matches!(it.here, Here::Answers(_)));
    if let Some(member) = answering {
        return Some(format!(
            "{} ({}) may be alive. Repair the cluster with it, or, if there is no quorum for ever, stop it and name \
             its folder, too",
            member.name, member.address
        ));
    }
    // While a configuration is being changed, a quorum of both is needed.
    let quorum_of = |voters: &BTreeSet<NodeId>| {
        voters.iter().filter(|node| has_folder(node)).count() > voters.len() / 2
    };
    let outgoing = membership.outgoing();
    if quorum_of(membership.voters()) && (outgoing.is_empty() || quorum_of(outgoing)) {
        let reason = if membership.voters().len() == 1 {
            "this member is a quorum by itself: start it as it is"
        } else {
            "these folders are a quorum: start these members as they are, and nothing is lost"
        };
        return Some(reason.to_owned());
    }
    None
}

/// What going on means, in words.
fn consequences(best: &Survivor<StdDisk>) -> String {
    format!(
        "{} becomes the only member of a new cluster, with everything in it up to index {} of term {}.\n\n\
         Lost is whatever only the members that are gone hold: writes beyond that, which may have been acknowledged. How \
         many nobody can say.\nKept is every entry in its log, also those that were never acknowledged: they count as \
         committed from now on.\nMembers of the old cluster that come back are refused by the new one; they must start \
         with empty folders.\n",
        best.dir().display(),
        best.last().index,
        best.last().term
    )
}

fn ask() -> Result<(), &'static str> {
    if !io::stdin().is_terminal() {
        return Err("nobody is there to be asked: with --yes it goes on without");
    }
    write!(io::stdout().lock(), "Go on? Type yes: ").and_then(|()| io::stdout().flush()).ok();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" { Ok(()) } else { Err("as asked") }
}
