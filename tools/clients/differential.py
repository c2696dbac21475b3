"""The same random requests to etcd and to the servers under test, over the JSON gateway: every answer must be equal.

Arguments: etcd as host:port, the members under test as host:port[,host:port…], a seed, a number of requests. Both must be
fresh. A fifth as many requests come afterwards, when authentication is on, of users who may do little. Left out of the comparison are the ids of cluster and members, terms, remaining seconds of leases and the `details`
of errors. Each kind of request is a line, `ok …` or `FAILED …`; what differs is told on standard error with the request.

The access patterns are those of a kube-apiserver (transactions that compare a modification revision, lists by limit and
pinned revision, watches from a revision) and of Patroni (leases, compares of values and versions), among requests that
make no sense.
"""

import base64
import collections
import copy
import http.client
import json
import random
import sys

reference, subjects = sys.argv[1], sys.argv[2].split(",")
seed, count = int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
TIMEOUT = 30
LAST = "zz"


def b64(text):
    return base64.b64encode(text.encode("latin-1")).decode()


def unb64(text):
    return base64.b64decode(text)


class Server:
    def __init__(self, address):
        self.host, self.port = address.rsplit(":", 1)
        self.connection = None

    def open(self):
        return http.client.HTTPConnection(self.host, int(self.port), timeout=TIMEOUT)

    def ask(self, path, body, token=None):
        if self.connection is None:
            self.connection = self.open()
        try:
            headers = {} if token is None else {"Authorization": token}
            self.connection.request("POST", "/v3/" + path, json.dumps(body), headers)
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read())
        except Exception:
            self.connection.close()
            self.connection = None
            raise

    def watch(self, create, last_revision):
        """The answers of a watcher until it is cancelled or has seen `last_revision`."""
        connection = self.open()
        try:
            connection.request("POST", "/v3/watch", json.dumps({"create_request": create}))
            answer = connection.getresponse()
            seen = {"created": False, "events": []}
            while True:
                line = answer.readline()
                if not line:
                    return seen | {"ended": True}
                line = json.loads(line)
                if "result" not in line:
                    return seen | {"error": line}
                result = line["result"]
                seen["created"] |= result.get("created", False)
                if result.get("canceled"):
                    return seen | {k: v for k, v in result.items() if k not in ("header", "created")}
                seen["events"] += result.get("events", [])
                if seen["events"] and int(seen["events"][-1]["kv"]["mod_revision"]) >= last_revision:
                    return seen
        finally:
            connection.close()


def comparable(answer, ties=False):
    """What must be equal of an answer. With `ties`, etcd leaves open in which order equal ones come."""
    if isinstance(answer, dict):
        left_out = ("cluster_id", "member_id", "raft_term", "details", "TTL")
        kept = {key: comparable(value, ties) for key, value in answer.items() if key not in left_out}
        if ties and "kvs" in kept:
            kept["kvs"].sort(key=lambda kv: kv["key"])
        if "grantedTTL" in kept:
            kept.get("keys", []).sort()
        return kept
    if isinstance(answer, list):
        return [comparable(value, ties) for value in answer]
    return answer


FIELDS = {"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision", "VALUE": "value"}


def order(request, answer):
    """The order in which a range comes, ties aside."""
    field = FIELDS.get(request.get("sort_target"))
    return field and [kv.get(field) for kv in answer.get("kvs", [])]


# What was seen of the last answers: so that requests hit something.
revision = 1
compacted = 0
modified = collections.OrderedDict()
leases = [0]


def note(answer):
    global revision
    if isinstance(answer, dict):
        if "mod_revision" in answer and "key" in answer:
            modified[answer["key"]] = (int(answer["mod_revision"]), int(answer.get("version", 0)))
        revision = max(revision, int(answer.get("revision", 0) or 0)) if "header" not in answer else revision
        for value in answer.values():
            note(value)
    elif isinstance(answer, list):
        for value in answer:
            note(value)


