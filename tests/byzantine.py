"""Messages that a byzantine or broken peer might send, each with the reasons under which it may be counted.

`Corpus.spoil` makes one from a genuine message: bytes changed, cut, added or exchanged; header fields with other
values and a checksum that fits them; maps that are none, or have values that they must not have.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from peers.codecs.checksum import checksum
from peers.exchange.layout import ExchangeLayout
from peers.rounds.layout import RoundLayout
from peers.types import Buffer, Slice
from peers.wire.encode import encode_vector
from peers.wire.fields import MAX_FIELDS_BYTES
from peers.wire.header import VERSION

# The changed message is refused; the name of the reason depends on the place of the change.
ANY = frozenset(("malformed", "checksum", "version", "fingerprint", "kind", "layout", "incomplete", "oversized"))
HUGE = 2**40

# Other values of header fields, each with the reason of its refusal. The other fields stay as they were.
HEADERS: list[tuple[dict[str, Any], str]] = [
    *(({"v": v}, "version") for v in (0, 1, VERSION + 1, HUGE)),
    *(({"k": k}, "kind") for k in ("", "parts", "eval", "x" * 500)),
    *(({"r": r}, "malformed") for r in (-1, 2**48, 2**63, 2**64 - 1, -(2**63))),
    *(({"i": i}, "incomplete") for i in (1, 7, -1, HUGE)),
    *(({"n": n}, "layout") for n in (0, 2, -1, HUGE)),
    *(
        (span, "layout")
        for span in ({"b": HUGE}, {"a": -1}, {"a": HUGE, "b": 0}, {"a": -HUGE, "b": HUGE}, {"a": 5, "b": 5})
    ),
    *(({"c": c}, "layout") for c in ("", "signs", "map", "pickle", "../raw")),
    *(({"f": f}, "fingerprint") for f in (b"", b"another!", bytes(3000))),
    *(({"x": x}, "malformed") for x in ({"s": float("nan")}, {"s": float("inf")}, {"s": "1"}, "text", [1], {1: 1.0})),
    *(({key: value}, "malformed") for key in "vrinabk" for value in (None, 1.5, b"1", [1], {"a": 1})),
    *(({key: ...}, "malformed") for key in "vkrinabfz"),
    *(({key: 1}, "malformed") for key in ("q", "__class__", "zz")),
    ({"x": {str(k): 1.0 for k in range(2000)}}, "oversized"),
]

MAPS: list[tuple[str, Buffer, str]] = [
    *(
        ("hello", msgpack.packb(fields), "malformed")
        for fields in ({}, {"is_replaying": True}, {1: 2}, [], 7, None, "x")
    ),
    *(
        ("hello", blob, "malformed")
        for blob in (b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x81\xa1")
    ),
    ("hello", b"\x91" * 60_000, "malformed"),
    ("hello", b"\xc9\x7f\xff\xff\xff\x01", "malformed"),
    ("hello", b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "malformed"),
    ("hello", bytes(MAX_FIELDS_BYTES + 1), "oversized"),
]
# Maps that only members of a partial exchange refuse; the modes with rounds check them when they use them.
REQUESTS: list[tuple[str, Buffer, str]] = [
    *(("want", msgpack.packb({"token": token}), "malformed") for token in ("", "x" * 65, 7, None, ["x"], b"x")),
    *(("want", msgpack.packb(fields), "malformed") for fields in ({}, {"tokens": "x"})),
    *(
        ("admit", msgpack.packb({"worker": worker, "incarnation": "x"}), "malformed")
        for worker in (9, -1, 2**63, float("inf"), float("nan"), "one", None, [1])
    ),
    ("admit", msgpack.packb({"worker": 2}), "malformed"),
]


class Corpus:
    """Spoils messages of one kind of vector.

    Args:
        layout: the layout that the receiver expects.
        kind: of vector.
        whole: the slice that a message of it covers; one entry.
        seed: one seed gives the same messages every time.
    """

    def __init__(self, layout: ExchangeLayout | RoundLayout, kind: str, whole: Slice, seed: int):
        self._layout, self._kind, self._whole = layout, kind, whole
        self._random = np.random.default_rng(seed)
        # A map under the name of a kind with a vector.
        odd = [(kind, msgpack.packb({"a": 1}), "layout")] * 2
        self._maps = MAPS + odd + (REQUESTS if isinstance(layout, ExchangeLayout) else [])
        self._ways = (
            self._flip,
            self._cut,
            self._grow,
            self._scramble,
            self._exchange,
            self._lie,
            self._log,
            self._resize,
        )

    def genuine(self, round: int) -> tuple[bytes, bytes]:
        """A message of a round, as header and payload."""
        values = self._random.standard_normal(self._whole.size).astype(np.float32)
        ((header, payload),) = encode_vector(self._layout, self._kind, round, self._whole, values)
        return header, bytes(payload)

    def spoil(self, header: bytes, payload: bytes) -> tuple[bytes, bytes, frozenset[str]]:
        """Another header and payload, and the reasons one of which it must be refused for."""
        return self._ways[self._random.integers(len(self._ways))](header, payload)

    def _flip(self, header: bytes, payload: bytes):
        both = bytearray(header + payload)
        for at in self._random.integers(0, len(both), self._random.integers(1, 4)):
            both[at] ^= 1 << self._random.integers(8)
        changed = bytes(both[: len(header)]), bytes(both[len(header) :])
        if changed == (header, payload):
            return self._cut(header, payload)
        return *changed, ANY

    def _cut(self, header: bytes, payload: bytes):
        if self._random.integers(2):
            return header[: self._random.integers(len(header))], payload, ANY
        return header, payload[: self._random.integers(len(payload))], frozenset(("checksum",))

    def _grow(self, header: bytes, payload: bytes):
        more = self._random.bytes(self._random.integers(1, 2000))
        if self._random.integers(2):
            return header + more, payload, ANY
        return header, payload + more, frozenset(("checksum",))

    def _scramble(self, header: bytes, payload: bytes):
        return (
            self._random.bytes(self._random.integers(0, 200)),
            self._random.bytes(self._random.integers(0, 2000)),
            ANY,
        )

    def _exchange(self, header: bytes, payload: bytes):
        return self.genuine(int(self._random.integers(1, 99)))[0], payload, ANY

    def _lie(self, header: bytes, payload: bytes):
        changes, reason = HEADERS[self._random.integers(len(HEADERS))]
        return self.lie(header, payload, changes), payload, frozenset((reason,))

    def lie(self, header: bytes, payload: bytes, changes: dict[str, Any]) -> bytes:
        """A header with other fields, and a checksum that fits."""
        fields = msgpack.unpackb(header) | changes
        # The checksum comes last; without it the last bytes belong to another field.
        if fields.get("z") is not ...:
            fields["z"] = fields.pop("z")
        packed = msgpack.packb({key: value for key, value in fields.items() if value is not ...})
        return packed if "z" in changes else summed(packed, payload)

    def _log(self, header: bytes, payload: bytes):
        kind, blob, reason = self._maps[self._random.integers(len(self._maps))]
        changes = {"k": kind, "c": "map", "n": 1, "a": 0, "b": 0}
        return self.lie(header, bytes(blob), changes), bytes(blob), frozenset((reason,))

    def _resize(self, header: bytes, payload: bytes):
        """A payload of another size than its codec's, with the payload's own checksum."""
        other = payload[: -self._random.integers(1, len(payload) + 1)] if self._random.integers(2) else payload + b"\0"
        return summed(header, other), other, frozenset(("malformed",))


def summed(packed: bytes, payload: bytes) -> bytes:
    return packed[:-4] + checksum(payload, checksum(packed[:-4])).to_bytes(4, "big")
