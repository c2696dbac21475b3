//! The settings that nobody needs at first: the log's and the checkpoints' sizes, waiting awake, the members' secret.

use std::fmt;
use std::time::Duration;

use raft::transport::{SECRET_BYTES_MIN, Secret};

use super::problem::Problem;
use super::text::Text;

/// `log_segment_bytes` at least and at most.
const SEGMENT_BYTES: (u64, u64) = (1 << 20, 1 << 30);
/// Every other count at most: what no log holds.
const COUNT_MAX: u64 = 1 << 40;

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
    /// How long threads wait awake; zero: never.
    pub busy_poll: Option<Duration>,
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
        Ok(Self {
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
        ];
        for (given, setting) in numbers {
            if let Some(given) = given {
                *setting = given;
            }
        }
        if let Some(busy_poll) = self.busy_poll {
            node.busy_poll = busy_poll;
        }
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
        ];
        let given = numbers.iter().filter_map(|(name, number)| Some((name, (*number)?)));
        lines.extend(given.map(|(name, number)| format!("{name}: {number}")));
        if let Some(busy_poll) = self.busy_poll {
            lines.push(format!("busy_poll: {:?}", busy_poll.as_secs_f64() * 1000.0));
        }
        Ok(lines.iter().map(|line| format!("    {line},\n")).collect())
    }
}