def key():
    return rng.choice("abcd") + rng.choice(["", "", "/", "/x", "/y", "/\x00", "\xff"])


def span():
    """A key and an end: one key, a range, a prefix, all, from a key on, inverted."""
    start = key()
    kind = rng.randrange(10)
    if kind < 4:
        return {"key": b64(start)}
    if kind < 6:
        return {"key": b64(start), "range_end": b64(key())}
    if kind < 8:
        return {"key": b64(start), "range_end": b64(start[:-1] + chr(min(255, ord(start[-1]) + 1)))}
    if kind == 8:
        return {"key": b64(start), "range_end": b64("\x00")}
    return rng.choice([{"key": b64("\x00"), "range_end": b64("\x00")}, {}, {"range_end": b64("\x00")}])


def some_revision():
    return rng.choice([revision, revision - 1, rng.randint(0, revision + 1), compacted, compacted + 1, compacted - 1])


def range_request():
    request = span()
    if rng.random() < 0.3:
        request["revision"] = some_revision()
    if rng.random() < 0.3:
        request["sort_order"] = rng.choice(["NONE", "ASCEND", "DESCEND", 1])
        request["sort_target"] = rng.choice(["KEY", "VERSION", "CREATE", "MOD", "VALUE"])
    if rng.random() < 0.4 and request.get("sort_target", "KEY") == "KEY":
        request["limit"] = rng.choice([1, 2, 3, 100, -1])
    for name in ("keys_only", "count_only", "serializable"):
        if rng.random() < 0.1:
            # A member may lag behind what another one has answered.
            request[name] = name != "serializable" or len(subjects) == 1
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        if rng.random() < 0.05:
            request[name] = some_revision()
    return request


def put_request():
    request = {"key": b64(key()), "value": b64(rng.choice("uvw") * rng.randint(0, 3))}
    if rng.random() < 0.02:
        request["key"] = ""
    if rng.random() < 0.2:
        request["lease"] = rng.choice(leases)
    if rng.random() < 0.2:
        request["prev_kv"] = True
    if rng.random() < 0.05:
        request["ignore_value"] = True
        request["value"] = rng.choice(["", request["value"]])
    if rng.random() < 0.05:
        request["ignore_lease"] = True
        request["lease"] = rng.choice([0, leases[-1]])
    return request


def delete_request():
    request = span()
    if rng.random() < 0.4:
        request["prev_kv"] = True
    return request


def compare():
    request = span() if rng.random() < 0.15 else {"key": b64(key())}
    known = list(modified.items())
    request["result"] = rng.choice(["EQUAL", "GREATER", "LESS", "NOT_EQUAL"])
    target = request["target"] = rng.choice(["VERSION", "CREATE", "MOD", "VALUE", "LEASE"])
    if known and rng.random() < 0.6:
        at, (mod, version) = rng.choice(known)
        request["key"], guess = at, (mod if target != "VERSION" else version)
    else:
        guess = rng.randint(0, 3)
    if target == "VALUE":
        request["value"] = b64(rng.choice("uvw") * rng.randint(0, 3))
    elif target == "LEASE":
        request["lease"] = rng.choice(leases)
    else:
        request[{"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision"}[target]] = guess
    return request


def operation(depth):
    kind = rng.randrange(12 if depth < 3 else 10)
    if kind < 4:
        return {"request_range": range_request()}
    if kind < 8:
        return {"request_put": put_request()}
    if kind < 10:
        return {"request_delete_range": delete_request()}
    return {"request_txn": txn_request(depth + 1)}


