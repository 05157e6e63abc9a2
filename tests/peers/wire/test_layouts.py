"""The agreement of all workers on the slices of each round, their codec, and the room that they take."""

from __future__ import annotations

import numpy as np
import pytest

from peers.codecs.exact import CODECS
from peers.errors import MessageError
from peers.rounds.layout import RoundLayout
from peers.types import Entry, Slice
from peers.wire.assembler import Assembler
from peers.wire.encode import encode_fields, encode_vector
from tests.fleets import make_layout

LEAST = 4096
MIB = 2**20


def test_a_part_is_the_one_whose_turn_it_is():
    layout = make_layout(16, 4)
    turns = {1: (0, 4), 2: (4, 8), 3: (8, 12), 4: (12, 16), 5: (0, 4)}
    for round, turn in turns.items():
        for whole in {*turns.values(), (8, 16), (0, 8), (0, 16), (8, 10)}:
            assert layout.allows("part", round, Slice(*whole)) == (whole == turn), (round, whole)


def test_where_the_number_of_parts_may_change_any_part_is_allowed_in_any_round():
    layout = make_layout(16, "auto")
    allowed = {(0, 16), (8, 16), (8, 12), (12, 16), (8, 10), (10, 12), (14, 16), (8, 9), (15, 16), (8, 8)}
    for round in (1, 2):
        for whole in allowed | {(9, 11), (4, 12), (7, 9), (16, 17), (0, 12)}:
            assert layout.allows("part", round, Slice(*whole)) == (whole in allowed), (round, whole)


def test_a_state_is_whole_and_nothing_else_is_a_vector_of_an_exchange():
    layout = make_layout(16, 2, state_size=5)
    assert layout.allows("state", 1, Slice(0, 5)) and layout.allows("state", 2, Slice(0, 5))
    for whole in ((0, 4), (1, 5), (0, 6), (0, 16), (0, 8)):
        assert not layout.allows("state", 1, Slice(*whole))
    for kind in ("result", "batch", "feedback", "swap", "hello", ""):
        assert not any(layout.allows(kind, 1, Slice(0, size)) for size in (0, 5, 8, 16))


def test_each_kind_of_rounds_has_one_size_and_one_codec():
    layout = RoundLayout(bytes(8), {"batch": (6, CODECS["raw"]), "result": (9, CODECS["int8"])})
    for kind, size in (("batch", 6), ("result", 9), ("swap", 6), ("part", 6), ("hello", 0)):
        for whole in ((0, 6), (0, 9), (0, 0), (1, 7)):
            expected = kind in layout.kinds and whole == (0, size)
            assert layout.allows(kind, 1, Slice(*whole)) == expected
    codecs = {
        kind: [codec.name for codec in layout.carried.vectors.get(kind, ())] for kind in ("batch", "result", "swap")
    }
    assert codecs == {"batch": ["raw"], "result": ["int8"], "swap": []}


@pytest.mark.parametrize("codec", ["raw", "float16", "int8"])
@pytest.mark.parametrize("may_be_whole", [False, True])
def test_states_are_exact_and_parts_may_be_where_they_travel_whole(codec, may_be_whole):
    layout = make_layout(2000, codec=codec, state_size=3, may_be_whole=may_be_whole)
    usual = [codec] if codec == "raw" or not may_be_whole else [codec, "raw"]
    assert [one.name for one in layout.carried.vectors["part"]] == usual
    assert [one.name for one in layout.carried.vectors["state"]] == ["raw"]
    values = np.array([1 / 3, 2 / 3, 1e-9], np.float32)
    ((head, payload),) = encode_vector(layout, "state", 1, Slice(0, 3), values)
    message = Assembler(layout).feed(Entry(1, "a", 1, True, head, payload))
    np.testing.assert_array_equal(message.values, values)
    part = np.ones(2000, np.float32)
    ((head, payload),) = encode_vector(layout, "part", 1, Slice(0, 2000), part, codec=CODECS["raw"])
    entry = Entry(1, "a", 1, True, head, payload)
    if "raw" in usual:
        assert Assembler(layout).feed(entry).is_whole == (codec != "raw")
    else:
        with pytest.raises(MessageError, match="does not fit here"):
            Assembler(layout).feed(entry)
    ((head, payload),) = encode_vector(layout, "part", 1, Slice(0, 2000), part)
    assert not Assembler(layout).feed(Entry(1, "a", 1, True, head, payload)).is_whole


