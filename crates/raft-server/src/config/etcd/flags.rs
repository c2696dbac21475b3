//! The flags of etcd 3.4 to 3.7 that are known here: their form, default, and what becomes of them.

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// Anything.
    Text,
    /// Go's booleans; alone on the command line it means true.
    Switch,
    /// A whole number.
    Number,
    /// Go's durations, such as `1h30m`.
    Duration,
    /// Texts separated by commas; in YAML also a list.
    List,
    /// Anything; alone on the command line it means true, as with all flags that etcd itself ignores.
    Ignored,
}

/// What becomes of a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It does what it does in etcd, or nearly.
    Used,
    /// It is accepted and changes nothing: why.
    Idle(&'static str),
    /// It asks for something that is not here: what to do instead.
    Refused(&'static str),
}

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// As text; empty for none.
    pub(super) default: &'static str,
    pub(super) fate: Fate,
}

const fn flag(name: &'static str, shape: Shape, default: &'static str, fate: Fate) -> Flag {
    Flag { name, shape, default, fate }
}

const NO_BACKEND: Fate =
    Idle("there is no bbolt backend: the store is in memory and durable through the log");
const NO_V2: Fate = Idle("the v2 interface is not served");
const NO_DISCOVERY: Fate =
    Refused("there is no discovery service here: list the members with --initial-cluster");
const NO_PROXY: Fate = Idle("there is no v2 proxy");
const NO_CHECK: Fate = Idle("what members store is checked whenever it is read, not at intervals");
const NO_TRACING: Fate = Idle("spans are not exported");
const NO_ROTATION: Fate = Idle("log files are not rotated here: leave it to logrotate or journald");
const NO_WARNING: Fate = Idle("slow requests show in the metrics, not in the log");
const COMPACTION: Fate = Idle("compaction goes on beside everything else, in slices of its own");
const NO_DIALLING: Fate =
    Idle("a member is no client of its own: the gateway calls the services in the process");
const NO_LONGER: Fate = Idle("etcd ignores it as well");
const PEER_STREAMS: Fate = Idle("connections among members have limits of their own");
const GRPC_PINGS: Fate =
    Idle("a silent client is asked every 30 s whether it lives, and may ask as often as it likes");

use Fate::{Idle, Refused, Used};
use Shape::{Duration, Ignored, List, Number, Switch, Text};

