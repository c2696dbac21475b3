//! `rusty-raft bench` and `rusty-raft check perf`.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::watch;

use super::signals::Signals;
use super::{complain, say, status};
use crate::bench::{self, Extent, LOADS, Load, PerfLoad, Plan, Report, Shown, Verdict};
use crate::client;
use crate::config::PORT_RANGE_START;
use crate::exit::Exit;

/// Steps of a progress bar.
const STEPS: u32 = 1000;
/// More clients than anybody has ports for.
const CLIENTS_MAX: usize = 100_000;
/// Longer values are not taken by anybody.
const VALUE_BYTES_MAX: usize = 16 << 20;
/// The longest key that etcd's own tools write.
const KEY_BYTES_MAX: usize = 4096;

/// Measure a cluster: this one or any other that speaks etcd v3.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Examples:
  rusty-raft bench put                                 64 clients for 10 s, at the cluster on 127.0.0.1:54000 and up
  rusty-raft bench put --clients 1 --target leader     what a lone writer waits for
  rusty-raft bench get --serializable --clients 256    reads that any member answers by itself
  rusty-raft bench mixed --read-percent 90 --rate 5000 an open loop: 5000 requests are due every second
  rusty-raft bench watch --watchers 1000 --rate 20     how soon watchers hear of a write
  rusty-raft bench put --endpoints 127.0.0.1:2379 --json

It writes keys under --prefix and leaves them. Latencies of an open loop count from when a request was due. Where all
clients, members and this program share a machine, compare servers with each other, in turn, and believe ratios only.

Exit codes: 0 measured; 1 no request succeeded, or an endpoint does not answer; 2 bad command line."
)]
pub(super) struct BenchArgs {
    /// What is sent.
    #[arg(value_enum)]
    kind: Kind,
    #[command(flatten)]
    to: To,
    /// Which of the endpoints are spoken to.
    #[arg(long, value_enum, default_value = "all")]
    target: Target,
    /// Requests under way at once, at most [default: 64; with watch: 1].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    clients: Option<usize>,
    /// Connections they share [default: one for 16 clients, one for each endpoint at least, at most 16].
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Threads of this program [default: half of the processors].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How long.
    #[arg(long, value_name = "S", default_value_t = 10.0, conflicts_with = "total")]
    seconds: f64,
    /// Instead: how many requests.
    #[arg(long, value_name = "N")]
    total: Option<u64>,
    /// Seconds before anything counts.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warmup: f64,
    /// Open loop: so many requests are due every second, answered or not.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Bytes of a value.
    #[arg(long, value_name = "B", default_value_t = 256)]
    value_size: usize,
    /// Bytes of a key behind the prefix.
    #[arg(long, value_name = "B", default_value_t = 8)]
    key_size: usize,
    /// How many different keys; reads find all of them written.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    keys: u64,
    /// put: the keys in order, instead of random ones.
    #[arg(long)]
    sequential: bool,
    /// What keys begin with.
    #[arg(long, value_name = "TEXT", default_value = "/rusty-raft-bench/")]
    prefix: String,
    /// get, mixed, range: reads that the member answers by itself, and that may lag.
    #[arg(long)]
    serializable: bool,
    /// mixed: how many of a hundred requests read [default: 50].
    #[arg(long, value_name = "P")]
    read_percent: Option<u8>,
    /// range: how many keys [default: 100].
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// watch: how many watch one key [default: 1000].
    #[arg(long, value_name = "N")]
    watchers: Option<usize>,
    /// watch: how many streams they share [default: 10].
    #[arg(long, value_name = "N")]
    streams: Option<usize>,
    /// Seconds after which a request has failed.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    timeout: f64,
}