def txn_request(depth=0):
    pattern = rng.randrange(4) if depth == 0 else 3
    known = list(modified.items())
    if pattern == 0 and known:
        # A kube-apiserver updates, creates or deletes what it has read.
        at, (mod, _) = rng.choice(known)
        expected = rng.choice([mod, mod, mod, 0, mod + 1])
        write = rng.choice([
            {"request_put": {"key": at, "value": b64("k8s" + str(mod)), "lease": rng.choice([0, leases[-1]])}},
            {"request_delete_range": {"key": at, "prev_kv": True}},
        ])
        return {
            "compare": [{"key": at, "target": "MOD", "result": "EQUAL", "mod_revision": expected}],
            "success": [write],
            "failure": [{"request_range": {"key": at}}],
        }
    if pattern == 1:
        # Patroni takes its key if there is none, or keeps it if it is its own.
        at, own = b64(key()), b64("me")
        return {
            "compare": [{"key": at, "target": "CREATE", "result": "EQUAL", "create_revision": 0}],
            "success": [{"request_put": {"key": at, "value": own, "lease": leases[-1]}}],
            "failure": [{"request_txn": {
                "compare": [{"key": at, "target": "VALUE", "result": "EQUAL", "value": own}],
                "success": [{"request_put": {"key": at, "value": own, "lease": leases[-1]}}],
            }}],
        }
    return {
        "compare": [compare() for _ in range(rng.choice([0, 1, 1, 2, 3]))],
        "success": [operation(depth) for _ in range(rng.choice([0, 1, 2, 3]))],
        "failure": [operation(depth) for _ in range(rng.choice([0, 1, 1]))],
    }


def compaction_request():
    at = rng.choice([revision - 5, revision - 20, compacted, compacted - 1, revision + 1, 0, -1])
    return {"revision": at, "physical": rng.random() < 0.5}


def grant_request():
    lease = rng.choice([rng.randint(1, 12), rng.randint(1, 1 << 62), -3])
    return {"ID": lease, "TTL": rng.choice([600, 3600, 9_000_000_000, 9_000_000_001])}


def lease_id():
    return {"ID": rng.choice(leases + [5, 77])}


USERS, ROLES = ["ann", "bob", "", "root"], ["reader", "writer", "", "root"]


def auth_request():
    user, role = rng.choice(USERS), rng.choice(ROLES)
    place = span()
    while not place or "range_end" in place and b"\x00" != unb64(place["range_end"]) <= unb64(place.get("key", "")):
        # etcd before 3.6 lets permissions be granted for nothing.
        place = span()
    permission = {"permType": rng.choice(["READ", "WRITE", "READWRITE"])} | place
    return rng.choice([
        ("auth/user/add", {"name": user, "options": {"no_password": True}}),
        ("auth/user/get", {"name": user}),
        ("auth/user/list", {}),
        ("auth/user/delete", {"name": user}),
        ("auth/user/grant", {"user": user, "role": role}),
        ("auth/user/revoke", {"name": user, "role": role}),
        ("auth/role/add", {"name": role}),
        # What the role root may, etcd before 3.6 does not say.
        ("auth/role/get", {"role": role if role != "root" else "reader"}),
        ("auth/role/list", {}),
        ("auth/role/delete", {"role": role}),
        ("auth/role/grant", {"name": role, "perm": permission}),
        ("auth/role/revoke", {"role": role} | span()),
        ("auth/status", {}),
        ("auth/disable", {}),
        ("auth/authenticate", {"name": user, "password": "x"}),
    ])


def request():
    kind = rng.randrange(100)
    if kind < 22:
        return "kv/range", range_request()
    if kind < 42:
        return "kv/put", put_request()
    if kind < 50:
        return "kv/deleterange", delete_request()
    if kind < 76:
        return "kv/txn", txn_request()
    if kind < 79:
        return "kv/compaction", compaction_request()
    if kind < 83:
        return "lease/grant", grant_request()
    if kind < 84:
        return "lease/revoke", lease_id()
    if kind < 86:
        return "lease/timetolive", lease_id() | {"keys": True}
    if kind < 87:
        return "lease/leases", {}
    if kind < 88:
        return "lease/keepalive", lease_id()
    if kind < 94:
        return auth_request()
    return "watch", None