/// All of them, by topic as in etcd's help. Those that etcd also knows as `experimental-…` are in [`EXPERIMENTAL`].
pub(super) const FLAGS: &[Flag] = &[
    flag("config-file", Text, "", Used),
    // Member.
    flag("name", Text, "default", Used),
    flag("data-dir", Text, "${name}.etcd", Used),
    flag("wal-dir", Text, "", Idle("the log and the store share the data folder")),
    flag("snapshot-count", Number, "100000", Used),
    flag("heartbeat-interval", Number, "100", Used),
    flag("election-timeout", Number, "1000", Used),
    flag("initial-election-tick-advance", Switch, "true", Idle("there are no ticks to advance")),
    flag("listen-peer-urls", List, "http://localhost:2380", Used),
    flag("listen-client-urls", List, "http://localhost:2379", Used),
    flag("listen-client-http-urls", List, "", Used),
    flag("max-snapshots", Number, "5", Idle("snapshots are removed when no longer needed")),
    flag("max-wals", Number, "5", Idle("the log's files are removed when no longer needed")),
    flag("memory-mlock", Switch, "false", Idle("memory is not locked: give the machine no swap")),
    flag("quota-backend-bytes", Number, "0", Used),
    flag("backend-batch-interval", Duration, "", NO_BACKEND),
    flag("backend-batch-limit", Number, "0", NO_BACKEND),
    flag("backend-bbolt-freelist-type", Text, "map", NO_BACKEND),
    flag("bbolt-freelist-type", Text, "map", NO_BACKEND),
    flag("max-txn-ops", Number, "128", Used),
    flag("max-request-bytes", Number, "1572864", Used),
    flag("max-concurrent-streams", Number, "4294967295", Used),
    flag("grpc-keepalive-min-time", Duration, "5s", GRPC_PINGS),
    flag("grpc-keepalive-interval", Duration, "2h0m0s", GRPC_PINGS),
    flag("grpc-keepalive-timeout", Duration, "20s", GRPC_PINGS),
    flag("socket-reuse-port", Switch, "false", Idle("two members cannot share a port")),
    flag("socket-reuse-address", Switch, "false", Idle("addresses are always used again at once")),
    flag("raft-read-timeout", Duration, "5s", PEER_STREAMS),
    flag("raft-write-timeout", Duration, "5s", PEER_STREAMS),
    flag("enable-grpc-gateway", Switch, "true", Idle("the gateway is always served")),
    // Clustering.
    flag("initial-advertise-peer-urls", List, "http://localhost:2380", Used),
    flag("initial-cluster", Text, "", Used),
    flag("initial-cluster-state", Text, "new", Used),
    flag("initial-cluster-token", Text, "etcd-cluster", Used),
    flag("advertise-client-urls", List, "http://localhost:2379", Used),
    flag("discovery", Text, "", NO_DISCOVERY),
    flag("discovery-token", Text, "", NO_DISCOVERY),
    flag("discovery-endpoints", List, "", NO_DISCOVERY),
    flag("discovery-srv", Text, "", NO_DISCOVERY),
    flag("discovery-srv-name", Text, "", NO_DISCOVERY),
    flag("discovery-proxy", Text, "", NO_DISCOVERY),
    flag("discovery-dial-timeout", Duration, "2s", NO_DISCOVERY),
    flag("discovery-request-timeout", Duration, "5s", NO_DISCOVERY),
    flag("discovery-keepalive-time", Duration, "2s", NO_DISCOVERY),
    flag("discovery-keepalive-timeout", Duration, "6s", NO_DISCOVERY),
    flag("discovery-insecure-transport", Switch, "true", NO_DISCOVERY),
    flag("discovery-insecure-skip-tls-verify", Switch, "false", NO_DISCOVERY),
    flag("discovery-cert", Text, "", NO_DISCOVERY),
    flag("discovery-key", Text, "", NO_DISCOVERY),
    flag("discovery-cacert", Text, "", NO_DISCOVERY),
    flag("discovery-user", Text, "", NO_DISCOVERY),
    flag("discovery-password", Text, "", NO_DISCOVERY),
    flag("discovery-fallback", Text, "exit", Idle("there is no discovery service here")),
    flag(
        "strict-reconfig-check",
        Switch,
        "true",
        Idle("a change that would cost the quorum is always refused"),
    ),
    flag("pre-vote", Switch, "true", Idle("an election is always preceded by one")),
    flag("auto-compaction-retention", Text, "0", Used),
    flag("auto-compaction-mode", Text, "periodic", Used),
    flag("enable-v2", Switch, "false", NO_V2),
    flag("v2-deprecation", Text, "not-yet", NO_V2),
    // Security.
    flag("cert-file", Text, "", Used),
    flag("key-file", Text, "", Used),
    flag("client-cert-file", Text, "", NO_DIALLING),
    flag("client-key-file", Text, "", NO_DIALLING),
    flag("client-cert-auth", Switch, "false", Used),
    flag("client-crl-file", Text, "", Used),
    flag("client-cert-allowed-hostname", List, "", Used),
    flag("trusted-ca-file", Text, "", Used),
    flag("auto-tls", Switch, "false", Used),
    flag("peer-cert-file", Text, "", Used),
    flag("peer-key-file", Text, "", Used),
    flag("peer-client-cert-file", Text, "", Used),
    flag("peer-client-key-file", Text, "", Used),
    flag("peer-client-cert-auth", Switch, "false", Used),
    flag("peer-trusted-ca-file", Text, "", Used),
    flag("peer-cert-allowed-cn", List, "", Used),
    flag("peer-cert-allowed-hostname", List, "", Used),
    flag("peer-auto-tls", Switch, "false", Used),
    flag("peer-crl-file", Text, "", Used),
    flag(
        "peer-skip-client-san-verification",
        Switch,
        "false",
        Idle("where a member dials from is not compared with its certificate, what it dials is"),
    ),
    flag("self-signed-cert-validity", Number, "1", Used),
    flag("cipher-suites", List, "", Idle("rustls offers only suites that are safe")),
    flag("tls-min-version", Text, "TLS1.2", Used),
    flag("tls-max-version", Text, "", Used),
    flag("cors", List, "*", Idle("every origin is allowed")),
    flag("host-whitelist", List, "*", Idle("every host name is allowed")),
    // Auth.
    flag("auth-token", Text, "simple", Used),
    flag(
        "auth-token-ttl",
        Number,
        "300",
        Idle("a token is good for five minutes after its last use"),
    ),
    flag("bcrypt-cost", Number, "10", Idle("passwords are always hashed at cost 10")),
    // Profiling and monitoring.
    flag("enable-pprof", Switch, "false", Idle("Go's profiles are not served")),
    flag("metrics", Text, "basic", Idle("histograms are always served")),
    flag("listen-metrics-urls", List, "", Used),
    flag("enable-distributed-tracing", Switch, "false", NO_TRACING),
    flag("distributed-tracing-address", Text, "localhost:4317", NO_TRACING),
    flag("distributed-tracing-service-name", Text, "etcd", NO_TRACING),
    flag("distributed-tracing-instance-id", Text, "", NO_TRACING),
    flag("distributed-tracing-sampling-rate", Number, "0", NO_TRACING),
    // Logging.
    flag("logger", Text, "zap", Used),
    flag("log-outputs", List, "default", Used),
    flag("log-level", Text, "info", Used),
    flag("log-format", Text, "json", Used),
    flag("debug", Switch, "false", Used),
    flag("log-package-levels", Text, "", Idle("RUST_LOG selects by module")),
    flag("enable-log-rotation", Switch, "false", NO_ROTATION),
    flag("log-rotation-config-json", Text, "", NO_ROTATION),
    flag("disable-log-sampling", Switch, "false", Idle("every line is written")),
    // The v2 proxy.
    flag("proxy", Text, "off", Refused("there is no v2 proxy here")),
    flag("proxy-failure-wait", Number, "5000", NO_PROXY),
    flag("proxy-refresh-interval", Number, "30000", NO_PROXY),
    flag("proxy-dial-timeout", Number, "1000", NO_PROXY),
    flag("proxy-write-timeout", Number, "5000", NO_PROXY),
    flag("proxy-read-timeout", Number, "0", NO_PROXY),
    // What etcd called experimental at some time.
    flag("initial-corrupt-check", Switch, "false", NO_CHECK),
    flag("corrupt-check-time", Duration, "0s", NO_CHECK),
    flag("compact-hash-check-enabled", Switch, "false", NO_CHECK),
    flag("compact-hash-check-time", Duration, "1m0s", NO_CHECK),
    flag("enable-v2v3", Text, "", NO_V2),
    flag(
        "enable-lease-checkpoint",
        Switch,
        "false",
        Idle("after a change of leaders every lease starts anew"),
    ),
    flag(
        "enable-lease-checkpoint-persist",
        Switch,
        "false",
        Idle("after a change of leaders every lease starts anew"),
    ),
    flag("compaction-batch-limit", Number, "1000", COMPACTION),
    flag("compaction-sleep-interval", Duration, "10ms", COMPACTION),
    flag("watch-progress-notify-interval", Duration, "10m0s", Used),
    flag("downgrade-check-time", Duration, "5s", Idle("a downgrade is not watched over")),
    flag("warning-apply-duration", Duration, "100ms", NO_WARNING),
    flag("warning-unary-request-duration", Duration, "300ms", NO_WARNING),
    flag("bootstrap-defrag-threshold-megabytes", Number, "0", Idle("nothing needs defragmenting")),
    flag("stop-grpc-service-on-defrag", Switch, "false", Idle("nothing needs defragmenting")),
    flag("txn-mode-write-with-shared-buffer", Switch, "true", NO_BACKEND),
    flag("max-learners", Number, "1", Used),
    flag("snapshot-catchup-entries", Number, "5000", Used),
    flag("set-member-localaddr", Switch, "false", Idle("the system picks local addresses")),
    flag("feature-gates", Text, "", Idle("what etcd gates is either always there or not at all")),
    // What etcd knew before version 2, and ignores.
    flag("cluster-active-size", Ignored, "", NO_LONGER),
    flag("cluster-remove-delay", Ignored, "", NO_LONGER),
    flag("cluster-sync-interval", Ignored, "", NO_LONGER),
    flag("config", Ignored, "", NO_LONGER),
    flag("force", Ignored, "", NO_LONGER),
    flag("max-result-buffer", Ignored, "", NO_LONGER),
    flag("max-retry-attempts", Ignored, "", NO_LONGER),
    flag("peer-heartbeat-interval", Ignored, "", NO_LONGER),
    flag("peer-election-timeout", Ignored, "", NO_LONGER),
    flag("retry-interval", Ignored, "", NO_LONGER),
    flag("snapshot", Ignored, "", NO_LONGER),
    flag("v", Ignored, "", NO_LONGER),
    flag("vv", Ignored, "", NO_LONGER),
    // Unsafe.
    flag("unsafe-no-fsync", Switch, "false", Idle("every write is synced before it is answered")),
    flag("force-new-cluster", Switch, "false", Used),
];

