"""The wire under property tests: round trips, chunks, and arbitrary entries of a peer."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.codecs.checksum import checksum
from peers.codecs.exact import RAW_BYTES
from peers.errors import MessageError
from peers.types import Entry, Slice
from peers.vectors.partition import balanced
from peers.wire.assembler import Assembler
from peers.wire.encode import encode_fields, encode_vector, read_back, squares_of
from peers.wire.fields import decode_fields
from tests.fleets import make_layout


def entries(pairs, start=1):
    return [Entry(0, "a", start + k, True, header, bytes(payload)) for k, (header, payload) in enumerate(pairs)]


@given(st.integers(0, 1000), st.integers(1, 64), st.integers(0, 50))
def test_parts_are_balanced_to_one_element(size, parts, offset):
    pieces = balanced(Slice(offset, offset + size), parts)
    assert len(pieces) == parts
    assert [p.start for p in pieces[1:]] == [p.stop for p in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (offset, offset + size)
    sizes = [piece.size for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=30)
@given(
    size=st.sampled_from([1, 2, 32_767, 32_768, 32_769, RAW_BYTES // 4, RAW_BYTES // 4 + 1, 600_000]),
    parts=st.integers(1, 3),
    codec=st.sampled_from(["raw", "float16"]),
    round=st.integers(1, 9),
)
def test_a_message_survives_its_chunks(size, parts, codec, round):
    layout = make_layout(size, parts, codec)
    piece = layout.schedule.slice(round)
    values = np.arange(piece.size, dtype=np.float32) % 2048
    assembler, whole = Assembler(layout), None
    parts_sent = entries(encode_vector(layout, "part", round, piece, values.copy()))
    assert len(parts_sent) <= layout.entries_per_round()
    for entry in parts_sent:
        assert len(entry.payload) <= min(RAW_BYTES, layout.largest_payload_bytes())
        assert whole is None
        whole = assembler.feed(entry)
    assert (whole.kind, whole.round, whole.slice) == ("part", round, piece)
    np.testing.assert_array_equal(whole.values, values)
    assert whole.last_sequence == parts_sent[-1].sequence


def test_fields_survive():
    layout = make_layout(4)
    fields = {"worker": 3, "text": "ä", "list": [1, 2.5, None]}
    message = Assembler(layout).feed(entries(encode_fields(layout, "hello", 7, fields))[0])
    assert (message.kind, message.round, message.fields) == ("hello", 7, fields)
    with pytest.raises(ValueError, match="does not fit"):
        encode_fields(layout, "hello", 0, {"x": "y" * 70_000})


def header_of(entry):
    return msgpack.unpackb(entry.header)


def mutate(entry, **changes):
    """An entry with another header, and a checksum that fits it unless the checksum is the change."""
    header = header_of(entry) | changes
    # The checksum comes last.
    header["z"] = header.pop("z")
    packed = msgpack.packb({k: v for k, v in header.items() if v is not ...})
    if "z" not in changes:
        packed = packed[:-4] + checksum(entry.payload, checksum(packed[:-4])).to_bytes(4, "big")
    return entry._replace(header=packed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": 1}, "version"),
        ({"k": "nonsense"}, "kind"),
        ({"r": 0}, "layout"),
        ({"r": -1}, "malformed"),
        ({"r": 2**60}, "malformed"),
        ({"i": 1}, "incomplete"),
        ({"i": -1}, "incomplete"),
        ({"n": 2}, "layout"),
        ({"a": 1}, "layout"),
        ({"b": 2**40}, "layout"),
        ({"c": "float16"}, "layout"),
        ({"f": b"another!"}, "fingerprint"),
        ({"z": b"\0\0\0\1"}, "checksum"),
        ({"z": b""}, "checksum"),
        ({"z": 1}, "malformed"),
        ({"z": "text"}, "malformed"),
        ({"extra": 1}, "malformed"),
        ({"k": ...}, "malformed"),
        ({"x": {"a": "text"}}, "malformed"),
        ({"x": {"a": float("nan")}}, "malformed"),
        ({"n": 0}, "layout"),
        ({"a": -5, "b": 5}, "layout"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(changes, reason):
    layout = make_layout(10)
    entry = entries(encode_vector(layout, "part", 1, Slice(0, 10), np.ones(10, dtype=np.float32)))[0]
    assembler = Assembler(layout)
    with pytest.raises(MessageError) as caught:
        assembler.feed(mutate(entry, **changes))
    assert caught.value.reason == reason
    assert assembler.feed(entry).round == 1, "a bad entry does not spoil the next message"


def test_a_changed_byte_a_short_payload_and_a_missing_chunk_are_refused():
    layout = make_layout(600_000)
    sent = entries(encode_vector(layout, "part", 1, Slice(0, 600_000), np.ones(600_000, dtype=np.float32)))
    assert len(sent) == 3
    damaged = bytearray(sent[0].payload)
    damaged[5] ^= 1
    for bad, reason in (
        ([sent[0]._replace(payload=bytes(damaged))], "checksum"),
        ([sent[0], sent[2]], "incomplete"),
        ([sent[1]], "incomplete"),
    ):
        assembler = Assembler(layout)
        with pytest.raises(MessageError) as caught:
            for entry in bad:
                assembler.feed(entry)
        assert caught.value.reason == reason
    short = sent[0].payload[:-4]
    with pytest.raises(MessageError, match="raw needs"):
        Assembler(layout).feed(mutate(sent[0]._replace(payload=short)))


def test_a_changed_byte_of_a_later_chunk_is_refused_and_costs_nothing_of_the_message():
    """The chunk may come again, and the chunks before it count."""
    size = RAW_BYTES // 4 + 100
    layout, values = make_layout(size), np.random.default_rng(3).standard_normal(size).astype(np.float32)
    first, last = entries(encode_vector(layout, "part", 1, Slice(0, size), values))
    assembler = Assembler(layout)
    assert assembler.feed(first) is None
    for field, step in (("header", 1), ("payload", 7)):
        whole = getattr(last, field)
        for at in range(0, len(whole), step):
            changed = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
            with pytest.raises(MessageError):
                assembler.feed(last._replace(**{field: changed}))
    message = assembler.feed(last)
    assert np.array_equal(message.values, values)
    assert message.squares == pytest.approx(float(np.square(values, dtype=np.float64).sum()), rel=1e-5)


@pytest.mark.parametrize("codec", ["raw", "float16", "int8", "topk", "sign"])
def test_our_own_norm_is_the_readers_to_the_last_bit(codec):
    """Workers that screen the same terms must decide alike, so the sums go over the same pieces."""
    size = RAW_BYTES // 4 * 2 + 777
    layout, values = make_layout(size, 1, codec), np.random.default_rng(5).standard_normal(size).astype(np.float32)
    pairs, assembler = list(encode_vector(layout, "part", 1, Slice(0, size), values)), Assembler(layout)
    *_, message = [assembler.feed(entry) for entry in entries(pairs)]
    found, total = read_back(pairs, layout.codec, size)
    assert len(pairs) > 1 and total == message.squares
    assert np.array_equal(found, message.values)
    if layout.codec.is_exact:
        assert squares_of(values, layout.codec) == total


@pytest.mark.parametrize("kind", ["part", "hello"])
def test_every_changed_byte_of_an_entry_is_refused(kind):
    """P7: the changed byte may be anywhere in the header or the payload, and become anything."""
    layout = make_layout(10)
    if kind == "part":
        pairs = encode_vector(layout, "part", 1, Slice(0, 10), np.ones(10, np.float32), extras={"s": 1.0, "b": 2.0**31})
    else:
        pairs = encode_fields(layout, "hello", 3, {"is_joining": False, "is_replaying": False})
    entry = entries(pairs)[0]
    assembler, tried = Assembler(layout), 0
    assert assembler.feed(entry).kind == kind
    for field in ("header", "payload"):
        whole = getattr(entry, field)
        for at in range(len(whole)):
            for other in set(range(256)) - {whole[at]}:
                changed = whole[:at] + bytes([other]) + whole[at + 1 :]
                with pytest.raises(MessageError):
                    assembler.feed(entry._replace(**{field: changed}))
                tried += 1
    assert tried == 255 * (len(entry.header) + len(entry.payload))
    assert assembler.feed(entry).kind == kind


@settings(max_examples=300)
@given(header=st.binary(max_size=80), payload=st.binary(max_size=80))
def test_no_exception_but_ours_escapes(header, payload):
    assembler = Assembler(make_layout(10))
    with pytest.raises(MessageError):
        assembler.feed(Entry(0, "a", 1, True, header, payload))
    try:
        decode_fields(payload)
    except MessageError as error:
        assert error.reason in ("malformed", "oversized")