@pytest.mark.parametrize("kind", ["state", "hello", "part"])
def test_another_message_in_the_middle_of_a_part_ends_it(kind):
    """A worker publishes one message after the other, so the receiver gives up the unfinished one."""
    size = 300_000
    layout = make_layout(size, state_size=2)
    first, last = encode_vector(layout, "part", 1, Slice(0, size), np.ones(size, np.float32))
    other = {
        "state": lambda: next(encode_vector(layout, "state", 1, Slice(0, 2), np.ones(2, np.float32))),
        "part": lambda: next(encode_vector(layout, "part", 2, Slice(0, size), np.ones(size, np.float32))),
        "hello": lambda: encode_fields(layout, "hello", 1, {})[0],
    }[kind]()
    assembler = Assembler(layout)
    assert assembler.feed(Entry(1, "a", 1, True, *first)) is None
    assembler.feed(Entry(1, "a", 2, True, *other))
    with pytest.raises(MessageError, match="without those before it"):
        assembler.feed(Entry(1, "a", 3, True, *last))


@pytest.mark.parametrize(
    ("layout", "payload_bytes", "entries", "state_entries"),
    [
        (make_layout(10), LEAST, 1, 0),
        (make_layout(2000), 8000, 1, 0),
        (make_layout(2000, 2), LEAST, 1, 0),
        (make_layout(8000, codec="float16"), 16_000, 1, 0),
        # The states are raw, and may be larger than the parts.
        (make_layout(10, codec="float16", state_size=2000), 8000, 1, 1),
        (make_layout(300_000), MIB, 2, 0),
        (make_layout(10, state_size=600_000), MIB, 1, 3),
        # With parts "auto" the whole vector may travel at once.
        (make_layout(300_000, "auto"), MIB, 2, 0),
        # A chunk holds this many float16 values, and a whole part has twice the bytes.
        (make_layout(300_000, codec="float16"), MIB // 2, 2, 0),
        (make_layout(2_000_000, codec="int8"), None, None, 0),
    ],
)  # fmt: skip
def test_how_much_room_the_entries_of_a_round_take(layout, payload_bytes, entries, state_entries):
    if payload_bytes is not None:
        assert layout.largest_payload_bytes() == payload_bytes
        assert layout.entries_per_round() == entries
    else:
        pieces = list(encode_vector(layout, "part", 1, Slice(0, 2_000_000), np.ones(2_000_000, np.float32)))
        assert layout.largest_payload_bytes() == max(len(payload) for _, payload in pieces)
        assert layout.entries_per_round() == len(pieces) > 1
    assert layout.entries_per_state() == state_entries


def test_where_a_part_may_also_be_raw_there_is_room_for_all_its_entries():
    layout = make_layout(2_000_000, codec="int8", may_be_whole=True)
    assert layout.entries_per_round() == 8, "of 262,144 values each"


def test_how_much_room_the_kinds_of_rounds_take():
    layout = RoundLayout(bytes(8), {"batch": (600_000, CODECS["raw"]), "result": (9, CODECS["float16"])})
    assert [layout.entries(kind) for kind in layout.kinds] == [3, 1]
    assert [layout.payload_bytes(kind) for kind in layout.kinds] == [2_400_000, 18]
    assert layout.largest_payload_bytes() == MIB
    assert RoundLayout(bytes(8), {"result": (9, CODECS["raw"])}).largest_payload_bytes() == LEAST
    assert RoundLayout(bytes(8), {}).largest_payload_bytes() == LEAST


def test_the_observer_sees_each_chunk_once():
    size, start = 600_000, 7
    layout, values = make_layout(start + size), np.arange(600_000, dtype=np.float32)
    seen, written = [], []

    def write(piece, part):
        written.append((piece.start, piece.stop, part.size))
        return CODECS["raw"].encode(part)

    list(encode_vector(layout, "part", 1, Slice(start, start + size), values, write=write, look=seen.append))
    np.testing.assert_array_equal(np.concatenate(seen), values)
    assert len(seen) == 3
    assert written == [(7, 262_151, 262_144), (262_151, 524_295, 262_144), (524_295, 600_007, 75_712)]
