//! What must come true once the faults are over (L1-L5): first, in some runs, with no more than a quorum of the members,
//! then with all of them.

use std::time::Duration;

use raft_core::{Index, Raft, Term};

use crate::disk::Crash;
use crate::profile::pick;
use crate::story::Kind;
use crate::workload::Workload;
use crate::world::{Happening, World};

/// Formation may have to wait for its grace period, and a paused disk for its stall.
const PATIENCE: Duration = Duration::from_secs(8);
/// Whoever is stable stays so for this long.
const STABLE: u64 = 3_000_000;
/// What happens by itself has happened this long after [`STABLE`].
const SETTLED: u64 = 500_000;
/// How long nobody asks for anything when a disturber begins.
const UNDISTURBED: u64 = 1_000_000;
/// How often, and how long apart, the world looks whether two members disagree.
const DISAGREEMENT_STEPS: u64 = 1000;
const DISAGREEMENT_STEP: u64 = 1_000;

impl<W: Workload> World<W> {
    /// Ends all faults and demands progress.
    pub(crate) fn demand_progress(&mut self) {
        if self.profile.only_a_quorum {
            self.await_disagreement();
            self.choose_absent();
        }
        self.heal();
        if !self.absent.is_empty() {
            self.marks.hit("only a quorum is left");
            self.demand_service();
            for machine in std::mem::take(&mut self.absent) {
                self.later(0, Happening::Start(machine));
            }
        }
        self.demand_service();
        if self.profile.disturbed && self.formed.len() == self.machines.len() {
            self.disturb();
            self.demand_service();
        }
        // A transfer that was asked for while there was no leader is carried out later, and changes the term.
        self.await_changes();
        // As the members know it: a leader that was alone until now has not said it to anybody.
        let term = self.term();
        self.run_until(self.now + STABLE);
        // Somebody may just have been admitted, by the cluster itself: it converges, too, and without an election.
        self.await_that(PATIENCE, "L3: members do not converge", Self::converged);
        assert!(
            self.term() == term,
            "L4: the term changes though nothing fails\n{}",
            self.picture()
        );
        self.match_logs();
        self.await_settled();
        self.compare_states();
    }

    /// Whoever asked for a change or a transfer has an answer.
    fn await_changes(&mut self) {
        let end = self.now + u64::try_from(PATIENCE.as_micros()).unwrap_or(u64::MAX);
        self.poll_operator();
        while self.operator.waits() {
            assert!(self.now < end, "L5: a change waits\n{}", self.picture());
            self.run_until(self.now + 5_000);
            self.poll_operator();
        }
    }

    /// What members do beside their state machines is done.
    fn await_settled(&mut self) {
        let end = self.now + SETTLED;
        while let Some(what) = self.load.unsettled() {
            assert!(self.now < end, "L5: {what}\n{}", self.picture());
            self.run_until(self.now + 5_000);
        }
    }

    /// The highest term of any member that takes part.
    fn term(&self) -> Option<Term> {
        let running = (0..self.machines.len()).filter_map(|machine| self.raft(machine));
        running.map(Raft::current_term).max()
    }

    /// A leader, an answer for every client, a fresh write through everybody, equal logs.
    fn demand_service(&mut self) {
        self.await_that(PATIENCE, "L1: no leader", |world| world.leader().is_some());
        self.await_that(PATIENCE, "L5: clients wait", Self::clients_idle);
        for machine in self.sound_members() {
            self.demand_write(machine);
        }
        self.await_that(PATIENCE, "L3: members do not converge", Self::converged);
    }

    /// A fresh write goes through this member, unless a change that was asked for earlier removes it.
    fn demand_write(&mut self, machine: usize) {
        let acked = self.oracle.acked;
        for _ in 0..20 {
            self.await_that(PATIENCE, "L1: no leader", |world| {
                let up = world.machines[machine].process.is_some();
                world.leader().is_some() && (up || !world.sound_members().contains(&machine))
            });
            if self.machines[machine].process.is_none() {
                return;
            }
            self.write_through(machine);
            self.await_that(PATIENCE, "L5: no answer", Self::clients_idle);
            if self.oracle.acked > acked {
                return;
            }
            self.run_until(self.now + 50_000);
        }
        panic!("L2: no write goes through\n{}", self.picture());
    }

