//! The ledger: how much was simulated on which commit, a line for each campaign.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::campaign::Totals;

const HEADER: &str = "commit,date,seeds,simulated_hours,events,failures";

/// Appends a line, after the names of the columns when the file is new or empty.
pub(super) fn append(path: &Path, totals: &Totals) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut text = String::new();
    if file.metadata()?.len() == 0 {
        text += &format!("{HEADER}\n");
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    text += &line(&commit(), &date(since.as_secs() / 86_400), totals);
    // One write: campaigns that end together do not mix their lines.
    file.write_all(text.as_bytes())
}

fn line(commit: &str, date: &str, totals: &Totals) -> String {
    let (hours, failures) = (totals.hours(), totals.failures.len());
    format!("{commit},{date},{},{hours:.3},{},{failures}\n", totals.seeds, totals.report.events)
}

/// The commit that is checked out here, with a `+` when something has been changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates"]);
    if changed.is_some_and(|changed| changed.is_empty()) { commit } else { commit + "+" }
}

/// The date so many days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> String {
    // Eras of 400 years, which begin on the first of March (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let known = [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ];
        for (days, text) in known {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn lines() {
        let mut totals = Totals { seeds: 7, ..Totals::default() };
        totals.report.micros = 5_400_000_000;
        totals.report.events = 12;
        assert_eq!(line("abc", "2026-01-01", &totals), "abc,2026-01-01,7,1.500,12,0\n");
    }
}
