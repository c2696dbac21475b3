//! `check perf`: is this cluster fast enough for so much load?

use std::time::Duration;

use raft_kv::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, RangeRequest, RangeResponse,
};
use serde_json::{Value, json};
use tokio::runtime::{Builder, LocalOptions};

use super::link::{Link, Rpc};
use super::{Extent, Load, Plan, Report};

/// Where its keys are.
const PREFIX: &str = "/rusty-raft-check-perf/";
/// Of the rate that was asked for, so much must have been reached.
const THROUGHPUT_MIN: f64 = 0.9;
/// No request may take longer.
const SLOWEST_MAX: Duration = Duration::from_millis(500);
/// What is done before and after must be done within this time.
const ERRAND_MAX: Duration = Duration::from_secs(30);
/// How much latencies may vary.
const STDDEV_MAX: Duration = Duration::from_millis(100);

/// A load that a cluster is checked against. The four, and what is demanded, are etcdctl's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerfLoad {
    /// As the command line calls it.
    pub name: &'static str,
    /// Clients that write.
    pub clients: usize,
    /// Writes a second.
    pub rate: u32,
}

/// Small to extra large.
pub const LOADS: [PerfLoad; 4] = [
    PerfLoad { name: "s", clients: 50, rate: 150 },
    PerfLoad { name: "m", clients: 200, rate: 1000 },
    PerfLoad { name: "l", clients: 500, rate: 8000 },
    PerfLoad { name: "xl", clients: 1000, rate: 15_000 },
];

impl PerfLoad {
    /// What is sent for so long.
    #[must_use]
    pub fn plan(self, endpoints: Vec<String>, token: Option<String>, time: Duration) -> Plan {
        Plan {
            endpoints,
            token,
            load: Load::Put,
            serializable: false,
            sequential: false,
            prefix: PREFIX.to_owned(),
            key_bytes: 256 - PREFIX.len(),
            keys: 1_000_000,
            value_bytes: 1024,
            clients: self.clients,
            connections: self.clients.div_ceil(16).min(16),
            threads: 1,
            rate: Some(f64::from(self.rate)),
            extent: Extent::Time(time),
            warmup: Duration::ZERO,
            timeout: Duration::from_secs(5),
        }
    }
}

/// One demand and whether it was met.
#[derive(Clone, Debug)]
struct Finding {
    met: bool,
    words: String,
}

/// What `check perf` concludes.
#[derive(Clone, Debug)]
pub struct Verdict {
    findings: Vec<Finding>,
}

impl Verdict {
    /// Judges a run of this load.
    #[must_use]
    pub fn of(load: PerfLoad, report: &Report) -> Self {
        let latency = &report.tally().latency;
        let stddev = Duration::try_from_secs_f64(latency.stdev() / 1e9).unwrap_or_default();
        Self::judge(
            load,
            report.throughput(),
            Duration::from_nanos(latency.max()),
            stddev,
            report.tally().failed() + report.tally().unsent,
        )
    }

    fn judge(
        load: PerfLoad,
        throughput: f64,
        slowest: Duration,
        stddev: Duration,
        failed: u64,
    ) -> Self {
        let demand = |met: bool, words: String| Finding { met, words };
        let needed = f64::from(load.rate) * THROUGHPUT_MIN;
        let findings = vec![
            demand(
                throughput >= needed,
                format!("{throughput:.0} writes a second; at least {needed:.0} are demanded"),
            ),
            demand(
                slowest <= SLOWEST_MAX,
                format!(
                    "the slowest write took {slowest:.1?}; at most {SLOWEST_MAX:?} are allowed"
                ),
            ),
            demand(
                stddev <= STDDEV_MAX,
                format!("latencies vary by {stddev:.1?}; at most {STDDEV_MAX:?} are allowed"),
            ),
            demand(failed == 0, format!("{failed} writes failed; none may")),
        ];
        Self { findings }
    }

