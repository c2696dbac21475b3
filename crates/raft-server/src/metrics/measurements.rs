//! What the node measures of itself, under etcd's names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use raft::meters::{DamageMeters, Meters, PeerMeters, Timings};

/// A measurement of each peer: its name, help, label and value.
type PeerCounter = (&'static str, &'static str, &'static str, fn(&PeerMeters) -> u64);

const FSYNC: (&str, &str) =
    ("etcd_disk_wal_fsync_duration_seconds", "The latency distributions of fsync called by WAL.");
const ROUND_TRIP: (&str, &str) =
    ("etcd_network_peer_round_trip_time_seconds", "Round-Trip-Time histogram between peers");
const PEER_COUNTERS: [PeerCounter; 3] = [
    (
        "etcd_network_peer_sent_bytes_total",
        "The total number of bytes sent to peers.",
        "To",
        |peer| peer.sent_bytes.load(Ordering::Relaxed),
    ),
    (
        "etcd_network_peer_received_bytes_total",
        "The total number of bytes received from peers.",
        "From",
        |peer| peer.received_bytes.load(Ordering::Relaxed),
    ),
    (
        "etcd_network_peer_sent_failures_total",
        "The total number of send failures from peers.",
        "To",
        |peer| peer.sent_failures.load(Ordering::Relaxed),
    ),
];

/// What was found damaged on the disk: name, help, type and value.
type DamageMetric = (&'static str, &'static str, MetricType, fn(&DamageMeters) -> u64);

const DAMAGE: [DamageMetric; 4] = [
    (
        "rusty_raft_damage_found_total",
        "Damages found on this member's disk since its process began.",
        MetricType::COUNTER,
        DamageMeters::found_total,
    ),
    (
        "rusty_raft_damage_repaired_total",
        "Damages that were repaired: what was damaged was written again.",
        MetricType::COUNTER,
        DamageMeters::repaired_total,
    ),
    (
        "rusty_raft_damage_open",
        "Damages that are not repaired yet (16 are counted); the status names them.",
        MetricType::GAUGE,
        |damage| u64::try_from(damage.open().len()).unwrap_or(u64::MAX),
    ),
    (
        "rusty_raft_folders_set_aside",
        "Damaged folders of this member that stand beside its own: it was rebuilt that often.",
        MetricType::GAUGE,
        DamageMeters::folders_set_aside,
    ),
];

/// Reads a node's meters when somebody asks.
pub(super) struct Measurements {
    meters: Arc<Meters>,
    descriptions: Vec<Desc>,
}

impl Measurements {
    pub(super) fn new(meters: Arc<Meters>) -> prometheus::Result<Self> {
        let names = [(FSYNC, None), (ROUND_TRIP, Some("To"))]
            .into_iter()
            .chain(PEER_COUNTERS.map(|(name, help, label, _)| ((name, help), Some(label))))
            .chain(DAMAGE.map(|(name, help, ..)| ((name, help), None)));
        let mut descriptions = Vec::new();
        for ((name, help), label) in names {
            let labels = label.into_iter().map(str::to_owned).collect();
            let fixed = std::collections::HashMap::default();
            descriptions.push(Desc::new(name.to_owned(), help.to_owned(), labels, fixed)?);
        }
        Ok(Self { meters, descriptions })
    }
}

impl Collector for Measurements {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let met = self.meters.peers();
        // A member that came back after losing its data is still one line.
        let peers: BTreeMap<u64, &Arc<PeerMeters>> =
            met.iter().map(|(node, peer)| (node.member.0, peer)).collect();
        let fsync = histogram(&self.meters.log_writes, Vec::new());
        let mut families = vec![family(FSYNC, MetricType::HISTOGRAM, vec![fsync])];
        let round_trips = peers
            .iter()
            .map(|(member, peer)| histogram(&peer.round_trips, vec![label("To", *member)]));
        families.push(family(ROUND_TRIP, MetricType::HISTOGRAM, round_trips.collect()));
        for (name, help, direction, value) in PEER_COUNTERS {
            let metrics = peers.iter().map(|(member, peer)| {
                let mut counter = Counter::default();
                counter.set_value(to_f64(value(peer)));
                let mut metric = Metric::from_label(vec![label(direction, *member)]);
                metric.set_counter(counter);
                metric
            });
            families.push(family((name, help), MetricType::COUNTER, metrics.collect()));
        }
        for (name, help, kind, value) in DAMAGE {
            let value = to_f64(value(&self.meters.damage));
            let mut metric = Metric::default();
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            families.push(family((name, help), kind, vec![metric]));
        }
        // A cluster of one has no peers, and a family without a line is no family.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn family((name, help): (&str, &str), kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn label(name: &str, member: u64) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(format!("{member:x}"));
    label
}

fn histogram(timings: &Timings, labels: Vec<LabelPair>) -> Metric {
    let mut histogram = Histogram::default();
    let buckets = timings.cumulative().into_iter().map(|(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket.set_cumulative_count(count);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(timings.count());
    histogram.set_sample_sum(timings.sum().as_secs_f64());
    let mut metric = Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}

/// As exact as the text format's numbers are: beyond 2^53 bytes the last digits are lost.
const fn to_f64(value: u64) -> f64 {
    value as f64
}
