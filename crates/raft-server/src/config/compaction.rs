//! What is to be forgotten by itself, as etcd's flags and our files say it.

use std::time::Duration;

use super::etcd::values;
use crate::etcd::Compaction;

/// The modes that there are.
pub(super) const MODES: &str = "periodic or revision";

/// What of it is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// There is no such mode.
    Mode,
    /// The retention does not fit the mode; what would be right.
    Retention(&'static str),
}

/// A mode, and how much is kept: a time, a number alone meaning hours, or a number of revisions. Nothing and zero switch
/// it off.
pub(super) fn parse(mode: &str, retention: &str) -> Result<Option<Compaction>, Wrong> {
    match mode {
        "periodic" => {
            const HOUR: u64 = 3600;
            let hours = retention.parse::<u64>().ok().and_then(|hours| hours.checked_mul(HOUR));
            match hours.map(Duration::from_secs).or_else(|| values::duration(retention)) {
                Some(Duration::ZERO) => Ok(None),
                Some(retention) => Ok(Some(Compaction::Periodic { retention })),
                None if retention.is_empty() => Ok(None),
                None => Err(Wrong::Retention("a number of hours or a duration: 1, 30m, 72h")),
            }
        }
        "revision" => match retention.parse::<i64>() {
            Ok(0) => Ok(None),
            Ok(retention) if retention > 0 => Ok(Some(Compaction::Revision { retention })),
            Err(_) if retention.is_empty() => Ok(None),
            _ => Err(Wrong::Retention("a number of revisions to keep: 1000")),
        },
        _ => Err(Wrong::Mode),
    }
}

/// The same in words, as [`parse`] reads them: the mode and the retention.
pub(super) fn words(compaction: Compaction) -> (&'static str, String) {
    match compaction {
        Compaction::Periodic { retention } => ("periodic", format!("{}ms", retention.as_millis())),
        Compaction::Revision { retention } => ("revision", retention.to_string()),
    }
}
