//! The settings that nobody needs at first: the log's and the checkpoints' sizes, waiting awake, the members' secret,
//! clients' tokens, what is done about lost disks.

use std::fmt;
use std::time::Duration;

use raft::transport::{SECRET_BYTES_MIN, Secret};

use super::compaction;
use super::problem::Problem;
use super::text::Text;
use super::tokens::{TOKEN_TTL, TokenConfig};
use crate::etcd::Compaction;

/// `log_segment_bytes` at least and at most.
const SEGMENT_BYTES: (u64, u64) = (1 << 20, 1 << 30);
/// Every other count at most: what no log holds.
const COUNT_MAX: u64 = 1 << 40;
/// `auth_token_ttl` and `readmit_after` at most, in milliseconds: a year.
const YEAR_MILLIS: f64 = 365.0 * 24.0 * 3_600_000.0;

/// A secret in a configuration. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// For the file that a supervisor writes for its members.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// For the transport. `None` is not possible: the text was checked.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        Secret::new(self.0.as_bytes())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// What a file may leave to the library's defaults; `None` does.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tuning {
    /// With it both ends of a connection between members prove that they know it.
    pub cluster_secret: Option<SecretText>,
    /// Bytes of one segment file of the log.
    pub log_segment_bytes: Option<u64>,
    /// A checkpoint every so many entries.
    pub checkpoint_entries: Option<u64>,
    /// A checkpoint every so many bytes of entries.
    pub checkpoint_bytes: Option<u64>,
    /// Entries kept in the log behind a checkpoint.
    pub trailing_entries: Option<u64>,
    /// Bytes of entries kept in the log behind a checkpoint.
    pub trailing_bytes: Option<u64>,
    /// Bytes of its data that a member reads and checks again in a second; zero: never.
    pub scrub_bytes_per_second: Option<u64>,
    /// What is forgotten by itself.
    pub auto_compaction: Option<Compaction>,
    /// How long threads wait awake; zero: never.
    pub busy_poll: Option<Duration>,
    /// What etcd's `--auth-token` takes, checked.
    pub auth_token: Option<String>,
    /// How long a simple token is good for without being used.
    pub auth_token_ttl: Option<Duration>,
    /// How long an empty member stands in the place of one that is lost before it is taken in; zero: for ever.
    pub readmit_after: Option<Duration>,
    /// Whether a damaged data folder is set aside and the member taken in anew.
    pub rebuild_damaged: Option<bool>,
}

impl Tuning {
    pub(super) fn of(text: &Text, heartbeat: f64) -> Result<Self, Box<Problem>> {
        let fields = &text.fields;
        let count = |name: &str, count: Option<u64>, (min, max): (u64, u64)| match count {
            Some(count) if count < min || count > max => {
                Err(text.wrong(name, format!("it is {count}, but must be from {min} to {max}")))
            }
            count => Ok(count),
        };
        if let Some(secret) = &fields.cluster_secret
            && secret.len() < SECRET_BYTES_MIN
        {
            let len = secret.len();
            // Without the place, which would show the line and the secret with it.
            return Err(text.wrong_unseen("cluster_secret", format!("it has only {len} bytes")));
        }
        let busy_poll = fields.busy_poll;
        if let Some(millis) = busy_poll
            && !(0.0..=heartbeat / 4.0).contains(&millis)
        {
            return Err(text.wrong_because(
                "busy_poll",
                format!(
                    "it is {millis}, but must be from 0 to a quarter of heartbeat_interval: threads would stay awake for \
                     heartbeats alone"
                ),
                format!("a number of milliseconds, 0 for never: busy_poll: {}", (heartbeat / 4.0).min(1.0)),
            ));
        }
        let auto_compaction = compaction::parse(
            fields.auto_compaction_mode.as_deref().unwrap_or("periodic"),
            fields.auto_compaction_retention.as_deref().unwrap_or_default(),
        )
        .map_err(|wrong| match wrong {
            compaction::Wrong::Mode => text.wrong(
                "auto_compaction_mode",
                format!("it is {:?}", fields.auto_compaction_mode.as_deref().unwrap_or_default()),
            ),
            compaction::Wrong::Retention(right) => text.wrong_because(
                "auto_compaction_retention",
                format!(
                    "it is {:?}",
                    fields.auto_compaction_retention.as_deref().unwrap_or_default()
                ),
                right,
            ),
        })?;
        let time = |name: &str, given: Option<f64>, min: f64| match given {
            Some(millis) if !(min..=YEAR_MILLIS).contains(&millis) => Err(text.wrong(
                name,
                format!("it is {millis}, but must be from {min} to {YEAR_MILLIS} ms"),
            )),
            given => Ok(given.map(|millis| Duration::from_secs_f64(millis / 1000.0))),
        };
        let auth_token_ttl = time("auth_token_ttl", fields.auth_token_ttl, 1000.0)?;
        if let Some(given) = &fields.auth_token {
            let parsed = TokenConfig::parse(given, auth_token_ttl.unwrap_or(TOKEN_TTL));
            match parsed.map_err(|wrong| text.wrong("auth_token", wrong))? {
                TokenConfig::Jwt(_) if auth_token_ttl.is_some() => {
                    return Err(text.wrong_because(
                        "auth_token_ttl",
                        "it is for simple tokens, and auth_token asks for jwt",
                        "the option ttl of auth_token",
                    ));
                }
                TokenConfig::Jwt(_) | TokenConfig::Simple(_) => {}
            }
        }
        Ok(Self {
            auto_compaction,
            auth_token: fields.auth_token.clone(),
            auth_token_ttl,
            readmit_after: time("readmit_after", fields.readmit_after, 0.0)?,
            rebuild_damaged: fields.rebuild_damaged,
            cluster_secret: fields.cluster_secret.clone().map(SecretText),
            log_segment_bytes: count("log_segment_bytes", fields.log_segment_bytes, SEGMENT_BYTES)?,
            checkpoint_entries: count(
                "checkpoint_entries",
                fields.checkpoint_entries,
                (1, COUNT_MAX),
            )?,
            checkpoint_bytes: count("checkpoint_bytes", fields.checkpoint_bytes, (1, COUNT_MAX))?,
            trailing_entries: count("trailing_entries", fields.trailing_entries, (0, COUNT_MAX))?,
            trailing_bytes: count("trailing_bytes", fields.trailing_bytes, (0, COUNT_MAX))?,
            scrub_bytes_per_second: count(
                "scrub_bytes_per_second",
                fields.scrub_bytes_per_second,
                (0, COUNT_MAX),
            )?,
            busy_poll: busy_poll.map(|millis| Duration::from_secs_f64(millis / 1000.0)),
        })
    }

