"""Data of peers outside of streams, under fuzz: maps, leases, hellos, whole states, and the answers of a Redis."""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peers.bus.memory import MemoryHub
from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.client import Reader
from peers.bus.redis.keys import Keys
from peers.bus.redis.resp import Busy
from peers.errors import BusError, DisagreementError, MessageError, StalledError
from peers.session import meet, processes, transfer
from peers.session.meet import Rendezvous
from peers.types import Lease
from peers.wire.fields import decode_fields
from tests.peers.bus.test_bus import lease

MOST_BYTES = 16e6


def quiet(_):
    pass


plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.binary(max_size=3)), inner, max_size=4),
    ),
    max_leaves=12,
)


def blobs(genuine: dict):
    """A genuine map with changed values, cut and spoiled; and bytes of any kind."""
    keys = st.sampled_from(sorted(genuine))
    changed = st.dictionaries(keys, plain, max_size=3).map(lambda new: msgpack.packb({**genuine, **new}))
    less = st.sets(keys).map(lambda gone: msgpack.packb({k: v for k, v in genuine.items() if k not in gone}))
    packed = msgpack.packb(genuine)
    cut = st.integers(0, len(packed)).map(lambda at: packed[:at])
    flipped = st.tuples(st.integers(0, len(packed) - 1), st.integers(1, 255)).map(
        lambda change: packed[: change[0]] + bytes([packed[change[0]] ^ change[1]]) + packed[change[0] + 1 :]
    )
    return st.one_of(changed, less, cut, flipped, st.binary(max_size=60), plain.map(msgpack.packb))


@settings(deadline=None, max_examples=400)
@given(blobs({"token": "x", "worker": 1, "list": [1, {"a": 2.5}]}))
def test_a_map_is_a_map_or_refused(blob):
    try:
        fields = decode_fields(blob)
    except MessageError as error:
        assert error.reason in ("malformed", "oversized")
    else:
        assert all(isinstance(key, str) for key in fields)


LEASE = {
    "worker": 1,
    "incarnation": "a1",
    "host": processes.this_host(),
    "pid": 1,
    "birth": "",
    "seen": {0: "a0"},
    "step": 3,
}


@settings(deadline=None, max_examples=400)
@given(blobs({key: value for key, value in LEASE.items() if key != "seen"}), st.booleans())
def test_a_lease_is_one_that_can_be_used_or_none(blob, has_mac):
    guard = Authenticator(bytes(32) if has_mac else None, Keys("fuzz"), quiet)
    if has_mac:
        assert guard.open_lease(1, blob) is None and 1 in guard.strangers
        blob = guard.macs(guard_key := "degan:fuzz:1:lease").with_mac("", blob)
        assert guard_key == Keys("fuzz").lease(1)
    found = guard.open_lease(1, blob)
    if found is not None:
        assert found.worker == 1 and processes.is_dead(found) in (False, True)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Lease) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**40},
        {"pid": 0},
        {"pid": -1},
        {"step": -1},
        {"worker": 2},
        {"incarnation": "a:b"},
        {"incarnation": "a\nb"},
        {"incarnation": "x" * 65},
        {"host": "h" * 1000},
        {"seen": {0: "*"}},
    ],
)
def test_a_lease_with_impossible_values_is_none(changes):
    """No system has such a process, and an incarnation becomes a part of a key."""
    guard = Authenticator(None, Keys("fuzz"), quiet)
    assert guard.open_lease(1, msgpack.packb(LEASE)).pid == 1
    assert guard.open_lease(1, msgpack.packb({**LEASE, **changes})) is None


HELLO = {"agreed": {"a": 1}, "checkpoints": [5], "peer_info": {"samples": 3}}
incarnations = (f"a{k}" for k in itertools.count())


@settings(deadline=None, max_examples=300)
@given(blobs(HELLO))
def test_a_hello_agrees_or_does_not(blob):
    hub = MemoryHub()
    meeting = Rendezvous(hub.bus(0, (1,), "a0"), {"a": 1}, 5, 1, quiet, quiet)
    peer = hub.bus(1, (0,), next(incarnations))
    peer.put_state({"hello": blob}, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meet, "SEEN_S", 0.0)
        try:
            found = meeting._check(1, lease(peer))
        except DisagreementError as error:
            assert "do not train the same" in str(error)
        else:
            assert found is None or all(isinstance(step, int) for step in found)
        with contextlib.suppress(MessageError):
            assert isinstance(meeting.peer_info(1, peer.incarnation), dict)


class OneState:
    """A bus that has the state of one peer and nothing else."""

    def __init__(self, fields):
        self.fields = fields

    def get_state(self, peer, incarnation, names):
        return {name: self.fields[name] for name in names if name in self.fields}