PASSWORDS = {"ann": "a", "bob": "b", "eve": "e", "root": "r"}
# What a role allows: from one key on, up to another.
GRANTS = {"low": ("READ", "a", "c"), "mid": ("READWRITE", "b", "d"), "one": ("WRITE", "c/", ""), "root": None}
HAS = {"ann": ["low"], "bob": ["mid", "one"], "eve": [], "root": ["root"]}


def restrict():
    """What makes authentication useful, in order."""
    # What is there of the requests before.
    yield from [("auth/user/delete", {"name": name}) for name in PASSWORDS]
    yield from [("auth/role/delete", {"role": role}) for role in GRANTS]
    for role, grant in GRANTS.items():
        yield "auth/role/add", {"name": role}
        if grant:
            kind, start, end = grant
            permission = {"permType": kind, "key": b64(start), "range_end": b64(end)}
            yield "auth/role/grant", {"name": role, "perm": permission}
    for name, password in PASSWORDS.items():
        yield "auth/user/add", {"name": name, "password": password}
        yield from [("auth/user/grant", {"user": name, "role": role}) for role in HAS[name]]
    yield "auth/enable", {}


def simplified(txn):
    """Without that by which etcd before 3.5.31 lets users read or take what is not theirs: see its advisories."""
    for branch in ("success", "failure"):
        txn[branch] = [op for op in txn.get(branch, []) if "request_txn" not in op]
        for op in txn[branch]:
            put = op.get("request_put", {})
            for name in ("prev_kv", "lease", "ignore_lease", "ignore_value"):
                put.pop(name, None)
    return txn


def restricted_request():
    """Without what etcd before 3.6 lets anybody do and later ones do not (to compact), or the other way round (to ask
    whether authentication is on)."""
    kind = rng.randrange(20)
    if kind < 6:
        return "kv/range", range_request()
    if kind < 10:
        return "kv/put", put_request()
    if kind < 13:
        return "kv/deleterange", delete_request()
    if kind < 17:
        return "kv/txn", simplified(copy.deepcopy(txn_request()))
    if kind < 18:
        return "lease/grant", grant_request()
    return rng.choice([
        ("auth/user/get", {"name": rng.choice(list(PASSWORDS) + ["nobody"])}),
        ("auth/role/get", {"role": rng.choice(["low", "mid", "one", "none"])}),
        ("auth/user/list", {}),
        ("auth/role/list", {}),
        ("auth/user/add", {"name": "new", "password": "n"}),
        ("auth/role/add", {"name": "new"}),
        ("auth/user/grant", {"user": "eve", "role": rng.choice(["low", "none"])}),
        ("auth/user/revoke", {"name": "eve", "role": rng.choice(["low", "none"])}),
        ("auth/role/grant", {"name": "one", "perm": {"permType": "READ", "key": b64("d")}}),
        ("auth/role/revoke", {"role": "one", "key": b64("d")}),
        ("auth/authenticate", {"name": rng.choice(["ann", "nobody", ""]), "password": rng.choice(["a", "x"])}),
        ("auth/enable", {}),
    ])


def watch_request():
    # From a key on, so that the last write is among what it hears.
    request = {"key": b64(rng.choice(["a", "b", "c/", "\x00"])), "range_end": b64("\x00")}
    if rng.random() < 0.8:
        request["start_revision"] = max(1, some_revision())
    if rng.random() < 0.3:
        request["prev_kv"] = True
    if rng.random() < 0.2:
        request["filters"] = ["NODELETE"]
    if rng.random() < 0.1:
        request["fragment"] = True
    return request


def pages(server, limit, at):
    """What a kube-apiserver lists: page after page at one revision."""
    start, found = "\x00", []
    while True:
        body = {"key": b64(start), "range_end": b64("\x00"), "limit": limit, "revision": at}
        status, answer = server.ask("kv/range", body)
        found.append((status, comparable(answer)))
        if not answer.get("more"):
            return found
        start = base64.b64decode(answer["kvs"][-1]["key"]).decode("latin-1") + "\x00"