/// Whom to ask, and for whom to print.
#[derive(Debug, Args)]
struct To {
    /// Members, as host:port [default: the cluster at 127.0.0.1:54000 and up].
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Who asks, where authentication is on; or the variable RUSTY_RAFT_USER.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
    /// For programs: one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Write random keys.
    Put,
    /// Read random keys.
    Get,
    /// Both.
    Mixed,
    /// Compare and write in one transaction.
    Txn,
    /// Read some keys in a row.
    Range,
    /// Write one key, and hear of it.
    Watch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Target {
    /// All endpoints in turn.
    All,
    /// The leader only.
    Leader,
    /// Followers only.
    Follower,
}

/// Check that a cluster is well.
#[derive(Debug, Args)]
#[command(version)]
pub(super) struct CheckArgs {
    #[command(subcommand)]
    what: Check,
}

#[derive(Debug, Subcommand)]
enum Check {
    Perf(PerfArgs),
}

/// Is it fast enough? Writes at a fixed rate and says PASS or FAIL.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Loads, as etcdctl has them:   s   150 writes a second by   50 clients
                               m  1000 writes a second by  200 clients
                               l  8000 writes a second by  500 clients
                               xl 15000 writes a second by 1000 clients
Demanded: 90 % of the rate, no write over 500 ms, a standard deviation of 100 ms at most, no failure. Keys are written
under /rusty-raft-check-perf/ and deleted in the end.

Exit codes: 0 PASS; 1 FAIL, interrupted (no verdict), or nobody answers; 2 bad command line.

Example:
  rusty-raft check perf --load m --endpoints 127.0.0.1:54000,127.0.0.1:54001,127.0.0.1:54002"
)]
struct PerfArgs {
    /// How much is written.
    #[arg(long, default_value = "s", value_parser = perf_load, value_name = "s|m|l|xl")]
    load: PerfLoad,
    /// For how long.
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    #[command(flatten)]
    to: To,
}

fn perf_load(text: &str) -> Result<PerfLoad, String> {
    let found = LOADS.into_iter().find(|load| load.name == text);
    found.ok_or_else(|| String::from("there are s, m, l and xl"))
}

/// A command line that cannot be meant, or a cluster that does not answer.
#[derive(Debug)]
struct Refusal {
    exit: Exit,
    words: String,
}

fn bad(words: impl Into<String>) -> Refusal {
    Refusal { exit: Exit::BadConfiguration, words: words.into() }
}

fn failed(words: impl Into<String>) -> Refusal {
    Refusal { exit: Exit::Failure, words: words.into() }
}

/// Runs `rusty-raft bench`.
pub(super) async fn run(args: &BenchArgs) -> Exit {
    finish(measure(args).await)
}

/// Runs `rusty-raft check`.
pub(super) async fn check(args: &CheckArgs) -> Exit {
    let Check::Perf(args) = &args.what;
    finish(check_perf(args).await)
}

fn finish(outcome: Result<Exit, Refusal>) -> Exit {
    outcome.unwrap_or_else(|refusal| {
        complain(&format!("rusty-raft: {}", refusal.words));
        refusal.exit
    })
}

async fn measure(args: &BenchArgs) -> Result<Exit, Refusal> {
    args.refuse_what_makes_no_sense()?;
    let (endpoints, token) = args.to.resolve(args.target).await?;
    let plan = args.plan(endpoints, token);
    let report = run_plan(plan, args.to.json).await?;
    let text = if args.to.json { report.to_json().to_string() } else { report.to_text() };
    say(&text);
    Ok(if report.all_failed() { Exit::Failure } else { Exit::Success })
}

async fn check_perf(args: &PerfArgs) -> Result<Exit, Refusal> {
    let time = seconds("seconds", args.seconds)?;
    if time.is_zero() {
        return Err(bad("--seconds must be more than 0"));
    }
    let (endpoints, token) = args.to.resolve(Target::All).await?;
    let plan = args.load.plan(endpoints, token, time);
    Verdict::prepare(&plan).await.map_err(failed)?;
    let report = run_plan(plan.clone(), args.to.json).await;
    let cleaned = Verdict::clean(&plan).await;
    let report = report?;
    if report.interrupted() {
        // Too little was seen to say anything for it.
        let json = || json!({"pass": null, "measured": report.to_json()}).to_string();
        say(&if args.to.json { json() } else { report.to_text() });
        cleaned.map_err(|reason| failed(format!("the keys could not be deleted: {reason}")))?;
        return Err(failed("interrupted: no verdict"));
    }
    let verdict = Verdict::of(args.load, &report);
    if args.to.json {
        let mut json = verdict.to_json();
        if let Some(fields) = json.as_object_mut() {
            fields.insert(String::from("measured"), report.to_json());
        }
        say(&json.to_string());
    } else {
        say(&format!("{}\n\n{}", report.to_text(), verdict.to_text()));
    }
    cleaned.map_err(|reason| failed(format!("the keys could not be deleted: {reason}")))?;
    Ok(if verdict.passed() { Exit::Success } else { Exit::Failure })
}