VECTORS = {"weights": np.arange(700, dtype=np.float32), "moments": np.ones(3, np.float32)}
STATE = {name: bytes(value) for name, value in transfer.fields_of(VECTORS, {"round": 7}, "t").items()}
SIZES = {name: vector.size for name, vector in VECTORS.items()}
SUMS = decode_fields(STATE["t:meta"])


def take(fields):
    return transfer.take(OneState(fields), 1, "a1", "t", SIZES, 0.0, lambda: None)


def test_the_genuine_state_is_taken():
    arrays, meta = take(STATE)
    assert meta == {"round": 7} and all(np.array_equal(arrays[name], VECTORS[name]) for name in VECTORS)


@pytest.mark.parametrize("size", [float("inf"), float("nan"), 2**63, "1", None, [1]])
def test_a_state_of_no_size_is_refused(size):
    arrays = {**SUMS["arrays"], "weights": [size, 1]}
    with pytest.raises(MessageError):
        take({**STATE, "t:meta": msgpack.packb({**SUMS, "arrays": arrays})})


def same_norm(blob: bytes):
    """Other bytes of the same norm: only a checksum tells them from the genuine ones."""
    places = st.lists(st.tuples(st.integers(0, len(blob) - 1), st.integers(1, 255)), min_size=1, max_size=4)

    def change(changes):
        found = bytearray(blob)
        for at, other in changes:
            found[at] ^= other
        return bytes(found)

    return st.one_of(places.map(change), st.binary(min_size=len(blob), max_size=len(blob)), st.just(bytes(len(blob))))


CHUNKS = sorted(STATE.keys() - {"t:meta"})


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(CHUNKS), st.data())
def test_a_chunk_of_the_right_length_and_other_bytes_is_refused_by_its_checksum(name, data):
    spoiled = data.draw(same_norm(STATE[name]))
    if spoiled == STATE[name]:
        return
    with pytest.raises(MessageError) as caught:
        take({**STATE, name: spoiled})
    assert caught.value.reason == "checksum"


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_spoiled_state_is_refused(data):
    """Each field may be the spoiled one: other bytes in it, another map, and none or too many chunks of a vector."""
    name = data.draw(st.sampled_from(sorted(STATE)))
    sums = data.draw(st.dictionaries(st.sampled_from(sorted(SIZES)), plain))
    other = msgpack.packb({**SUMS, "arrays": {**SUMS["arrays"], **sums}})
    spoiled = data.draw(st.one_of(same_norm(STATE[name]), blobs(SUMS), st.just(other)))
    try:
        arrays, _ = take({**STATE, name: spoiled})
    except (MessageError, StalledError):
        return
    # A spoiled state that passes differs only in the values beside the vectors.
    assert name == "t:meta" or spoiled == STATE[name]
    assert all(np.array_equal(arrays[key], VECTORS[key]) for key in VECTORS)


class NoStream:
    """A client of a Redis in which the stream is gone."""

    def xrange(self, key, min, count):
        return []


class OneAnswer:
    """A link over which a Redis gives one answer."""

    def __init__(self, answer):
        self.answer = answer

    def send_small(self, text):
        pass

    def read(self):
        return self.answer

    def close(self):
        pass


word = st.one_of(
    st.binary(max_size=6), st.sampled_from([b"1-0", b"2-0", b"2-1", b"h", b"d", b"s", b"out"]), st.none(), st.integers()
)
answers = st.recursive(word, lambda inner: st.lists(inner, max_size=6), max_leaves=20)
entry = st.tuples(st.sampled_from([b"1-0", b"2-0", b"2-1", b"x", b"-", b"9" * 30]), st.lists(word, max_size=6)).map(
    list
)
streams = st.lists(st.tuples(st.sampled_from([b"out", b"to", b"?"]), st.lists(entry, max_size=4)).map(list), max_size=3)


@settings(deadline=None, max_examples=400)
@given(st.one_of(streams, answers), st.booleans())
@example([[b"out", [[2**31, [b"h", b"", b"d", b""]]]]], True)
@example([[b"out", [[b"1-0", [b"h", b"", b"d", 2**31]]]]], False)
@example([[b"out", [[b"1-0", [b"h", b"", b"s", 2**31, b"d", b""]]]]], True)
@example([[2**31, []]], False)
def test_a_malformed_answer_of_a_redis_is_a_bus_error(answer, has_mac):
    guard = Authenticator(bytes(32) if has_mac else None, Keys("fuzz"), quiet)
    reader = Reader(NoStream(), "host:1", Busy(), guard)
    reader.follow(1, "a1", 0, "out", "to")
    reader._link = OneAnswer(answer)
    tracemalloc.start()
    try:
        found = reader.receive(0.01, 1000)
    except BusError as error:
        assert "host:1" in str(error)
    else:
        assert all(isinstance(one.header, bytes) and isinstance(one.payload, bytes) for one in found)
        assert not (has_mac and found)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_BYTES
