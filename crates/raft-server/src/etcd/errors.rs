//! What clients are told when something fails: the codes and the exact words that they compare.
//!
//! Clients take "request timed out …" for *unknown*. Every other text here is definite: the request was not and
//! will not be carried out.

use raft::core::MembershipError;
use raft::error::{AdminError, ProposeError, ReadError};
use raft_kv::{Code, KvError};
use tonic::Status;

/// There is no leader.
pub(super) const NO_LEADER: &str = "etcdserver: no leader";
/// Leadership moved before a write was committed, or while a read waited.
const LEADER_CHANGED: &str = "etcdserver: leader changed";
/// The outcome is unknown: no answer in time.
const TIMED_OUT: &str = "etcdserver: request timed out";
/// The outcome is unknown: the leader that had the write is gone.
const TIMED_OUT_LEADER: &str =
    "etcdserver: request timed out, possibly due to previous leader failure";
/// The outcome is unknown: this member stopped while the write was on its way.
const TIMED_OUT_CONNECTION: &str = "etcdserver: request timed out, possibly due to connection lost";
/// This member stops.
pub(super) const STOPPED: &str = "etcdserver: server stopped";
/// Some member's program does not know this command yet.
const NOT_CAPABLE: &str = "etcdserver: not capable";
/// Too much is waiting.
const OVERLOADED: &str = "etcdserver: too many requests";

/// The store refused.
pub(super) fn of_kv(error: KvError) -> Status {
    let message = error.message();
    match error.code() {
        Code::NotFound => Status::not_found(message),
        Code::OutOfRange => Status::out_of_range(message),
        Code::FailedPrecondition => Status::failed_precondition(message),
        Code::PermissionDenied => Status::permission_denied(message),
        Code::Unauthenticated => Status::unauthenticated(message),
        Code::Unknown => Status::unknown(message),
        Code::ResourceExhausted => Status::resource_exhausted(message),
        Code::DataLoss => Status::data_loss(message),
        Code::InvalidArgument | _ => Status::invalid_argument(message),
    }
}

/// Too many wait already.
pub(super) fn overloaded() -> Status {
    Status::resource_exhausted(OVERLOADED)
}

/// A request over the configured limit.
pub(super) fn too_large() -> Status {
    of_kv(KvError::RequestTooLarge)
}

/// A write was not answered.
pub(super) fn of_propose(error: &ProposeError) -> Status {
    match error {
        ProposeError::NoLeader => Status::unavailable(NO_LEADER),
        ProposeError::Superseded => Status::unavailable(LEADER_CHANGED),
        ProposeError::Overloaded => Status::resource_exhausted(OVERLOADED),
        ProposeError::NoSpace => of_kv(KvError::NoSpace),
        ProposeError::TooLarge { .. } => too_large(),
        ProposeError::FeatureLevel { .. } => Status::failed_precondition(NOT_CAPABLE),
        ProposeError::Unknown => Status::unavailable(TIMED_OUT_LEADER),
        ProposeError::Stopped { definitely_not_applied: true } => Status::unavailable(STOPPED),
        ProposeError::Stopped { definitely_not_applied: false } => {
            Status::unavailable(TIMED_OUT_CONNECTION)
        }
        // Whatever a newer library adds is unknown, like a time-out.
        ProposeError::TimedOut | _ => Status::unavailable(TIMED_OUT),
    }
}

/// A read was not served. Reading again is always safe.
pub(super) fn of_read(error: &ReadError) -> Status {
    match error {
        ReadError::NoLeader => Status::unavailable(NO_LEADER),
        ReadError::Overloaded => Status::resource_exhausted(OVERLOADED),
        // No word of etcd's: there the process ends. A client with several endpoints goes on to the next.
        ReadError::NoSpace => Status::unavailable(error.to_string()),
        ReadError::Stopped => Status::unavailable(STOPPED),
        ReadError::TimedOut | _ => Status::unavailable(TIMED_OUT),
    }
}

/// A membership change or a transfer did not happen.
pub(super) fn of_admin(error: &AdminError) -> Status {
    match error {
        AdminError::Refused(refusal) => of_membership(refusal),
        AdminError::RefusedByLeader(words) => of_leaders_words(words),
        AdminError::NoLeader => Status::unavailable(NO_LEADER),
        AdminError::Stopped => Status::unavailable(STOPPED),
        AdminError::Unknown | _ => Status::unavailable(TIMED_OUT_LEADER),
    }
}

const NOT_FOUND: &str = "etcdserver: member not found";
const ID_EXISTS: &str = "etcdserver: member ID already exist";
const NOT_A_LEARNER: &str = "etcdserver: can only promote a learner member";
const NOT_CAUGHT_UP: &str =
    "etcdserver: can only promote a learner member which is in sync with leader";
/// Too many of the voters have yet to start, or none would be left.
pub(super) const NOT_ENOUGH: &str =
    "etcdserver: re-configuration failed due to not enough started members";