/// Carries out a plan under a progress bar; a signal ends it early, with what was measured.
async fn run_plan(plan: Plan, json: bool) -> Result<Report, Refusal> {
    let mut signals = Signals::listen().map_err(|error| failed(error.to_string()))?;
    let (stop, stopped) = watch::channel(false);
    let signalled = tokio::spawn(async move {
        signals.next().await;
        stop.send_replace(true);
    });
    let bar = progress(json);
    let report = bench::run(plan, stopped, |shown| show(&bar, shown)).await;
    bar.finish_and_clear();
    signalled.abort();
    report.map_err(failed)
}

/// A bar on a terminal, nothing elsewhere.
fn progress(json: bool) -> ProgressBar {
    let shown = !json && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(u64::from(STEPS)), target);
    match ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, shown: Shown) {
    let passed = (1..=STEPS).take_while(|step| f64::from(*step) <= shown.part * f64::from(STEPS));
    bar.set_position(u64::try_from(passed.count()).unwrap_or(0));
    let seconds = shown.elapsed.as_secs_f64().max(1e-9);
    let done = f64::from(u32::try_from(shown.done).unwrap_or(u32::MAX));
    let failed =
        if shown.failed > 0 { format!(", {} failed", shown.failed) } else { String::new() };
    bar.set_message(format!("{:.0} a second{failed}", done / seconds));
}

/// A time on the command line.
fn seconds(option: &str, value: f64) -> Result<Duration, Refusal> {
    let day = 86_400.0;
    if (0.0..=day).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(bad(format!("--{option} is a number of seconds from 0 to {day}, not {value}")))
    }
}

impl To {
    /// The members to speak to, which all answer, and a token where a user was named.
    async fn resolve(&self, target: Target) -> Result<(Vec<String>, Option<String>), Refusal> {
        let user = self.user.clone().or_else(|| std::env::var("RUSTY_RAFT_USER").ok());
        let user = user.as_deref();
        let mut endpoints = Vec::new();
        for endpoint in &self.endpoints {
            let bare = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
            if bare.starts_with("https://") {
                return Err(bad(format!("{endpoint}: TLS is not spoken here")));
            }
            let port = bare.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                return Err(bad(format!(
                    "--endpoints wants host:port, such as 127.0.0.1:{PORT_RANGE_START}, not {endpoint:?}"
                )));
            }
            endpoints.push(bare.to_owned());
        }
        if endpoints.is_empty() {
            endpoints = status::discover(user).await;
        }
        if endpoints.is_empty() {
            return Err(failed(format!(
                "no member answers at 127.0.0.1:{PORT_RANGE_START} and up; name some with --endpoints"
            )));
        }
        let token = match user {
            Some(user) => Some(client::log_in(&endpoints[0], user).await.map_err(failed)?),
            None => None,
        };
        let mut leads = HashMap::new();
        for endpoint in &endpoints {
            let answer = client::status_for(endpoint, token.as_deref()).await;
            let answer =
                answer.map_err(|reason| failed(format!("{endpoint} does not answer: {reason}")))?;
            let own = answer.header.as_ref().map_or(0, |header| header.member_id);
            leads.insert(endpoint.clone(), answer.leader == own);
        }
        let wanted = |endpoint: &String| match target {
            Target::All => true,
            Target::Leader => leads.get(endpoint) == Some(&true),
            Target::Follower => leads.get(endpoint) == Some(&false),
        };
        endpoints.retain(wanted);
        if endpoints.is_empty() {
            return Err(failed("none of the endpoints is what --target wants"));
        }
        Ok((endpoints, token))
    }
}

