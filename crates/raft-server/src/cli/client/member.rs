//! `member add`, `remove`, `update`, `promote` and `list`.

use clap::Subcommand;
use raft_kv::proto::etcdserverpb::{
    Member as Listed, MemberAddRequest, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, ResponseHeader,
};

use super::Failure;
use super::dial::Cluster;
use super::go::quoted;
use super::print::{Out, Printer};
use super::table::table;
use super::to::Format;
use super::words::member_id;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Member {
    /// Add a member; start it afterwards.
    Add {
        /// What it is called.
        name: String,
        /// Where the other members reach it.
        #[arg(long, value_name = "URLS", required = true, value_delimiter = ',')]
        peer_urls: Vec<String>,
        /// Without a vote until it is promoted.
        #[arg(long)]
        learner: bool,
    },
    /// Remove a member for ever.
    Remove {
        /// The member, in hexadecimal digits.
        #[arg(value_name = "MEMBER_ID", value_parser = member_id)]
        id: u64,
    },
    /// Tell the others where to reach a member from now on.
    Update {
        /// The member, in hexadecimal digits.
        #[arg(value_name = "MEMBER_ID", value_parser = member_id)]
        id: u64,
        /// Where the other members reach it.
        #[arg(long, value_name = "URLS", required = true, value_delimiter = ',')]
        peer_urls: Vec<String>,
    },
    /// Give a learner its vote.
    Promote {
        /// The member, in hexadecimal digits.
        #[arg(value_name = "MEMBER_ID", value_parser = member_id)]
        id: u64,
    },
    /// List all members: id, status, name, addresses for peers, addresses for clients, whether it is a learner.
    List,
}

impl Member {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::Add { name, peer_urls, learner } => add(cluster, name, peer_urls, *learner).await,
            Self::Remove { id } => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let answer = cluster
                    .write(MemberRemoveRequest { id: *id }, async |link, request| {
                        link.members().member_remove(link.by(request)).await
                    })
                    .await?;
                let line = done(*id, "removed from", answer.header.as_ref());
                let header = answer.header;
                printer.show(
                    "MemberRemoveResponse",
                    &answer,
                    |out| out.line(line),
                    |out| {
                        out.header(header.as_ref());
                    },
                );
                Ok(())
            }
            Self::Update { id, peer_urls } => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let request = MemberUpdateRequest { id: *id, peer_ur_ls: peer_urls.clone() };
                let answer = cluster
                    .write(request, async |link, request| {
                        link.members().member_update(link.by(request)).await
                    })
                    .await?;
                let line = done(*id, "updated in", answer.header.as_ref());
                let header = answer.header;
                printer.show(
                    "MemberUpdateResponse",
                    &answer,
                    |out| out.line(line),
                    |out| {
                        out.header(header.as_ref());
                    },
                );
                Ok(())
            }
            Self::Promote { id } => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let answer = cluster
                    .write(MemberPromoteRequest { id: *id }, async |link, request| {
                        link.members().member_promote(link.by(request)).await
                    })
                    .await?;
                let line = done(*id, "promoted in", answer.header.as_ref());
                let header = answer.header;
                printer.show(
                    "MemberPromoteResponse",
                    &answer,
                    |out| out.line(line),
                    |out| {
                        out.header(header.as_ref());
                    },
                );
                Ok(())
            }
            Self::List => list(cluster).await,
        }
    }
}

fn done(id: u64, what: &str, header: Option<&ResponseHeader>) -> String {
    let cluster = header.map_or(0, |header| header.cluster_id);
    format!("Member {id:16x} {what} cluster {cluster:16x}")
}

async fn add(
    cluster: &Cluster,
    name: &str,
    peer_urls: &[String],
    is_learner: bool,
) -> Result<(), Failure> {
    let printer = Printer::for_messages(&cluster.wishes)?;
    let request = MemberAddRequest { peer_ur_ls: peer_urls.to_vec(), is_learner };
    let answer = cluster
        .write(request, async |link, request| link.members().member_add(link.by(request)).await)
        .await?;
    let id = answer.member.as_ref().map_or(0, |member| member.id);
    printer.show(
        "MemberAddResponse",
        &answer,
        |out| {
            out.line(done(id, "added to", answer.header.as_ref()));
            out.line("");
            variables(out, name, id, peer_urls, &answer.members);
        },
        |out| out.header(answer.header.as_ref()),
    );
    Ok(())
}

/// What the new member is to be started with, as variables of etcd.
fn variables(out: &mut Out, name: &str, id: u64, peer_urls: &[String], members: &[Listed]) {
    let named =
        |member: &Listed| if member.id == id { name.to_owned() } else { member.name.clone() };
    let of_member = |member: &Listed| {
        let name = named(member);
        member.peer_ur_ls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>()
    };
    let all: Vec<String> = members.iter().flat_map(of_member).collect();
    out.line(format!("ETCD_NAME={}", quoted(name.as_bytes())));
    out.line(format!("ETCD_INITIAL_CLUSTER={}", quoted(all.join(",").as_bytes())));
    let own = peer_urls.join(",");
    out.line(format!("ETCD_INITIAL_ADVERTISE_PEER_URLS={}", quoted(own.as_bytes())));
    out.line("ETCD_INITIAL_CLUSTER_STATE=\"existing\"");
}

async fn list(cluster: &Cluster) -> Result<(), Failure> {
    let printer = Printer::for_all(&cluster.wishes);
    let request = MemberListRequest { linearizable: true };
    let answer = cluster
        .read(request, async |link, request| link.members().member_list(link.by(request)).await)
        .await?;
    printer.show(
        "MemberListResponse",
        &answer,
        |out| simple_list(out, printer.format, &answer),
        |out| fields_list(out, &answer),
    );
    Ok(())
}

fn simple_list(out: &mut Out, format: Format, answer: &MemberListResponse) {
    let row = |member: &Listed| {
        vec![
            format!("{:x}", member.id),
            if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = answer.members.iter().map(row).collect();
    let head = ["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];
    out.rows(format, &head, &rows);
}

impl Out {
    /// Rows as a table, or as lines with commas.
    pub(super) fn rows(&mut self, format: Format, head: &[&str], rows: &[Vec<String>]) {
        if format == Format::Table {
            self.line(table(head, rows).trim_end());
        } else {
            rows.iter().for_each(|row| self.line(row.join(", ")));
        }
    }
}

fn fields_list(out: &mut Out, answer: &MemberListResponse) {
    out.header(answer.header.as_ref());
    for member in &answer.members {
        out.field("ID", member.id);
        out.text("Name", member.name.as_bytes());
        for url in &member.peer_ur_ls {
            out.text("PeerURL", url.as_bytes());
        }
        for url in &member.client_ur_ls {
            out.text("ClientURL", url.as_bytes());
        }
        out.field("IsLearner", member.is_learner);
        out.line("");
    }
}

/// Where clients reach the members of the cluster.
pub(super) async fn client_addresses(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let request = MemberListRequest { linearizable: false };
    let answer = cluster
        .read(request, async |link, request| link.members().member_list(link.by(request)).await)
        .await
        .map_err(|failure| {
            failure.inside("failed to fetch endpoints from etcd cluster member list")
        })?;
    Ok(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}
