//! What came out, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::board::Board;
use super::tally::Tally;
use super::{Load, Plan};

/// Rows of the text histogram, at most.
const ROWS_MAX: usize = 16;
/// Characters of its longest bar.
const BAR: u64 = 40;
/// Different errors that are shown; the JSON form has all.
const ERRORS_SHOWN: usize = 5;

/// What one run measured.
#[derive(Clone, Debug)]
pub struct Report {
    plan: Plan,
    tally: Tally,
    window: Duration,
    longest_gap: Duration,
    missing: u64,
    interrupted: bool,
    processor: Duration,
}

impl Report {
    pub(super) fn new(plan: Plan, board: &Board, tally: Tally, processor: Duration) -> Self {
        Self {
            window: board.window(),
            longest_gap: board.longest_gap(),
            missing: board.missing(),
            interrupted: board.was_stopped(),
            plan,
            tally,
            processor,
        }
    }

    /// Everything that was counted.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether nothing at all succeeded.
    #[must_use]
    pub fn all_failed(&self) -> bool {
        self.tally.latency.is_empty()
    }

    /// Whether it was stopped before it had sent what the plan asked for.
    #[must_use]
    pub const fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Successful requests a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        per(self.tally.in_window, self.window)
    }

    fn processor_per_request(&self) -> Duration {
        let requests = u32::try_from(self.tally.latency.len()).unwrap_or(u32::MAX);
        self.processor.checked_div(requests).unwrap_or_default()
    }

    /// One object. Latencies in microseconds.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { plan, tally, .. } = self;
        let mut value = json!({
            "op": name(plan),
            "endpoints": plan.endpoints,
            "clients": plan.clients,
            "connections": plan.connections,
            "threads": plan.threads,
            "rate": plan.rate,
            "value_size": plan.value_bytes,
            "key_size": plan.key_bytes,
            "keys": plan.keys,
            "seconds": self.window.as_secs_f64(),
            "interrupted": self.interrupted,
            "requests": tally.latency.len(),
            "ops_per_sec": self.throughput(),
            "errors": tally.failed(),
            "error_kinds": tally.errors,
            "unsent": tally.unsent,
            "empty_reads": tally.empty,
            "bytes_received": tally.received,
            "max_gap_ms": self.longest_gap.as_secs_f64() * 1e3,
            "client_cpu_us_per_op": self.processor_per_request().as_secs_f64() * 1e6,
        });
        let Some(fields) = value.as_object_mut() else { return value };
        for (prefix, histogram) in self.histograms() {
            fields.insert(format!("{prefix}mean_us"), json!(histogram.mean() / 1e3));
            fields.insert(format!("{prefix}stddev_us"), json!(histogram.stdev() / 1e3));
            for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)] {
                let latency = micros(histogram.value_at_quantile(quantile));
                fields.insert(format!("{prefix}{name}_us"), json!(latency));
            }
            fields.insert(format!("{prefix}max_us"), json!(micros(histogram.max())));
        }
        if let Load::Watch { watchers, streams } = plan.load {
            fields.insert(String::from("watchers"), json!(watchers));
            fields.insert(String::from("streams"), json!(streams));
            fields.insert(String::from("events"), json!(tally.deliveries.len()));
            let rate = per(tally.deliveries_in_window, self.window);
            fields.insert(String::from("events_per_sec"), json!(rate));
            fields.insert(String::from("events_missing"), json!(self.missing));
        }
        value
    }

    /// What is to be shown, with what its fields are called in JSON.
    fn histograms(&self) -> Vec<(&'static str, &Histogram<u64>)> {
        let mut shown = vec![("", &self.tally.latency)];
        match self.plan.load {
            Load::Mixed { .. } => {
                shown.push(("read_", &self.tally.reads));
                shown.push(("write_", &self.tally.writes));
            }
            Load::Watch { .. } => shown.push(("delivery_", &self.tally.deliveries)),
            Load::Put | Load::Get | Load::Txn | Load::Range { .. } => {}
        }
        shown
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { plan, tally, .. } = self;
        let mut text = String::new();
        let pace = plan.rate.map_or_else(
            || String::from("as fast as answers come"),
            |rate| format!("{rate} requests a second"),
        );
        self.line(
            &mut text,
            "load",
            &format!(
                "{}: {} clients on {} connections to {}, values of {} B, {pace}",
                name(plan),
                plan.clients,
                plan.connections,
                plan.endpoints.join(", "),
                plan.value_bytes,
            ),
        );
        let requests = tally.latency.len();
        self.line(
            &mut text,
            "requests",
            &format!("{requests} in {:.1} s, {} failed", self.window.as_secs_f64(), tally.failed()),
        );
        if self.interrupted {
            self.line(&mut text, "interrupted", "not all that was asked for has been sent");
        }
        self.line(&mut text, "throughput", &format!("{:.1} a second", self.throughput()));
        if let Load::Watch { watchers, streams } = plan.load {
            let rate = per(tally.deliveries_in_window, self.window);
            let what = format!(
                "{rate:.1} events a second to {watchers} watchers on {streams} streams, {} did not come",
                self.missing
            );
            self.line(&mut text, "delivered", &what);
        }
        self.line(
            &mut text,
            "longest gap",
            &format!("{} without a success", show(self.longest_gap)),
        );
        let own = show(self.processor_per_request());
        self.line(&mut text, "own cost", &format!("{own} of processor time per request"));
        if tally.empty > 0 {
            let what = format!("{} reads were answered without the key", tally.empty);
            self.line(&mut text, "empty", &what);
        }
        if tally.unsent > 0 {
            let what = format!("{} requests were due and could not be sent", tally.unsent);
            self.line(&mut text, "not sent", &what);
        }
        if requests > 0 {
            text.push('\n');
            text.push_str(&quantiles(&self.histograms()));
            text.push('\n');
            let (of, last) = match self.histograms().pop() {
                Some(("delivery_", histogram)) => ("deliveries", histogram),
                _ => ("requests", &tally.latency),
            };
            text.push_str(&bars(of, last));
        }
        let mut errors: Vec<(&String, &u64)> = tally.errors.iter().collect();
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        if !errors.is_empty() {
            text.push_str("\nfailed\n");
        }
        for (reason, count) in errors.iter().take(ERRORS_SHOWN) {
            writeln!(text, "  {count:>9}  {reason}").ok();
        }
        if errors.len() > ERRORS_SHOWN {
            writeln!(text, "  and {} other kinds (--json has all)", errors.len() - ERRORS_SHOWN)
                .ok();
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn line(&self, text: &mut String, name: &str, value: &str) {
        writeln!(text, "{name:<12} {value}").ok();
    }
}

fn name(plan: &Plan) -> String {
    let name = match plan.load {
        Load::Put => "put",
        Load::Get => "get",
        Load::Mixed { .. } => "mixed",
        Load::Txn => "txn",
        Load::Range { .. } => "range",
        Load::Watch { .. } => "watch",
    };
    if plan.serializable { format!("{name} (serializable)") } else { name.to_owned() }
}

/// A second's worth.
fn per(count: u64, time: Duration) -> f64 {
    let count = Duration::from_nanos(count).as_secs_f64() * 1e9;
    if time.is_zero() { 0.0 } else { count / time.as_secs_f64() }
}

fn micros(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() * 1e6
}

/// A time with three digits or so.
fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = if seconds < 1e-3 {
        (seconds * 1e6, "µs")
    } else if seconds < 1.0 {
        (seconds * 1e3, "ms")
    } else {
        (seconds, "s")
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn show_nanos(nanos: u64) -> String {
    show(Duration::from_nanos(nanos))
}

fn quantiles(histograms: &[(&'static str, &Histogram<u64>)]) -> String {
    let mut text = format!("{:<12}", "latency");
    for name in ["mean", "p50", "p90", "p99", "p99.9", "max"] {
        write!(text, "{name:>10}").ok();
    }
    text.push('\n');
    for (prefix, histogram) in histograms {
        let of = prefix.trim_end_matches('_');
        write!(text, "{:<12}", if of.is_empty() { "request" } else { of }).ok();
        let mean = Duration::try_from_secs_f64(histogram.mean() / 1e9).unwrap_or_default();
        write!(text, "{:>10}", show(mean)).ok();
        for quantile in [0.5, 0.9, 0.99, 0.999] {
            write!(text, "{:>10}", show_nanos(histogram.value_at_quantile(quantile))).ok();
        }
        writeln!(text, "{:>10}", show_nanos(histogram.max())).ok();
    }
    text
}

/// How many took how long: steps that double.
fn bars(of: &str, histogram: &Histogram<u64>) -> String {
    let mut rows: Vec<(u64, u64)> = histogram
        .iter_log(1000, 2.0)
        .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
        .collect();
    let filled = rows.iter().position(|(_, count)| *count > 0).unwrap_or(0);
    rows.drain(..filled);
    // The few slowest of a long tail share the last row.
    while rows.len() > ROWS_MAX {
        if let Some((upper, count)) = rows.pop()
            && let Some(last) = rows.last_mut()
        {
            *last = (upper, last.1 + count);
        }
    }
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let mut text = format!("{:<12} {of}\n", "up to");
    for (upper, count) in rows {
        let width = usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0);
        let percent = per(count, Duration::from_secs(histogram.len())) * 100.0;
        let bar = "█".repeat(width);
        let line = format!("{:<12} {bar:<40} {count} ({percent:.2} %)", show_nanos(upper + 1));
        writeln!(text, "{line}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn report(load: Load, latencies: impl IntoIterator<Item = u64>) -> Report {
        let plan = Plan { load, ..plan() };
        let board = Board::new(&plan);
        let mut tally = Tally::new();
        for latency in latencies {
            tally.latency.saturating_record(latency);
            tally.in_window += 1;
        }
        Report::new(plan, &board, tally, Duration::from_millis(10))
    }

    #[test]
    fn the_table_has_what_people_look_for() {
        let text = report(Load::Put, (1..=1000).map(|n| n * 10_000)).to_text();
        for part in ["1000 in 1.0 s, 0 failed", "1000.0 a second", "p99.9", "5.00 ms", "10.0 ms"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let counted: u64 = text
            .lines()
            .filter(|line| line.contains('█'))
            .filter_map(|line| line.split_whitespace().rev().nth(2)?.parse::<u64>().ok())
            .sum();
        assert_eq!(counted, 1000, "the histogram loses none:\n{text}");
    }

    #[test]
    fn a_long_tail_fits_and_loses_nothing() {
        let text = report(Load::Put, (0..30).map(|power| 1u64 << power)).to_text();
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("%)")).collect();
        assert!(rows.len() <= ROWS_MAX, "{text}");
        let counted: u64 = rows
            .iter()
            .filter_map(|line| line.split_whitespace().rev().nth(2)?.parse::<u64>().ok())
            .sum();
        assert_eq!(counted, 30, "{text}");
    }

    #[test]
    fn errors_are_shown_most_frequent_first() {
        let mut report = report(Load::Put, []);
        for count in 0..7 {
            for _ in 0..=count {
                report.tally.fail(format!("kind {count}"));
            }
        }
        let text = report.to_text();
        assert!(text.contains("28 failed") && text.contains("and 2 other kinds"), "{text}");
        assert!(text.find("kind 6") < text.find("kind 5"), "{text}");
        assert!(!text.contains("kind 0") && report.all_failed(), "{text}");
        assert_eq!(report.to_json()["error_kinds"]["kind 0"], 1);
    }

    #[test]
    fn programs_get_numbers() {
        let json = report(Load::Mixed { read_percent: 50 }, [2_000_000; 10]).to_json();
        let p50 = json["p50_us"].as_f64().unwrap();
        assert!((1998.0..2002.0).contains(&p50), "{json}");
        assert_eq!(json["ops_per_sec"], 10.0);
        assert!(json["read_p99_us"].is_number() && json["max_gap_ms"].is_number());
        let watch = report(Load::Watch { watchers: 2, streams: 1 }, [1000]).to_json();
        assert!(watch["delivery_p99_us"].is_number() && watch["events_per_sec"].is_number());
    }

    #[test]
    fn times_are_short() {
        let texts = [1_500, 15_000, 150_000, 1_500_000, 1_500_000_000].map(show_nanos);
        assert_eq!(texts, ["1.50 µs", "15.0 µs", "150 µs", "1.50 ms", "1.50 s"]);
    }
}