    /// Something stays out of order: a member hears nothing and speaks all the same, or does not hear the leader alone. The
    /// others serve, and once they do, no term changes.
    fn disturb(&mut self) {
        self.draw_for(Kind::Consequence(0));
        let Some(leader) = self.leader() else { return };
        let others: Vec<usize> =
            (0..self.machines.len()).filter(|other| *other != leader).collect();
        let other = others[pick(&mut self.faults, others.len())];
        let (deaf, unheard) = match self.faults.below(3) {
            0 => (leader, others),
            1 => (other, (0..self.machines.len()).filter(|machine| *machine != other).collect()),
            _ => (other, vec![leader]),
        };
        let term = self.oracle.term();
        for from in unheard {
            self.wires.blocked.insert((from, deaf));
        }
        if let Some(tape) = &mut self.tape {
            tape.links(self.now, &self.wires.blocked);
        }
        self.marks.hit("a disturber stays");
        if deaf != leader {
            // As long as it lacks nothing it would be elected if anybody let it.
            self.run_until(self.now + UNDISTURBED);
        }
        self.await_that(PATIENCE, "L1: no leader beside one that hears nobody", |world| {
            world.leader().is_some_and(|leads| leads != deaf)
        });
        for machine in (0..self.machines.len()).filter(|machine| *machine != deaf) {
            self.demand_write(machine);
        }
        let settled = if deaf == leader { self.oracle.term() } else { term };
        self.run_until(self.now + STABLE);
        assert!(
            self.oracle.term() == settled,
            "L4: n{} hears nothing, and deposes a leader\n{}",
            deaf + 1,
            self.picture()
        );
        self.unblock();
    }

    /// Goes on for a while, until two members disagree on who is ahead.
    fn await_disagreement(&mut self) {
        for _ in 0..DISAGREEMENT_STEPS {
            if self.disagreeing().is_some() {
                self.marks.hit("faults end when term and log disagree");
                return;
            }
            self.run_until(self.now + DISAGREEMENT_STEP);
        }
    }

    /// Two members of which one is ahead in its log and behind in its term: only the first can win, and it must learn
    /// the second's term (etcd#8501).
    fn disagreeing(&self) -> Option<(usize, usize)> {
        let running = || (0..self.machines.len()).filter_map(|at| Some((at, self.raft(at)?)));
        running().find_map(|(first, ahead)| {
            let behind = running().find(|(_, other)| {
                let (log, other_log) = (ahead.last_log(), other.last_log());
                ahead.current_term() < other.current_term()
                    && (log.term, log.index) > (other_log.term, other_log.index)
            });
            behind.map(|(second, _)| (first, second))
        })
    }

    /// Whoever will not be there at first: all but a quorum of the founders, where the founders are all voters there
    /// are and ever were.
    fn choose_absent(&mut self) {
        let members = self.machines.len();
        if self.oracle.committed() == Index::ZERO || self.formed.len() < members {
            return;
        }
        let kept = self.disagreeing();
        self.draw_for(Kind::Consequence(0));
        let mut others: Vec<usize> = (0..members)
            .filter(|machine| !kept.is_some_and(|(a, b)| a == *machine || b == *machine))
            .collect();
        while members - self.absent.len() > members / 2 + 1 && !others.is_empty() {
            let nth = pick(&mut self.faults, others.len());
            self.absent.insert(others.swap_remove(nth));
        }
        for machine in self.absent.clone() {
            self.draw_for(Kind::Consequence(machine));
            let crash = self.draw_crash();
            if self.machines[machine].process.is_some() {
                self.crash(machine, crash, u64::MAX);
            }
        }
    }

    /// Ends all faults for good.
    fn heal(&mut self) {
        self.healed = true;
        self.draw_noise();
        self.unblock();
        self.fuses.clear();
        self.give_up_doomed();
        for machine in 0..self.machines.len() {
            self.resume(machine);
            self.machines[machine].disk.set_fuse(None);
            self.machines[machine].disk.set_capacity(None);
            self.machines[machine].disk.fail_no_more();
            if self.machines[machine].disk.is_read_only() {
                self.crash(machine, Crash::Power(0), 0);
            }
            self.machines[machine].clock.repair(self.now);
            if self.is_doomed(machine) && self.operator.refuses {
                continue;
            }
            self.later(0, Happening::Start(machine));
            let life = self.machines[machine].life;
            self.later(0, Happening::Turn(machine, life));
            // Work that a slow disk had planned for much later.
            for happening in [Happening::Log(machine, life), Happening::Snapshot(machine, life)] {
                self.later(1_000, happening);
            }
        }
    }

    fn await_that(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "{what}\n{}", self.picture());
            self.run_until(self.now + 5_000);
        }
    }

    /// All members that have their disks are up, equal, and have applied everything.
    fn converged(&self) -> bool {
        let Some(leader) = self.leader().and_then(|leader| self.raft(leader)) else {
            return false;
        };
        let last = leader.last_log();
        leader.commit_index() == last.index
            && !leader.membership().is_joint()
            && self.sound_members().into_iter().all(|machine| {
                self.machines[machine].process.as_ref().is_some_and(|process| {
                    process.apply.applied() == last.index
                        && process.driver.raft().is_some_and(|raft| {
                            raft.last_log() == last
                                && raft.digest_at(last.index) == leader.digest_at(last.index)
                        })
                })
            })
    }

    /// The state of all members at the end.
    fn compare_states(&mut self) {
        for machine in &self.machines {
            if let Some(process) = &machine.process {
                self.oracle.state(machine.node(), process.apply.applied(), process.digest());
            }
        }
    }
}