def main():
    global compacted
    etcd, ours = Server(reference), [Server(address) for address in subjects]
    equal, different = collections.Counter(), collections.Counter()

    def judge(kind, asked, expected, found):
        if expected == found:
            equal[kind] += 1
            return
        different[kind] += 1
        if different[kind] <= 5:
            texts = [json.dumps(value, sort_keys=True)[:1500] for value in (asked, expected, found)]
            print("%s %s\n  etcd  %s\n  ours  %s" % (kind, *texts), file=sys.stderr, flush=True)

    for n in range(count):
        server = rng.choice(ours)
        path, body = request()
        if path != "watch":
            expected, found = etcd.ask(path, body), server.ask(path, body)
            note(expected[1])
            if path == "lease/grant" and expected[0] == 200:
                leases.append(body["ID"])
            if path == "lease/leases" and found[0] == expected[0] == 200:
                for answer in (expected[1], found[1]):
                    answer["leases"] = sorted(answer.get("leases", []), key=str)
            if path == "kv/compaction" and expected[0] == 200:
                compacted = body["revision"]
            if path == "lease/keepalive" and len(subjects) > 1:
                # The member that was asked may lag.
                found[1].get("result", {}).get("header", {}).pop("revision", None)
                expected[1].get("result", {}).get("header", {}).pop("revision", None)
            ties = any(f'"{field}"' in json.dumps(body) for field in FIELDS)
            views = [(status, comparable(answer, ties), order(body, answer)) for status, answer in (expected, found)]
            judge(path, body, *views)
        elif rng.random() < 0.5:
            limit, at = rng.choice([1, 2, 5]), rng.choice([0, revision, max(1, compacted)])
            judge("pages", [limit, at], pages(etcd, limit, at), pages(server, limit, at))
        else:
            body = watch_request()
            for each in (etcd, server):
                _, answer = each.ask("kv/put", {"key": b64(LAST), "value": b64(str(n))})
            note(answer)
            # A future start waits for what never comes.
            body["start_revision"] = min(body.get("start_revision", revision), revision)
            if body["start_revision"] == compacted:
                # etcd before 3.5.18 has forgotten what was deleted in just this one.
                body["start_revision"] += 1
            judge("watch", body, comparable(etcd.watch(body, revision)), comparable(server.watch(body, revision)))
        if len(leases) > 8:
            leases.pop(1)
        if sum(different.values()) > 200:
            break
    for path, body in restrict():
        judge("restriction", (path, body), *[(status, comparable(answer)) for status, answer in (
            etcd.ask(path, body), ours[0].ask(path, body))])
    tokens = []
    for server in (etcd, ours[0]):
        tokens.append({None: None, "garbage": "garbage.1"})
        for name, password in PASSWORDS.items():
            status, answer = server.ask("auth/authenticate", {"name": name, "password": password})
            tokens[-1][name] = answer.get("token")
    for n in range(count // 5):
        path, body = restricted_request()
        who = rng.choice(["ann", "ann", "bob", "bob", "eve", "root", "root", None, "garbage"])
        if who is None and not any(body.get(part) for part in ("key", "name", "compare", "success", "failure")):
            # Whoever does not say who it is gets leases from etcd before 3.5.31, and leave to do nothing.
            who = "eve"
        expected = etcd.ask(path, body, tokens[0][who])
        found = rng.choice(ours).ask(path, body, tokens[1][who])
        note(expected[1])
        for answer in (expected[1], found[1]):
            # Each server gives out its own.
            answer.pop("token", None)
        ties = any(f'"{field}"' in json.dumps(body) for field in FIELDS)
        views = [(status, comparable(answer, ties)) for status, answer in (expected, found)]
        judge("restricted " + path.split("/")[0], (who, path, body), *views)
    for kind in sorted(set(equal) | set(different)):
        total = equal[kind] + different[kind]
        if different[kind]:
            print(f"FAILED {kind}: {different[kind]} of {total} answers differ")
        else:
            print(f"ok {kind}: {total} answers")
    sys.exit(1 if different else 0)


main()
