"""The wire, byte by byte: workers of yesterday and of today understand each other, whatever moves inside.

The tests make most bytes by hand, from the description of the wire alone; those of the codecs that round are in
`golden/wire.json`. A difference means that the protocol has changed, and then its VERSION changes as well.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from zlib import crc32

import msgpack
import numpy as np
import pytest
import redis

from peers.bus.redis.bus import RedisBus
from peers.bus.redis.keys import Keys
from peers.codecs.exact import CODECS
from peers.rounds.layout import RoundLayout
from peers.types import Lease, Slice
from peers.wire.encode import encode_fields, encode_vector
from peers.wire.header import VERSION
from tests.fleets import make_layout

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden" / "wire.json").read_text(encoding="utf-8"))
RUN_KEY = bytes(range(32))
VALUES = np.array([1.5, -2, 0.25, 3e4, -0.125, 7], np.float32)
# The 2,500 values all differ in size and have exact sums, so that no processor rounds them in another way.
MANY = np.array([(-1) ** k * (k * 7919 % 2503) / 64 for k in range(2500)], np.float32)


def header(kind, round, payload, index=0, count=1, start=0, stop=0, codec="map", **extras):
    """A header by the description of the wire."""
    fields = {"v": 3, "k": kind, "r": round, "i": index, "n": count, "a": start, "b": stop, "f": b"testtest"}
    fields |= {"c": codec} | ({"x": extras} if extras else {}) | {"z": bytes(4)}
    said = msgpack.packb(fields)[:-4]
    return said + crc32(payload, crc32(said)).to_bytes(4, "big")


def mac(key_name, rest):
    """The MAC of a content under a Redis key: over the key's name with its length, the place, and the content."""
    name = key_name.encode()
    return hmac.new(RUN_KEY, len(name).to_bytes(8, "big") + name + rest, hashlib.sha256).digest()[:16]


def mac_of_entry(key_name, number, head, payload):
    return mac(key_name, number.to_bytes(8, "big") + len(head).to_bytes(8, "big") + head + payload)


def mac_of_field(key_name, field, value):
    return mac(key_name, len(field).to_bytes(8, "big") + field.encode() + value)


# --- entries ---------------------------------------------------------------------------------------


def test_the_version_of_the_protocol():
    assert VERSION == 3


def said(pairs):
    return [(bytes(head), bytes(payload)) for head, payload in pairs]


def test_one_entry_in_full():
    """This one test needs no other line of this file."""
    layout = make_layout(2)
    ((head, payload),) = said(encode_vector(layout, "part", 3, Slice(0, 2), VALUES[:2], extras={"s": 2.0}))
    assert payload.hex() == "0000c03f000000c0"
    assert head.hex() == (
        "8b" "a176" "03" "a16b" "a470617274" "a172" "03" "a169" "00" "a16e" "01" "a161" "00" "a162" "02"
        "a166" "c4087465737474657374" "a163" "a3726177" "a178" "81a173cb4000000000000000" "a17a" "c404be873afe"
    )  # fmt: skip


VECTORS = [
    ("part", make_layout(6), Slice(0, 6), {"s": 3.0}),
    ("part", make_layout(6), Slice(0, 6), {"b": 4294967295.0, "p": 8.0, "w": 16.0}),
    ("part", make_layout(9), Slice(3, 9), {}),
    ("state", make_layout(6, state_size=6), Slice(0, 6), {}),
    *(
        (kind, RoundLayout(b"testtest", {kind: (6, CODECS["raw"])}), Slice(0, 6), {"term": 2.0})
        for kind in ("result", "batch", "feedback", "swap")
    ),
]


@pytest.mark.parametrize(
    ("kind", "layout", "whole", "extras"), VECTORS, ids=[f"{v[0]}{k}" for k, v in enumerate(VECTORS)]
)
def test_a_vector_of_each_kind(kind, layout, whole, extras):
    payload = VALUES.astype("<f4").tobytes()
    expected = header(kind, 5, payload, start=whole.start, stop=whole.stop, codec="raw", **extras)
    assert said(encode_vector(layout, kind, 5, whole, VALUES, extras=extras)) == [(expected, payload)]


FIELDS = {
    "hello": {"is_joining": True, "is_replaying": False},
    "goodbye": {},
    "want": {"token": "0123456789abcdef"},
    "admit": {"worker": 2, "incarnation": "a0b1c2d3e4f5"},
    "stop": {},
    "round_start": {"term": 1, "stop_at": None, "cohort": [0, 2], "deadline_s": 0.5},
    "round_end": {"term": 1, "stop_at": 9, "model": [1, 4], "steps": 20},
}


@pytest.mark.parametrize("layout", [make_layout(6), RoundLayout(b"testtest", {})], ids=["exchange", "rounds"])
@pytest.mark.parametrize("kind", FIELDS)
def test_a_map_of_each_kind(kind, layout):
    payload = msgpack.packb(FIELDS[kind])
    assert said(encode_fields(layout, kind, 300, FIELDS[kind])) == [(header(kind, 300, payload), payload)]


