"""The codecs' bytes by hand: the bytes of a few values on the wire, the decoded values, and the kept error."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from degan.learners.casts import torch_cast
from peers.codecs.exact import build
from peers.codecs.feedback import ErrorFeedback
from peers.types import Slice

LARGEST = np.finfo(np.float32).max

# Codec, values, bytes, decoded values, kept error.
TABLE = [
    ("raw", [1, -2, 1e-40], struct.pack("<3f", 1, -2, 1e-40), [1, -2, 1e-40], [0, 0, 0]),
    # Eleven bits: 2049 lies between 2048 and 2050 and goes to even, 2051 goes to 2052. Larger values are cut to 65504.
    (
        "float16",
        [1, -2, 2049, 2051, 1e5, -1e5],
        struct.pack("<6H", 0x3C00, 0xC000, 0x6800, 0x6802, 0x7BFF, 0xFBFF),
        [1, -2, 2048, 2052, 65504, -65504],
        [0, 0, 1, -1, 1e5 - 65504, 65504 - 1e5],
    ),
    # Eight bits: 257 lies between 256 and 258 and goes to even, 259 goes to 260.
    (
        "bfloat16",
        [1, -2, 257, 259, LARGEST],
        struct.pack("<5H", 0x3F80, 0xC000, 0x4380, 0x4382, 0x7F7F),
        [1, -2, 256, 260, 3.3895314e38],
        [0, 0, 1, -1, LARGEST - 3.3895314e38],
    ),
    # Steps of 1/127 of the largest value, halves to even.
    (
        "int8",
        [254, -128, 5, 7, 0.5],
        struct.pack("<f5b", 2, 127, -64, 2, 4, 0),
        [254, -128, 4, 8, 0],
        [0, 0, 1, -1, 0.5],
    ),
    # The mean size, then one bit a value, the first value in the highest bit of a byte.
    (
        "sign",
        [1, -3, 2, -2, 0, 4, 1, 3, -2],
        struct.pack("<fBB", 2, 0b01010000, 0b10000000),
        [2, -2, 2, -2, 2, 2, 2, 2, -2],
        [-1, -1, 0, 0, -2, 2, -1, 1, 0],
    ),
    # The largest half, with their positions; of equal values the first.
    (
        "topk",
        [1, -3, 2, 0, 3, 2],
        struct.pack("<3f3H", -3, 2, 3, 1, 2, 4),
        [0, -3, 2, 0, 3, 0],
        [1, 0, 0, 0, 0, 2],
    ),
]


@pytest.mark.parametrize("cast", [None, torch_cast], ids=["numpy", "torch"])
@pytest.mark.parametrize(("name", "values", "payload", "read", "kept"), TABLE, ids=[row[0] for row in TABLE])
def test_bytes_by_hand(name, values, payload, read, kept, cast):
    codec = build(name, fraction=0.5, **({} if cast is None else {"cast": cast}))
    values = np.array(values, np.float32)
    assert bytes(codec.encode(values)) == payload
    assert codec.encoded_bytes(values.size) == len(payload)
    found = np.full(values.size, 7, np.float32)
    codec.decode(payload, found)
    np.testing.assert_allclose(found, np.array(read, np.float32), rtol=1e-7)
    rest = np.zeros(values.size, np.float32)
    assert bytes(codec.encode_and_keep(values, rest)) == payload
    np.testing.assert_allclose(rest, np.array(kept, np.float32), rtol=1e-6)


def test_the_kept_error_is_sent_with_the_next_values_of_its_place():
    """The errors of two chunks of one vector are independent."""
    lossy = ErrorFeedback(build("int8"), 4)
    first, second = Slice(0, 2), Slice(2, 4)
    assert bytes(lossy.encode(first, np.float32([127, 0.4]))) == struct.pack("<f2b", 1, 127, 0)
    assert bytes(lossy.encode(second, np.float32([127, 0.4]))) == struct.pack("<f2b", 1, 127, 0)
    # The values 0.4 and 0.4 make 0.8, which rounds to one step; the next value carries the excess.
    assert bytes(lossy.encode(first, np.float32([127, 0.4]))) == struct.pack("<f2b", 1, 127, 1)
    np.testing.assert_allclose(lossy.state(), [0, -0.2, 0, 0.4], atol=1e-6)
    again = ErrorFeedback(build("int8"), 4)
    again.load_state(lossy.state())
    assert bytes(again.encode(second, np.float32([127, 0.2]))) == struct.pack("<f2b", 1, 127, 1)
    np.testing.assert_allclose(again.state(), [0, -0.2, 0, -0.4], atol=1e-6)
    exact = ErrorFeedback(build("raw"), 4)
    exact.load_state(lossy.state())
    assert exact.state().size == 0


@pytest.mark.parametrize("name", ["int8", "sign"])
def test_each_block_has_a_scale_of_its_own(name):
    """A block of 1,024 values shares one scale; the last block may be short."""
    values = np.repeat(np.float32([127, 254, 381]), [1024, 1024, 8])
    payload = bytes(build(name).encode(values))
    scales = [1, 2, 3] if name == "int8" else [127, 254, 381]
    assert struct.unpack("<3f", payload[:12]) == tuple(scales)
    assert payload[12:] == (b"\x7f" * 2056 if name == "int8" else bytes(257))
    found = np.zeros_like(values)
    build(name).decode(payload, found)
    np.testing.assert_array_equal(found, values)


def test_how_many_values_a_chunk_holds():
    """The chunk size is a part of the wire: both sides cut alike, and a position of topk has two bytes."""
    sizes = {name: build(name).chunk_values for name in ("raw", "float16", "bfloat16", "int8", "topk", "sign")}
    mib = 2**20
    assert sizes == {
        "raw": mib // 4,
        "float16": mib // 4,
        "bfloat16": mib // 4,
        "int8": 255 * 1024,
        "topk": 65536,
        "sign": mib // 4,
    }
    # A sent value has six bytes, and a chunk has no more than 256 KiB.
    assert build("topk", fraction=0.5).chunk_values == 65536
    assert build("topk", fraction=1.0).chunk_values == 43690
