//! What `/metrics` shows: etcd's names and types, which dashboards and alerts are written for, and our own below
//! `rusty_raft_`.
//!
//! Whatever is counted on the path of a request is an atomic that was made at the start: no lock, no look-up by label.
//! Everything else is looked up when somebody asks.

mod calls;
mod measurements;
mod page;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use raft::Node;
use raft::meters::{Meters, OpenDamage};
use raft_kv::Store;

use self::calls::Calls;
pub(crate) use self::calls::{Measured, Received};
use self::measurements::Measurements;
use self::page::Page;
use crate::tls::Tls;

/// All counters of this member.
pub struct Metrics {
    registry: Registry,
    meters: Arc<Meters>,
    /// Of the certificates that are presented; made when there are any.
    certificates: std::sync::OnceLock<Vec<(Arc<Tls>, IntGauge)>>,
    pub(crate) calls: Calls,
    page: Page,
    /// Proposals that wait for their answer.
    pub(crate) proposals_pending: IntGauge,
    /// Proposals that were answered with an error.
    pub(crate) proposals_failed: IntCounter,
    leader_changes: IntCounter,
    /// Answers of `/health`.
    pub(crate) health_success: IntCounter,
    /// The same, when this member is not well.
    pub(crate) health_failures: IntCounter,
}

impl Metrics {
    /// All counters, at zero.
    ///
    /// # Errors
    /// Two metrics of one name: a bug.
    pub(crate) fn new(meters: Arc<Meters>) -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        registry.register(Box::new(Measurements::new(Arc::clone(&meters))?))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Self {
            calls: Calls::new(&registry)?,
            page: Page::new(&registry)?,
            proposals_pending: gauge(
                &registry,
                "etcd_server_proposals_pending",
                "The current number of pending proposals to commit.",
            )?,
            proposals_failed: counter(
                &registry,
                "etcd_server_proposals_failed_total",
                "The total number of failed proposals seen.",
            )?,
            leader_changes: counter(
                &registry,
                "etcd_server_leader_changes_seen_total",
                "The number of leader changes seen.",
            )?,
            health_success: counter(
                &registry,
                "etcd_server_health_success",
                "The total number of successful health checks.",
            )?,
            health_failures: counter(
                &registry,
                "etcd_server_health_failures",
                "The total number of failed health checks.",
            )?,
            certificates: std::sync::OnceLock::new(),
            meters,
            registry,
        };
        Ok(Arc::new(metrics))
    }

    /// Damage on this member's disk that is not repaired yet.
    pub(crate) fn open_damage(&self) -> Arc<Vec<OpenDamage>> {
        self.meters.damage.open()
    }

    /// From now on the page says when these certificates expire. Once.
    pub(crate) fn show_certificates(&self, all: &[Arc<Tls>]) {
        let options = Opts::new(
            "rusty_raft_certificate_expires_timestamp_seconds",
            "When the certificate that is presented expires, in seconds since 1970.",
        );
        let Ok(expiry) = IntGaugeVec::new(options, &["for"]) else { return };
        let gauges = all
            .iter()
            .map(|tls| (Arc::clone(tls), expiry.with_label_values(&[&tls.role().to_string()])));
        if self.certificates.set(gauges.collect()).is_ok() {
            // The name is taken by nobody else.
            self.registry.register(Box::new(expiry)).ok();
        }
    }

    /// The page, in the text format of Prometheus.
    pub(crate) fn text(&self, node: &Node<Store>, facts: &Facts) -> prometheus::Result<String> {
        self.page.update(node, facts);
        for (tls, gauge) in self.certificates.get().into_iter().flatten() {
            gauge.set(i64::try_from(tls.expires()).unwrap_or(i64::MAX));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Counts the leaders that this member sees, until the node ends.
    pub(crate) async fn watch_leaders(self: Arc<Self>, node: Node<Store>) {
        let mut statuses = node.watch_status();
        let mut known = None;
        loop {
            let leader = statuses.borrow_and_update().leader;
            if leader != known && leader.is_some() {
                self.leader_changes.inc();
            }
            known = leader.or(known);
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What the page shows of the store and the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Bytes that the store takes.
    pub(crate) size: u64,
    /// Bytes that it may take.
    pub(crate) quota: u64,
    /// The newest revision.
    pub(crate) revision: i64,
    /// The compacted one; -1 before the first compaction.
    pub(crate) compact_revision: i64,
    /// etcd's version that this is.
    pub(crate) version: &'static str,
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: Vec<f64>,
) -> prometheus::Result<Histogram> {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
}