impl BenchArgs {
    /// Options that no run could be made of, or that the kind does not have.
    fn refuse_what_makes_no_sense(&self) -> Result<(), Refusal> {
        let kind = self.kind;
        let reads = matches!(kind, Kind::Get | Kind::Mixed | Kind::Range);
        for (given, option, belongs, kinds) in [
            (self.serializable, "serializable", reads, "get, mixed and range"),
            (self.sequential, "sequential", kind == Kind::Put, "put"),
            (self.read_percent.is_some(), "read-percent", kind == Kind::Mixed, "mixed"),
            (self.limit.is_some(), "limit", kind == Kind::Range, "range"),
            (self.watchers.is_some(), "watchers", kind == Kind::Watch, "watch"),
            (self.streams.is_some(), "streams", kind == Kind::Watch, "watch"),
        ] {
            if given && !belongs {
                return Err(bad(format!("--{option} is for {kinds}")));
            }
        }
        for (option, count, most) in [
            ("clients", self.clients(), CLIENTS_MAX),
            ("connections", self.connections.unwrap_or(1), CLIENTS_MAX),
            ("threads", self.threads.unwrap_or(1), 256),
            ("value-size", self.value_size.max(1), VALUE_BYTES_MAX),
            ("key-size", self.key_size, KEY_BYTES_MAX),
            ("watchers", self.watchers(), 1_000_000),
            ("streams", self.streams(), 10_000),
        ] {
            if !(1..=most).contains(&count) {
                return Err(bad(format!("--{option} is a number from 1 to {most}, not {count}")));
            }
        }
        if self.read_percent.is_some_and(|percent| percent > 100) {
            return Err(bad("--read-percent is a number from 0 to 100"));
        }
        let fits = u32::try_from(self.key_size).ok().and_then(|digits| 10u64.checked_pow(digits));
        if self.keys == 0 || fits.is_some_and(|fits| self.keys > fits) {
            return Err(bad(format!(
                "--keys {}: keys of {} digits can be 1 to {}",
                self.keys,
                self.key_size,
                fits.unwrap_or(u64::MAX)
            )));
        }
        let count = u64::from(self.limit());
        if kind == Kind::Range && (count == 0 || count > self.keys) {
            return Err(bad(format!("--limit is a number from 1 to the {} of --keys", self.keys)));
        }
        if kind == Kind::Watch && self.value_size < 8 {
            return Err(bad(
                "--value-size must be 8 at least for watch: values say when they were written",
            ));
        }
        if self.rate.is_some_and(|rate| !(1e-3..=1e7).contains(&rate)) {
            return Err(bad("--rate is a number of requests a second, 0.001 to 10000000"));
        }
        if self.total == Some(0) {
            return Err(bad("--total must be 1 at least"));
        }
        if seconds("timeout", self.timeout)?.is_zero()
            || seconds("seconds", self.seconds)?.is_zero()
        {
            return Err(bad("--timeout and --seconds must be more than 0"));
        }
        seconds("warmup", self.warmup).map(|_| ())
    }

    fn clients(&self) -> usize {
        self.clients.unwrap_or(if self.kind == Kind::Watch { 1 } else { 64 })
    }

    fn watchers(&self) -> usize {
        self.watchers.unwrap_or(1000)
    }

    fn streams(&self) -> usize {
        self.streams.unwrap_or(10)
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(100)
    }

    /// What is to be done, after it was found to make sense.
    fn plan(&self, endpoints: Vec<String>, token: Option<String>) -> Plan {
        let clients = self.clients();
        let streams = self.streams().min(self.watchers());
        let wanted = if self.kind == Kind::Watch { streams } else { clients };
        let connections = self.connections.unwrap_or_else(|| {
            let enough = if self.kind == Kind::Watch { streams } else { clients / 16 };
            enough.clamp(1, 16).max(endpoints.len())
        });
        let connections = connections.min(wanted);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let time = |value: f64| Duration::from_secs_f64(value);
        Plan {
            endpoints,
            token,
            load: match self.kind {
                Kind::Put => Load::Put,
                Kind::Get => Load::Get,
                Kind::Mixed => Load::Mixed { read_percent: self.read_percent.unwrap_or(50) },
                Kind::Txn => Load::Txn,
                Kind::Range => Load::Range { count: self.limit() },
                Kind::Watch => Load::Watch { watchers: self.watchers(), streams },
            },
            serializable: self.serializable,
            sequential: self.sequential,
            prefix: self.prefix.clone(),
            key_bytes: self.key_size,
            keys: self.keys,
            value_bytes: self.value_size,
            clients,
            connections,
            threads: self.threads.unwrap_or(processors / 2).clamp(1, connections),
            rate: self.rate,
            extent: match self.total {
                Some(total) => Extent::Total(total),
                None => Extent::Time(time(self.seconds)),
            },
            warmup: if self.total.is_some() { Duration::ZERO } else { time(self.warmup) },
            timeout: time(self.timeout),
        }
    }
}