@pytest.mark.parametrize(("codec", "chunk_values"), [("raw", 262_144), ("float16", 262_144), ("bfloat16", 262_144)])
def test_a_long_vector_travels_in_chunks_and_only_the_first_has_extras(codec, chunk_values):
    size, start = 2 * chunk_values + 3, 10
    layout = make_layout(start + size, codec=codec)
    values = (np.arange(size) % 127).astype(np.float32)
    dtype = {"raw": "<f4", "float16": "<f2"}.get(codec)
    whole = values.astype(dtype) if dtype else (values.view(np.uint32) >> 16).astype("<u2")
    found = said(encode_vector(layout, "part", 1, Slice(start, start + size), values, extras={"s": 1.0}))
    assert len(found) == 3
    for index, (head, payload) in enumerate(found):
        assert payload == whole[index * chunk_values : (index + 1) * chunk_values].tobytes()
        more = {"s": 1.0} if index == 0 else {}
        assert head == header("part", 1, payload, index, 3, start, start + size, codec, **more)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_the_bytes_of_each_codec(codec):
    """The vector is long enough for three blocks of the codecs that work in blocks of 1,024."""
    layout = make_layout(2500, codec=codec)
    ((head, payload),) = said(encode_vector(layout, "part", 1, Slice(0, 2500), MANY))
    assert head == header("part", 1, payload, stop=2500, codec=codec)
    assert (len(payload), hashlib.sha256(payload).hexdigest()) == tuple(GOLDEN["codecs"][codec])


# --- Redis -----------------------------------------------------------------------------------------


def test_the_names_of_all_keys():
    keys = Keys("try")
    assert keys.lease(3) == "degan:try:3:lease"
    assert keys.out(3, "a0") == "degan:try:3:a0:out"
    assert keys.direct(3, "a0", 12) == "degan:try:3:a0:to:12"
    assert keys.state(3, "a0") == "degan:try:3:a0:state"
    assert keys.incarnation(3) == "degan:try:3:incarnation"
    assert keys.probe(3, "5f", "hash") == "degan:try:3:doctor:5f:hash"
    assert keys.everything() == "degan:try:*"


LEASE = Lease(0, "life0", "host/boot/1", 4711, "99", "training", 300, 20, 7, {1: "life1", 2: "life2"}, 4)
# The fields of a lease as MessagePack, in this order.
LEASE_FIELDS = {
    "worker": 0,
    "incarnation": "life0",
    "host": "host/boot/1",
    "pid": 4711,
    "birth": "99",
    "phase": "training",
    "step": 300,
    "since": 20,
    "beat": 7,
    "seen": {1: "life1", 2: "life2"},
    "term": 4,
}


@pytest.mark.parametrize("has_mac", [False, True], ids=["plain", "with a MAC"])
def test_all_writes_of_a_worker_to_its_redis(redis_url, has_mac):
    run = f"golden{int(has_mac)}"
    bus = RedisBus(run, 0, [redis_url] * 2, "life0", [1], 10, 5, run_key=RUN_KEY if has_mac else None)
    client = redis.Redis.from_url(redis_url, protocol=2)
    try:
        bus.configure(max_entries=3, entry_bytes=100)
        bus.claim(LEASE, 20, lambda old: False)
        bus.publish([(b"head %d" % k, b"payload %d" % k) for k in range(1, 6)])
        bus.send(1, [(b"to one", memoryview(b"only"))])
        bus.put_state({"hello": b"value", "t:model:0": memoryview(b"chunk")}, 20)
        key = f"degan:{run}:0"
        types = {name.decode(): client.type(name) for name in client.keys(f"degan:{run}:*")}
        assert types == {
            f"{key}:lease": b"string",
            f"{key}:incarnation": b"string",
            f"{key}:life0:out": b"stream",
            f"{key}:life0:to:1": b"stream",
            f"{key}:life0:state": b"hash",
        }
        assert client.get(f"{key}:incarnation") == b"life0"

        def entry(stream, number, head, payload):
            mac = {b"s": mac_of_entry(stream, number, head, payload)} if has_mac else {}
            return b"%d-0" % number, list(({b"h": head} | mac | {b"d": payload}).items())

        def entries(stream):
            return [(number, list(fields.items())) for number, fields in client.xrange(stream)]

        out, direct, state = f"{key}:life0:out", f"{key}:life0:to:1", f"{key}:life0:state"
        assert entries(out) == [entry(out, k, b"head %d" % k, b"payload %d" % k) for k in (3, 4, 5)]
        assert entries(direct) == [entry(direct, 1, b"to one", b"only")]

        def field(name, place, value):
            return b"\xc1" + mac_of_field(name, place, value) + value if has_mac else value

        assert client.get(f"{key}:lease") == field(f"{key}:lease", "", msgpack.packb(LEASE_FIELDS))
        found = client.hgetall(state)
        assert found == {
            b"hello": field(state, "hello", b"value"),
            b"t:model:0": field(state, "t:model:0", b"chunk"),
        }
        assert 19_000 < client.pttl(f"{key}:lease") <= 20_000
        assert all(3_590 < client.ttl(name) <= 3_600 for name in (out, direct, state, f"{key}:incarnation"))
    finally:
        client.delete(*client.keys(f"degan:{run}:*"))
        client.close()
        bus.close()


def test_a_mac_in_full():
    assert mac_of_entry("degan:r:0:a:out", 1, b"h", b"p").hex() == GOLDEN["mac of an entry"]
    assert mac_of_field("degan:r:0:lease", "", b"p").hex() == GOLDEN["mac of a lease"]
