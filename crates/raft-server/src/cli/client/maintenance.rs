//! `alarm` and `move-leader`.

use clap::{Args, Subcommand};
use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, MoveLeaderRequest, StatusRequest,
};
use tokio::time::timeout;

use super::Failure;
use super::dial::{Cluster, Link};
use super::print::Printer;
use super::words::member_id;

#[derive(Clone, Copy, Debug, Subcommand)]
pub(in crate::cli) enum Alarm {
    /// Take all alarms back.
    Disarm,
    /// List all alarms.
    List,
}

/// Makes another member the leader.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct MoveLeader {
    /// The member that is to lead, in hexadecimal digits.
    #[arg(value_name = "MEMBER_ID", value_parser = member_id)]
    target: u64,
}

impl Alarm {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let mut answer = ask(cluster, AlarmRequest::default()).await?;
        if matches!(self, Self::Disarm) {
            for alarm in std::mem::take(&mut answer.alarms) {
                let request = AlarmRequest {
                    action: AlarmAction::Deactivate.into(),
                    member_id: alarm.member_id,
                    alarm: alarm.alarm,
                };
                answer.alarms.extend(ask(cluster, request).await?.alarms);
            }
        }
        printer.show(
            "AlarmResponse",
            &answer,
            |out| answer.alarms.iter().for_each(|alarm| out.line(shown(alarm))),
            |out| {
                out.header(answer.header.as_ref());
                for alarm in &answer.alarms {
                    out.field("MemberID", alarm.member_id);
                    out.field("AlarmType", name(alarm));
                    out.line("");
                }
            },
        );
        Ok(())
    }
}

async fn ask(cluster: &Cluster, request: AlarmRequest) -> Result<AlarmResponse, Failure> {
    cluster
        .write(request, async |link, request| link.maintenance().alarm(link.by(request)).await)
        .await
}

fn name(alarm: &AlarmMember) -> &'static str {
    AlarmType::try_from(alarm.alarm).unwrap_or(AlarmType::None).as_str_name()
}

/// As Go prints this message, with the space at its end.
fn shown(alarm: &AlarmMember) -> String {
    let member =
        if alarm.member_id == 0 { String::new() } else { format!("memberID:{} ", alarm.member_id) };
    let kind = if alarm.alarm == 0 { String::new() } else { format!("alarm:{} ", name(alarm)) };
    member + &kind
}

impl MoveLeader {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let limit = cluster.wishes.command_timeout;
        let leader = timeout(limit, leader(cluster)).await;
        let (id, link) =
            leader.unwrap_or_else(|_| Err(Failure::failed("context deadline exceeded")))?;
        let request = MoveLeaderRequest { target_id: self.target };
        let moved = async {
            let answer = link.maintenance().move_leader(link.by(request)).await?;
            Ok::<_, Failure>(answer.into_inner())
        };
        let moved = timeout(limit, moved).await;
        let answer = moved.unwrap_or_else(|_| Err(Failure::failed("context deadline exceeded")))?;
        let target = self.target;
        printer.show(
            "MoveLeaderResponse",
            &answer,
            |out| out.line(format!("Leadership transferred from {id:x} to {target:x}")),
            |out| out.header(answer.header.as_ref()),
        );
        Ok(())
    }
}

/// The leader, among the endpoints that were named.
async fn leader(cluster: &Cluster) -> Result<(u64, Link), Failure> {
    let mut reasons = Vec::new();
    for target in &cluster.targets {
        let link = match cluster.link(target).await? {
            Ok(link) => link,
            Err(reason) => {
                reasons.push(format!("{}: {reason}", target.name));
                continue;
            }
        };
        let status = link.maintenance().status(link.by(StatusRequest {})).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok((status.leader, link));
        }
        reasons.push(format!("{}: it does not lead", target.name));
    }
    Err(Failure::failed(format!(
        "no leader among the endpoints\n\n  {}\n\n  right  all members in --endpoints",
        reasons.join("\n  ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_shown_as_go_shows_messages() {
        let alarm = AlarmMember { member_id: 7, alarm: AlarmType::Nospace.into() };
        assert_eq!(shown(&alarm), "memberID:7 alarm:NOSPACE ");
        assert_eq!(shown(&AlarmMember::default()), "");
    }
}
