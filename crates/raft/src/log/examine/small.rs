//! The small files: identity, cluster, promises, formation. Each holds copies; recovery needs one, here all are looked at.

use super::{Effect, Examiner, Slot};
use crate::error::DataError;
use crate::io::Disk;
use crate::log::files::Files;
use crate::log::hard_state::{Promises, SLOT_BYTES, SLOTS};
use crate::log::identity::{
    CLUSTER_MAGIC, FORMATION_COPY_BYTES, FORMATION_MAGIC, IDENTITY_MAGIC, seal_twice, unseal,
    unseal_either,
};
use crate::log::open::Found;
use crate::log::record::to_u64;

/// Where two texts begin to differ.
pub(super) fn first_difference(found: &[u8], written: &[u8]) -> Option<u64> {
    let differs = found.iter().zip(written).position(|(found, written)| found != written);
    let shorter = found.len().min(written.len());
    differs.or_else(|| (found.len() != written.len()).then_some(shorter)).map(to_u64)
}

impl<D: Disk> Examiner<'_, D> {
    /// Looks at every copy in the small files, and whether they go together; the slots.
    pub(super) fn small_files(
        &mut self,
        found: &Found,
        files: &Files<D>,
    ) -> Result<Vec<Option<Slot>>, DataError> {
        for (name, magic) in [("identity", IDENTITY_MAGIC), ("cluster", CLUSTER_MAGIC)] {
            let Some(bytes) = files.read(name)? else { continue };
            // Without an intact copy, the verdict below says so.
            let Ok(text) = unseal_either(magic, &bytes) else { continue };
            if let Some(offset) = first_difference(&bytes, &seal_twice(magic, &text)) {
                let problem = "one of two copies is damaged";
                self.damage(&files.path(name), (offset, 0), Effect::Covered, problem);
            }
        }
        let slots = self.promises(found, files)?;
        self.formation(found, files)?;
        if let Err(error) = found.judge(found.case(), files) {
            let path = files.path("promises");
            self.note(error, &path)?;
        }
        Ok(slots)
    }

    fn promises(
        &mut self,
        found: &Found,
        files: &Files<D>,
    ) -> Result<Vec<Option<Slot>>, DataError> {
        let Some(bytes) = files.read("promises")? else { return Ok(Vec::new()) };
        let (path, effect) = (
            files.path("promises"),
            if found.agreed().is_some() { Effect::Covered } else { Effect::Needed },
        );
        let mut slots = Vec::new();
        for number in 0..SLOTS {
            let begin = number * SLOT_BYTES;
            let slot = bytes.get(begin..).and_then(|rest| Promises::decode(rest).ok());
            if slot.is_none() {
                let problem =
                    format!("slot {number} of four, which hold term and vote, is damaged");
                self.damage(&path, (to_u64(begin), to_u64(SLOT_BYTES)), effect, &problem);
            }
            slots.push(slot.as_ref().map(Slot::from));
        }
        Ok(slots)
    }

    fn formation(&mut self, found: &Found, files: &Files<D>) -> Result<(), DataError> {
        // Once the cluster has formed, only the addresses in it are of use.
        let formed = matches!(&found.cluster, Some(Ok(_)));
        let path = files.path("formation");
        let Some(bytes) = files.read("formation")? else {
            if formed {
                self.damage(&path, (0, 0), Effect::Covered, "the formation state is missing");
            }
            return Ok(());
        };
        let spared = found.formation.0 > 0 || formed;
        let effect = if spared { Effect::Covered } else { Effect::Needed };
        for number in 0..2 {
            let begin = number * FORMATION_COPY_BYTES;
            let copy = bytes.get(begin..).unwrap_or(&[]);
            let copy = &copy[..copy.len().min(FORMATION_COPY_BYTES)];
            let written = copy.iter().any(|byte| *byte != 0);
            let whole = copy.len() == FORMATION_COPY_BYTES;
            if !whole || written && unseal(FORMATION_MAGIC, copy).is_err() {
                let problem = format!("copy {number} of two of the formation state is damaged");
                self.damage(&path, (to_u64(begin), 0), effect, &problem);
            }
        }
        Ok(())
    }
}
