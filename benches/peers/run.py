#!/usr/bin/env python3
"""The same in-process workload on every library, in turn; one table with ratios.

    (cd benches/peers && cargo build --release)
    benches/peers/run.py                               the standard cases, three rounds
    benches/peers/run.py --rounds 5 --seconds 3 --cases 256:1024:1,256:64:64 --json out.json

A case is payload bytes, clients, batch. Every measurement is a process of its own; the order of the libraries
alternates from round to round. The table shows medians and our ratio to each of the others.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARIES = ["rusty-raft", "rusty-raft-tcp", "openraft", "raft-rs"]
CASES = [
    "0:1:1", "0:64:1", "0:1024:1", "0:4096:1", "0:1:64", "0:64:64",
    "16:1:1", "16:64:1", "16:1024:1", "16:4096:1", "16:64:64",
    "256:1:1", "256:64:1", "256:1024:1", "256:4096:1", "256:64:64",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=CASES)
    parser.add_argument("--libraries", type=lambda text: text.split(","), default=LIBRARIES)
    parser.add_argument("--binary", default=str(HERE / "target/release/peers"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    results = {}
    for turn in range(arguments.rounds):
        for case in arguments.cases:
            order = arguments.libraries if turn % 2 == 0 else list(reversed(arguments.libraries))
            for library in order:
                command = [arguments.binary, library, *case.split(":"), str(arguments.seconds)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                if done.returncode != 0:
                    sys.exit(f"{' '.join(command)}: {done.stderr}")
                result = json.loads(done.stdout)
                results.setdefault(case, {}).setdefault(library, []).append(result)
                print(f"round {turn + 1} {case:<12} {library:<16} {result['entries_per_sec']:>10.0f}/s", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))

    ours, others = arguments.libraries[0], arguments.libraries[1:]
    head = ["payload", "clients", "batch", *(f"{name}/s" for name in arguments.libraries),
            *(f"{ours} : {name}" for name in others), f"{ours} CPU ns", *(f"{name} CPU ns" for name in others)]
    print("| " + " | ".join(head) + " |\n|" + "--|" * len(head))
    for case, by_library in results.items():
        def median(name, field):
            return statistics.median(result[field] for result in by_library[name])
        rates = [median(name, "entries_per_sec") for name in arguments.libraries]
        costs = [median(name, "cpu_ns_per_entry") for name in arguments.libraries]
        cells = [*case.split(":"), *(f"{rate:.0f}" for rate in rates),
                 *(f"{rates[0] / max(rate, 1):.2f}" for rate in rates[1:]), *(f"{cost:.0f}" for cost in costs)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
