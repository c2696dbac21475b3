//! A bar on a terminal, for whoever waits while a folder is read.

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

/// Reads all of a state folder, with a bar on standard error when that is a terminal and it takes a while.
pub(super) fn examine_with_bar(folder: &Path) -> Result<Examination, DataError> {
    let began = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let outcome = examine(&StdDisk, folder, &mut |read, total| {
        if bar.is_none() && began.elapsed() > PATIENCE {
            // Drawn only where standard error is a terminal.
            let style = ProgressStyle::with_template(TEMPLATE);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            bar = Some(ProgressBar::new(total).with_style(style).with_message("reading"));
        }
        if let Some(bar) = &bar {
            bar.set_length(total);
            bar.set_position(read);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}

/// Says why a folder cannot be read, and how the program ends of it.
pub(super) fn refuse(error: &DataError) -> Exit {
    complain(&format!("rusty-raft: {error}"));
    if matches!(error, DataError::NoData { .. }) { Exit::NoData } else { Exit::DataRefused }
}
