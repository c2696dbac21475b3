//! A bar on a terminal, for whoever waits while a folder or a file is read or written.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use raft::disk::StdDisk;
use raft::error::DataError;
use raft::log::examine::{Examination, examine};

use super::complain;
use crate::exit::Exit;

/// What is over sooner needs no bar.
const PATIENCE: Duration = Duration::from_millis(700);
const TEMPLATE: &str = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}";

/// A bar on standard error when that is a terminal and it takes a while. Gone when dropped.
pub(super) struct Bar {
    what: &'static str,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Nothing is drawn yet.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, began: Instant::now(), bar: None }
    }

    /// So many bytes of so many.
    pub(super) fn at(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.began.elapsed() > PATIENCE {
            // Drawn only where standard error is a terminal.
            let style = ProgressStyle::with_template(TEMPLATE);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = Some(ProgressBar::new(total).with_style(style).with_message(self.what));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Reads all of a state folder, with a bar.
pub(super) fn examine_with_bar(folder: &Path) -> Result<Examination, DataError> {
    let mut bar = Bar::new("reading");
    examine(&StdDisk, folder, &mut |read, total| bar.at(read, total))
}

/// Says why a folder cannot be read, and how the program ends of it.
pub(super) fn refuse(error: &DataError) -> Exit {
    complain(&format!("rusty-raft: {error}"));
    if matches!(error, DataError::NoData { .. }) { Exit::NoData } else { Exit::DataRefused }
}