/// Names that etcd also knows, or knew, with `experimental-` before them.
const EXPERIMENTAL: &[&str] = &[
    "initial-corrupt-check",
    "corrupt-check-time",
    "compact-hash-check-enabled",
    "compact-hash-check-time",
    "enable-v2v3",
    "enable-lease-checkpoint",
    "enable-lease-checkpoint-persist",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "watch-progress-notify-interval",
    "downgrade-check-time",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "bootstrap-defrag-threshold-megabytes",
    "stop-grpc-service-on-defrag",
    "txn-mode-write-with-shared-buffer",
    "max-learners",
    "snapshot-catchup-entries",
    "set-member-localaddr",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "bbolt-freelist-type",
    "backend-bbolt-freelist-type",
    "enable-distributed-tracing",
    "distributed-tracing-address",
    "distributed-tracing-service-name",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
];

/// The flag of a name, as etcd's own versions spell it.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let name = match name.strip_prefix("experimental-") {
        Some(rest) => EXPERIMENTAL.iter().find(|known| **known == rest)?,
        None => name,
    };
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The variable of a flag.
pub(super) fn variable(name: &str) -> String {
    format!("ETCD_{}", name.to_uppercase().replace('-', "_"))
}

/// The flag that a key of a YAML section stands for.
pub(super) fn of_section(section: &str, key: &str) -> Option<&'static Flag> {
    let name = match (section, key) {
        ("client-transport-security", "cert-file") => "cert-file",
        ("client-transport-security", "key-file") => "key-file",
        ("client-transport-security", "client-cert-file") => "client-cert-file",
        ("client-transport-security", "client-key-file") => "client-key-file",
        ("client-transport-security", "client-cert-auth") => "client-cert-auth",
        ("client-transport-security", "trusted-ca-file") => "trusted-ca-file",
        ("client-transport-security", "auto-tls") => "auto-tls",
        ("client-transport-security", "crl-file") => "client-crl-file",
        ("client-transport-security", "allowed-hostname" | "allowed-hostnames") => {
            "client-cert-allowed-hostname"
        }
        ("peer-transport-security", "cert-file") => "peer-cert-file",
        ("peer-transport-security", "key-file") => "peer-key-file",
        ("peer-transport-security", "client-cert-file") => "peer-client-cert-file",
        ("peer-transport-security", "client-key-file") => "peer-client-key-file",
        ("peer-transport-security", "client-cert-auth") => "peer-client-cert-auth",
        ("peer-transport-security", "trusted-ca-file") => "peer-trusted-ca-file",
        ("peer-transport-security", "auto-tls") => "peer-auto-tls",
        ("peer-transport-security", "crl-file") => "peer-crl-file",
        ("peer-transport-security", "allowed-cn" | "allowed-cns") => "peer-cert-allowed-cn",
        ("peer-transport-security", "allowed-hostname" | "allowed-hostnames") => {
            "peer-cert-allowed-hostname"
        }
        ("peer-transport-security", "skip-client-san-verification") => {
            "peer-skip-client-san-verification"
        }
        _ => return None,
    };
    find(name)
}

