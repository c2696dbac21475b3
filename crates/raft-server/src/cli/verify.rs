//! `rusty-raft verify <what> [other]`: every checksum of a stopped member's state or of a snapshot, whether two hold the same,
//! and an exit code that says how it is.

use std::path::Path;

use raft::log::examine::{Damage, Effect, Examination};
use serde_json::{Value, json};

use super::member::Refusal;
use super::progress::{Bar, examine_with_bar, refuse};
use super::{VerifyArgs, complain, etcd, say, transfer};
use crate::db::{Totals, Wishes};
use crate::exit::Exit;

pub(super) async fn run(args: &VerifyArgs) -> Exit {
    let Some(other) = &args.other else {
        if is_state_folder(&args.what) {
            return folder(args);
        }
        return match totals(args, &args.what).await {
            Ok(totals) => {
                if args.to.wants_json() {
                    say(&contents(&totals).to_string());
                } else {
                    say(&format!("sound: {}", transfer::shown(&totals)));
                }
                Exit::Success
            }
            Err(refusal) => refused(&refusal),
        };
    };
    match (totals(args, &args.what).await, totals(args, other).await) {
        (Ok(one), Ok(two)) => compare((&args.what, &one), (other, &two), args.to.wants_json()),
        (Err(refusal), _) | (_, Err(refusal)) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Exit {
    if !refusal.text.is_empty() {
        complain(&refusal.text);
    }
    refusal.exit
}

/// What is neither a file nor a URL nor etcd's is meant to be a member's folder.
fn is_state_folder(what: &Path) -> bool {
    transfer::url(what).is_none()
        && !what.is_file()
        && !etcd::member_folder(what).join("snap/db").is_file()
}

/// The numbers of whatever this is.
async fn totals(args: &VerifyArgs, what: &Path) -> Result<Totals, Refusal> {
    if is_state_folder(what) {
        return transfer::stopped(what).map(|stopped| stopped.totals);
    }
    let mut bar = Bar::new("reading");
    let Some(endpoint) = transfer::url(what) else {
        return Ok(
            transfer::open(what, args.skip_hash_check, Wishes::default(), &mut bar)?.totals()
        );
    };
    let near = std::env::temp_dir().join("rusty-raft-verify");
    let (_held, file) = transfer::fetched(&args.to, endpoint, &near).await?;
    Ok(transfer::open(&file, false, Wishes::default(), &mut bar)?.totals())
}

fn compare((a, one): (&Path, &Totals), (b, two): (&Path, &Totals), as_json: bool) -> Exit {
    let is_equal = one == two;
    if as_json {
        let summary = json!({
            "equal": is_equal,
            "contents": [
                {"of": a, "holds": contents(one)},
                {"of": b, "holds": contents(two)},
            ],
        });
        say(&summary.to_string());
    } else {
        for (name, totals) in [(a, one), (b, two)] {
            say(&format!("{}\n  {}", name.display(), transfer::shown(totals)));
        }
        say(if is_equal { "equal" } else { "different" });
    }
    if is_equal { Exit::Success } else { Exit::Failure }
}

/// For programs.
fn contents(totals: &Totals) -> Value {
    json!({
        "revision": totals.revision,
        "compact_revision": totals.compact_revision,
        "keys": totals.keys,
        "hash": totals.hash,
        "leases": totals.leases,
        "users": totals.users,
        "roles": totals.roles,
        "auth_enabled": totals.auth_enabled,
    })
}

/// Every checksum of a state folder.
fn folder(args: &VerifyArgs) -> Exit {
    let found = match examine_with_bar(&args.what) {
        Ok(found) => found,
        Err(error) => return refuse(&error),
    };
    if args.to.wants_json() {
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
