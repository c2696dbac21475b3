//! Damage that is found while this node takes part: counted, named, and fetched from others where it has to be.
//!
//! The log goes on being used meanwhile. What cannot be had from others within a while waits for the next pass of the
//! [`scrub`](crate::log::scrub).

use std::path::Path;
use std::time::Duration;

use raft_core::{StateMachine, Time};
use tracing::{error, info, warn};

use super::repair::{WANTS_MAX, note_repaired};
use super::{Driver, send_formation};
use crate::io::Network;
use crate::log::{LogRequest, Mend, Missing};
use crate::node::formation_message::FormationMessage;

/// How often the others are asked again.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// For how long they are asked.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// What is missing of a log that is in use.
#[derive(Debug, Default)]
pub(super) struct Mending {
    missing: Vec<Missing>,
    next_ask: Time,
    give_up_at: Time,
}

impl Mending {
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.missing.is_empty()).then_some(self.next_ask)
    }
}

impl<S: StateMachine> Driver<S> {
    /// The owner of a file that looked damaged has looked at it.
    pub(super) fn on_mended(&mut self, now: Time, path: &Path, offset: u64, mend: Mend) {
        let damage = &self.settings.meters.damage;
        match mend {
            Mend::Intact => {}
            Mend::Repaired => {
                warn!(path = %path.display(), offset, "damage was found, and repaired in place");
                damage.found(path, offset, "repaired in place");
                damage.repaired(path, offset);
            }
            Mend::Missing(missing) => {
                for Missing { id, path, offset, .. } in &missing {
                    let path = path.as_path();
                    warn!(entry = %id, path = %path.display(), offset, "an entry of the log is damaged");
                    damage.found(
                        path,
                        *offset,
                        &format!("entry {id}; the others are asked for it"),
                    );
                }
                let known = std::mem::take(&mut self.mending.missing);
                let known = known.into_iter().filter(|it| !missing.contains(it));
                let missing = known.chain(missing.iter().cloned()).collect();
                self.mending =
                    Mending { missing, next_ask: now, give_up_at: now.after(GIVE_UP_AFTER) };
            }
            Mend::Beyond(problem) => {
                error!(path = %path.display(), offset, "damage was found: {problem}");
                damage.found(path, offset, &problem);
            }
        }
    }

    /// Asks the others for what is missing.
    pub(super) fn progress_mending(&mut self, now: Time, network: &mut impl Network) {
        let mending = &mut self.mending;
        if mending.missing.is_empty() || now < mending.next_ask {
            return;
        }
        if now >= mending.give_up_at {
            mending.missing.clear();
            return;
        }
        mending.next_ask = now.after(ASK_INTERVAL);
        let wants = mending.missing.iter().take(WANTS_MAX).map(|it| (it.id, it.digest)).collect();
        let ask = FormationMessage::RepairAsk { wants, snapshot: false };
        for node in self.connected.keys() {
            send_formation(network, *node, &ask);
        }
    }

    pub(super) fn on_mending_answer(&mut self, message: FormationMessage) {
        if let FormationMessage::RepairHave(entry) = message
            && self.mending.missing.iter().any(|it| it.id == entry.id && it.digest == entry.digest)
        {
            self.out.log.push(LogRequest::Fill(entry));
        }
    }

    /// This is still missing.
    pub(super) fn on_mending_filled(&mut self, missing: Vec<Missing>) {
        note_repaired(&self.settings, &self.mending.missing, &missing);
        if missing.is_empty() && !self.mending.missing.is_empty() {
            info!("what was damaged is repaired");
        }
        self.mending.missing = missing;
    }
}
