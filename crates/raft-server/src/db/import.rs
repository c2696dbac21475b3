//! From a database to the folders of new members.

use std::path::PathBuf;

use raft::core::{MemberId, SnapshotError, SnapshotSource, StateMachine as _};
use raft::error::NodeError;
use raft::node::Seed;
use raft_kv::Store;

use super::{Database, Totals};

/// What a member is to find.
#[derive(Debug)]
pub(crate) struct Place {
    /// Which of the members.
    pub(crate) index: usize,
    /// Its folder.
    pub(crate) folder: PathBuf,
}

/// The number from which all identities follow: the same content, members and token give the same cluster, on whatever
/// machine.
pub(crate) fn number(database: &Database, addresses: &[String], token: &str) -> u128 {
    let totals = database.totals();
    let text = format!("{token}\n{}\n{}", addresses.join(","), totals.revision);
    xxhash_rust::xxh3::xxh3_128(&[&database.source.digest[..], text.as_bytes()].concat())
}

/// Writes the folder of one member and reads it back into a store, which has to come out with the same numbers.
///
/// # Errors
/// When a store does not take what was read, or the disk refuses. Nothing is left of it then.
pub(crate) fn import(
    database: &Database,
    seed: &Seed,
    place: &Place,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<MemberId, NodeError> {
    let wanted = database.totals();
    seed.write(
        place.index,
        &place.folder,
        |sink| database.write(sink, progress),
        |source| {
            let found = restored(source)?;
            if found == wanted {
                return Ok(());
            }
            Err(SnapshotError::Undecodable(format!(
                "what was written is not what was read: {found:?} instead of {wanted:?}"
            )))
        },
    )
}

/// The numbers of a store that is restored from a snapshot.
fn restored(source: &dyn SnapshotSource) -> Result<Totals, SnapshotError> {
    let mut store = Store::new();
    store.restore(source)?;
    Ok(Totals::of_store(&store))
}