/// Keys of the two sections, for a suggestion.
pub(super) const SECTION_KEYS: &[&str] = &[
    "cert-file",
    "key-file",
    "client-cert-file",
    "client-key-file",
    "client-cert-auth",
    "trusted-ca-file",
    "auto-tls",
    "crl-file",
    "allowed-cn",
    "allowed-hostname",
    "skip-client-san-verification",
];

/// The sections of the YAML file.
pub(super) const SECTIONS: [&str; 2] = ["client-transport-security", "peer-transport-security"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_given_once_and_all_are_found() {
        let names: BTreeSet<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        assert_eq!(names.len(), FLAGS.len());
        assert!(FLAGS.iter().all(|flag| find(flag.name).is_some()));
        assert!(EXPERIMENTAL.iter().all(|name| find(&format!("experimental-{name}")).is_some()));
        assert!(find("experimental-name").is_none());
        assert_eq!(variable("initial-cluster"), "ETCD_INITIAL_CLUSTER");
        for (section, key) in SECTIONS.iter().flat_map(|s| SECTION_KEYS.iter().map(move |k| (s, k)))
        {
            let known = of_section(section, key).is_some();
            let peers_only = ["allowed-cn", "skip-client-san-verification"].contains(key);
            assert_eq!(known, *section == SECTIONS[1] || !peers_only, "{section} {key}");
        }
    }
}