    /// Whether every demand was met.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|finding| finding.met)
    }

    /// For people: a line for each demand, and the verdict.
    #[must_use]
    pub fn to_text(&self) -> String {
        let word = |met| if met { "PASS" } else { "FAIL" };
        let mut lines: Vec<String> = self
            .findings
            .iter()
            .map(|finding| format!("{}  {}", word(finding.met), finding.words))
            .collect();
        lines.push(word(self.passed()).to_owned());
        lines.join("\n")
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let findings = self.findings.iter();
        let findings: Vec<Value> = findings
            .map(|finding| json!({"pass": finding.met, "finding": finding.words}))
            .collect();
        json!({"pass": self.passed(), "findings": findings})
    }
}

/// Before: nothing may lie where the keys will be. After: what was written is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Errand {
    Look,
    Clean,
}

impl Verdict {
    /// Makes sure that nobody else has keys where the check writes its own.
    ///
    /// # Errors
    /// In words: that somebody has, or that nobody answers.
    pub async fn prepare(plan: &Plan) -> Result<(), String> {
        run_errand(plan, Errand::Look).await
    }

    /// Deletes what the check has written.
    ///
    /// # Errors
    /// In words: why it could not.
    pub async fn clean(plan: &Plan) -> Result<(), String> {
        run_errand(plan, Errand::Clean).await
    }
}

async fn run_errand(plan: &Plan, errand: Errand) -> Result<(), String> {
    let (endpoint, token) = (plan.endpoints[0].clone(), plan.token.clone());
    // Connections belong to one thread.
    let thread = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .map_err(|error| format!("cannot start a runtime: {error}"))?;
        let task = runtime.spawn_local(async move {
            let opened =
                tokio::time::timeout(ERRAND_MAX, Link::open(&endpoint, token.as_deref())).await;
            let link = opened.map_err(|_| format!("{endpoint} does not answer"))??;
            carry_out(&link, errand).await.map_err(|reason| format!("{endpoint}: {reason}"))
        });
        runtime.block_on(task).map_err(|error| error.to_string())?
    });
    thread.await.map_err(|error| error.to_string())?
}

async fn carry_out(link: &Link, errand: Errand) -> Result<(), String> {
    let (key, range_end) = (PREFIX.into(), PREFIX.replace("perf/", "perf0").into());
    match errand {
        Errand::Look => {
            let look = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
            let found: RangeResponse = link.ask(Rpc::Range, &look, ERRAND_MAX).await?;
            if found.count == 0 {
                return Ok(());
            }
            Err(format!(
                "{} keys lie under {PREFIX}, of an earlier check that was interrupted; delete them: etcdctl del \
                 --prefix {PREFIX}",
                found.count
            ))
        }
        Errand::Clean => {
            let delete = DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() };
            let _: DeleteRangeResponse = link.ask(Rpc::DeleteRange, &delete, ERRAND_MAX).await?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: (f64, Duration, Duration, u64) =
        (150.0, Duration::from_millis(20), Duration::from_millis(2), 0);

    #[test]
    fn every_demand_can_fail_the_check_alone() {
        let judge = |(throughput, slowest, stddev, failed)| {
            Verdict::judge(LOADS[0], throughput, slowest, stddev, failed)
        };
        assert!(judge(GOOD).passed(), "{}", judge(GOOD).to_text());
        let (throughput, slowest, stddev, _) = GOOD;
        for bad in [
            (134.0, slowest, stddev, 0),
            (throughput, Duration::from_millis(501), stddev, 0),
            (throughput, slowest, Duration::from_millis(101), 0),
            (throughput, slowest, stddev, 1),
        ] {
            let verdict = judge(bad);
            assert!(!verdict.passed() && verdict.to_text().ends_with("\nFAIL"));
            let text = verdict.to_text();
            assert_eq!(text.matches("PASS").count(), 3, "{text}");
            assert_eq!(verdict.to_json()["pass"], false);
        }
    }

    #[test]
    fn the_end_of_the_prefix_is_its_end() {
        assert!(PREFIX.ends_with("perf/") && PREFIX.matches("perf/").count() == 1);
    }

    #[test]
    fn keys_are_as_long_as_etcdctls() {
        let plan = LOADS[0].plan(vec![], None, Duration::ZERO);
        assert_eq!(plan.key_bytes + plan.prefix.len(), 256);
    }
}
