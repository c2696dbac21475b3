"""What kube-apiservers, jetcd and others do over gRPC streams: the same to etcd and to a server under test.

Arguments: etcd as host:port, the server under test, a seed, a number of rounds. Both must be fresh. Each kind of use is a
line, `ok …` or `FAILED …`; what differs is told on standard error. The messages come from our own .proto files, whose
numbers and names are etcd's.
"""

import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from checks import run

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
protos = os.path.join(root, "crates", "raft-kv", "proto")
generated = tempfile.mkdtemp()
names = ["auth", "authpb", "cluster", "header", "kv", "lease", "maintenance", "mvccpb", "watch"]
subprocess.run(
    ["protoc", "-I", protos, "--python_out", generated] + [f"{name}.proto" for name in names], check=True
)
sys.path.insert(0, generated)

import kv_pb2 as kv  # noqa: E402
import lease_pb2 as lease  # noqa: E402
import watch_pb2 as watch  # noqa: E402

reference, subject = sys.argv[1], sys.argv[2]
rng = random.Random(int(sys.argv[3]))
ROUNDS = int(sys.argv[4])
PATIENCE = 20
# Nothing more comes once it has been quiet for so long.
QUIET = 0.3
SENTINEL = 999
LAST = b"zz"


class Server:
    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])

    def ask(self, call, request, answer):
        method = self.channel.unary_unary(
            f"/etcdserverpb.{call}", type(request).SerializeToString, answer.FromString
        )
        try:
            return method(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            return (error.code().name, error.details())

    def put(self, **fields):
        return self.ask("KV/Put", kv.PutRequest(**fields), kv.PutResponse)

    def range(self, **fields):
        return self.ask("KV/Range", kv.RangeRequest(**fields), kv.RangeResponse)

    def delete(self, **fields):
        return self.ask("KV/DeleteRange", kv.DeleteRangeRequest(**fields), kv.DeleteRangeResponse)

    def txn(self, **fields):
        return self.ask("KV/Txn", kv.TxnRequest(**fields), kv.TxnResponse)

    def compact(self, revision):
        return self.ask("KV/Compact", kv.CompactionRequest(revision=revision), kv.CompactionResponse)

    def stream(self, call, request, answer):
        return Stream(self.channel, call, request, answer)

    def watching(self):
        return self.stream("Watch/Watch", watch.WatchRequest, watch.WatchResponse)


class Stream:
    """A stream both ways; what comes is collected."""

    def __init__(self, channel, call, request, answer):
        self.requests, self.seen = queue.Queue(), queue.Queue()
        method = channel.stream_stream(f"/etcdserverpb.{call}", request.SerializeToString, answer.FromString)
        self.answers = method(iter(self.requests.get, None))
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        try:
            for answer in self.answers:
                self.seen.put(answer)
        except grpc.RpcError as error:
            self.seen.put((error.code().name, error.details()))

    def send(self, request):
        self.requests.put(request)

    def next(self):
        return self.seen.get(timeout=PATIENCE)

    def until_quiet(self, quiet=QUIET):
        found = []
        while True:
            try:
                found.append(self.seen.get(timeout=quiet))
            except queue.Empty:
                return found

    def close(self):
        self.requests.put(None)
        self.answers.cancel()


etcd, ours = Server(reference), Server(subject)


def both(ask):
    """The same of both, one after the other."""
    return ask(etcd), ask(ours)


def plain(answer):
    """What must be equal of an answer: ids of cluster and members and terms aside."""
    if isinstance(answer, tuple):
        return answer
    copy = type(answer)()
    copy.CopyFrom(answer)
    copy.header.cluster_id = copy.header.member_id = copy.header.raft_term = 0
    return copy


def equal(pair, what):
    expected, found = (plain(each) for each in pair)
    assert expected == found, f"{what}\n  etcd  {str(expected)[:1500]}\n  ours  {str(found)[:1500]}"
    return pair[0]


def key():
    return rng.choice(["a", "b", "c", "b/1", "b/2"]).encode()


def change():
    """A write of some kind."""
    kind, at = rng.randrange(4), key()
    if kind < 2:
        value = str(rng.random()).encode()
        return lambda server: server.put(key=at, value=value)
    if kind == 2:
        end = rng.choice([b"", b"c"])
        return lambda server: server.delete(key=at, range_end=end)
    writes = [kv.RequestOp(request_put=kv.PutRequest(key=each, value=b"t")) for each in (b"a", b"b/1", b"c")]
    return lambda server: server.txn(success=writes)


def creation(revision, compacted):
    """A watcher of some kind. A negative first revision is left out: versions of etcd answer it differently."""
    request = watch.WatchCreateRequest(key=key(), watch_id=rng.choice([0, 0, 0, 5, 6, 7]))
    if rng.random() < 0.6:
        request.range_end = rng.choice([b"c", b"d", b"\0", b"A"])
    if rng.random() < 0.6:
        # etcd before 3.5.18 has forgotten what was deleted in just the compacted one.
        low = compacted + 1
        request.start_revision = rng.choice([low, rng.randint(low, revision), revision, revision + 2, max(1, compacted - 1)])
        if request.start_revision == compacted:
            request.start_revision += 1
        if request.start_revision < compacted:
            # It is cancelled at once. etcd then has its number taken all the same; ours is free again.
            request.watch_id = 0
    request.prev_kv = rng.random() < 0.4
    request.fragment = rng.random() < 0.2
    request.progress_notify = rng.random() < 0.3
    if rng.random() < 0.3:
        request.filters.append(rng.choice([0, 1]))
    return watch.WatchRequest(create_request=request)


def told(answers):
    """What each watcher of a stream was told, in its order: how many events come in one answer, and what of different
    watchers comes first, is open."""
    told = {}
    for answer in answers:
        if isinstance(answer, tuple):
            told.setdefault("end", []).append(answer)
            continue
        if answer.watch_id == -1 and not (answer.created or answer.canceled):
            told.setdefault("progress", []).append(answer.header.revision)
            continue
        mine = told.setdefault(answer.watch_id, [])
        if answer.created or answer.canceled:
            mine.append((answer.created, answer.canceled, answer.compact_revision, answer.cancel_reason))
        mine += [event.SerializeToString(deterministic=True) for event in answer.events]
    return told


def settled(streams):
    """What the streams were told once nothing more comes; while one is waited for, time passes for the other."""
    first, second = streams
    return told(first.until_quiet()), told(second.until_quiet(QUIET / 3))


def watchers_come_and_go_on_one_stream():
    compacted = 0
    for turn in range(ROUNDS):
        streams = [server.watching() for server in (etcd, ours)]
        sentinel = watch.WatchCreateRequest(key=LAST, watch_id=SENTINEL)
        for stream in streams:
            stream.send(watch.WatchRequest(create_request=sentinel))
            assert stream.next().created
        asked = []
        for _ in range(rng.randint(3, 12)):
            kind = rng.randrange(10)
            if kind < 5:
                write = change()
                revision = equal(both(write), "a write").header.revision
                continue
            revision = etcd.range(key=b"x").header.revision
            if kind < 8:
                request = creation(revision, compacted)
            elif kind < 9:
                request = watch.WatchRequest(
                    cancel_request=watch.WatchCancelRequest(watch_id=rng.choice([0, 1, 2, 5, 77]))
                )
            elif turn % 5 == 4 and revision > compacted + 8:
                compacted = revision - rng.randint(2, 6)
                equal(both(lambda server: server.compact(compacted)), "a compaction")
                continue
            else:
                continue
            asked.append(request)
            for stream in streams:
                stream.send(request)
            # What is asked for is done before the next write: whether it is, is up to each server otherwise.
            replies = settled(streams)
            assert replies[0] == replies[1], f"{asked}\n  etcd  {replies[0]}\n  ours  {replies[1]}"
        revision = equal(both(lambda server: server.put(key=LAST)), "the last write").header.revision
        answers = settled(streams)
        assert answers[0] == answers[1], f"{asked}\n  etcd  {answers[0]}\n  ours  {answers[1]}"
        assert SENTINEL in answers[0], answers[0]
        # Everything was heard, so progress is at the newest revision.
        for stream in streams:
            stream.send(watch.WatchRequest(progress_request=watch.WatchProgressRequest()))
            progress = told(stream.until_quiet()).get("progress")
            assert progress == [revision], f"{progress}, not {revision}"
            stream.close()


def compare_mod(at, revision):
    return kv.Compare(result=kv.Compare.EQUAL, target=kv.Compare.MOD, key=at, mod_revision=revision)


def guarded(at, revision, write):
    """What a kube-apiserver sends for every write: if nobody was faster, this; otherwise say what is there."""
    return dict(
        compare=[compare_mod(at, revision)],
        success=[write],
        failure=[kv.RequestOp(request_range=kv.RangeRequest(key=at))],
    )


def a_kube_apiserver_creates_updates_and_deletes():
    known = {}
    for _ in range(ROUNDS * 10):
        at = b"/registry/pods/default/" + str(rng.randrange(8)).encode()
        guess = known.get(at, 0) if rng.random() < 0.8 else rng.choice([0, 1, known.get(at, 0) + 1])
        if rng.random() < 0.7:
            write = kv.RequestOp(request_put=kv.PutRequest(key=at, value=str(rng.random()).encode()))
        else:
            write = kv.RequestOp(request_delete_range=kv.DeleteRangeRequest(key=at))
        answer = equal(both(lambda server: server.txn(**guarded(at, guess, write))), (at, guess, write))
        if answer.succeeded:
            known[at] = answer.header.revision if write.HasField("request_put") else 0
        else:
            found = answer.responses[0].response_range.kvs
            known[at] = found[0].mod_revision if found else 0


def a_kube_apiserver_lists_in_pages_while_others_write_and_compact():
    prefix, end = b"/registry/pods/", b"/registry/pods0"
    for n in range(40):
        equal(both(lambda server: server.put(key=prefix + b"list/%02d" % n, value=b"x" * n)), n)
    for turn in range(ROUNDS):
        limit, at, start = rng.choice([1, 7, 10, 500]), 0, prefix
        while True:
            request = dict(key=start, range_end=end, limit=limit, revision=at, serializable=rng.random() < 0.2)
            answer = equal(both(lambda server: server.range(**request)), request)
            if isinstance(answer, tuple):
                # The rest of the list was compacted away.
                assert answer == ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
                break
            at = at or answer.header.revision
            if not answer.more:
                break
            start = answer.kvs[-1].key + b"\0"
            equal(both(change()), "a write")
            if turn % 3 == 2 and rng.random() < 0.3:
                newest = etcd.range(key=b"x").header.revision
                equal(both(lambda server: server.compact(newest)), "a compaction")
        for more in (dict(count_only=True), dict(keys_only=True, limit=1)):
            equal(both(lambda server: server.range(key=prefix, range_end=end, **more)), more)
    for turn in range(3):
        # Several of them, each of which has heard of the last time: one compacts.
        at, newest = b"compact_rev_key", etcd.range(key=b"x").header.revision
        for member in range(3):
            put = kv.RequestOp(request_put=kv.PutRequest(key=at, value=str(newest).encode()))
            version = kv.Compare(result=kv.Compare.EQUAL, target=kv.Compare.VERSION, key=at, version=turn)
            get = kv.RequestOp(request_range=kv.RangeRequest(key=at))
            answer = equal(
                both(lambda server: server.txn(compare=[version], success=[put], failure=[get])), (turn, member)
            )
            assert answer.succeeded == (member == 0), answer
        equal(both(lambda server: server.compact(newest)), "a compaction")
        equal(both(lambda server: server.compact(newest)), "the same compaction")


def progress_is_never_ahead_of_events():
    """What a kube-apiserver's consistent reads from its cache rely on; of ours only, since etcd 3.5.1 was wrong."""
    stream = ours.watching()
    create = watch.WatchCreateRequest(key=b"p/", range_end=b"p0", prev_kv=True, progress_notify=True)
    stream.send(watch.WatchRequest(create_request=create))
    assert stream.next().created
    stop = threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            ours.put(key=b"p/%d" % (n % 50), value=b"x" * 200)
            n += 1

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    asked = heard = 0
    try:
        while asked < 50:
            newest = ours.range(key=b"p/0").header.revision
            stream.send(watch.WatchRequest(progress_request=watch.WatchProgressRequest()))
            asked += 1
            deadline = time.monotonic() + PATIENCE
            while heard < newest and time.monotonic() < deadline:
                answer = stream.next()
                for event in answer.events:
                    assert event.kv.mod_revision > heard or event.kv.mod_revision == answer.header.revision
                if answer.events:
                    assert answer.events[0].kv.mod_revision > heard, "an event after its progress"
                heard = max(heard, answer.header.revision)
            assert heard >= newest, (heard, newest)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        stream.close()


def leases_are_kept_alive_over_one_stream():
    made = [rng.randint(1, 1 << 60) for _ in range(6)]
    for number in made:
        equal(both(lambda s: s.ask("Lease/LeaseGrant", lease.LeaseGrantRequest(ID=number, TTL=600), lease.LeaseGrantResponse)), number)
        equal(both(lambda s: s.put(key=b"l/%d" % number, lease=number)), number)
    streams = [s.stream("Lease/LeaseKeepAlive", lease.LeaseKeepAliveRequest, lease.LeaseKeepAliveResponse) for s in (etcd, ours)]
    for _ in range(ROUNDS):
        number = rng.choice(made + [77, 0, -1])
        if rng.random() < 0.2 and number in made:
            equal(both(lambda s: s.ask("Lease/LeaseRevoke", lease.LeaseRevokeRequest(ID=number), lease.LeaseRevokeResponse)), number)
        for stream in streams:
            stream.send(lease.LeaseKeepAliveRequest(ID=number))
        equal([stream.next() for stream in streams], ("keep-alive", number))
        left = both(lambda s: s.ask("Lease/LeaseTimeToLive", lease.LeaseTimeToLiveRequest(ID=number, keys=True), lease.LeaseTimeToLiveResponse))
        for each in left:
            each.TTL = min(each.TTL, 0)
        equal(left, ("time to live", number))
    for stream in streams:
        stream.close()


def leases_end_and_take_their_keys_along():
    streams = [server.watching() for server in (etcd, ours)]
    for stream in streams:
        create = watch.WatchCreateRequest(key=b"e/", range_end=b"e0", prev_kv=True)
        stream.send(watch.WatchRequest(create_request=create))
        assert stream.next().created
    equal(both(lambda s: s.ask("Lease/LeaseGrant", lease.LeaseGrantRequest(ID=4711, TTL=2), lease.LeaseGrantResponse)), "a grant")
    for name in (b"e/3", b"e/1", b"e/2"):
        equal(both(lambda s: s.put(key=name, lease=4711)), name)
    # A plain put takes a key from its lease.
    equal(both(lambda s: s.put(key=b"e/2", value=b"stays")), "a put")
    events = []
    for stream in streams:
        seen = []
        while not any(event.type == 1 for event in seen):
            seen += stream.next().events
        events.append([event.SerializeToString(deterministic=True) for event in seen])
        stream.close()
    assert events[0] == events[1], events
    equal(both(lambda s: s.range(key=b"e/", range_end=b"e0")), "what is left")
    equal(both(lambda s: s.put(key=b"e/4", lease=4711)), "a put under a lease that has ended")


run([
    watchers_come_and_go_on_one_stream,
    a_kube_apiserver_creates_updates_and_deletes,
    a_kube_apiserver_lists_in_pages_while_others_write_and_compact,
    leases_are_kept_alive_over_one_stream,
    leases_end_and_take_their_keys_along,
    progress_is_never_ahead_of_events,
])
