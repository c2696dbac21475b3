//! What members do beside their state machines: the services of a store, where a workload runs them.

use raft_core::{NodeId, Term};

use crate::workload::{Attendant, Workload};
use crate::world::{Happening, World};

/// How long it takes at most until a process gets to it, in microseconds.
const DELAY_MAX: u64 = 300;

/// What of a process is the world's business.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Services {
    /// When it will next do something.
    planned: Option<u64>,
    /// Its term, and who leads, when it last looked.
    standing: Option<(Term, Option<NodeId>)>,
}

impl<W: Workload> World<W> {
    /// The number of the client that asks what this member itself wants to know.
    fn errand(&self, machine: usize) -> usize {
        self.clients.len() + machine
    }

    /// The machine that the client with this number is, if it is one.
    pub(crate) fn on_errand(&self, client: usize) -> Option<usize> {
        client.checked_sub(self.clients.len())
    }

    /// Something may be to do.
    pub(crate) fn attend_soon(&mut self, machine: usize) {
        if self.load.attends() {
            let delay = 1 + self.paces[machine].below(DELAY_MAX);
            self.plan_attention(machine, self.now + delay);
        }
    }

    /// After a turn: whoever leads may be somebody else.
    pub(crate) fn notice_standing(&mut self, machine: usize) {
        if !self.load.attends() {
            return;
        }
        let standing = self.raft(machine).map(|raft| (raft.current_term(), raft.leader()));
        let Some(process) = self.process(machine) else { return };
        if process.services.standing != standing {
            process.services.standing = standing;
            self.attend_soon(machine);
        }
    }

    fn plan_attention(&mut self, machine: usize, at: u64) {
        let (now, life) = (self.now, self.machines[machine].life);
        let Some(process) = self.process(machine) else { return };
        if process.services.planned.is_none_or(|planned| planned <= now || at < planned) {
            process.services.planned = Some(at);
            self.later(at.saturating_sub(now), Happening::Attend(machine, life));
        }
    }

    pub(crate) fn attend(&mut self, machine: usize) {
        let Some(raft) = self.raft(machine) else { return };
        let member = Attendant {
            node: raft.node(),
            now: self.machines[machine].clock.local(self.now),
            term: raft.current_term(),
            leader: raft.leader(),
            is_idle: self.errands[machine].is_idle(),
        };
        let call = self.call(self.errand(machine));
        let attention = self.load.attend(&call, &member, &mut self.paces[machine]);
        if let Some(ask) = attention.ask {
            assert!(member.is_idle, "n{} asks two things at once", machine + 1);
            self.request(call, machine, ask);
        }
        if attention.busy {
            self.attend_soon(machine);
        }
        if let Some(deadline) = attention.deadline {
            let at = self.machines[machine].clock.global(self.now, deadline);
            self.plan_attention(machine, at.max(self.now + 1));
        }
    }
}
