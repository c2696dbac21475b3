"""The Python client etcd3, over gRPC. Arguments: host, port."""

import queue
import sys

import etcd3
from checks import run

host, port = sys.argv[1], int(sys.argv[2])
client = etcd3.client(host=host, port=port, timeout=10)


def put_get_delete():
    client.put("py/k", "v1")
    value, meta = client.get("py/k")
    assert (value, meta.key, meta.version) == (b"v1", b"py/k", 1)
    old = client.put("py/k", "v2", prev_kv=True)
    assert old.prev_kv.value == b"v1"
    assert client.delete("py/k") is True
    assert client.delete("py/k") is False
    assert client.get("py/k") == (None, None)


def prefixes_sorting_and_limits():
    for n in (3, 1, 2):
        client.put(f"py/s/{n}", str(9 - n))
    keys = [meta.key for _, meta in client.get_prefix("py/s/", sort_order="descend")]
    assert keys == [b"py/s/3", b"py/s/2", b"py/s/1"]
    values = [v for v, _ in client.get_prefix("py/s/", sort_order="ascend", sort_target="value")]
    assert values == [b"6", b"7", b"8"]
    assert client.get_range_response("py/s/", "py/s0").count == 3
    assert client.delete_prefix("py/s/").deleted == 3


def transactions():
    client.put("py/t", "1")
    tx = client.transactions
    done, answers = client.transaction(
        compare=[tx.value("py/t") == "1", tx.version("py/t") > 0],
        success=[tx.put("py/t", "2"), tx.get("py/t")],
        failure=[tx.put("py/t", "3")],
    )
    assert done and answers[1][0][0] == b"2"
    done, _ = client.transaction(
        compare=[tx.value("py/t") == "1"], success=[], failure=[tx.put("py/t", "3")]
    )
    assert not done and client.get("py/t")[0] == b"3"
    assert client.replace("py/t", "3", "4") and not client.replace("py/t", "3", "5")
    assert client.put_if_not_exists("py/t", "x") is False


def watches():
    heard = queue.Queue()
    number = client.add_watch_callback("py/w", lambda answer: [heard.put(e) for e in answer.events])
    client.put("py/w", "1")
    client.delete("py/w")
    put, delete = heard.get(timeout=10), heard.get(timeout=10)
    assert isinstance(put, etcd3.events.PutEvent) and put.value == b"1"
    assert isinstance(delete, etcd3.events.DeleteEvent)
    client.cancel_watch(number)


def leases():
    lease = client.lease(60)
    client.put("py/l", "v", lease)
    assert lease.granted_ttl == 60 and lease.keys == [b"py/l"]
    assert 50 < lease.remaining_ttl <= 60
    assert [answer.TTL for answer in lease.refresh()] == [60]
    lease.revoke()
    assert client.get("py/l") == (None, None)


def locks():
    lock = client.lock("py", ttl=30)
    assert lock.acquire(timeout=10) and lock.is_acquired()
    other = client.lock("py", ttl=30)
    assert not other.acquire(timeout=1)
    assert lock.release() and other.acquire(timeout=10) and other.release()


def members_status_hash_alarms_defragment():
    members = list(client.members)
    assert members and all(member.peer_urls for member in members)
    status = client.status()
    assert status.version.startswith("3.") and status.leader.id in [m.id for m in members]
    assert client.hash() != 0
    client.create_alarm()
    assert len(list(client.list_alarms())) == 1
    assert len(client.disarm_alarm()) == 1
    assert list(client.list_alarms()) == []
    client.defragment()


def compaction():
    client.put("py/c", "1")
    revision = client.get_response("py/c").header.revision
    client.put("py/c", "2")
    client.compact(revision, physical=True)
    try:
        client.compact(revision)
    except Exception:
        return
    raise AssertionError("the same revision was compacted twice")


run(
    [
        put_get_delete,
        prefixes_sorting_and_limits,
        transactions,
        watches,
        leases,
        locks,
        members_status_hash_alarms_defragment,
        compaction,
    ]
)