fn of_membership(error: &MembershipError) -> Status {
    match error {
        MembershipError::NotAMember(_) => Status::not_found(NOT_FOUND),
        MembershipError::AlreadyAMember(_) | MembershipError::WasRemoved(_) => {
            Status::failed_precondition(ID_EXISTS)
        }
        MembershipError::NotALearner(_) => Status::failed_precondition(NOT_A_LEARNER),
        MembershipError::NotCaughtUp(_) => Status::failed_precondition(NOT_CAUGHT_UP),
        MembershipError::NoVoters => Status::failed_precondition(NOT_ENOUGH),
        MembershipError::QueueFull => Status::resource_exhausted(OVERLOADED),
        MembershipError::NotLeader => Status::unavailable(LEADER_CHANGED),
        other @ (MembershipError::NotAVoter(_)
        | MembershipError::TooLarge
        | MembershipError::Empty
        | _) => Status::failed_precondition(format!("etcdserver: {other}")),
    }
}

/// A leader elsewhere refuses in the words of [`MembershipError`]: the same answers by their words.
fn of_leaders_words(words: &str) -> Status {
    for (part, code, message) in [
        ("is not a member", tonic::Code::NotFound, NOT_FOUND),
        ("is a member already", tonic::Code::FailedPrecondition, ID_EXISTS),
        ("was removed and cannot return", tonic::Code::FailedPrecondition, ID_EXISTS),
        ("is not a learner", tonic::Code::FailedPrecondition, NOT_A_LEARNER),
        ("has not caught up", tonic::Code::FailedPrecondition, NOT_CAUGHT_UP),
        ("no voter would be left", tonic::Code::FailedPrecondition, NOT_ENOUGH),
        ("too many membership changes", tonic::Code::ResourceExhausted, OVERLOADED),
    ] {
        if words.contains(part) {
            return Status::new(code, message);
        }
    }
    Status::failed_precondition(format!("etcdserver: {words}"))
}

#[cfg(test)]
mod tests {
    use raft::core::NodeId;

    use super::*;

    #[test]
    fn unknown_outcomes_and_only_they_are_time_outs() {
        for error in [
            ProposeError::NoLeader,
            ProposeError::Overloaded,
            ProposeError::NoSpace,
            ProposeError::TooLarge { bytes: 2, bytes_max: 1 },
            ProposeError::FeatureLevel { needed: 2, cluster: 1 },
            ProposeError::Superseded,
            ProposeError::Unknown,
            ProposeError::TimedOut,
            ProposeError::Stopped { definitely_not_applied: true },
            ProposeError::Stopped { definitely_not_applied: false },
        ] {
            let status = of_propose(&error);
            let unknown = status.message().starts_with(TIMED_OUT);
            assert_eq!(unknown, !error.is_definite(), "{error:?} became {status:?}");
            assert!(status.message().starts_with("etcdserver: "));
        }
    }

    /// Those that take a member of another version, or one that dies at just the right moment: the others are heard from
    /// real members, in `tests/service`.
    #[test]
    fn what_is_hard_to_bring_about_is_said_in_etcds_words() {
        let node = NodeId::new(7, 1);
        for (status, code, message) in [
            (
                of_propose(&ProposeError::FeatureLevel { needed: 2, cluster: 1 }),
                tonic::Code::FailedPrecondition,
                "etcdserver: not capable",
            ),
            (
                of_propose(&ProposeError::Unknown),
                tonic::Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (
                of_propose(&ProposeError::Stopped { definitely_not_applied: false }),
                tonic::Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            (
                of_admin(&AdminError::Refused(MembershipError::AlreadyAMember(node))),
                tonic::Code::FailedPrecondition,
                "etcdserver: member ID already exist",
            ),
            (
                of_propose(&ProposeError::Superseded),
                tonic::Code::Unavailable,
                "etcdserver: leader changed",
            ),
            (
                of_kv(KvError::OldAuthRevision),
                tonic::Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
            ),
        ] {
            assert_eq!((status.code(), status.message()), (code, message));
        }
    }

    #[test]
    fn a_refusal_is_the_same_from_here_and_from_a_leader_elsewhere() {
        let node = NodeId::new(7, 1);
        for refusal in [
            MembershipError::NotAMember(node),
            MembershipError::AlreadyAMember(node),
            MembershipError::WasRemoved(node),
            MembershipError::NotALearner(node),
            MembershipError::NotCaughtUp(node),
            MembershipError::NoVoters,
            MembershipError::QueueFull,
            MembershipError::TooLarge,
            MembershipError::Empty,
        ] {
            let here = of_admin(&AdminError::Refused(refusal));
            let there = of_admin(&AdminError::RefusedByLeader(refusal.to_string()));
            assert_eq!((here.code(), here.message()), (there.code(), there.message()));
        }
    }
}
