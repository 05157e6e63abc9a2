"""A whole state from one worker to another: complete before it is announced, and refused for one changed bit."""

from __future__ import annotations

from zlib import crc32

import msgpack
import numpy as np
import pytest

from peers.bus.memory import MemoryHub
from peers.codecs.exact import CODECS, Raw
from peers.errors import MessageError, PeersError, StalledError
from peers.session import transfer


class Small(Raw):
    """A float32 codec with chunks of three values, so that a short vector has several."""

    chunk_values = 3


SMALL = Small()
# The vectors have three chunks of 3, 3 and 1 values; one chunk; and none.
VECTORS = {
    "weights": np.arange(1, 8, dtype=np.float32),
    "moments": np.array([-1.5, 0.25], np.float32),
    "none": np.empty(0, np.float32),
}
SIZES = {"weights": 7, "moments": 2, "none": 0}
NAMES = ["t:weights:0", "t:weights:1", "t:weights:2", "t:moments:0", "t:meta"]


def by_hand(token="t", vectors=VECTORS, meta=None):
    """The fields of the state without the product: little-endian float32, three values a chunk, and the description."""
    fields, sums = {}, {}
    for name, vector in vectors.items():
        whole = vector.astype("<f4").tobytes()
        for index in range(0, len(whole), 12):
            fields[f"{token}:{name}:{index // 12}"] = whole[index : index + 12]
        sums[name] = [len(whole), crc32(whole)]
    return fields | {f"{token}:meta": msgpack.packb({**(meta or {"round": 7}), "arrays": sums})}


class Shelf:
    """A bus that has only states; it records the questions."""

    def __init__(self, *looks):
        """The states at the first look, at the second, ...; the last of them stays."""
        self.looks, self.asked, self.put = list(looks) or [{}], [], []

    def get_state(self, peer, incarnation, names):
        self.asked.append((peer, incarnation, tuple(names)))
        there = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return {name: there[name] for name in names if name in there}

    def put_state(self, fields, ttl_s):
        self.put.append((dict(fields), ttl_s))


def take(shelf, timeout_s=0.0, check=lambda: None, sizes=SIZES, codec=SMALL):
    return transfer.take(shelf, 3, "incarnation", "t", sizes, timeout_s, check, codec)


def assert_is_vectors(arrays):
    assert list(arrays) == list(VECTORS)
    for name, found in arrays.items():
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, VECTORS[name])


def test_the_fields_are_those_written_by_hand():
    fields = transfer.fields_of(VECTORS, {"round": 7}, "t", SMALL)
    assert list(fields) == NAMES
    assert {name: bytes(value) for name, value in fields.items()} == by_hand()
    assert transfer.field_names(SIZES, "t", SMALL) == NAMES
    assert [transfer.encoded_bytes(size, SMALL) for size in SIZES.values()] == [28, 8, 0]


def test_fields_written_by_hand_are_read():
    shelf = Shelf(by_hand())
    arrays, meta = take(shelf)
    assert_is_vectors(arrays)
    assert meta == {"round": 7}, "and the sizes are no part of the giver's values"
    assert {ask[:2] for ask in shelf.asked} == {(3, "incarnation")}
    assert [name for *_, names in shelf.asked for name in names] == ["t:meta", *NAMES[:-1]]


def test_a_state_is_a_copy_of_the_giver_at_that_time():
    vectors = {name: vector.copy() for name, vector in VECTORS.items()}
    fields = transfer.fields_of(vectors, {"round": 7}, "t", SMALL)
    for vector in vectors.values():
        vector[:] = 99
    assert {name: bytes(value) for name, value in fields.items()} == by_hand()


def test_the_description_of_a_state_is_written_last():
    """A reader sees no state or the whole of it, at every moment."""
    hub = MemoryHub()
    giver, joiner = hub.bus(3, (1,), "incarnation"), hub.bus(1, (3,), "other")
    seen, put = [], giver.put_state

    def put_and_look(fields, ttl_s):
        assert len(fields) == 1, "one field a command, so that no command is large"
        put(fields, ttl_s)
        try:
            arrays, _ = take(joiner)
        except StalledError:
            seen.append("nothing")
        else:
            assert_is_vectors(arrays)
            seen.append("all")

    giver.put_state = put_and_look
    transfer.give(giver, transfer.fields_of(VECTORS, {"round": 7}, "t", SMALL), 9.0)
    assert seen == ["nothing"] * 4 + ["all"]


def test_every_field_has_the_given_lifetime():
    shelf = Shelf()
    transfer.give(shelf, by_hand(), 9.0)
    assert [(list(fields), ttl_s) for fields, ttl_s in shelf.put] == [([name], 9.0) for name in NAMES]


def test_two_states_of_one_giver_do_not_mix():
    other = {name: vector + 1 for name, vector in VECTORS.items()}
    shelf = Shelf(by_hand() | by_hand("u", other, {"round": 8}))
    arrays, meta = take(shelf)
    assert_is_vectors(arrays)
    assert meta == {"round": 7}


def refused(fields):
    with pytest.raises(MessageError) as caught:
        take(Shelf(fields))
    return caught.value.reason


