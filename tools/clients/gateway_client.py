"""The Python client etcd3gw (OpenStack's), over the JSON gateway. Arguments: host, port."""

import sys
import threading

import etcd3gw
from checks import run

host, port = sys.argv[1], int(sys.argv[2])
client = etcd3gw.client(host=host, port=port, api_path="/v3/", timeout=10)


def status_and_members():
    status = client.status()
    assert status["version"].startswith("3.")
    members = client.members()
    assert status["leader"] in [member["ID"] for member in members]


def put_get_delete():
    assert client.put("gw/k", "v")
    assert client.get("gw/k") == [b"v"]
    value, meta = client.get("gw/k", metadata=True)[0]
    assert (value, meta["key"], meta["version"]) == (b"v", b"gw/k", "1")
    assert client.delete("gw/k") is True
    assert client.delete("gw/k") is False
    assert client.get("gw/k") == []


def prefixes():
    for n in (2, 1, 3):
        client.put(f"gw/p/{n}", str(n))
    found = client.get_prefix("gw/p/", sort_order="descend", sort_target="key")
    assert [value for value, _ in found] == [b"3", b"2", b"1"]
    assert client.delete_prefix("gw/p/") is True


def create_and_replace():
    client.delete("gw/c")
    assert client.create("gw/c", "1") is True
    assert client.create("gw/c", "2") is False
    assert client.replace("gw/c", "1", "3") is True
    assert client.replace("gw/c", "1", "4") is False
    assert client.get("gw/c") == [b"3"]


def leases():
    lease = client.lease(ttl=60)
    client.put("gw/l", "v", lease=lease)
    assert lease.keys() == [b"gw/l"]
    assert 50 < lease.ttl() <= 60
    assert lease.refresh() == 60
    assert lease.revoke() is True
    assert client.get("gw/l") == []


def locks():
    with client.lock("gw", ttl=30) as lock:
        assert lock.is_acquired()
        assert client.lock("gw", ttl=30).acquire() is False
    assert not lock.is_acquired()


def watches():
    events, cancel = client.watch("gw/w")
    try:
        threading.Timer(0.1, lambda: client.put("gw/w", "1")).start()
        assert next(iter(events))["kv"]["value"] == b"1"
    finally:
        cancel()


run([status_and_members, put_get_delete, prefixes, create_and_replace, leases, locks, watches])