    /// Gives the node what the file says.
    pub fn apply(&self, node: &mut raft::node::Settings) {
        node.cluster_secret = self.cluster_secret.as_ref().and_then(SecretText::secret);
        let numbers = [
            (self.log_segment_bytes, &mut node.log_segment_bytes),
            (self.checkpoint_entries, &mut node.checkpoint_entries),
            (self.checkpoint_bytes, &mut node.checkpoint_bytes),
            (self.trailing_entries, &mut node.trailing_entries),
            (self.trailing_bytes, &mut node.trailing_bytes),
            (self.scrub_bytes_per_second, &mut node.scrub_bytes_per_second),
        ];
        for (given, setting) in numbers {
            if let Some(given) = given {
                *setting = given;
            }
        }
        if let Some(busy_poll) = self.busy_poll {
            node.busy_poll = busy_poll;
        }
        if let Some(after) = self.readmit_after {
            node.readmit_after = Some(after).filter(|after| !after.is_zero());
        }
        if let Some(rebuild_damaged) = self.rebuild_damaged {
            node.rebuild_damaged = rebuild_damaged;
        }
    }

    /// How clients' tokens are made.
    #[must_use]
    pub fn tokens(&self) -> TokenConfig {
        let ttl = self.auth_token_ttl.unwrap_or(TOKEN_TTL);
        // It was checked when the file was read.
        let parsed = self.auth_token.as_deref().map(|text| TokenConfig::parse(text, ttl));
        parsed.and_then(Result::ok).unwrap_or(TokenConfig::Simple(ttl))
    }

    /// The fields that are given, each on a line, as they stand in a file. `quoted` makes a text of RON.
    ///
    /// # Errors
    /// Those of `quoted`.
    pub fn lines<E>(&self, quoted: impl Fn(&str) -> Result<String, E>) -> Result<String, E> {
        let mut lines = Vec::new();
        if let Some(secret) = &self.cluster_secret {
            lines.push(format!("cluster_secret: {}", quoted(secret.reveal())?));
        }
        let numbers = [
            ("log_segment_bytes", self.log_segment_bytes),
            ("checkpoint_entries", self.checkpoint_entries),
            ("checkpoint_bytes", self.checkpoint_bytes),
            ("trailing_entries", self.trailing_entries),
            ("trailing_bytes", self.trailing_bytes),
            ("scrub_bytes_per_second", self.scrub_bytes_per_second),
        ];
        let given = numbers.iter().filter_map(|(name, number)| Some((name, (*number)?)));
        lines.extend(given.map(|(name, number)| format!("{name}: {number}")));
        if let Some(token) = &self.auth_token {
            lines.push(format!("auth_token: {}", quoted(token)?));
        }
        if let Some(compaction) = self.auto_compaction {
            let (mode, retention) = compaction::words(compaction);
            lines.push(format!("auto_compaction_mode: {}", quoted(mode)?));
            lines.push(format!("auto_compaction_retention: {}", quoted(&retention)?));
        }
        let times = [
            ("busy_poll", self.busy_poll),
            ("auth_token_ttl", self.auth_token_ttl),
            ("readmit_after", self.readmit_after),
        ];
        let given = times.iter().filter_map(|(name, time)| Some((name, (*time)?)));
        lines
            .extend(given.map(|(name, time)| format!("{name}: {:?}", time.as_secs_f64() * 1000.0)));
        if let Some(rebuild_damaged) = self.rebuild_damaged {
            lines.push(format!("rebuild_damaged: {rebuild_damaged}"));
        }
        Ok(lines.iter().map(|line| format!("    {line},\n")).collect())
    }
}