@pytest.mark.parametrize("name", NAMES[:-1])
def test_every_other_bit_of_a_chunk_is_refused_by_its_checksum(name):
    """The length is right, so that nothing but the checksum can see the change."""
    genuine = by_hand()
    for at in range(len(genuine[name])):
        for bit in range(8):
            chunk = bytearray(genuine[name])
            chunk[at] ^= 1 << bit
            assert refused({**genuine, name: bytes(chunk)}) == "checksum", (at, bit)


def test_chunks_in_another_order_are_refused():
    genuine = by_hand()
    swapped = {"t:weights:0": genuine["t:weights:1"], "t:weights:1": genuine["t:weights:0"]}
    assert refused(genuine | swapped) == "checksum"


def test_the_checksum_of_another_vector_is_refused():
    sums = msgpack.unpackb(by_hand()["t:meta"])["arrays"]
    for wrong in (0, sums["moments"][1], sums["weights"][1] ^ 1, -sums["weights"][1], sums["weights"][1] + 2**32):
        said = {"round": 7, "arrays": {**sums, "weights": [28, wrong]}}
        assert refused({**by_hand(), "t:meta": msgpack.packb(said)}) == "checksum", wrong


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_missing_chunk_or_one_of_another_length_is_refused(name):
    genuine = by_hand()
    without = {key: value for key, value in genuine.items() if key != name}
    assert refused(without) == "malformed"
    for chunk in (b"", genuine[name][:-4], genuine[name][:-1], genuine[name] + b"\0", genuine[name] + bytes(4)):
        assert refused({**genuine, name: chunk}) == "malformed"


@pytest.mark.parametrize(
    "sums",
    [
        {},
        {"moments": [8, 0]},
        {"moments": [8, 0], "weights": [24, 0], "none": [0, 0]},
        {"moments": [8, 0], "weights": [32, 0], "none": [0, 0]},
        {"moments": [8, 0], "weights": [28, 0]},
        {"moments": [8, 0], "weights": [28, 0], "none": [4, 0]},
        {"moments": [8, 0], "weights": [28, 0], "none": [0, 0], "more": [0, 0]},
        {"moments": [2, 0], "weights": [7, 0], "none": [0, 0]},
    ],
)
def test_other_vectors_are_refused_before_any_is_read(sums):
    shelf = Shelf({**by_hand(), "t:meta": msgpack.packb({"round": 7, "arrays": sums})})
    with pytest.raises(MessageError) as caught:
        take(shelf)
    assert caught.value.reason == "layout"
    assert len(shelf.asked) == 1


@pytest.mark.parametrize(
    "meta",
    [
        {"round": 7},
        {"arrays": 7},
        {"arrays": [["weights", 28, 0]]},
        {"arrays": {"weights": 28}},
        {"arrays": {"weights": [28]}},
        {"arrays": {"weights": [28, 0, 0]}},
        {"arrays": {"weights": [None, 0]}},
        {"arrays": {"weights": [28, float("inf")]}},
    ],
)
def test_a_state_without_a_valid_description_is_refused(meta):
    assert refused({**by_hand(), "t:meta": msgpack.packb(meta)}) == "malformed"


def test_a_state_is_awaited_and_meanwhile_other_failures_are_looked_for(monkeypatch):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    checks = []
    arrays, _ = take(Shelf({}, {}, {}, by_hand()), timeout_s=60.0, check=lambda: checks.append(1))
    assert_is_vectors(arrays)
    assert len(checks) == 4 and slept == [transfer.POLL_S] * 3

    def fail():
        raise PeersError("elsewhere")

    with pytest.raises(PeersError, match="elsewhere"):
        take(Shelf(by_hand()), timeout_s=60.0, check=fail)


def test_a_state_that_does_not_come_names_the_giver(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(transfer.time, "sleep", lambda s: now.__setitem__(0, now[0] + 10 * s))
    shelf = Shelf()
    with pytest.raises(StalledError, match="worker 3 has not sent its state"):
        take(shelf, timeout_s=1.6)
    # The looks are at 0, 0.5, 1, 1.5 and 2 seconds.
    assert len(shelf.asked) == 5


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_a_state_may_be_rounded_on_its_way(codec):
    """The reader has the codec's values, and the names and sizes are those of its bytes."""
    codec, values = CODECS[codec], np.linspace(-3, 3, 5000, dtype=np.float32)
    fields = transfer.fields_of({"model": values}, {}, "t", codec)
    (name,) = fields.keys() - {"t:meta"}
    assert transfer.field_names({"model": 5000}, "t", codec) == [name, "t:meta"]
    assert transfer.encoded_bytes(5000, codec) == len(fields[name]) < 4 * 5000
    expected = np.empty(5000, np.float32)
    codec.decode(fields[name], expected)
    arrays, meta = take(Shelf(fields), sizes={"model": 5000}, codec=codec)
    np.testing.assert_array_equal(arrays["model"], expected)
    np.testing.assert_allclose(arrays["model"], values, atol=0.02)
    assert meta == {}
