//! `rusty-raft verify <folder>`: every checksum of a stopped member's state, and an exit code that says how it is.

use raft::log::examine::{Damage, Effect, Examination};
use serde_json::{Value, json};

use super::progress::{examine_with_bar, refuse};
use super::{VerifyArgs, say};
use crate::exit::Exit;

pub(super) fn run(args: &VerifyArgs) -> Exit {
    let found = match examine_with_bar(&args.folder) {
        Ok(found) => found,
        Err(error) => return refuse(&error),
    };
    if args.json {
        let summary = json!({
            "folder": found.dir,
            "bytes_read": found.bytes_read,
            "sound": found.damages.is_empty(),
            "damages": damages(&found),
            "damages_unlisted": found.damages_unlisted,
        });
        say(&summary.to_string());
    } else {
        say(&text(&found));
    }
    if found.damages.is_empty() { Exit::Success } else { Exit::Failure }
}

/// All damages, for programs.
pub(super) fn damages(found: &Examination) -> Vec<Value> {
    let damages = found.damages.iter();
    let damages = damages.map(|damage| {
        json!({
            "file": damage.path,
            "offset": damage.offset,
            "bytes": (damage.bytes > 0).then_some(damage.bytes),
            "problem": damage.problem,
            "effect": effect(damage.effect),
        })
    });
    damages.collect()
}

const fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Unused => "unused",
        Effect::Covered => "covered",
        Effect::Fetched => "fetched",
        Effect::Needed => "needed",
    }
}

/// One damage on a line of its own.
pub(super) fn line(damage: &Damage) -> String {
    let Damage { path, offset, bytes, problem, effect } = damage;
    let path = path.display();
    let reach = if *bytes > 0 { format!(", {bytes} bytes") } else { String::new() };
    let consequence = match effect {
        Effect::Unused => "nothing is lost",
        Effect::Covered => "covered by another copy",
        Effect::Fetched => "fetched from another member",
        Effect::Needed => "needed at a start",
    };
    format!("{path} at byte {offset}{reach}: {problem} ({consequence})")
}

/// The damages, one on a line, and what follows.
pub(super) fn text(found: &Examination) -> String {
    let mut text: String =
        found.damages.iter().map(|damage| format!("{}\n", line(damage))).collect();
    if found.damages_unlisted > 0 {
        text.push_str(&format!("and {} more\n", found.damages_unlisted));
    }
    let verdict = if found.damages.is_empty() {
        "sound: every checksum holds"
    } else if found.is_unusable() {
        "damaged: this member alone cannot start from it"
    } else if found.needs_others() {
        "damaged: this member starts, and takes part once others have handed out what is missing"
    } else {
        "damaged: what a start needs is intact"
    };
    format!("{text}{verdict} ({} bytes read)", found.bytes_read)
}
