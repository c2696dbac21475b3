#!/usr/bin/env bash
# etcdctl, any version. Arguments: the program, the endpoints. A line for each command: `ok name` or `FAILED name: …`.
set -uo pipefail
export ETCDCTL_API=3
program=$1 endpoints=$2 failed=0
ctl() { "$program" --endpoints="$endpoints" --command-timeout=10s "$@"; }

# check <name> <pattern that the output has> <command …>
check() {
  local name=$1 pattern=$2 output
  shift 2
  if output=$("$@" 2>&1) && grep -qE -- "$pattern" <<<"$output"; then
    echo "ok $name"
  else
    failed=1
    echo "FAILED $name: $(tr '\n' ' ' <<<"$output")"
  fi
}
# What is typed at the prompt of a command that asks.
typed() { printf '%b' "$1" | "${@:2}"; }
revision() { ctl get c/none -w json | sed -E 's/.*"revision":([0-9]+).*/\1/'; }
lease() { ctl lease grant 60 | sed -E 's/lease ([0-9a-f]+) .*/\1/'; }

ctl del c/ --prefix >/dev/null
check put OK ctl put c/k v
check get v ctl get c/k --print-value-only
check get-prefix '"count":1' ctl get c/ --prefix -w json
check txn SUCCESS typed 'value("c/k") = "v"\n\nput c/k w\nget c/k\n\n\n\n' ctl txn
check del '^1$' ctl del c/k
check lease-grant 'granted with TTL\(60s\)' ctl lease grant 60
id=$(lease)
check lease-timetolive 'granted with TTL\(60s\)' ctl lease timetolive "$id"
check lease-keep-alive 'keepalived with TTL\(60\)' ctl lease keep-alive --once "$id"
check lease-list "$id" ctl lease list
check lease-revoke revoked ctl lease revoke "$id"
check member-list started ctl member list
check endpoint-health 'is healthy' ctl endpoint health
check endpoint-status '"version":"3' ctl endpoint status -w json
check endpoint-hashkv '"hash":[0-9]+' ctl endpoint hashkv -w json
check alarm-list '' ctl alarm list
check defrag Finished ctl defrag
check lock inside ctl lock c/lock echo inside
check watch first-event timeout 10 bash -c '
  "$0" --endpoints="$1" watch c/w --rev="$2" > >(while read -r line; do [ "$line" = 1 ] && echo first-event && break; done) &
  watcher=$!
  "$0" --endpoints="$1" put c/w 1 >/dev/null
  sleep 2; kill $watcher; wait' "$program" "$endpoints" "$(($(revision) + 1))"
check compaction 'compacted revision' ctl compaction "$(revision)"
exit $failed
